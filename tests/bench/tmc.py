"""SIG_ELBO beside Pyro's TraceTMC_ELBO: draws shared by the rows, or M x N of them."""

from __future__ import annotations

import math
import statistics
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceTMC_ELBO

from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO
from tests.bench.measure import alternate, table

STD = 0.7


def no_guide(x: torch.Tensor) -> None:
    """Nothing to infer."""


def run(repeats: int) -> dict[str, dict[str, float]]:
    """The same model under both: seconds of a gradient, bound, and its spread."""
    results = {}
    num_mixing = 500
    for num_data in (64, 512):
        torch.manual_seed(0)
        x = torch.randn(num_data, 2)
        loc = torch.zeros(2, requires_grad=True)
        noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        evidence = dist.Normal(torch.zeros(2), math.hypot(1, STD)).to_event(1).log_prob(x).sum()

        def model(x, psi_law, infer, loc=loc):
            with pyro.plate("data", len(x)):
                psi = pyro.sample("psi", psi_law, infer=infer)
                pyro.sample("x", dist.Normal(psi + loc, STD).to_event(1), obs=x)

        def sig_model(x, model=model, noise=noise):
            model(x, Implicit(lambda eps: eps, noise, 2), {})

        def tmc_model(x, model=model, noise=noise):
            infer = {"enumerate": "parallel", "num_samples": num_mixing, "expand": False}
            model(x, noise, infer)

        sig = SIG_ELBO(num_mixing, max_plate_nesting=1)
        tmc = TraceTMC_ELBO(max_plate_nesting=1)

        def gradient(elbo, program, x=x):
            elbo.differentiable_loss(program, no_guide, x).backward()

        times = alternate(
            {"sig": partial(gradient, sig, sig_model), "tmc": partial(gradient, tmc, tmc_model)},
            repeats,
        )
        sig_bounds = [-sig.loss(sig_model, no_guide, x) for _ in range(100)]
        tmc_bounds = [-tmc.differentiable_loss(tmc_model, no_guide, x).item() for _ in range(100)]
        figures = {"sig_ms": 1e3 * times["sig"], "tmc_ms": 1e3 * times["tmc"]}
        rows = []
        for name, bounds in (("sig", sig_bounds), ("tmc", tmc_bounds)):
            gap = statistics.fmean(bounds) - float(evidence)
            figures |= {f"{name}_gap": gap, f"{name}_sd": statistics.stdev(bounds)}
            rows.append(
                (
                    {"sig": "SIG_ELBO", "tmc": "TraceTMC_ELBO"}[name],
                    f"{1e3 * times[name]:.2f} ms",
                    f"bound - evidence {gap:.2f}, SD {statistics.stdev(bounds):.2f} nats",
                )
            )
        figures["times_faster"] = times["tmc"] / times["sig"]
        results[f"tmc_N{num_data}_M{num_mixing}"] = figures
        table(f"SIG_ELBO and TraceTMC_ELBO, N = {num_data}, M = {num_mixing}, D = 2", rows)
    return results
