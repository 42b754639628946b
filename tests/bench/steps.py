"""One training step: this library, what a Pyro user writes today, and hand-written loops."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO
from pyro_sig.nn import MLP
from tests.bench.measure import alternate, table

STD = 0.3


def no_guide(x: Tensor) -> None:
    """Nothing to infer."""


class Case:
    """The same network and data, trained in several ways."""

    def __init__(self, num_data: int, num_mixing: int, dim: int) -> None:
        torch.manual_seed(0)
        pyro.clear_param_store()
        self.num_mixing, self.dim, self.noise_dim = num_mixing, dim, 2 if dim == 2 else 10
        self.x = torch.randn(num_data, dim)
        self.noise = dist.Normal(torch.zeros(self.noise_dim), 1.0).to_event(1)

    def net(self) -> MLP:
        torch.manual_seed(0)
        return MLP(self.noise_dim, [100, 100], self.dim)

    def svi(self, model, elbo):
        svi = SVI(model, no_guide, Adam({"lr": 1e-3}), elbo)
        return lambda: svi.step(self.x)

    def semi_implicit(self):
        net = self.net()

        def model(x):
            pyro.module("semi_implicit", net)
            with pyro.plate("data", len(x)):
                mixing = Implicit(net, self.noise, self.dim)
                p = SemiImplicit(
                    mixing, lambda psi: dist.Normal(psi, STD).to_event(1), self.num_mixing
                )
                pyro.sample("x", p, obs=x)

        return self.svi(model, Trace_ELBO(max_plate_nesting=1))

    def sig_elbo(self):
        net = self.net()

        def model(x):
            pyro.module("sig_elbo", net)
            with pyro.plate("data", len(x)):
                psi = pyro.sample("psi", Implicit(net, self.noise, self.dim))
                pyro.sample("x", dist.Normal(psi, STD).to_event(1), obs=x)

        return self.svi(model, SIG_ELBO(self.num_mixing, max_plate_nesting=1))

    def broadcast(self):
        """M psi, a broadcast Normal, logsumexp: what one writes without this library."""
        net = self.net()

        def model(x):
            pyro.module("broadcast", net)
            psi = net(self.noise.sample((self.num_mixing, 1)))
            log_prob = dist.Normal(psi, STD).to_event(1).log_prob(x)
            bound = (log_prob.logsumexp(0) - math.log(self.num_mixing)).sum()
            pyro.factor("x", bound)

        return self.svi(model, Trace_ELBO(max_plate_nesting=0))

    def mixture_same_family(self):
        """The other program a Pyro user may write: torch's own mixture."""
        net = self.net()

        def model(x):
            pyro.module("mixture", net)
            psi = net(self.noise.sample((self.num_mixing,)))
            with pyro.plate("data", len(x)):
                weights = dist.Categorical(logits=torch.zeros(self.num_mixing))
                components = dist.Normal(psi, STD).to_event(1)
                pyro.sample("x", dist.MixtureSameFamily(weights, components), obs=x)

        return self.svi(model, Trace_ELBO(max_plate_nesting=1))

    def hand_written(self):
        """The best loop without Pyro: matrix product, plain autograd."""
        net = self.net()
        optim = torch.optim.Adam(net.parameters(), lr=1e-3)
        precision = STD**-2
        constant = self.dim * (math.log(STD) + 0.5 * math.log(2 * math.pi))

        def step():
            x = self.x
            psi = net(torch.randn(self.num_mixing, self.noise_dim))
            scores = torch.addmm(-0.5 * precision * psi.square().sum(-1), x * precision, psi.mT)
            carrier = -0.5 * precision * x.square().sum(-1) - constant
            loss = -(scores.logsumexp(-1) + carrier - math.log(self.num_mixing)).sum()
            optim.zero_grad()
            loss.backward()
            optim.step()
            return loss.item()

        return step

    def hand_differentiated(self):
        """The same with the gradient to psi written out."""
        net = self.net()
        optim = torch.optim.Adam(net.parameters(), lr=1e-3)
        precision = STD**-2

        def step():
            x = self.x
            psi = net(torch.randn(self.num_mixing, self.noise_dim))
            with torch.no_grad():
                shift = -0.5 * precision * psi.square().sum(-1)
                scores = torch.addmm(shift, x * precision, psi.mT)
                loss = -scores.logsumexp(-1).sum()
                weights = scores.softmax(-1)
                gradient = (weights.mT @ x - weights.sum(0).unsqueeze(-1) * psi) * -precision
            optim.zero_grad()
            psi.backward(gradient)
            optim.step()
            return loss.item()

        return step


WAYS = (
    "semi_implicit",
    "sig_elbo",
    "broadcast",
    "mixture_same_family",
    "hand_written",
    "hand_differentiated",
)


def run(repeats: int) -> dict[str, dict[str, float]]:
    """Times both of the sizes that the project promises."""
    results = {}
    for num_data, num_mixing, dim, faster, slower in (
        (64, 500, 784, 40.0, 1.25),
        (512, 1000, 2, 4.0, 1.5),
    ):
        case = Case(num_data, num_mixing, dim)
        times = alternate({way: getattr(case, way)() for way in WAYS}, repeats)
        today = min(times["broadcast"], times["mixture_same_family"])
        hand = min(times["hand_written"], times["hand_differentiated"])
        ours = times["semi_implicit"]
        figures = {f"{way}_ms": 1e3 * times[way] for way in WAYS}
        figures |= {"times_faster_than_pyro_today": today / ours, "times_best_loop": ours / hand}
        results[f"step_N{num_data}_M{num_mixing}_D{dim}"] = figures
        table(
            f"One SVI step, N = {num_data}, M = {num_mixing}, D = {dim}",
            [(way, f"{1e3 * times[way]:.2f} ms", "") for way in WAYS]
            + [
                (
                    "SemiImplicit against a Pyro program today",
                    f"{today / ours:.1f} x",
                    f"faster; wanted >= {faster:g}",
                ),
                (
                    "SemiImplicit against the best loop",
                    f"{ours / hand:.2f} x",
                    f"its time; wanted <= {slower:g}",
                ),
            ],
        )
    return results
