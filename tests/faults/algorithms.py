"""The five algorithms that are killed: each builds everything anew, as a new process does."""

import hashlib

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

from pyro_sig.adversarial import GAN, LBT, CycleGAN, PsiView, penalties
from pyro_sig.distributions import Implicit
from pyro_sig.infer import KSIVI, SIG_ELBO, AutoSemiImplicit, train
from pyro_sig.nn import MLP

__all__ = ["ALGORITHMS", "run"]

NUM_STEPS, EVERY = 120, 3


def noise():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def program(net):
    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise(), event_shape=2))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    return model


def batch(step):
    return torch.randn(32, 2) + 1.0


def svi_sig():
    net = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    options = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.99}
    optim = pyro.optim.ExponentialLR(options)
    return SVI(program(net), lambda x: None, optim, SIG_ELBO(32)), batch, []


def ksivi():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=x.sum(-1))

    guide = AutoSemiImplicit(model, hidden_dims=[8], num_mixing=8, find_scale=False)
    return SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-3, "lrd": 0.99}), KSIVI()), batch, []


def gan_si():
    net, critic = MLP(2, [16], 2), MLP(2, [16], 1)
    optims = [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (net, critic)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.99) for o in optims]
    gan = GAN(
        program(net),
        critic,
        *optims,
        penalties=penalties.R1(1.0),
        view=PsiView("psi"),
        elbo=SIG_ELBO(32),
        elbo_weight="balance",
        ema=0.99,
    )
    return gan, batch, schedules


def cyclegan():
    translators = MLP(2, [16], 2), MLP(2, [16], 2)
    critics = MLP(2, [16], 1), MLP(2, [16], 1)
    gan = CycleGAN(
        *translators,
        *critics,
        pyro.optim.Adam({"lr": 1e-2}),
        torch.optim.Adam([p for c in critics for p in c.parameters()], lr=1e-2),
        pool_size=50,
        ema=0.9,
    )
    return gan, lambda step: (batch(step), batch(step) - 2.0), []


def lbt():
    net, encoder, decoder = MLP(2, [16], 2), MLP(2, [16], 4), MLP(2, [16], 2)

    def teacher(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", Implicit(net, noise(), event_shape=2), obs=x)

    def student(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", noise())
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(scale)).to_event(1))

    optims = [pyro.optim.Adam({"lr": 1e-2, "eps": 1e-4}) for _ in range(2)]
    return LBT(teacher, (student, guide), *optims), batch, []


ALGORITHMS = {
    "SVI-SIG": svi_sig,
    "SIVI with KSIVI": ksivi,
    "GAN-SI": gan_si,
    "CycleGAN": cyclegan,
    "LBT": lbt,
}


def run(name, seed, folder=None, callbacks=()):
    """Trains, and returns a digest of parameters, buffers, losses and random state."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    inference, batches, schedules = ALGORITHMS[name]()
    history = train(
        inference,
        batches,
        NUM_STEPS,
        callbacks=[*schedules, *callbacks],
        progress=False,
        checkpoint=folder,
        every=EVERY,
    )
    digest = hashlib.sha256(repr(sorted(history.items())).encode())
    for _, param in sorted(pyro.get_param_store()._params.items()):
        digest.update(param.detach().numpy().tobytes())
    if hasattr(inference, "state_dict"):
        digest.update(repr(inference.state_dict()).encode())
    digest.update(torch.rand(3).numpy().tobytes())
    return digest.hexdigest()
