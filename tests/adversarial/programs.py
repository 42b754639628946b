"""Programs and critics that the tests of trainers share."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_sig.adversarial import GAN
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.nn import MLP, Joint


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


class Pair:
    """A model of a latent and data, and its guide: computed, drawn with a density, or without."""

    def __init__(self, kind="computed", dtype=None):
        self.kind = kind
        self.decoder = MLP(1, [6], 2, nn.Tanh, dtype=dtype)
        features = {"computed": 2, "drawn": 2, "implicit": 4}[kind]
        self.encoder = MLP(features, [6], 2 if kind == "drawn" else 1, nn.Tanh, dtype=dtype)
        self.prior = dist.Normal(torch.zeros(1, dtype=dtype), 1.0).to_event(1)
        self.noise = dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.decoder(z), 0.3).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.law(x))

    def law(self, x):
        if self.kind == "computed":
            return dist.Delta(self.encoder(x), event_dim=1)
        if self.kind == "drawn":
            loc, raw = self.encoder(x).chunk(2, -1)
            return dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)
        return Implicit(lambda e, x: self.encoder(torch.cat([e, x], -1)), self.noise, 1, inputs=x)

    def contrast(self, x):
        """A normal law around a linear function of the data."""
        like = self.decoder.head.weight
        slope = pyro.param("slope", like.new_zeros(2, 1))
        width = pyro.param("width", like.new_ones(1), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ slope, width).to_event(1))

    def networks(self):
        return [*self.decoder.parameters(), *self.encoder.parameters()]


class Shared:
    """One latent of all data, whose guide has no density."""

    def __init__(self):
        self.net = MLP(2, [6], 2, nn.Tanh)
        self.noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(self, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("net", self.net)
        pyro.sample("z", Implicit(self.net, self.noise, 2))


def make_joint(cls, programs, optim=None, critic=None, critic_lr=0.05, lr=0.05, **settings):
    """A BiGAN, VEEGAN or AVB of a model and its guide, with a small critic of rows."""
    if critic is None:
        features = 2 if isinstance(programs, Shared) else 3
        dtype = programs.noise.base_dist.loc.dtype
        critic = Joint(MLP(features, [8], 1, nn.Tanh, dtype=dtype))
    if optim == "torch":
        optim = torch.optim.Adam(programs.networks(), lr=lr)
    optim = pyro.optim.Adam({"lr": lr}) if optim is None else optim
    critic_optim = torch.optim.Adam(critic.parameters(), lr=critic_lr)
    return cls(programs.model, programs.guide, critic, optim, critic_optim, **settings)


def rebuild(pair, trainer, encoder_inputs):
    """Networks with the weights of a pair and its critic, and Adams, for a loop by hand.

    :return: decoder, encoder, critic, and the optimisers of both players.
    """
    nets = MLP(1, [6], 2, nn.Tanh), MLP(encoder_inputs, [6], 1, nn.Tanh), MLP(3, [8], 1, nn.Tanh)
    for net, original in zip(nets, (pair.decoder, pair.encoder, trainer.critic.net), strict=True):
        net.load_state_dict(original.state_dict())
    decoder, encoder, critic = nets
    optim = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=0.05)
    return *nets, optim, torch.optim.Adam(critic.parameters(), lr=0.05)


class Quadratic(nn.Module):
    """A critic of all products of two features: the log ratio of two normal laws is one."""

    def __init__(self, features):
        super().__init__()
        self.linear = nn.Linear(features * (features + 3) // 2, 1)

    def forward(self, *values):
        v = torch.cat(values, -1)
        rows, columns = torch.triu_indices(v.shape[-1], v.shape[-1])
        return self.linear(torch.cat([v, v[:, rows] * v[:, columns]], -1))
