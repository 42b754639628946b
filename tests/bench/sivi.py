"""One step of semi-implicit variational inference against a hand-written torch loop."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor
from torch.nn.functional import softplus

from pyro_sig.infer import AutoSemiImplicit
from pyro_sig.nn import MLP
from tests.bench.measure import alternate, table

NUM_DATA, DIM, NUM_MIXING, NUM_PARTICLES = 400, 22, 100, 100
PRIOR_STD = 10.0


def data() -> tuple[Tensor, Tensor]:
    """A logistic regression of the size of the waveform problem."""
    torch.manual_seed(0)
    x = torch.randn(NUM_DATA, DIM)
    return x, torch.bernoulli((x @ torch.randn(DIM) / DIM**0.5).sigmoid())


def library(x: Tensor, y: Tensor, make_guide=AutoSemiImplicit, elbo=Trace_ELBO, validate=True):
    """Pyro's SVI with an automatic guide."""

    def model():
        beta = pyro.sample("beta", dist.Normal(torch.zeros(DIM), PRIOR_STD).to_event(1))
        logits = (beta @ x.T).reshape(*beta.shape[:-2], NUM_DATA) if beta.dim() > 1 else x @ beta
        with pyro.plate("data", NUM_DATA):
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    more = {"num_mixing": NUM_MIXING} if make_guide is AutoSemiImplicit else {}
    guide = make_guide(model, **more)
    # A name of its own: guides of one name share their parameters.
    name = f"{make_guide.__name__}_{elbo.__name__}_{validate}"
    guide._pyro_set_supermodule(name, guide._pyro_context)
    guide()
    loss = elbo(num_particles=NUM_PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), loss)

    def step():
        with pyro.validation_enabled(validate), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer
            svi.step()

    return step


def by_hand(x: Tensor, y: Tensor):
    """The same estimator in plain torch: one matrix product, one optimiser."""
    net = MLP(DIM, [64, 64], 2 * DIM)
    raw = torch.zeros(DIM, DIM, requires_grad=True)
    optim = torch.optim.Adam([*net.parameters(), raw], lr=1e-3)
    eye = torch.eye(DIM)

    def step():
        optim.zero_grad()
        tril = raw.tril(-1) + eye * softplus(raw.diagonal() + math.log(math.e - 1))
        out = net(torch.randn(NUM_PARTICLES + NUM_MIXING, DIM))
        loc, scale = out[:, :DIM], softplus(out[:, DIM:]) + 1e-3
        noise = torch.randn(NUM_PARTICLES, DIM)
        u = loc[:NUM_PARTICLES] + scale[:NUM_PARTICLES] * noise
        z = u @ tril.T
        precision = scale[NUM_PARTICLES:].square().reciprocal()
        shift = loc[NUM_PARTICLES:] * precision
        constant = 0.5 * (loc[NUM_PARTICLES:] * shift).sum(-1) + scale[NUM_PARTICLES:].log().sum(-1)
        pairs = torch.cat([u, u.square()], -1) @ torch.cat([shift, -0.5 * precision], -1).T
        own = (-0.5 * noise.square() - scale[:NUM_PARTICLES].log()).sum(-1)
        log_q = torch.logaddexp((pairs - constant).logsumexp(-1), own) - math.log1p(NUM_MIXING)
        log_q = log_q - tril.diagonal().log().sum() - 0.5 * DIM * math.log(2 * math.pi)
        logits = z @ x.T
        log_p = (y * logits - softplus(logits)).sum(-1)
        log_p = log_p + dist.Normal(0.0, PRIOR_STD).log_prob(z).sum(-1)
        (log_q - log_p).mean().backward()
        optim.step()

    return step


def run(repeats: int) -> dict[str, dict[str, float]]:
    """Measures and prints."""
    x, y = data()
    times = alternate(
        {
            "AutoSemiImplicit": library(x, y),
            "AutoSemiImplicit, validation off": library(x, y, validate=False),
            "AutoSemiImplicit, JitTrace_ELBO": library(x, y, elbo=JitTrace_ELBO, validate=False),
            "AutoNormal": library(x, y, make_guide=AutoNormal),
            "torch by hand": by_hand(x, y),
        },
        repeats,
    )
    hand = times["torch by hand"]
    table(
        f"SIVI step, K = {NUM_MIXING}, B = {NUM_PARTICLES}, D = {DIM}",
        [(k, f"{1e3 * t:.2f} ms", f"{t / hand:.2f} x by hand") for k, t in times.items()],
    )
    return {"sivi_step_ratio": {k: t / hand for k, t in times.items()}}
