"""Empirical Bayes for counts: an implicit law of the rates against four classical answers.

Counts are x ~ Poisson(psi), and nothing is known of the law of the rates psi. A network that pushes
noise forward learns it, by `SIG_ELBO`, from two tables: accidents of 9461 drivers in a year, and
mites on 150 apple leaves. What is wanted is E[psi | x]: how many accidents to expect next year of a
driver who had x. Beside it:

    Robbins   (x + 1) f(x + 1) / f(x), from the frequencies f alone
    gamma     the negative binomial of maximum likelihood
    NPMLE     the law of maximum likelihood among all laws: no other can have a higher likelihood.
              A convex problem, solved here on a grid, with a bound on what the solution lacks

The output folder gets `metrics.json`, and for each table a picture and a NetCDF file for ArviZ.

    python examples/empirical_bayes.py --out out/empirical_bayes

Two things matter. Rare rates, such as those of one driver in a hundred, are few of the psi:
thousands are needed. And the best law has gaps, so the network must be able to be steep: the noise
is bounded and scaled up, the learning rate is high.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _quiet import add_quiet
from matplotlib.axes import Axes
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.nn import PyroModule
from scipy.optimize import nnls
from torch import Tensor, nn

from pyro_sig.datasets import accident_counts, mite_counts
from pyro_sig.diagnostics import draws_to_inference_data
from pyro_sig.distributions import Implicit, PsiPosterior, SemiImplicit
from pyro_sig.infer import SIG_ELBO, no_guide, train
from pyro_sig.nn import MLP


class Settings(NamedTuple):
    """Sizes of the fit and of what is computed from it."""

    num_steps: int = 5000
    num_mixing: int = 4000
    num_psi: int = 1_000_000
    progress: bool | None = None


SMOKE = Settings(num_steps=20, num_mixing=50, num_psi=10_000)
RATE, WARM_UP = 0.04, 200
CHUNK = 100_000
# The ceiling is drawn broad, so that what lies on it is seen.
STYLES: dict[str, dict[str, Any]] = {
    "SIG": {"marker": "o", "markersize": 4, "zorder": 3},
    "NPMLE": {"marker": "s", "markersize": 9, "linewidth": 4, "alpha": 0.5},
    "gamma": {"marker": "o"},
    "Robbins": {"marker": "x", "linestyle": "none"},
}
COLOURS = {"SIG": "tab:red", "NPMLE": "tab:green", "gamma": "tab:blue", "Robbins": "black"}


class Table(NamedTuple):
    """Counts, how they are named, and how many posterior means are worth printing."""

    load: Callable[..., Tensor]
    counted: str
    unit: str
    num_shown: int


TABLES = {
    "accidents": Table(accident_counts, "accidents", "drivers", 7),
    "mites": Table(mite_counts, "mites", "leaves", 7),
}


# ------------------------------------------------------------------------------- the implicit law


class Rates(PyroModule):
    """Makes counts by x ~ Poisson(psi), psi = exp(network(noise))."""

    def __init__(self, start: float, noise_dim: int = 2) -> None:
        super().__init__()
        self.network = MLP(noise_dim, [64, 64], 1)
        nn.init.constant_(self.network.head.bias, math.log(start))
        self.register_buffer("ends", torch.full((noise_dim,), 5.0))

    def mixing(self) -> Implicit:
        """Build the law of one rate."""
        noise = dist.Uniform(-self.ends, self.ends).to_event(1)
        network = self.network  # read here, in the program, so that it is trained
        return Implicit(lambda e: network(e).squeeze(-1).exp(), noise, support=constraints.positive)

    def forward(self, counts: Tensor, frequencies: Tensor | float = 1.0) -> Tensor:
        """Observe each count as often as it was seen."""
        with pyro.plate("count", len(counts)), pyro.poutine.scale(scale=frequencies):
            psi = pyro.sample("psi", self.mixing())
            return pyro.sample("x", dist.Poisson(psi), obs=counts)


def relative_rate(step: int, num_steps: int) -> float:
    """Warm up, then let the learning rate fall to zero along a cosine."""
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / num_steps)) / 2


def fit_rates(counts: Tensor, frequencies: Tensor, settings: Settings, name: str) -> Rates:
    """Train the law of the rates; a row for each distinct count is the whole likelihood."""
    rates = Rates((counts @ frequencies / frequencies.sum()).item()).to(counts)
    schedule = {
        "optimizer": torch.optim.Adam,
        "optim_args": {"lr": RATE, "betas": (0.9, 0.99)},
        "lr_lambda": lambda step: relative_rate(step, settings.num_steps),
    }
    elbo = SIG_ELBO(settings.num_mixing, max_plate_nesting=1)
    svi = SVI(rates, no_guide, pyro.optim.LambdaLR(schedule), elbo)
    train(
        svi,
        (counts, frequencies),
        settings.num_steps,
        progress=settings.progress,
        description=name,
    )
    return rates


# ------------------------------------------------------------------------------ classical answers


def robbins(frequencies: Tensor) -> Tensor:
    """Estimate E[psi | x] for all but the largest count."""
    counts = torch.arange(1.0, len(frequencies), device=frequencies.device)
    return counts * frequencies[1:] / frequencies[:-1]


def fit_gamma(counts: Tensor, frequencies: Tensor) -> dist.GammaPoisson:
    """Find the negative binomial of maximum likelihood."""
    log_parameters = torch.zeros(2).to(counts).requires_grad_()
    optim = torch.optim.LBFGS([log_parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        log_prob = dist.GammaPoisson(*log_parameters.exp()).log_prob(counts)
        loss = -(log_prob @ frequencies) / frequencies.sum()
        loss.backward()
        return loss

    optim.step(loss)
    return dist.GammaPoisson(*log_parameters.detach().exp())


class Npmle(NamedTuple):
    """The law of maximum likelihood on a grid of rates, and by how many nats it could be better."""

    grid: Tensor
    weights: Tensor
    lacks: float


def fit_npmle(counts: Tensor, frequencies: Tensor, num_points: int = 400) -> Npmle:
    r"""Maximise the concave sum_x f(x) log sum_j w_j Poisson(x; psi_j) over w >= 0, sum w = 1.

    Newton steps, each a least-squares problem with non-negative unknowns, and halved until the
    likelihood grows. By concavity the likelihood lacks at most n (max_j D_j - 1), where D_j is
    the mean of Poisson(x; psi_j) / p(x) over the data.
    """
    counts, frequencies = counts.double().cpu(), frequencies.double().cpu()
    # Even in the square root, in which a Poisson has the same spread everywhere.
    grid = torch.linspace(0.0, float(counts.max()) ** 0.5 + 0.5, num_points).double().square()
    likelihood = dist.Poisson(grid.clamp_min(1e-12)).log_prob(counts.unsqueeze(-1)).exp().numpy()
    shares = (frequencies / frequencies.sum()).numpy()
    weights = np.full(num_points, 1 / num_points)

    def mean_log(weights: np.ndarray) -> float:
        return float(shares @ np.log(likelihood @ weights))

    lacks = math.inf
    for _ in range(100):
        density = likelihood @ weights
        lacks = float((likelihood.T @ (shares / density)).max() - 1)
        if lacks < 1e-10:
            break
        root = np.sqrt(shares)
        rows = np.vstack([likelihood * (root / density)[:, None], np.full(num_points, 1e3)])
        target, _ = nnls(rows, np.append(2 * root, 1e3))
        direction, step = target / target.sum() - weights, 1.0
        while mean_log(weights + step * direction) < mean_log(weights) and step > 1e-10:
            step /= 2
        weights = weights + step * direction
    return Npmle(grid, torch.from_numpy(weights), lacks * float(frequencies.sum()))


# ---------------------------------------------------------------------------------------- a table


class Fitted(NamedTuple):
    """All fits to one table: log-mass of each count, and the expected rate given each."""

    counts: Tensor
    frequencies: Tensor
    psi: Tensor
    gamma: dist.Gamma
    npmle: Npmle
    posterior: PsiPosterior
    log_pmf: dict[str, Tensor]
    means: dict[str, Tensor]


def fit_all(name: str, settings: Settings, device: str) -> Fitted:
    """Fit a table in all ways."""
    counts, frequencies = TABLES[name].load(device=device).unique(return_counts=True)
    frequencies = frequencies.to(counts)
    rates = fit_rates(counts, frequencies, settings, name)
    law = SemiImplicit(rates.mixing(), dist.Poisson, settings.num_psi, chunk_size=CHUNK)
    posterior = law.psi_posterior(counts)
    gamma = fit_gamma(counts, frequencies)
    npmle = fit_npmle(counts, frequencies)
    atoms = dist.Poisson(npmle.grid.clamp_min(1e-12)).log_prob(counts.double().cpu()[:, None]).exp()
    log_pmf = {
        "SIG": posterior.log_evidence,
        "NPMLE": (atoms @ npmle.weights).log(),
        "gamma": gamma.log_prob(counts),
    }
    means = {
        "SIG": posterior.mean,
        "NPMLE": (atoms * npmle.grid) @ npmle.weights / (atoms @ npmle.weights),
        "gamma": (gamma.concentration + counts) / (gamma.rate + 1),
        "Robbins": robbins(frequencies),
    }
    with torch.no_grad():
        psi = rates.mixing().sample((settings.num_psi,))
    prior = dist.Gamma(gamma.concentration, gamma.rate)
    return Fitted(counts, frequencies, psi, prior, npmle, posterior, log_pmf, means)


def summarise(name: str, fitted: Fitted) -> dict[str, Any]:
    """Return log-likelihoods and posterior means, as numbers."""
    shown, weights = TABLES[name].num_shown, fitted.frequencies.double().cpu()
    return {
        "log-likelihood": {
            key: float(log_pmf.double().cpu() @ weights) for key, log_pmf in fitted.log_pmf.items()
        },
        "NPMLE lacks at most": fitted.npmle.lacks,
        "posterior means": {key: x[:shown].tolist() for key, x in fitted.means.items()},
        "least effective sample size": float(fitted.posterior.effective_sample_size.min()),
    }


def save_draws(name: str, fitted: Fitted, seed: int, path: Path) -> None:
    """Write draws of the rates given each count, and of next year's counts, for ArviZ."""
    psi = fitted.posterior.sample((1000,))
    data = draws_to_inference_data(
        {"psi": psi},
        posterior_predictive={"next_x": dist.Poisson(psi).sample()},
        observed_data={"x": fitted.counts, TABLES[name].unit: fitted.frequencies},
        coords={"count": fitted.counts.long().tolist()},
        dims={key: ["count"] for key in ("psi", "next_x", "x", TABLES[name].unit)},
        attrs={"seed": seed},
    )
    data.to_netcdf(str(path))


