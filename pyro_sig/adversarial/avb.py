r"""A model and a guide without a density, with a critic as the log ratio in the bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_sig._arguments import check_integer
from pyro_sig._functions import check_callable
from pyro_sig._program_run import modules_run
from pyro_sig.adversarial._avb_runs import AVBDraw, AVBRuns
from pyro_sig.adversarial._game import Game
from pyro_sig.adversarial.objectives import Objective, ReverseKL
from pyro_sig.adversarial.penalties import Penalty
from pyro_sig.adversarial.views import Value, as_parts

__all__ = ["AVB"]


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

    **Source:** Mescheder, Nowozin and Geiger, *Adversarial Variational Bayes* (2017),
    https://arxiv.org/abs/1701.04722; adaptive contrast in section 3.3.

    Example::

        >>> import pyro, torch
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
        check_integer("num_particles", num_particles, 1, int)
        if max_plate_nesting is not None:
            check_integer("max_plate_nesting", max_plate_nesting, 0, int)
        self._runs = AVBRuns(
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
        self.prepare(*args, **kwargs)
        with modules_run():
            draw = self._runs.released(args, kwargs)
            with self._precision():
                scores = self._scorer(self.critic, args, kwargs)(*as_parts(draw.fake))
        return float(scores.mean() - draw.expected)

    def _add_gradients(self, draw: AVBDraw, adversarial: Tensor) -> None:
        loss = adversarial + draw.expected
        if draw.misfit is not None:
            loss = loss + draw.misfit
        loss.backward(inputs=self._program.meet(draw.params, self._critic.owns))

    def _losses_beside(self, draw: AVBDraw) -> tuple[float, ...]:
        return (draw.expected.item(),)

    def _evaluate_beside(self, draw: AVBDraw, args: tuple, kwargs: dict) -> tuple[float, ...]:
        return (draw.expected.item(),)

    def _programs(self) -> list[Callable[..., Any]]:
        return [p for p in (self.model, self.guide, self.contrast) if p is not None]

    def _options(self) -> list[str]:
        shown = [] if self.contrast is None else ["contrast"]
        if self.num_particles > 1:
            shown.append(f"num_particles={self.num_particles}")
        return [*shown, *super()._options()]
