"""Translators between two domains that tests share."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_sig.adversarial import CycleGAN, linear_decay
from pyro_sig.nn import MLP


class Translator:
    """A translator as a program, with its network in the param store."""

    def __init__(self, name, net, noise=0.0):
        self.name, self.net, self.noise = name, net, noise

    def __call__(self, rows):
        pyro.module(self.name, self.net)
        loc = self.net(rows)
        if not self.noise:
            return loc
        with pyro.plate("rows", len(rows)):
            return pyro.sample("out", dist.Normal(loc, self.noise).to_event(1))


class Affine:
    """A translator of parameters of the param store, without a network."""

    def __init__(self, name):
        self.name = name

    def __call__(self, rows):
        loc = pyro.param(f"{self.name}_loc", rows.new_zeros(2))
        scale = pyro.param(f"{self.name}_scale", rows.new_ones(2), dist.constraints.positive)
        return loc + scale * rows


class Drawn(PyroModule):
    """A translator as a Pyro module."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, rows):
        return pyro.sample("out", dist.Normal(self.net(rows), 0.1).to_event(2))


def net(**kwargs):
    return MLP(2, [8], 2, nn.Tanh, **kwargs)


def batched():
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


KINDS = {
    "modules": lambda: (net(), net()),
    "programs": lambda: (Translator("f", net()), Translator("b", net())),
    "stochastic": lambda: (Translator("f", net(), 0.1), Translator("b", net(), 0.1)),
    "mixed": lambda: (Translator("f", net(), 0.1), net()),
    "parameters": lambda: (Affine("f"), Affine("b")),
    "Pyro modules": lambda: (Drawn(net()), Drawn(net())),
    "batch statistics": lambda: (batched(), Translator("b", batched())),
}
SAME_NAME = ("Pyro modules",)  # both have their tensors under one name in the param store


def parameters(*translators):
    found = []
    for translator in translators:
        module = translator if isinstance(translator, nn.Module) else translator.net
        found += list(module.parameters())
    return found


def make_cyclegan(translators=None, optim="torch", dtype=None, lr=0.02, **settings):
    forward, backward = translators or (net(dtype=dtype), net(dtype=dtype))
    critics = [MLP(2, [8], 1, dtype=dtype) for _ in range(2)]
    if optim == "torch":
        optim = torch.optim.Adam(parameters(forward, backward), lr=lr)
    elif optim == "pyro":
        optim = pyro.optim.Adam({"lr": lr})
    elif optim == "schedule":
        optim = pyro.optim.LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": lr},
                "lr_lambda": linear_decay(8, 0.25),
            }
        )
    critic_optim = torch.optim.Adam([p for c in critics for p in c.parameters()], lr=lr)
    return CycleGAN(forward, backward, *critics, optim, critic_optim, **settings)
