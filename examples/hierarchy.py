"""Hierarchical models with an implicit prior: two kinds of groups, and eight schools.

First, many groups of a few observations. The effects of the groups come from a law with two modes,
which is not known. A network on noise learns it (`SIG_ELBO` sums the effects out, an ordinary guide
infers the spread within groups), beside the usual Normal prior, which is the same program with an
affine map for the network. Both are scored on groups held out.

Then the learnt law is frozen (`to_mixture`) and becomes the prior of another model: the effects of
coaching in eight schools, beside the usual Normal prior, each by NUTS and by `fit`.

    python examples/hierarchy.py --out out/hierarchy

The output folder gets `metrics.json`, `groups.png`, `schools.png` and a NetCDF file for each
posterior of the schools.
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
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _quiet import add_quiet
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_sig.diagnostics import draw_matrix, sliced_wasserstein, to_inference_data
from pyro_sig.distributions import FixedMixture, Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, fit, train
from pyro_sig.nn import MLP


class Settings(NamedTuple):
    """Sizes of data and fits."""

    num_groups: int = 1500
    num_held_out: int = 1000
    num_steps: int = 2000
    num_mixing: int = 1000
    num_psi: int = 50_000
    num_atoms: int = 300
    num_draws: int = 1500
    warmup: int = 500
    num_chains: int = 4
    fit_steps: int = 4000
    progress: bool | None = None


SMOKE = Settings(50, 20, 20, 50, 1000, 20, 20, 10, 2, 50)

# The law of the effects, and the spread of the observations of one group.
SHARES, CENTRES, WIDTHS = (0.35, 0.65), (-1.5, 1.0), (0.4, 0.5)
SPREAD, GROUP_SIZE = 0.7, 4

KERNEL = 0.3  # standard deviations of the effects: gives the frozen law a smooth density
EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
COLOURS = {"implicit": "tab:red", "Normal": "tab:blue"}


# ----------------------------------------------------------------------------------------- groups


def true_law(device: str) -> dist.MixtureSameFamily:
    """Return the law of the effects."""
    shares, centres, widths = (torch.tensor(x, device=device) for x in (SHARES, CENTRES, WIDTHS))
    return dist.MixtureSameFamily(dist.Categorical(shares), dist.Normal(centres, widths))


def make_groups(num_groups: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw effects, shape [groups], and observations, shape [observations, groups]."""
    effects = true_law(device).sample((num_groups,))
    return effects, effects + SPREAD * torch.randn(GROUP_SIZE, num_groups, device=device)


class Affine(PyroModule):
    """Maps normal noise to a Normal law."""

    noise_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))
        self.scale: Any = PyroParam(torch.ones(1), dist.constraints.positive)

    def forward(self, noise: Tensor) -> Tensor:
        """Scale and shift."""
        return self.loc + self.scale * noise


class Network(MLP):
    """Maps normal noise to any law."""

    noise_dim = 2

    def __init__(self) -> None:
        super().__init__(self.noise_dim, [64, 64], 1)


class Groups(PyroModule):
    """Observations in groups; the prior of the effects is whatever the network makes of noise."""

    def __init__(self, network: Affine | Network) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("zeros", torch.zeros(network.noise_dim))

    def effect_law(self) -> Implicit:
        """Build the prior of one effect."""
        noise = dist.Normal(self.zeros, 1.0).to_event(1)
        network = self.network
        return Implicit(lambda e: network(e).squeeze(-1), noise)

    def forward(self, y: Tensor) -> None:
        """Observe y, of shape [observations, groups]."""
        spread = pyro.sample("spread", dist.LogNormal(self.zeros[0], 1.0))
        with pyro.plate("groups", y.shape[1], dim=-1):
            effect = pyro.sample("effect", self.effect_law())
            with pyro.plate("observations", y.shape[0], dim=-2):
                pyro.sample("y", dist.Normal(effect, spread), obs=y)


class Fitted(NamedTuple):
    """A trained prior: the program, its guide of the spread, and draws of the effects."""

    model: Groups
    spread: Tensor
    psi: Tensor


def fit_groups(network: Affine | Network, y: Tensor, settings: Settings, name: str) -> Fitted:
    """Train prior and guide together."""
    pyro.clear_param_store()
    model = Groups(network).to(y.device)
    guide = AutoNormal(poutine.block(model, hide=["effect"]))
    schedule = {
        "optimizer": torch.optim.Adam,
        "optim_args": {"lr": 0.01},
        "lr_lambda": lambda step: (1 + math.cos(math.pi * step / settings.num_steps)) / 2,
    }
    elbo = SIG_ELBO(settings.num_mixing, max_plate_nesting=2)
    svi = SVI(model, guide, pyro.optim.LambdaLR(schedule), elbo)
    train(svi, y, settings.num_steps, progress=settings.progress, description=f"{name} prior")
    with torch.no_grad():
        spread = torch.stack([guide(y)["spread"] for _ in range(10)])
        return Fitted(model, spread, model.effect_law().sample((settings.num_psi,)))