# --------------------------------------------------------------------------------------- pictures


def draw_table(name: str, fitted: Fitted, path: Path) -> None:
    """Draw laws of the rates, counts seen and expected, and posterior means."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    draw_mixing(axes[0], fitted)
    draw_counts(axes[1], fitted, TABLES[name])
    for key, values in fitted.means.items():
        shown = values[: TABLES[name].num_shown].cpu().numpy()
        axes[2].plot(shown, **STYLES[key], color=COLOURS[key], label=key)
    axes[2].set(xlabel=f"{TABLES[name].counted} $x$", ylabel=r"$E[\psi\,|\,x]$")
    axes[2].set_title("expected rate given $x$")
    for axis in axes:
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_mixing(axis: Axes, fitted: Fitted) -> None:
    """Draw the laws of the rates by their distribution functions: atoms have no density."""
    top = 1.5 * float(fitted.npmle.grid[fitted.npmle.weights > 1e-4].max())
    grid = torch.linspace(1e-3, top, 1000)
    share = torch.searchsorted(fitted.psi.sort().values, grid.to(fitted.psi)) / len(fitted.psi)
    axis.plot(grid, share.cpu(), color=COLOURS["SIG"], label="SIG", zorder=3)
    atoms = torch.cat([fitted.npmle.grid, fitted.npmle.grid.new_tensor([top])])
    below = fitted.npmle.weights.cumsum(0)
    broad: dict[str, Any] = {
        "color": COLOURS["NPMLE"],
        "linewidth": 4,
        "alpha": 0.5,
        "label": "NPMLE",
    }
    axis.step(atoms, torch.cat([below, below[-1:]]), where="post", **broad)
    gamma = fitted.gamma.concentration, (fitted.gamma.rate * grid.to(fitted.gamma.rate))
    axis.plot(grid, torch.special.gammainc(*gamma).cpu(), color=COLOURS["gamma"], label="gamma")
    axis.set(xlim=(0, top), xlabel=r"rate $\psi$", ylabel=r"share of rates below $\psi$")
    axis.set_title("law of the rates")


def draw_counts(axis: Axes, fitted: Fitted, table: Table) -> None:
    """Draw how often each count was seen, and expected."""
    x = np.arange(len(fitted.counts))
    axis.bar(x, fitted.frequencies.cpu().numpy(), color="lightgrey", label="observed")
    for shift, (key, log_pmf) in zip((-0.2, 0.0, 0.2), fitted.log_pmf.items(), strict=True):
        expected = (log_pmf.exp() * float(fitted.frequencies.sum())).cpu().numpy()
        axis.plot(x + shift, expected, "o", color=COLOURS[key], label=key)
    axis.set(yscale="log", xlabel=f"{table.counted} $x$", ylabel=table.unit)
    axis.set_title("observed and expected")


# ------------------------------------------------------------------------------------------- main


def run(name: str, settings: Settings, seed: int, device: str, out: Path) -> dict[str, Any]:
    """Fit a table, draw it and return its numbers."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    fitted = fit_all(name, settings, device)
    draw_table(name, fitted, out / f"{name}.png")
    save_draws(name, fitted, seed, out / f"{name}.nc")
    return summarise(name, fitted)


