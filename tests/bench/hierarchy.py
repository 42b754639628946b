"""One step of a hierarchy: groups that share an implicit effect, and an ordinary latent."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO
from pyro_sig.nn import MLP
from tests.bench.measure import alternate, table

NUM_GROUPS, GROUP_SIZE, NUM_MIXING = 1500, 4, 1000


def implicit(enumerates: bool):
    """The program with an implicit site, by enumeration or without."""
    net = MLP(2, [64, 64], 1)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    name = f"implicit_{enumerates}"

    def model(y):
        pyro.module(name, net)
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        with pyro.plate("groups", y.shape[1], dim=-1):
            effect = pyro.sample("effect", Implicit(lambda e: net(e).squeeze(-1), noise))
            with pyro.plate("data", y.shape[0], dim=-2):
                pyro.sample("y", dist.Normal(effect, spread), obs=y)

    elbo = SIG_ELBO(NUM_MIXING, max_plate_nesting=2)
    elbo._enumerates = enumerates or None
    return model, elbo


def broadcast():
    """What one writes without this library: all pairs, logsumexp, a factor."""
    net = MLP(2, [64, 64], 1)

    def model(y):
        pyro.module("broadcast", net)
        spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
        effect = net(torch.randn(NUM_MIXING, 2)).reshape(-1, 1, 1)
        log_prob = dist.Normal(effect, spread).log_prob(y).sum(1)
        pyro.factor("y", (log_prob.logsumexp(0) - math.log(NUM_MIXING)).sum())

    return model, Trace_ELBO(max_plate_nesting=0)


def run(repeats: int) -> dict[str, dict[str, float]]:
    """Times the three ways."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    y = torch.randn(GROUP_SIZE, NUM_GROUPS)
    steps = {}
    for way, (model, elbo) in {
        "sig_elbo": implicit(False),
        "sig_elbo_enumerated": implicit(True),
        "broadcast": broadcast(),
    }.items():
        guide = AutoNormal(poutine.block(model, expose=["spread"]))
        guide._pyro_name = f"guide_{way}"
        svi = SVI(model, guide, Adam({"lr": 1e-3}), elbo)
        steps[way] = lambda svi=svi: svi.step(y)
    times = alternate(steps, repeats)
    ours = times["sig_elbo"]
    table(
        f"One step of a hierarchy, {NUM_GROUPS} groups of {GROUP_SIZE}, M = {NUM_MIXING}",
        [(way, f"{1e3 * seconds:.2f} ms", "") for way, seconds in times.items()]
        + [
            ("against its enumeration", f"{times['sig_elbo_enumerated'] / ours:.1f} x", "faster"),
            ("against broadcasting", f"{times['broadcast'] / ours:.1f} x", "faster"),
        ],
    )
    return {"hierarchy": {f"{way}_ms": 1e3 * seconds for way, seconds in times.items()}}
