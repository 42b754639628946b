"""Programs and critics that the tests of trainers share."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_sig.adversarial import GAN
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.nn import MLP


class PushForward:
    """A network on noise, as the whole model."""

    def __init__(self, dtype=None, noise_dim=3):
        self.net = MLP(noise_dim, [8], 2, nn.Tanh, dtype=dtype)
        self.noise = dist.Normal(torch.zeros(noise_dim, dtype=dtype), 1.0).to_event(1)

    def __call__(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.law(), obs=x)

    def law(self):
        return Implicit(self.net, self.noise, event_shape=2)


class SemiImplicitModel(PushForward):
    """A Normal around a network on noise, as one observed site; its scale is a parameter."""

    num_mixing = 16

    def law(self):
        scale = pyro.param(
            "scale", torch.tensor(0.5, dtype=self.net.head.weight.dtype), dist.constraints.positive
        )
        return SemiImplicit(
            super().law(), lambda psi: dist.Normal(psi, scale).to_event(1), self.num_mixing
        )


class LatentPsi(PushForward):
    """The same as a latent and an observed site."""

    def __call__(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", self.law())
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)


class Location:
    """Two parameters of the param store, no network."""

    def __call__(self, x):
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


class Batched(PushForward):
    """A network with batch statistics."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def make_gan(model, optim=None, critic=None, critic_lr=0.05, lr=0.05, **settings):
    """A GAN of a program, with a small critic; `optim` is Pyro's or torch's, by name."""
    critic = MLP(2, [8], 1) if critic is None else critic
    if optim == "torch":
        optimizer = torch.optim.Adam(model.net.parameters(), lr=lr)
    elif optim is None:
        optimizer = pyro.optim.Adam({"lr": lr})
    else:
        optimizer = optim
    critic_optim = torch.optim.Adam(critic.parameters(), lr=critic_lr)
    return GAN(model, critic, optimizer, critic_optim, **settings)
