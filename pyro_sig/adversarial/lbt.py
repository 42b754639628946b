"""A program that teaches a density estimator to score the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_sig._arguments import check_instance, check_integer, check_number, refusal
from pyro_sig._functions import check_callable, is_function
from pyro_sig._program_player import ProgramPlayer
from pyro_sig._program_run import modules_run
from pyro_sig._random_state import preserved_random_state
from pyro_sig.adversarial._fitted_student import FittedStudent
from pyro_sig.adversarial._student import Call, Student
from pyro_sig.adversarial._substitute import substitutes, with_draws
from pyro_sig.adversarial._tap import ReleasedRun
from pyro_sig.adversarial._trainer import Stateful, Trainer
from pyro_sig.adversarial._units import find_unit_plates, observed_sites, unit_rows
from pyro_sig.adversarial.gan import GAN
from pyro_sig.adversarial.views import as_data

__all__ = ["LBT"]


class Fits(Protocol):
    """An estimator that has its best answer in closed form."""

    def fit(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:  # noqa: ANN401
        """Returns a program that scores data."""


Estimator = Callable[..., Any] | Sequence[Callable[..., Any]] | Fits


class LBT(Trainer):
    r"""Trains a program that can only be sampled to teach a student that can score the data.

    .. math::
        \max_\theta \; E_{x} \log p_{\phi^*(\theta)}(x), \qquad
        \phi^*(\theta) = \arg\max_\phi \; E_{\tilde x \sim p_\theta} \log p_\phi(\tilde x)

    The teacher is the `model`. The student, any model and guide with a density or a bound on it,
    sees the teacher's draws only, and the teacher learns from how well the student then scores
    the data: a mode that the draws leave out costs the student dear. The gradient goes through
    :math:`K` steps of the student, each on draws of its own,

    .. math::
        \nabla_\theta \; E_x \log p_{\phi_K(\theta)}(x), \qquad
        \phi_{k+1} = \phi_k
        + u\big(\nabla_\phi E_{\tilde x \sim p_\theta} \log p_{\phi_k}(\tilde x)\big)

    which are thrown away. The steps that the student keeps come first, `commits` times :math:`K` of
    them. With a `gan` of the same model, LBT-GAN, its critic is updated too, and its loss
    joins the teacher's with the weight `gan_weight`.

    :param model: the teacher, a Pyro program that observes its arguments.
    :param estimator: the student: a pair ``(model, guide)``, or a model without latents, called
        with the arguments of the teacher and the teacher's draws in place of the data. Or an object
        with a method ``fit``, which gets the same and returns its best answer in closed form, a
        model without latents: moments of a Normal law, the draws of a kernel density. Then there
        are no steps.
    :param optim: optimiser of the teacher's parameters, of :mod:`pyro.optim` or torch.
    :param estimator_optim: optimiser of the student's parameters, Adam, AdamW, SGD or RMSprop of
        torch or :mod:`pyro.optim`; None for an estimator that fits
        itself. Derivatives through Adam want ``eps=1e-4`` and a first beta of
        0.5, as in the paper.
    :param int inner_steps: the :math:`K`.
    :param int commits: how many times :math:`K` steps the student keeps.
    :param float commit_rate: factor of the student's learning rate in the steps it keeps.
    :param elbo: the bound of the student's log-density, :class:`~pyro.infer.Trace_ELBO` by
        default; it has to be differentiable, as that of a semi-implicit student is.
    :param weight: weight of the student's score of the data in the teacher's loss; a number or a
        function of the step. Where it is 0 the student learns, and does not teach.
    :param gan: a :class:`~pyro_sig.adversarial.GAN` of the same `model` and `optim`.
    :param float gan_weight: the weight of its loss, 0.1 for toys and 1 for images in the paper.
    :param clip_norm: largest norm of the teacher's gradient, over all its parameters; None for any.
    :param ema: decay of a running average of the teacher's parameters, used in :meth:`averaged`;
        with a `gan` that of the `gan`.
    :raises ValueError: if an argument is not as described. In the first step also: if the data are
        no arguments, if draws have no gradient, if the student cannot score the data or the
        draws, or shares a tensor with the teacher.

    The losses are the student's on the teacher's draws and on the data, each for one unit, and
    with a `gan` those of the `gan`.

    **Source:** Du, Xu, Li, Zhu and Zhang, *Learning Implicit Generative Models by Teaching
    Explicit Ones* (2018), https://arxiv.org/abs/1807.03870.

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit
        >>> net = torch.nn.Linear(1, 1)
        >>> noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> def teacher(x):
        ...     pyro.module("net", net)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", Implicit(net, noise, event_shape=1), obs=x)
        >>> def student(x):
        ...     loc = pyro.param("loc", torch.zeros(1))
        ...     scale = pyro.param("scale", torch.ones(1), dist.constraints.positive)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)
        >>> lbt = LBT(
        ...     teacher,
        ...     student,
        ...     pyro.optim.Adam({"lr": 1e-2}),
        ...     pyro.optim.Adam({"lr": 1e-2, "betas": (0.5, 0.999), "eps": 1e-4}),
        ... )
        >>> on_draws, on_data = lbt.step(3 + 2 * torch.randn(64, 1))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        estimator: Estimator,
        optim: PyroOptim | torch.optim.Optimizer,
        estimator_optim: PyroOptim | torch.optim.Optimizer | None = None,
        *,
        inner_steps: int = 5,
        commits: int = 1,
        commit_rate: float = 3.0,
        elbo: ELBO | None = None,
        weight: float | Callable[[int], float] = 1.0,
        gan: GAN | None = None,
        gan_weight: float = 0.1,
        clip_norm: float | None = None,
        ema: float | None = None,
    ) -> None:
        super().__init__()
        check_callable("model", model)
        self.model = model
        self.inner_steps = check_integer("inner_steps", inner_steps, 1, int)
        self.commits = check_integer("commits", commits, 0, int)
        self.commit_rate = check_number("commit_rate", commit_rate, above=0)
        self.weight = weight
        if not is_function(weight) or isinstance(weight, nn.Module):
            check_number("weight", weight, least=0)
        self.gan = gan
        self.gan_weight = check_number("gan_weight", gan_weight, least=0)
        self.clip_norm = clip_norm
        if clip_norm is not None:
            check_number("clip_norm", clip_norm, above=0)
        if gan is None:
            self._program = ProgramPlayer(optim, ema)
        else:
            self._program = _check_gan(gan, model, optim, ema)
        self._student = _make_student(
            estimator, estimator_optim, Trace_ELBO() if elbo is None else elbo
        )
        self._last_score = math.nan

    @property
    def estimator_optim(self) -> PyroOptim | torch.optim.Optimizer | None:
        """The optimiser of the student; torch's once its parameters are known."""
        return self._student.optim

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of what :meth:`step` returns."""
        return ("student", "teacher") + (() if self.gan is None else self.gan.loss_names)

    # -------------------------------------------------------------------------------------- a step

    def step(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Updates the student, the critic if there is one, and the teacher.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: the student's negative bound on the draws (the last that it has learned from) and
            on the data (after :math:`K` steps ahead), each for one unit; the losses of the `gan`.
        :raises ValueError: see :class:`LBT`.
        """
        self.prepare(*args, **kwargs)
        self._program.zero_grad()  # what other losses have left
        on_draws = self._student.teach(
            self.commits * self.inner_steps, self.commit_rate, lambda: self._draw(args, kwargs)
        ).item()
        beside: tuple[float, ...] = ()
        if self.gan is not None:
            self.gan.num_steps = self.num_steps
            beside = self.gan._play(args, kwargs)
            for param in self._program.params.values():
                if param.grad is not None:
                    param.grad *= self.gan_weight
        weight = self.weight(self.num_steps) if callable(self.weight) else self.weight
        weight = check_number("weight", weight, least=0)
        if weight:
            score = self._score_ahead(args, kwargs)
            (weight * score).backward(inputs=list(self._program.params.values()))
            self._last_score = score.item()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self._program.params.values()), self.clip_norm)
        self._program.step()
        self.num_steps += 1
        return on_draws, self._last_score, *beside

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Computes the losses of :meth:`step`, without keeping any step; changes no tensor.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: losses as :meth:`step` returns them.
        """
        self.prepare(*args, **kwargs)
        with modules_run(), torch.no_grad():
            on_draws = self._student.teach(0, 1.0, lambda: self._draw(args, kwargs))
            on_data = self._score_ahead(args, kwargs)
        beside = () if self.gan is None else self.gan.evaluate_loss(*args, **kwargs)
        return on_draws.item(), on_data.item(), *beside

    def _score_ahead(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Scores the data by the student as it will be after some more steps."""
        sizes = []

        def draw() -> tuple[Call, int]:
            call, num_units = self._draw(args, kwargs)
            sizes.append(num_units)
            return call, num_units

        ahead = self._student.ahead(self.inner_steps, draw)
        return ahead((args, kwargs)) / sizes[-1]

    def _draw(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Call, int]:
        """Returns the arguments with draws of the teacher in place of data, and their number."""
        with ReleasedRun() as run:
            self.model(*args, **kwargs)
        draws = substitutes(run)
        if torch.is_grad_enabled():
            self._program.meet(run.params)
            for name, (_, draw) in draws.items():
                if not draw.requires_grad:
                    raise ValueError(
                        "`model` must draw what the student learns from with a gradient to its "
                        f"parameters, but site {name!r} had none: it must have rsample, and its "
                        "law must depend on a parameter"
                    )
        return with_draws(args, kwargs, draws), _count_units(run)

    # ------------------------------------------------------------------------------ the first step

    def _meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        with preserved_random_state():
            if self.gan is not None:
                self.gan.prepare(*args, **kwargs)
            else:
                with modules_run() as modules, torch.no_grad(), ReleasedRun() as run:
                    self.model(*args, **kwargs)
                self._program.meet(run.params)
                self._program.modules = modules
            with torch.no_grad():
                self._compare(args, kwargs)
                draws, _ = self._draw(args, kwargs)
            self._student.prepare((args, kwargs), draws, self._owned)

    def _compare(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Checks that draws, which the student takes for data, have their shape and device."""
        with modules_run(), ReleasedRun() as run:  # batch statistics stay as they are
            self.model(*args, **kwargs)
        for name, (data, draw) in substitutes(run).items():
            as_data(name, data, draw.shape, draw)

    def _owned(self, tensor: Tensor) -> bool:
        pointers = {p.data_ptr() for p in self._program.params.values()}
        if self.gan is not None and self.gan._critic.owns(tensor):
            return True
        return tensor.data_ptr() in pointers

    def _parts(self) -> dict[str, Stateful]:
        beside = {} if self.gan is None else self.gan._parts()
        return {"program": self._program, **beside, "student": self._student}

    def __repr__(self) -> str:
        parts = [f"inner_steps={self.inner_steps}", f"commits={self.commits}"]
        if self.gan is not None:
            parts += [f"gan={self.gan!r}", f"gan_weight={self.gan_weight}"]
        return f"{type(self).__name__}({', '.join(parts)})"


def _make_student(
    estimator: Any,  # noqa: ANN401
    optim: PyroOptim | torch.optim.Optimizer | None,
    elbo: ELBO,
) -> Student | FittedStudent:
    if callable(getattr(estimator, "fit", None)):
        if optim is not None:
            raise ValueError(
                "`estimator_optim` must be None for an `estimator` with a method fit, which takes "
                f"no steps, was {type(optim).__name__}"
            )
        return FittedStudent(estimator.fit, elbo)
    pair = tuple(estimator) if isinstance(estimator, (tuple, list)) else (estimator, None)
    if len(pair) != 2 or not is_function(pair[0]) or not (pair[1] is None or is_function(pair[1])):
        must_be = "a pair of programs (model, guide), one model, or an object with a method fit"
        raise refusal("estimator", must_be, estimator)
    return Student(pair[0], pair[1], optim, elbo)


def _check_gan(gan: GAN, model: Any, optim: Any, ema: float | None) -> ProgramPlayer:  # noqa: ANN401
    check_instance("gan", gan, GAN, "a GAN of the same model")
    # Equal, not identical: a method is a new object each time that it is named.
    if gan.model != model or gan.optim is not optim:
        raise ValueError("`gan` must be a GAN of the same `model` and `optim`, had another of them")
    if ema is not None:
        raise refusal("ema", "given to the `gan`, if there is one", ema)
    return gan._program


def _count_units(run: ReleasedRun) -> int:
    plates = find_unit_plates(run)
    site = next(iter(observed_sites(run).values()))
    return len(unit_rows(site, site["value"], len(site["fn"].event_shape), plates))