def print_results(name: str, found: dict[str, Any]) -> None:
    """Print log-likelihoods and posterior means."""
    print(f"\n{name}: log-likelihood, and E[psi | x]")
    width = max(len(values) for values in found["posterior means"].values())
    print(" " * 20 + "".join(f"{f'x = {x}':>8}" for x in range(width)))
    for key, means in found["posterior means"].items():
        log_likelihood = found["log-likelihood"].get(key)
        score = " " * 11 if log_likelihood is None else f"{log_likelihood:11.2f}"
        print(f"  {key:<7}{score}" + "".join(f"{value:8.3f}" for value in means))


def main(args: argparse.Namespace) -> None:
    """Fit all tables."""
    args.out.mkdir(parents=True, exist_ok=True)
    settings = (SMOKE if args.smoke else Settings())._replace(progress=args.progress)
    metrics: dict[str, Any] = {}
    for name in args.tables:
        start = time.perf_counter()
        metrics[name] = run(name, settings, args.seed, args.device, args.out)
        metrics[name]["seconds"] = time.perf_counter() - start
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    for name, found in metrics.items():
        print_results(name, found)
    print(f"\nWritten to {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--out", type=Path, default=Path("out/empirical_bayes"))
    add_quiet(parser)
    main(parser.parse_args())
