r"""A model against a critic of pairs, and a reconstructor that inverts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Independent

from pyro_sig._arguments import check_number
from pyro_sig._functions import check_callable, check_takes
from pyro_sig.adversarial._joint_runs import JointDraw, rows_drawn
from pyro_sig.adversarial._substitute import substitutes, with_draws
from pyro_sig.adversarial._tap import Given, Tap
from pyro_sig.adversarial.bigan import BiGAN
from pyro_sig.adversarial.objectives import Objective, ReverseKL
from pyro_sig.adversarial.penalties import Penalty
from pyro_sig.adversarial.views import Value

__all__ = ["VEEGAN"]

Distance = Callable[[Tensor, Tensor], Tensor]


class VEEGAN(BiGAN):
    r"""Trains a generator against a critic of pairs, with a reconstructor that inverts it.

    .. math::
        \min_D \; \mathcal{L}_D\big(D(x, \hat z), D(\tilde x, z)\big), \qquad
        \min_\theta \; \mathcal{L}_G\big(D(\tilde x, z)\big)
        + \lambda E\, d_\phi(z, \tilde x), \qquad
        \min_\phi \; E\, d_\phi(z, \tilde x)

    with draws :math:`(z, \tilde x) \sim p_\theta` and codes of the data
    :math:`\hat z \sim q_\phi(z \mid x)`. A generator that leaves modes out is told so: the
    reconstructor maps the data of these modes to no law like that of the noise. It learns from the
    draws alone, not from the critic.

    The distance :math:`d_\phi` is between the noise and the guide's reconstruction of it: the
    squared error where the guide computes its site, ``dist.Delta(net(x), event_dim=1)``, and
    :math:`-\log q_\phi(z \mid \tilde x)` where it draws it.

    :param model: a Pyro program with latent sites and an observed one, in plates whose rows are
        independent; it has to observe its arguments themselves, in whose place the guide gets the
        draws.
    :param guide: the reconstructor, a program with the same arguments and latent sites.
    :param critic: a torch module of data and latents, as in :class:`~pyro_sig.adversarial.BiGAN`.
    :param optim: optimiser of both programs' parameters, of :mod:`pyro.optim` or torch.
    :param critic_optim: torch's optimiser of ``critic.parameters()``.
    :param objective: one of :mod:`pyro_sig.adversarial.objectives`, by default
        :class:`~pyro_sig.adversarial.objectives.ReverseKL`: the raw score, as in the paper.
    :param penalties: one or several of :mod:`pyro_sig.adversarial.penalties`.
    :param float weight: the :math:`\lambda`, 1 in the paper.
    :param distance: ``distance(z, reconstructed)`` with tensors of shape ``[units, ...]``, in
        place of the two above: to a tensor whose mean counts. A guide without a density needs one.
    :param latents: names of the latent sites that the critic sees; by default all of the model.
    :param conditional: what else the critic sees, as in :class:`~pyro_sig.adversarial.GAN`.
    :param int critic_steps: updates of the critic in a step.
    :param int unroll: number of further steps of the critic through which the gradient goes.
    :param ema: decay of a running average of both programs' parameters.
    :param autocast: a type for :func:`torch.autocast`.
    :param bool compile_networks: compile critic and networks, as in
        :class:`~pyro_sig.adversarial.GAN`.
    :raises ValueError: see :class:`~pyro_sig.adversarial.BiGAN`; also if the data are not
        arguments, or if a site of the guide has neither a density nor a value that is computed.

    **Source:** Srivastava et al., *VEEGAN: Reducing Mode Collapse in GANs using Implicit
    Variational Learning* (2017), https://arxiv.org/abs/1705.07761.

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_sig.nn import MLP, Joint
        >>> decoder, encoder = torch.nn.Linear(1, 2), torch.nn.Linear(2, 1)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Delta(encoder(x), event_dim=1))
        >>> critic = Joint(MLP(3, [8], 1))
        >>> critic_optim = torch.optim.Adam(critic.parameters(), lr=1e-3)
        >>> veegan = VEEGAN(model, guide, critic, pyro.optim.Adam({"lr": 1e-3}), critic_optim)
        >>> critic_loss, generator_loss, distance = veegan.step(torch.randn(64, 2))
    """

    loss_names = ("critic", "generator", "reconstruction")
    # The codes are the reconstructor's, which only reconstructs: the generator plays alone.
    _both_sides_play = False

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
        weight: float = 1.0,
        distance: Distance | None = None,
        latents: Sequence[str] | None = None,
        conditional: bool | Callable[..., Value] = False,
        critic_steps: int = 1,
        unroll: int = 0,
        ema: float | None = None,
        autocast: torch.dtype | None = None,
        compile_networks: bool = False,
    ) -> None:
        super().__init__(
            model,
            guide,
            critic,
            optim,
            critic_optim,
            ReverseKL() if objective is None else objective,
            penalties,
            latents=latents,
            conditional=conditional,
            critic_steps=critic_steps,
            unroll=unroll,
            ema=ema,
            autocast=autocast,
            compile_networks=compile_networks,
        )
        self.weight = check_number("weight", weight, least=0)
        check_callable("distance", distance, optional=True)
        if distance is not None:
            check_takes("distance", distance, None, None)
        self.distance = distance
        self._last = 0.0

    def _add_gradients(self, draw: JointDraw, adversarial: Tensor) -> None:
        reconstruction, params = self._reconstruct(draw)
        loss = adversarial + self.weight * reconstruction
        players = self._program.meet({**draw.params, **params}, self._critic.owns)
        loss.backward(inputs=players)
        self._last = reconstruction.item()

    def _reconstruct(self, draw: JointDraw) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs the guide at the draws; returns the mean distance over units."""
        args, kwargs = with_draws(draw.args, draw.kwargs, substitutes(draw.model))
        noise = {name: draw.model.nodes[name]["value"] for name in self.latents or ()}
        given = {} if self.distance is not None else noise
        with Tap() as scored, Given({**rows_drawn(draw.model), **given}), self._precision():
            self.guide(*args, **kwargs)
        rows = self._runs.rows(draw.model, draw.model, "model")
        total: Any = 0.0
        for (name, value), z in zip(noise.items(), rows, strict=True):
            total = total + self._measure(name, scored.nodes[name], value, z, draw.model)
        return total, scored.params

    def _measure(self, name: str, site: Any, noise: Tensor, z: Tensor, model: Tap) -> Tensor:  # noqa: ANN401
        """Computes the mean distance of one site, whose noise is `z` laid out as rows."""
        law, layout = site["fn"], self._runs.unit_rows
        event_dim = len(law.event_shape)
        if self.distance is not None:
            distance = self.distance(z, layout(site, site["value"], event_dim, model))
            if not isinstance(distance, Tensor) or not distance.numel():
                was = tuple(getattr(distance, "shape", ())) or type(distance).__name__
                raise ValueError(
                    f"`distance` must return a tensor whose mean counts, returned {was}"
                )
            return distance.mean()
        if (code := _computed(law)) is not None:
            return (z - layout(site, code, event_dim, model)).square().sum() / len(z)
        try:
            log_prob = law.log_prob(noise)
        except NotImplementedError as error:
            raise ValueError(
                f"`distance` must be given where the guide has no density, as at {name!r} of "
                f"{type(law).__name__}, was None"
            ) from error
        return -layout(site, log_prob, 0, model).sum() / len(z)

    def _losses_beside(self, draw: JointDraw) -> tuple[float, ...]:
        return (self._last,)

    def _evaluate_beside(self, draw: JointDraw, args: tuple, kwargs: dict) -> tuple[float, ...]:
        return (self._reconstruct(draw)[0].item(),)


def _computed(law: Any) -> Tensor | None:  # noqa: ANN401
    """Returns the value that a law always has, None for a law that is random."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law.v if isinstance(law, Delta) else None