def group_law(prior: Any, spread: Tensor) -> FixedMixture:
    """Return the law of all observations of one group, given draws of its effect."""

    def observations(effect: Tensor) -> dist.TorchDistribution:
        repeated = effect.unsqueeze(-1).expand(*effect.shape, GROUP_SIZE)
        return dist.Normal(repeated, spread).to_event(1)

    return FixedMixture(prior, observations)


@torch.no_grad()
def score_groups(psi: Tensor, spreads: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return log predictive density and expected effect of every group, averaged over spreads."""
    log_probs, means = [], []
    for spread in spreads:
        law = group_law(psi, spread)
        log_probs.append(law.log_prob(y.T))
        # Fewer atoms: the posterior holds a weight for each pair of group and atom.
        means.append(group_law(psi[:5000], spread).psi_posterior(y.T).mean)
    log_prob = torch.stack(log_probs).logsumexp(0) - math.log(len(spreads))
    return log_prob, torch.stack(means).mean(0)


def find_modes(psi: Tensor) -> dict[str, list[float]]:
    """Find modes of the smoothed law, and the share of it between the valleys beside each."""
    edges = torch.linspace(float(psi.min()) - 1, float(psi.max()) + 1, 400)
    density = smoothed(psi, edges).numpy()
    inner = density[1:-1]
    peaks = 1 + np.flatnonzero((inner > density[:-2]) & (inner >= density[2:]))
    tops = [i for i in peaks if density[i] > 0.05 * density.max()]
    valleys = [i + int(density[i:j].argmin()) for i, j in zip(tops, tops[1:], strict=False)]
    cuts = [-math.inf, *(float(edges[i]) for i in valleys), math.inf]
    shares = [
        float(((psi > a) & (psi <= b)).float().mean()) for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    return {"modes": [float(edges[i]) for i in tops], "weights": shares}


def smoothed(psi: Tensor, x: Tensor) -> Tensor:
    """Return the density of the law at x, smoothed by the kernel of the frozen prior."""
    return smooth_law(psi[:20_000].cpu()).log_prob(x).exp()


def smooth_law(psi: Tensor) -> FixedMixture:
    """Give a set of effects a density."""
    width = float(KERNEL * psi.std())
    return FixedMixture(psi, lambda p: dist.Normal(p, width))


def run_groups(settings: Settings, device: str, out: Path) -> tuple[dict[str, Any], Fitted]:
    """Fit both priors, score them on groups held out; return numbers and the learnt prior."""
    _, y = make_groups(settings.num_groups, device)
    effects, held_out = make_groups(settings.num_held_out, device)
    fitted = {
        "implicit": fit_groups(Network(), y, settings, "implicit"),
        "Normal": fit_groups(Affine(), y, settings, "Normal"),
    }
    sources = {name: (found.psi, found.spread) for name, found in fitted.items()}
    sources["true"] = (
        true_law(device).sample((settings.num_psi,)),
        torch.tensor([SPREAD], device=device),
    )
    scores, means = {}, {}
    for name, (psi, spread) in sources.items():
        scores[name], means[name] = score_groups(psi, spread, held_out)
    metrics: dict[str, Any] = {
        name: {
            "log density of a group": float(scores[name].mean()),
            "RMSE of effects": float((means[name] - effects).square().mean().sqrt()),
            "spread": float(sources[name][1].mean()),
        }
        for name in sources
    }
    gain = scores["implicit"] - scores["Normal"]
    metrics["gain of implicit over Normal"] = {
        "mean": float(gain.mean()),
        "standard error": float(gain.std() / len(gain) ** 0.5),
    }
    metrics["implicit"] |= find_modes(fitted["implicit"].psi)
    metrics["true"] |= {"modes": list(CENTRES), "weights": list(SHARES)}
    draw_groups(fitted, held_out, means, out / "groups.png")
    return metrics, fitted["implicit"]


def draw_groups(fitted: dict[str, Fitted], y: Tensor, means: dict[str, Tensor], path: Path) -> None:
    """Draw the recovered laws, and how each prior shrinks the mean of a group."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    x = torch.linspace(-3.5, 3.5, 400)
    left.fill_between(x, true_law("cpu").log_prob(x).exp(), color="0.85", label="true law")
    for name, found in fitted.items():
        counts, edges = np.histogram(found.psi.cpu().numpy(), 120, (-3.5, 3.5), density=True)
        left.stairs(counts, edges, color=COLOURS[name], alpha=0.5)
        left.plot(x, smoothed(found.psi, x), color=COLOURS[name], label=f"{name} prior")
    left.set(xlabel="effect of a group", ylabel="density", xlim=(-3.5, 3.5))
    left.set_title("law of the effects: histogram of draws, and smoothed")
    left.legend()
    group_means = y.mean(0).cpu()
    limits = [float(group_means.min()), float(group_means.max())]
    right.plot(limits, limits, color="0.7", label="no shrinkage")
    for name in fitted:
        order = group_means.argsort()
        right.plot(
            group_means[order], means[name].cpu()[order], ".", ms=4, color=COLOURS[name], label=name
        )
    right.set(xlabel="mean of the group's observations", ylabel="posterior mean of its effect")
    right.set_title("shrinkage of groups held out")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---------------------------------------------------------------------------------------- schools


def schools_model(prior: Callable[[], dist.TorchDistribution]) -> Callable[..., None]:
    """Build the model of eight schools with a given law of the standardised effects."""

    def model(y: Tensor, errors: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_full((), 5.0)))
        with pyro.plate("school", len(y)):
            eta = pyro.sample("eta", prior())
            effect = pyro.deterministic("effect", mu + tau * eta)
            pyro.sample("y", dist.Normal(effect, errors), obs=y)

    return model


