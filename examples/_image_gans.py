"""The adversarial methods of the image tables: one program, an objective, perhaps the SIG bound."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pyro_sig.adversarial import GAN, PsiView, objectives, penalties
from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO

__all__ = ["BATCH_SIZE", "NOISE_DIM", "Method", "draw_images", "make_gan", "methods"]

NOISE_DIM = 100
BATCH_SIZE = 64


@dataclass(frozen=True)
class Method:
    """What one row of a table is."""

    label: str
    objective: objectives.Objective
    penalties: tuple[penalties.Penalty, ...] = ()
    norm: bool = True  # batch normalisation in the critic
    weight: float | None = None  # of the bound
    rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def averaged(self) -> bool:
        """Whether samples come from the running average of the weights."""
        return "ema" in self.settings


def methods(weight: float = 0.0) -> dict[str, Method]:
    """Returns all methods; `weight` is that of the bound where there is one."""
    smooth: dict[str, Any] = {"norm": False, "betas": (0.0, 0.99), "settings": {"ema": 0.999}}
    wgan = (objectives.Wasserstein(), (penalties.GradientPenalty(10.0),))
    relativistic = (objectives.Relativistic(), (penalties.R1(1.0), penalties.R2(1.0)))
    even: dict[str, Any] = {"penalties": (penalties.R1(1.0),), "norm": False}
    return {
        "dcgan": Method("DCGAN", objectives.NonSaturating()),
        "dcgan-si": Method("DCGAN-SI", objectives.NonSaturating(), weight=weight),
        "dcgan-r1": Method("DCGAN R1", objectives.NonSaturating(), **even),
        "dcgan-r1-si": Method("DCGAN R1-SI", objectives.NonSaturating(), weight=weight, **even),
        "wgan-gp": Method("WGAN-GP", *wgan, **smooth),
        "wgan-gp-si": Method("WGAN-GP-SI", *wgan, weight=weight, **smooth),
        "rpgan-r1r2": Method("RpGAN R1+R2", *relativistic, **smooth),
        "rpgan-si": Method("RpGAN R1+R2-SI", *relativistic, weight=weight, **smooth),
    }


def make_gan(
    method: Method,
    net: nn.Module,
    critic: nn.Module,
    shape: tuple[int, ...],
    std: float,
    bf16: bool,
) -> GAN:
    """Builds the program and its trainer.

    The program is psi = net(noise), x ~ Normal(psi, std); the critic sees psi beside the data.

    :param method: the method.
    :param net: noise of `NOISE_DIM` numbers -> images.
    :param critic: images -> scores.
    :param shape: of an image.
    :param std: standard deviation of the conditional.
    :param bf16: whether networks run in bfloat16.
    :return: the trainer.
    """
    device = next(net.parameters()).device
    noise = dist.Normal(torch.zeros(NOISE_DIM, device=device), 1.0).to_event(1)
    critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def model(x: Tensor) -> None:
        pyro.module("generator", net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise, event_shape=shape))
            pyro.sample("x", dist.Normal(psi, std).to_event(len(shape)), obs=x)

    bound: dict[str, Any] = {}
    if method.weight is not None:
        elbo = SIG_ELBO(BATCH_SIZE, max_plate_nesting=1)
        bound = {"elbo": elbo, "elbo_weight": method.weight}
    return GAN(
        model,
        critic,
        torch.optim.Adam(net.parameters(), lr=method.rate, betas=method.betas),
        torch.optim.Adam(critic.parameters(), lr=method.rate, betas=method.betas),
        method.objective,
        method.penalties,
        view=PsiView("psi"),
        autocast=torch.bfloat16 if bf16 else None,
        **bound,
        **method.settings,
    )


@torch.no_grad()
def draw_images(gan: GAN, net: nn.Module, averaged: bool, num_samples: int) -> Tensor:
    """Draws psi, of the last weights or of their running averages."""
    device = next(net.parameters()).device
    with gan.averaged() if averaged else nullcontext():
        net = copy.deepcopy(net)
    # Statistics of the batch normalisation that belong to these weights.
    update_bn((torch.randn(250, NOISE_DIM, device=device) for _ in range(8)), net)
    net.eval()
    noise = torch.randn(num_samples, NOISE_DIM, device=device)
    return torch.cat([net(part) for part in noise.split(1000)])
