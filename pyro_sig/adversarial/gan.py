"""A program against a critic, with the steps of SVI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_sig.adversarial._critic_player import CriticPlayer, Scorer
from pyro_sig.adversarial._elbo_term import ElboTerm, Weight
from pyro_sig.adversarial._program_player import ProgramPlayer
from pyro_sig.adversarial._runs import Draw, Runs
from pyro_sig.adversarial._tap import modules_run
from pyro_sig.adversarial._trainer import Stateful, Trainer, check_integer
from pyro_sig.adversarial.balance import Balance
from pyro_sig.adversarial.objectives import NonSaturating, Objective
from pyro_sig.adversarial.penalties import Penalty, gradient_points
from pyro_sig.adversarial.views import Value, as_parts

__all__ = ["GAN"]


class GAN(Trainer):
    r"""Trains a program that can only be sampled against a critic that tells its draws from data.

    .. math::
        \min_D \; \mathcal{L}_D\big(D(x), D(\tilde x)\big) + \text{penalties}, \qquad
        \min_\theta \; \mathcal{L}_G\big(D(x), D(\tilde x)\big) + \lambda H_\theta, \qquad
        \tilde x \sim p_\theta

    The draws are made by running the program with its observations released, the data are its
    observations in the same run, so that plates that subsample pair both. With an `elbo`, the
    bound :math:`H_\theta` (the negative ELBO for each unit of the data) joins the program's loss
    with the weight :math:`\lambda`; with :class:`~pyro_sig.infer.SIG_ELBO`, or a
    :class:`~pyro_sig.distributions.SemiImplicit` under ``Trace_ELBO``, this is the GAN-SI, whose
    critic sees the very psi that the bound has drawn.

    A step is `critic_steps` updates of the critic and one of the program. The critic's first
    updates see draws of their own (and, in a plate that subsamples, data of their own).

    :param model: a Pyro program with an observed site.
    :param critic: a torch module, no Pyro module, called as ``critic(value)``, or with several
        values; larger scores mean more real. Shapes: ``[units, ...]`` to ``[units]`` or
        ``[units, 1]``.
    :param optim: optimiser of the program's parameters (and the guide's), of :mod:`pyro.optim`
        or torch. Torch's takes all parameters in one go, and is faster with small networks.
    :param critic_optim: torch's optimiser of ``critic.parameters()``.
    :param objective: one of :mod:`pyro_sig.adversarial.objectives`, by default the non-saturating.
    :param penalties: one or several of :mod:`pyro_sig.adversarial.penalties`.
    :param view: what the critic sees, ``view(trace) -> (real, fake)``; see
        :class:`~pyro_sig.adversarial.View`. By default, if there is an `elbo`, the psi of an
        Implicit or SemiImplicit site that are the mean of the data that they emit, else the
        observed sites.
    :param conditional: a function of the program's arguments whose result the critic gets after the
        values: with ``lambda x, label: label`` it is called as ``critic(value, label)``. True for
        all arguments, ``critic(value, *args, **kwargs)``: not where data are among them, which
        the critic could look up. Where a plate subsamples, show the condition by `view`.
    :param int critic_steps: updates of the critic in a step.
    :param int unroll: number K of further steps of the critic, on the same batch, through which
        the program's gradient goes; 0 for none. A step of the critic is as of `critic_optim`.
    :param ema: decay of a running average of the program's parameters, used in :meth:`averaged`;
        at step t it is at most (1 + t) / (10 + t).
    :param elbo: an ELBO of the same program.
    :param elbo_weight: the :math:`\lambda`: a number (``math.inf`` leaves out the critic), a
        function of the step, or a :class:`~pyro_sig.adversarial.Balance`; ``"balance"`` is its
        default one. It scales the gradient of the guide too: with 0, a guide stays as it is. In
        a step where the function returns 0, no bound is computed and the last one reported.
    :param guide: the guide of the `elbo`, by default empty.
    :param autocast: a type such as ``torch.bfloat16`` for :func:`torch.autocast` around program
        and critic.
    :param bool compile_networks: compile the critic and the networks that the program runs, by
        :meth:`torch.nn.Module.compile`; not with `unroll` or penalties that take gradients.
    :raises ValueError: if an argument is not as described. In the first step also: if nothing is
        observed, if no plate makes exchangeable units, if model and critic share a tensor, if
        a draw has no gradient, or if the scores do not match the batch.

    **Source:** Goodfellow et al., *Generative Adversarial Networks* (2014); Yin and Zhou,
    *Semi-Implicit Generative Model* (2019), eq. 11 and 12; Metz et al., *Unrolled Generative
    Adversarial Networks* (2017).

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit
        >>> net = torch.nn.Linear(1, 2)
        >>> noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> def model(x):
        ...     pyro.module("net", net)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", Implicit(net, noise, event_shape=2), obs=x)
        >>> from pyro_sig.nn import MLP
        >>> critic = MLP(2, [8], 1)
        >>> gan = GAN(
        ...     model,
        ...     critic,
        ...     pyro.optim.Adam({"lr": 1e-3}),
        ...     torch.optim.Adam(critic.parameters(), lr=1e-3),
        ... )
        >>> critic_loss, generator_loss = gan.step(torch.randn(64, 2))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        critic: nn.Module,
        optim: PyroOptim | torch.optim.Optimizer,
        critic_optim: torch.optim.Optimizer,
        objective: Objective | None = None,
        penalties: Penalty | Sequence[Penalty] = (),
        *,
        view: Callable[[Any], tuple[Value, Value]] | None = None,
        conditional: bool | Callable[..., Value] = False,
        critic_steps: int = 1,
        unroll: int = 0,
        ema: float | None = None,
        elbo: ELBO | None = None,
        elbo_weight: Weight | None = None,
        guide: Callable[..., Any] | None = None,
        autocast: torch.dtype | None = None,
        compile_networks: bool = False,
    ) -> None:
        for name, program in (("model", model), ("guide", guide), ("view", view)):
            if not callable(program) and (program is not None or name == "model"):
                raise ValueError(f"`{name}` must be callable, was {type(program).__name__}")
        super().__init__()
        objective = NonSaturating() if objective is None else objective
        self._program = ProgramPlayer(optim, ema)
        self._critic = CriticPlayer(critic, critic_optim, objective, penalties, bool(conditional))  # type: ignore[arg-type]
        self.conditional = conditional
        self.critic_steps = check_integer("critic_steps", critic_steps, least=1)
        self.unroll = check_integer("unroll", unroll, least=0)
        self._term: ElboTerm | None = None
        if elbo is not None:
            self._term = ElboTerm(elbo, elbo_weight, guide)
        for name, value in (("elbo_weight", elbo_weight), ("guide", guide)):
            if elbo is None and value is not None:
                raise ValueError(f"`{name}` must be None without an `elbo`, was {value!r}")
        self.autocast = autocast
        self.compile_networks = compile_networks
        self._check_precision()
        self._runs = Runs(model, view, self._term, self._precision)

    @property
    def model(self) -> Callable[..., Any]:
        """The program."""
        return self._runs.model

    @property
    def view(self) -> Callable[[Any], tuple[Value, Value]] | None:
        """What the critic sees; None before the first step has found the default."""
        return self._runs.view

    @property
    def critic(self) -> nn.Module:
        """The critic."""
        return self._critic.critic

    @property
    def critic_optim(self) -> torch.optim.Optimizer:
        """The optimiser of the critic."""
        return self._critic.optim

    @property
    def optim(self) -> PyroOptim | torch.optim.Optimizer:
        """The optimiser of the program."""
        return self._program.optim

    @property
    def objective(self) -> Objective:
        """The objective."""
        return self._critic.objective

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        """The penalties."""
        return self._critic.penalties

    @property
    def elbo(self) -> ELBO | None:
        """The ELBO beside the critic, if there is one."""
        return None if self._term is None else self._term.elbo

    @property
    def elbo_weight(self) -> Weight | None:
        """Its weight."""
        return None if self._term is None else self._term.weight

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of what :meth:`step` returns."""
        return ("critic", "generator") if self._term is None else ("critic", "generator", "elbo")

    # -------------------------------------------------------------------------------------- a step

    def step(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Updates the critic, then the program.

        :param args: arguments of the program.
        :param kwargs: its keyword arguments.
        :return: the loss of the critic with its penalties, the adversarial loss of the program
            and, with an `elbo`, the negative ELBO of the whole data.
        :raises ValueError: see :class:`GAN`.
        """
        self._prepare(args, kwargs)
        self._program.zero_grad()  # what other losses have left
        for _ in range(self.critic_steps - 1):
            with torch.no_grad():
                draw = self._runs.released(args, kwargs)
            self._update_critic(draw, args, kwargs)
        weight = None if self._term is None else self._term.weigh(self.num_steps)
        draw = self._runs.draw(args, kwargs, bounded=weight is not None)
        if self.unroll:  # from where the critic stands, through what it would learn
            adversarial = self._unrolled_loss(draw, args, kwargs)
            self._add_gradients(draw, adversarial, weight)
            critic_loss = self._update_critic(draw, args, kwargs)
        else:
            critic_loss = self._update_critic(draw, args, kwargs)
            adversarial = self._generator_loss(self.critic, draw, args, kwargs)
            self._add_gradients(draw, adversarial, weight)
        self._program.step()
        self.num_steps += 1
        losses = (critic_loss.item(), adversarial.item())
        if self._term is None:
            return losses
        if draw.bound is not None:
            bound = draw.bound
            self._term.last = bound.item() if isinstance(bound, Tensor) else bound
        assert self._term.last is not None
        return *losses, self._term.last

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Computes the losses of :meth:`step` without penalties; changes no tensor.

        :param args: arguments of the program.
        :param kwargs: its keyword arguments.
        :return: losses as :meth:`step` returns them.
        """
        real, fake = self.scores(*args, **kwargs)
        losses = (
            self.objective.critic_loss(real, fake).item(),
            self.objective.generator_loss(real, fake).item(),
        )
        if self._term is None:
            return losses
        with modules_run():
            return *losses, self._term.evaluate(self.model, args, kwargs)

    @torch.no_grad()
    def scores(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Scores data and draws, as an objective's ``estimate`` takes them.

        :param args: arguments of the program.
        :param kwargs: its keyword arguments.
        :return: scores of the data and of the draws, each of shape ``[units]``.
        """
        real, fake = self.values(*args, **kwargs)
        with modules_run(), self._precision():
            score = self._scorer(self.critic, args, kwargs)
            return score(*as_parts(real)), score(*as_parts(fake))

    @torch.no_grad()
    def values(self, *args: Any, **kwargs: Any) -> tuple[Value, Value]:  # noqa: ANN401
        """Runs the program and returns what the critic sees.

        :param args: arguments of the program.
        :param kwargs: its keyword arguments.
        :return: data and draws, each of shape ``[units, ...]`` or a tuple of such.
        """
        self._prepare(args, kwargs)
        with modules_run():  # batch statistics stay as they are
            draw = self._runs.released(args, kwargs)
        return draw.real, draw.fake

    def averaged(self) -> AbstractContextManager[None]:
        """Puts the running averages in place of the program's parameters, within a context.

        :return: a context manager; the program is run inside of it.
        :raises ValueError: without `ema`.
        """
        return self._program.averaged()

    # ---------------------------------------------------------------------------------- the losses

    def _scorer(self, critic: Callable[..., Any], args: tuple, kwargs: Mapping) -> Scorer:
        if callable(self.conditional):
            args, kwargs = as_parts(self.conditional(*args, **kwargs)), {}
        elif not self.conditional:
            args, kwargs = (), {}
        return self._critic.scorer(critic, args, kwargs)

    def _update_critic(self, draw: Draw, args: tuple, kwargs: Mapping) -> Tensor:
        with self._precision():
            score = self._scorer(self.critic, args, kwargs)
            loss = self._critic.loss(score, _detach(draw.real), _detach(draw.fake))
        self._critic.step(loss)
        return loss

    def _generator_loss(
        self, critic: Callable[..., Any], draw: Draw, args: tuple, kwargs: Mapping
    ) -> Tensor:
        with self._precision():
            score = self._scorer(critic, args, kwargs)
            real = None
            if self.objective.uses_real:
                # Only a critic that is unrolled has learnt from the draws of this step.
                with torch.set_grad_enabled(self.unroll > 0):
                    real = score(*as_parts(draw.real))
            return self.objective.generator_loss(real, score(*as_parts(draw.fake)))

    def _unrolled_loss(self, draw: Draw, args: tuple, kwargs: Mapping) -> Tensor:
        def loss(critic: Callable[..., Tensor]) -> Tensor:
            score = self._scorer(critic, args, kwargs)
            return self._critic.loss(score, draw.real, draw.fake)

        with self._precision():
            ahead = self._critic.ahead(self.unroll, loss)
        return self._generator_loss(ahead, draw, args, kwargs)

    def _add_gradients(
        self, draw: Draw, adversarial: Tensor, weight: float | Balance | None
    ) -> None:
        """Writes the gradient of the program's loss."""
        params = self._program.meet(draw.params, self._critic.owns)
        if self._term is None or draw.bound is None or weight is None:
            adversarial.backward(inputs=params)
        else:
            self._term.write_gradients(params, adversarial, draw.bound, draw.num_units, weight)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        device = next(self.critic.parameters()).device
        return torch.autocast(device.type, dtype=self.autocast)

    # ------------------------------------------------------------------------------ the first step

    def _check_precision(self) -> None:
        if self.autocast is not None and not isinstance(self.autocast, torch.dtype):
            raise ValueError(f"`autocast` must be a torch dtype or None, was {self.autocast!r}")
        doubled = self.unroll or gradient_points(self.penalties)
        if self.compile_networks and doubled:
            raise ValueError(
                "`compile_networks` must be False with `unroll` or with penalties that take a "
                "gradient: compiled networks cannot be differentiated twice"
            )

    def _meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Runs model and guide once to find their sites, parameters and networks."""
        params, modules = self._runs.prepare(args, kwargs)
        self._program.meet(params, self._critic.owns)
        self._program.modules = modules
        self._refuse_shared(modules)
        if self.compile_networks:
            for module in (self.critic, *modules):
                module.compile()

    def _refuse_shared(self, modules: Sequence[nn.Module]) -> None:
        programs = [self.model] if self._term is None else [self.model, self._term.guide]
        own = [m for m in programs if isinstance(m, nn.Module)]
        for module in (*modules, *own):
            for name, param in module.named_parameters():
                if self._critic.owns(param):
                    raise ValueError(
                        f"`critic` must share no tensor with the model, but shared {name!r} of a "
                        f"{type(module).__name__}"
                    )

    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {"program": self._program, "critic": self._critic}
        return parts if self._term is None else {**parts, "elbo": self._term}

    def __repr__(self) -> str:
        parts = [repr(self.objective), *map(repr, self.penalties)]
        for name, default in (("critic_steps", 1), ("unroll", 0), ("elbo_weight", None)):
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        if self._term is not None:
            parts.insert(1, f"elbo={type(self._term.elbo).__name__}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _detach(value: Value) -> Value:
    if isinstance(value, tuple):
        return tuple(part.detach() for part in value)
    return value.detach()