def infer_schools(
    model: Callable[..., None], data: tuple[Tensor, Tensor], settings: Settings, seed: int
) -> dict[str, Any]:
    """Infer by NUTS, a few chains one after the other, and by `fit`; export both."""
    chains = []
    start = time.perf_counter()
    for chain in range(settings.num_chains):
        pyro.set_rng_seed(seed + chain)
        kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
        mcmc = MCMC(kernel, settings.num_draws, settings.warmup, disable_progbar=True)
        mcmc.run(*data)
        chains.append(mcmc.get_samples())
    draws = {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}
    by_nuts = time.perf_counter() - start
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    found = fit(model, *data, budget=settings.fit_steps, annealing=0.5, progress=settings.progress)
    by_fit = time.perf_counter() - start - by_nuts
    sizes: dict[str, Any] = {"num_samples": settings.num_draws * settings.num_chains, "seed": seed}
    return {
        "NUTS": to_inference_data(model, None, *data, posterior=draws, seed=seed),
        "fit": to_inference_data(model, found.guide, *data, **sizes),
        "seconds": {"NUTS": by_nuts, "fit": by_fit},
        "report": found.report,
        "k_hat": found.k_hat,
    }


def compare_routes(found: dict[str, Any]) -> dict[str, Any]:
    """Compare the two posteriors of the effects, in units of the posterior spread."""
    exact, ours = (draw_matrix(found[route], ["effect"]) for route in ("NUTS", "fit"))
    scale = exact.std(0)
    halves = exact[: len(exact) // 2] / scale, exact[len(exact) // 2 :] / scale
    r_hat = az.summary(found["NUTS"], kind="diagnostics", round_to="none")["r_hat"]
    return {
        "largest r_hat of NUTS": float(r_hat.max()),
        "largest difference of means, in sd": float(
            ((ours.mean(0) - exact.mean(0)) / scale).abs().max()
        ),
        "ratios of sd": [float(x) for x in ours.std(0) / scale],
        "sliced W2": float(sliced_wasserstein(ours / scale, exact / scale)),
        "sliced W2 of halves of NUTS": float(sliced_wasserstein(*halves)),
        "k_hat of the guide": found["k_hat"],
        "seconds": found["seconds"],
        "means by NUTS": exact.mean(0).tolist(),
        "means by fit": ours.mean(0).tolist(),
    }


def freeze(fitted: Fitted, num_atoms: int) -> FixedMixture:
    """Make the learnt law, standardised, a prior with a density that NUTS can use."""
    loc, scale = fitted.psi.mean(), fitted.psi.std()
    law = fitted.model.effect_law()
    standardised = Implicit(lambda e: (law.transform(e) - loc) / scale, law.noise)
    smooth = SemiImplicit(standardised, lambda psi: dist.Normal(psi, KERNEL), num_atoms)
    return smooth.to_mixture()


def run_schools(
    fitted: Fitted, settings: Settings, seed: int, device: str, out: Path
) -> dict[str, Any]:
    """Infer the schools' effects under both priors by NUTS and by a semi-implicit guide."""
    data = torch.tensor(EFFECTS, device=device), torch.tensor(ERRORS, device=device)
    frozen = freeze(fitted, settings.num_atoms)
    normal = dist.Normal(torch.zeros((), device=device), 1.0)
    priors = {"implicit": lambda: frozen, "Normal": lambda: normal}
    found = {
        name: infer_schools(schools_model(prior), data, settings, seed)
        for name, prior in priors.items()
    }
    metrics: dict[str, Any] = {name: compare_routes(result) for name, result in found.items()}
    for name, result in found.items():
        for route in ("NUTS", "fit"):
            result[route].to_netcdf(str(out / f"schools_{name}_{route}.nc"))
    comparison = az.compare({name: result["NUTS"] for name, result in found.items()})
    elpd = "elpd_loo" if "elpd_loo" in comparison else "elpd"  # ArviZ below 1.0, and from there
    metrics["elpd by LOO"] = {
        name: {"elpd": float(row[elpd]), "se": float(row["se"])}
        for name, row in comparison.iterrows()
    }
    draw_schools(found, out / "schools.png")
    return metrics


def draw_schools(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw intervals of the effects: both priors, both routes."""
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    rows = np.arange(len(EFFECTS))
    axis.errorbar(rows - 0.3, EFFECTS, ERRORS, fmt="kx", lw=0.7, label="estimate and its error")
    shifts = iter((-0.15, 0.0, 0.15, 0.3))
    for name, result in found.items():
        for route, style in (("NUTS", "o"), ("fit", "s")):
            draws = draw_matrix(result[route], ["effect"])
            low, middle, high = draws.quantile(draws.new_tensor([0.1, 0.5, 0.9]), 0)
            filled = COLOURS[name] if route == "NUTS" else "white"
            axis.errorbar(
                rows + next(shifts),
                middle,
                torch.stack([middle - low, high - middle]),
                fmt=style,
                color=COLOURS[name],
                mfc=filled,
                label=f"{name} prior, {route}",
            )
    axis.set_xticks(rows, [f"school {letter}" for letter in "ABCDEFGH"])
    axis.set(ylabel="effect: median and 80 % interval", title="Eight schools")
    axis.legend(ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ------------------------------------------------------------------------------------------- main


def print_results(groups: dict[str, Any], schools: dict[str, Any]) -> None:
    """Print both tables."""
    print("\nGroups held out     log density   RMSE of effects   spread")
    for name in ("implicit", "Normal", "true"):
        row = groups[name]
        print(
            f"  {name:<16}{row['log density of a group']:13.4f}{row['RMSE of effects']:18.4f}"
            f"{row['spread']:9.3f}"
        )
    gain = groups["gain of implicit over Normal"]
    print(f"  implicit - Normal {gain['mean']:11.4f} +- {gain['standard error']:.4f} (SE)")
    for name in ("implicit", "true"):
        parts = zip(groups[name]["modes"], groups[name]["weights"], strict=True)
        text = ", ".join(f"{mode:.2f} (weight {weight:.3f})" for mode, weight in parts)
        print(f"  modes of the {name} law: {text}")
    print("\nEight schools   means by NUTS / by fit")
    for name in ("implicit", "Normal"):
        row = schools[name]
        pairs = zip(row["means by NUTS"], row["means by fit"], strict=True)
        print(f"  {name:<10}" + "  ".join(f"{a:5.1f}/{b:5.1f}" for a, b in pairs))
        print(
            f"{'':12}largest difference {row['largest difference of means, in sd']:.2f} sd; sliced "
            f"W2 {row['sliced W2']:.3f} (halves of NUTS {row['sliced W2 of halves of NUTS']:.3f}); "
            f"r_hat {row['largest r_hat of NUTS']:.3f}; k_hat {row['k_hat of the guide']:.2f}"
        )
    print(
        "  elpd by LOO: "
        + ", ".join(
            f"{name} {row['elpd']:.2f} +- {row['se']:.2f}"
            for name, row in schools["elpd by LOO"].items()
        )
    )


def main(args: argparse.Namespace) -> None:
    """Fit the groups, then the schools."""
    args.out.mkdir(parents=True, exist_ok=True)
    settings = (SMOKE if args.smoke else Settings())._replace(progress=args.progress)
    pyro.set_rng_seed(args.seed)
    start = time.perf_counter()
    groups, fitted = run_groups(settings, args.device, args.out)
    seconds = {"groups": time.perf_counter() - start}
    schools = run_schools(fitted, settings, args.seed, args.device, args.out)
    seconds["schools"] = time.perf_counter() - start - seconds["groups"]
    metrics = {"groups": groups, "schools": schools, "seconds": seconds}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print_results(groups, schools)
    print(f"\nWritten to {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--out", type=Path, default=Path("out/hierarchy"))
    add_quiet(parser)
    main(parser.parse_args())
