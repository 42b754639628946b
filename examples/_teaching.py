"""A network on noise that teaches a kernel density."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from _modes import mode_std
from _schedules import conditional_std, rate_factor
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_sig import datasets
from pyro_sig.adversarial import GAN, LBT
from pyro_sig.distributions import FixedMixture, Implicit
from pyro_sig.infer import train

__all__ = ["KernelStudent", "teach"]


class KernelStudent:
    """A kernel density: the draws themselves, and a width. It has nothing to train."""

    def fit(self, x: Tensor, width: float) -> Callable[..., None]:
        """Returns the density of draws x, as a program."""
        law = FixedMixture(x, lambda psi: dist.Normal(psi, width).to_event(1), psi_event_dim=1)

        def score(x: Tensor, width: float) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", law, obs=x)

        return score


def teach(
    toy: datasets.Toy,
    net: nn.Module,
    noise: dist.TorchDistribution,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    unit: float = 1.0,
    critic: nn.Module | None = None,
    critic_rate: float = 1e-3,
    gan_weight: float = 0.1,
    name: str = "LBT",
    progress: bool | None = None,
) -> Callable[[tuple[int]], Tensor]:
    """Trains a network on noise by LBT, or LBT-GAN; returns a sampler of x.

    :param toy: the data's law.
    :param net: the teacher's network.
    :param noise: its noise.
    :param unit: the scale of the data; the student's width falls from there to that of a mode.
    :param critic: for LBT-GAN.
    :param progress: as `train` has it.
    """
    law = Implicit(lambda eps: unit * net(eps), noise, event_shape=2)

    def teacher(x: Tensor, width: float) -> None:
        pyro.module("generator", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    def batch(step: int) -> tuple[Tensor, float]:
        width = unit * conditional_std(step / num_steps, mode_std(toy) / unit)
        return toy.sample(batch_size), width

    optim = torch.optim.Adam(net.parameters(), lr=learning_rate, betas=(0.95, 0.999))
    gan = None
    if critic is not None:
        critic_optim = torch.optim.Adam(critic.parameters(), lr=critic_rate, betas=(0.5, 0.999))
        gan = GAN(teacher, critic, optim, critic_optim)
    lbt = LBT(
        teacher,
        KernelStudent(),
        optim,
        elbo=Trace_ELBO(max_plate_nesting=1),
        gan=gan,
        gan_weight=gan_weight,
        clip_norm=5.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: rate_factor(step / num_steps))
    train(lbt, batch, num_steps, callbacks=[schedule], progress=progress, description=name)
    with torch.no_grad():
        return law.sample
