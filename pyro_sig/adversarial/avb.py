r"""A model and a guide without a density, with a critic as the log ratio in the bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn

from pyro_sig._random_state import preserved_random_state
from pyro_sig.adversarial._game import Game
from pyro_sig.adversarial._joint_runs import (
    check_codes,
    check_same_shape,
    check_same_sites,
    latent_sites,
    rows_drawn,
)
from pyro_sig.adversarial._tap import Given, Tap, modules_run
from pyro_sig.adversarial._trainer import check_callable, check_integer
from pyro_sig.adversarial._units import finish_rows, subsampling, unit_mask, unit_rows, whole_units
from pyro_sig.adversarial.objectives import Objective, ReverseKL
from pyro_sig.adversarial.penalties import Penalty
from pyro_sig.adversarial.views import Value, as_parts, as_value

__all__ = ["AVB"]

# As Pyro's own evidence bounds call the plate of their particles.
_PARTICLES = "num_particles_vectorized"


class AVB(Game):
    r"""Trains a model and a guide without a density by the ELBO, whose log ratio a critic learns.

    .. math::
        \min_D \; \mathcal{L}_D\big(D(x, z_r), D(x, z_q)\big), \qquad
        \min_{\theta, \phi} \; E_q[\log r(z) - \log p_\theta(x, z)]
        + \mathcal{L}_G\big(D(x, z_q)\big), \qquad z_q \sim q_\phi(z \mid x), \quad z_r \sim r

    By default r is the prior of the model, so that the first term is
    :math:`-E_q \log p_\theta(x \mid z)`, of all observed sites and factors. With the objective
    :class:`~pyro_sig.adversarial.objectives.ReverseKL` and the best critic the second term is
    :math:`\mathrm{KL}(q \,\|\, r)`, and the loss is minus the ELBO, gradient included.

    Far from the prior the ratio is large and hard to learn. A `contrast` is a program :math:`r(z
    \mid x)` with a density that follows the guide: at every step it learns the draws of the guide
    by maximum likelihood, and the critic only has to find what it lacks (adaptive contrast). In
    the loss of the guide its parameters are constant.

    Where all latents and data share plates (an amortised guide), the units are the rows of these
    plates, for every particle, and the critic sees ``critic(x, z)``: the observed sites in the
    order of the model, then the latents. Otherwise the latents are of the whole data, the units
    are the particles, and the critic sees ``critic(z)``: use many particles. All losses are means
    over units; of subsampled plates they estimate those of all rows.

    :param model: a Pyro program with latent sites, and observed ones or factors.
    :param guide: a program with the same arguments and latent sites, whose draws have a gradient:
        an :class:`~pyro_sig.distributions.Implicit` will do.
    :param critic: a torch module, no Pyro module, to scores of shape ``[units]`` or
        ``[units, 1]``; :class:`~pyro_sig.nn.Joint` makes one of a network of rows.
    :param optim: optimiser of all programs' parameters, of :mod:`pyro.optim` or torch.
    :param critic_optim: torch's optimiser of ``critic.parameters()``.
    :param objective: one of :mod:`pyro_sig.adversarial.objectives`, by default
        :class:`~pyro_sig.adversarial.objectives.ReverseKL`.
    :param penalties: one or several of :mod:`pyro_sig.adversarial.penalties`.
    :param contrast: a program with the same arguments and latent sites, with a density.
    :param int num_particles: draws of the guide in a step, in a plate outside of all others; a
        factor then has a value for each of them, not their sum.
    :param max_plate_nesting: how many dimensions the plates of model and guide take; by default
        found in the first step.
    :param conditional: what else the critic sees, as in :class:`~pyro_sig.adversarial.GAN`: rows
        as many as units.
    :param int critic_steps: updates of the critic in a step.
    :param ema: decay of a running average of the programs' parameters.
    :param autocast: a type for :func:`torch.autocast`.
    :param bool compile_networks: compile critic and networks, as in
        :class:`~pyro_sig.adversarial.GAN`.
    :cvar loss_names: the loss of the critic, the :math:`\mathcal{L}_G` (generator), and
        :math:`E_q[\log r(z) - \log p_\theta(x, z)]` (expected).
    :raises ValueError: if an argument is not as described. In the first step also: if the programs
        disagree on latent sites or their shapes, if nothing is observed, if the draws of the guide
        have no gradient, if the prior has parameters and there is no `contrast`, if this has no
        density, or if the critic does not take what it is shown.

    **Source:** Mescheder, Nowozin and Geiger, *Adversarial Variational Bayes* (2017), eq. 3.8,
    algorithm 1 and section 3.3.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit
        >>> from pyro_sig.nn import MLP, Joint
        >>> net, noise = MLP(3, [8], 1), dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("net", net)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", Implicit(lambda e, x: net(torch.cat([e, x], -1)), noise, 1, x))
        >>> critic = Joint(MLP(2, [8], 1))
        >>> critic_optim = torch.optim.Adam(critic.parameters(), lr=1e-3)
        >>> avb = AVB(model, guide, critic, pyro.optim.Adam({"lr": 1e-3}), critic_optim)
        >>> critic_loss, generator_loss, expected = avb.step(torch.randn(64, 1))
        >>> elbo = avb.evaluate_elbo(torch.randn(64, 1))
    """

    loss_names = ("critic", "generator", "expected")

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        critic: nn.Module,
        optim: PyroOptim | torch.optim.Optimizer,
        critic_optim: torch.optim.Optimizer,
        objective: Objective | None = None,
        penalties: Penalty | Sequence[Penalty] = (),
        *,
        contrast: Callable[..., Any] | None = None,
        num_particles: int = 1,
        max_plate_nesting: int | None = None,
        conditional: bool | Callable[..., Value] = False,
        critic_steps: int = 1,
        ema: float | None = None,
        autocast: torch.dtype | None = None,
        compile_networks: bool = False,
    ) -> None:
        check_callable("model", model)
        check_callable("guide", guide)
        check_callable("contrast", contrast, optional=True)
        super().__init__(
            critic,
            optim,
            critic_optim,
            ReverseKL() if objective is None else objective,
            penalties,
            conditional=conditional,
            critic_steps=critic_steps,
            unroll=0,
            ema=ema,
            autocast=autocast,
            compile_networks=compile_networks,
        )
        check_integer("num_particles", num_particles, least=1)
        if max_plate_nesting is not None:
            check_integer("max_plate_nesting", max_plate_nesting, least=0)
        self._runs = _Runs(
            model, guide, contrast, num_particles, max_plate_nesting, self._precision
        )

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""
        return self._runs.model

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide."""
        return self._runs.guide

    @property
    def contrast(self) -> Callable[..., Any] | None:
        """The program that follows the guide; None for the prior."""
        return self._runs.contrast

    @property
    def num_particles(self) -> int:
        """Draws of the guide in a step."""
        return self._runs.num_particles

    @torch.no_grad()
    def evaluate_elbo(self, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        r"""Estimates the ELBO for a unit, with the critic's scores as log ratios.

        .. math::
            E_q[\log p(x, z) - \log r(z) + D(x, z)]

        It is neither an upper nor a lower bound: a critic that lags errs on either side. Scores
        are log ratios under the objectives of cross-entropy.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: the estimate.
        """
        self._prepare(args, kwargs)
        with modules_run():
            draw = self._runs.released(args, kwargs)
            with self._precision():
                scores = self._scorer(self.critic, args, kwargs)(*as_parts(draw.fake))
        return float(scores.mean() - draw.expected)

    def _add_gradients(self, draw: Any, adversarial: Tensor) -> None:  # noqa: ANN401
        loss = adversarial + draw.expected
        if draw.misfit is not None:
            loss = loss + draw.misfit
        loss.backward(inputs=self._program.meet(draw.params, self._critic.owns))

    def _losses_beside(self, draw: Any) -> tuple[float, ...]:  # noqa: ANN401
        return (draw.expected.item(),)

    def _evaluate_beside(self, draw: Any, args: tuple, kwargs: dict) -> tuple[float, ...]:  # noqa: ANN401
        return (draw.expected.item(),)

    def _programs(self) -> list[Callable[..., Any]]:
        return [p for p in (self.model, self.guide, self.contrast) if p is not None]

    def _options(self) -> list[str]:
        shown = [] if self.contrast is None else ["contrast"]
        if self.num_particles > 1:
            shown.append(f"num_particles={self.num_particles}")
        return [*shown, *super()._options()]


class _Draw(NamedTuple):
    """What the runs of all programs in a step gave."""

    real: Value  # data, and draws of the contrast or the prior
    fake: Value  # data, and draws of the guide
    params: dict[str, Tensor]
    expected: Tensor  # mean over units of log r(z) - log p(x, z), without what cancels
    misfit: Tensor | None  # minus the log-density of the contrast at the guide's draws


class _Runs:
    """Runs a guide, its model at the draws of the guide, and what it is contrasted with.

    :param model: the model.
    :param guide: the guide.
    :param contrast: the contrast, None for the model's prior.
    :param int num_particles: number of draws.
    :param max_plate_nesting: dimensions of plates, None to find them.
    :param precision: makes the context of every run.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        contrast: Callable[..., Any] | None,
        num_particles: int,
        max_plate_nesting: int | None,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.model = model
        self.guide = guide
        self.contrast = contrast
        self.num_particles = num_particles
        self.max_plate_nesting = max_plate_nesting
        self._precision = precision
        self._latents: list[str] = []
        self._factors: list[str] = []  # what is observed, and factors
        self._shown: list[str] = []  # observed sites of the rows, if latents belong to rows
        self._plates: frozenset[str] = frozenset()  # the plates of these rows

    # ------------------------------------------------------------------------------ the first step

    def prepare(
        self, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[nn.Module]]:
        """Runs all programs to find their sites, without leaving a trace.

        :return: the parameters that they read, and the outermost modules that they ran.
        :raises ValueError: if they do not go together.
        """
        with preserved_random_state(), modules_run() as modules, torch.enable_grad():
            if self.num_particles > 1 and self.max_plate_nesting is None:
                self.max_plate_nesting = self._find_nesting(args, kwargs)
            guide = self._run(self.guide, args, kwargs)
            rows = rows_drawn(guide)
            prior = self._run(self.model, args, kwargs, rows)
            self._find_sites(guide, prior)
            self._check_shapes(guide, prior, "guide")
            if self.contrast is None:
                self._check_prior(prior)
            else:
                contrast = self._run(self.contrast, args, kwargs, rows)
                drawn = [n for n, s in contrast.nodes.items() if _is_drawn(s)]
                if set(drawn) != set(self._latents):
                    raise ValueError(
                        "`contrast` must draw the latent sites of the model, "
                        f"{self._latents}, and nothing else, but drew {drawn}"
                    )
                self._check_shapes(contrast, prior, "contrast")
            with torch.no_grad():
                draw = self.released(args, kwargs)
        return draw.params, modules

    def _find_nesting(self, args: tuple, kwargs: dict[str, Any]) -> int:
        with torch.no_grad(), Tap() as run, self._precision():
            for program in (self.guide, self.model, self.contrast):
                if program is not None:
                    program(*args, **kwargs)
        frames = [f for site in run.nodes.values() for f in site["cond_indep_stack"]]
        return max((-f.dim for f in frames if f.vectorized), default=0)

    def _find_sites(self, guide: Tap, prior: Tap) -> None:
        self._latents = latent_sites(prior)
        check_same_sites(self._latents, latent_sites(guide))
        observed = {
            name: site
            for name, site in prior.nodes.items()
            if site["is_observed"] and not site_is_subsample(site)  # type: ignore[arg-type]
        }
        data = [
            name
            for name, site in observed.items()
            if not site_is_factor(site) and not site["infer"].get("_deterministic")  # type: ignore[arg-type]
        ]
        self._factors = [n for n, s in observed.items() if not s["infer"].get("_deterministic")]
        if not self._factors:
            raise ValueError(
                "`model` must have an observed site or a factor, but its sample sites were "
                f"{self._latents}"
            )
        inside = [_plates(prior.nodes[n]) for n in (*self._latents, *(data or self._factors))]
        self._plates = frozenset.intersection(*inside) - {_PARTICLES}
        self._shown = data if self._plates else []

    def _check_shapes(self, run: Tap, prior: Tap, program: str) -> None:
        for name in self._latents:
            drawn, z = run.nodes[name]["value"], prior.nodes[name]["value"]
            check_same_shape(name, drawn, z, program)

    def _check_prior(self, prior: Tap) -> None:
        learned = [n for n in self._latents if prior.nodes[n]["value"].requires_grad]
        if learned:
            raise ValueError(
                f"`contrast` must be given where the prior has parameters, as at {learned}, was "
                "None: a critic of draws of the prior gives them no gradient"
            )

    # -------------------------------------------------------------------------------------- a step

    def draw(self, args: tuple, kwargs: dict[str, Any]) -> _Draw:
        """Runs the programs with gradients.

        :raises ValueError: if the draws of the guide have none.
        """
        draw = self.released(args, kwargs)
        check_codes(as_parts(draw.fake)[len(self._shown) :], self._latents)
        return draw

    def released(self, args: tuple, kwargs: dict[str, Any]) -> _Draw:
        """Runs the programs; with gradients where these are switched on."""
        guide = self._run(self.guide, args, kwargs)
        rows = rows_drawn(guide)
        z = {name: guide.nodes[name]["value"] for name in self._latents}
        with torch.no_grad():
            other = self._run(self.contrast or self.model, args, kwargs, rows)
        model = self._run(self.model, args, kwargs, {**rows, **z})
        params = {**guide.params, **model.params}

        mask = None
        if self._plates:
            first = model.nodes[(self._shown or self._latents)[0]]
            mask = whole_units(unit_mask(first, self._plates | {_PARTICLES}))
        data = [self._data_rows(model.nodes[name]) for name in self._shown]
        real, fake = (
            finish_rows([self._rows(run.nodes[n], run.nodes[n]["value"]) for n in z], mask)
            for run in (other, guide)
        )
        num_units: float = len(fake[0])
        if self._plates:
            num_units *= subsampling(first, self._plates)

        misfit = None
        log_p = model.log_density_of(self._factors)
        assert log_p is not None
        expected = -log_p / num_units
        if self.contrast is not None:
            log_p = model.log_density_of(self._latents)
            log_r, misfit, of_contrast = self._score_contrast(args, kwargs, rows, z, num_units)
            expected = expected - log_p / num_units + log_r  # type: ignore[operator]
            params |= of_contrast
        return _Draw(as_value([*data, *real]), as_value([*data, *fake]), params, expected, misfit)

    def _score_contrast(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        rows: Mapping[str, Tensor],
        z: Mapping[str, Tensor],
        num_units: float,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns log r as a function of the guide's draws, -log r of r's parameters, and these."""
        assert self.contrast is not None
        leaves = {n: v.detach().requires_grad_(v.requires_grad) for n, v in z.items()}
        run = self._run(self.contrast, args, kwargs, {**rows, **leaves})
        try:
            log_r = run.log_density_of(self._latents)
        except NotImplementedError as error:
            raise ValueError(
                f"`contrast` must have a density at every site, but one of {self._latents} had none"
            ) from error
        assert log_r is not None
        log_r = log_r / num_units
        # One run for both: its slope in the draws, as a number, has no gradient for the parameters.
        moving = [n for n, leaf in leaves.items() if leaf.requires_grad]
        value = log_r.detach()
        if moving and torch.is_grad_enabled():
            slopes = torch.autograd.grad(
                log_r, [leaves[n] for n in moving], retain_graph=True, allow_unused=True
            )
            for name, slope in zip(moving, slopes, strict=True):
                if slope is not None:
                    value = value + ((z[name] - leaves[name].detach()) * slope).sum()
        return value, -log_r, run.params

    def _run(
        self,
        program: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        given: Mapping[str, Tensor] | None = None,
    ) -> Tap:
        particles: Any = nullcontext()
        if self.num_particles > 1:
            dim = -1 - (self.max_plate_nesting or 0)
            particles = pyro.plate(_PARTICLES, self.num_particles, dim=dim)
        with particles, Tap() as run, Given(given or {}), self._precision():
            program(*args, **kwargs)
        return run

    def _rows(self, site: dict[str, Any], value: Tensor) -> Tensor:
        """Lays a value out as one row for each unit."""
        if not self._plates and self.num_particles == 1:
            return value.unsqueeze(0)
        plates = self._plates | {_PARTICLES}
        return unit_rows(site, value, len(site["fn"].event_shape), plates)

    def _data_rows(self, site: dict[str, Any]) -> Tensor:
        law = site["fn"]
        data = torch.as_tensor(site["value"]).expand(law.batch_shape + law.event_shape)
        rows = self._rows(site, data)
        return finish_rows([rows], unit_mask(site, self._plates | {_PARTICLES}))[0]


def _is_drawn(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)  # type: ignore[arg-type]


def _plates(site: dict[str, Any]) -> frozenset[str]:
    return frozenset(f.name for f in site["cond_indep_stack"] if f.vectorized)
