r"""A model and its guide against one critic of data and latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import nn

from pyro_sig._functions import check_callable
from pyro_sig.adversarial._game import Game
from pyro_sig.adversarial._joint_runs import JointRuns
from pyro_sig.adversarial.objectives import Objective
from pyro_sig.adversarial.penalties import Penalty
from pyro_sig.adversarial.views import Value

__all__ = ["BiGAN"]


class BiGAN(Game):
    r"""Trains a generator and an encoder against a critic of pairs.

    .. math::
        \min_D \; \mathcal{L}_D\big(D(x, \hat z), D(\tilde x, z)\big), \qquad
        \min_{\theta, \phi} \; \mathcal{L}_J\big(D(x, \hat z), D(\tilde x, z)\big), \qquad
        \hat z \sim q_\phi(z \mid x), \quad (z, \tilde x) \sim p_\theta

    The model draws its latents and its data anew, the guide draws latents at the data: the very
    pair that :class:`~pyro.infer.SVI` takes. Where the critic is fooled, the two joint laws are
    one, so that the guide is the model's posterior. A guide that computes its latents,
    ``pyro.sample("z", dist.Delta(encoder(x), event_dim=1))``, makes a BiGAN; one that draws them
    makes ALI (adversarially learned inference). It needs no density: an
    :class:`~pyro_sig.distributions.Implicit` will do. After training the guide infers features.

    Both players' labels are flipped, by the objective's
    :meth:`~pyro_sig.adversarial.objectives.Objective.joint_loss`.

    :param model: a Pyro program with latent sites and an observed one, in plates whose rows are
        independent.
    :param guide: a program with the same arguments and latent sites.
    :param critic: a torch module, no Pyro module, called as ``critic(x, z)``: the observed sites
        in the order of the model, then the latents. :class:`~pyro_sig.nn.Joint` makes one of
        a network of rows. Shapes: ``[units, ...]`` each, to ``[units]`` or ``[units, 1]``.
    :param optim: optimiser of both programs' parameters, of :mod:`pyro.optim` or torch.
    :param critic_optim: torch's optimiser of ``critic.parameters()``.
    :param objective: one of :mod:`pyro_sig.adversarial.objectives`, by default the non-saturating.
    :param penalties: one or several of :mod:`pyro_sig.adversarial.penalties`.
    :param latents: names of the latent sites that the critic sees, in that order; by default all
        of the model, which have to be those of the guide.
    :param conditional: what else the critic sees, as in :class:`~pyro_sig.adversarial.GAN`.
    :param int critic_steps: updates of the critic in a step.
    :param int unroll: number of further steps of the critic through which the gradient goes.
    :param ema: decay of a running average of both programs' parameters.
    :param autocast: a type for :func:`torch.autocast`.
    :param bool compile_networks: compile critic and networks, as in
        :class:`~pyro_sig.adversarial.GAN`.
    :raises ValueError: if an argument is not as described. In the first step also: if model and
        guide disagree on latent sites or their shapes, if the critic does not take them, or as a
        :class:`~pyro_sig.adversarial.GAN` does.

    **Source:** Donahue, Krähenbühl and Darrell, *Adversarial Feature Learning* (2017); Dumoulin et
    al., *Adversarially Learned Inference* (2017).

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
        >>> bigan = BiGAN(model, guide, critic, pyro.optim.Adam({"lr": 1e-3}), critic_optim)
        >>> critic_loss, joint_loss = bigan.step(torch.randn(64, 2))
    """

    _both_sides_play = True

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
        latents: Sequence[str] | None = None,
        conditional: bool | Callable[..., Value] = False,
        critic_steps: int = 1,
        unroll: int = 0,
        ema: float | None = None,
        autocast: torch.dtype | None = None,
        compile_networks: bool = False,
    ) -> None:
        check_callable("model", model)
        check_callable("guide", guide)
        super().__init__(
            critic,
            optim,
            critic_optim,
            objective,
            penalties,
            conditional=conditional,
            critic_steps=critic_steps,
            unroll=unroll,
            ema=ema,
            autocast=autocast,
            compile_networks=compile_networks,
        )
        self._runs = JointRuns(model, guide, latents, self._precision, self._both_sides_play)

    @property
    def model(self) -> Callable[..., Any]:
        """The model: latents to data."""
        return self._runs.model

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide: data to latents."""
        return self._runs.guide

    @property
    def latents(self) -> Sequence[str] | None:
        """Names of the latents that the critic sees; None before the first step has found them."""
        return self._runs.latents

    def _programs(self) -> list[Callable[..., Any]]:
        return [self.model, self.guide]
