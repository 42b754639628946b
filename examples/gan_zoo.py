"""Every adversarial objective on two laws with separate modes, by one pair of networks.

    python examples/gan_zoo.py --out out/gan_zoo
    python examples/gan_zoo.py --data ring --methods non-saturating,divergences --seeds 3

Eight Gaussians on a ring (std 0.02) and 25 on a grid (std 0.05). Generator and critic have two
hidden layers of 128 ReLU units; all methods share batches, steps and learning rates, and differ
only in what METHODS says. A sample has high quality (HQ) within 3 std of a centre. The
output folder gets `metrics.json`, and `gan_zoo.png` with a row of panels for each data set.

Every (data, method, seed) is kept in the output folder: a run that was stopped goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _kept import kept
from _modes import DATA, centres, draw_samples, score, view_limit
from _quiet import add_quiet
from torch import Tensor, nn

from pyro_sig.adversarial import GAN, objectives, penalties
from pyro_sig.distributions import Implicit
from pyro_sig.infer import NonFiniteLossError, train
from pyro_sig.nn import MLP

NUM_STEPS = {"ring": 2500, "grid": 4000}
BETAS = (0.5, 0.9)
NUM_SAMPLES = 20_000
NUM_PLOTTED = 3000
FIGURES = ("modes", "hq", "kl", "seconds")


# ------------------------------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Method:
    """What one method has of its own."""

    objective: objectives.Objective
    penalties: Callable[[float], list[penalties.Penalty]] = lambda gamma: []
    critic: Callable[[MLP], nn.Module] = lambda critic: critic
    settings: dict[str, Any] = field(default_factory=dict)  # of GAN
    rate: float = 1.0  # learning rates, as a multiple of the others'
    decay: bool = True  # whether they fall to zero


class InOtherUnits(nn.Module):
    """A critic of values in units of ``1 / factor``, whose slopes are that much steeper."""

    def __init__(self, critic: nn.Module, factor: float) -> None:
        super().__init__()
        self.critic, self.factor = critic, factor

    def forward(self, x: Tensor) -> Tensor:
        """Scores values."""
        return self.critic(self.factor * x)


def spectral(critic: nn.Module) -> nn.Module:
    """Bounds the slope by 10: with 1, no critic tells apart what lies closer than the margin."""
    return InOtherUnits(penalties.spectral_norm(critic), 10.0)


def with_batch_norm(critic: MLP) -> MLP:
    """Puts a batch normalisation in front of each activation."""
    layers: list[nn.Module] = []
    for layer in critic.hidden:
        layers.append(layer)
        if isinstance(layer, nn.Linear):
            layers.append(nn.BatchNorm1d(layer.out_features, device=layer.weight.device))
    critic.hidden = nn.Sequential(*layers)
    return critic


def r1(gamma: float) -> list[penalties.Penalty]:
    """The penalty at the data."""
    return [penalties.R1(gamma)]


def r1_r2(gamma: float) -> list[penalties.Penalty]:
    """The penalties at data and samples."""
    return [penalties.R1(gamma), penalties.R2(gamma)]


# Weights of R1 and R2. Narrower modes need a steeper critic, which a penalty must let it be.
GAMMA = {"ring": 0.01, "grid": 0.1}

METHODS = {
    "minimax": Method(objectives.Minimax()),
    "non-saturating": Method(objectives.NonSaturating()),
    "maximum-likelihood": Method(objectives.MaximumLikelihood()),
    "least-squares": Method(objectives.LeastSquares()),
    "hinge": Method(objectives.Hinge()),
    "hinge-spectral": Method(objectives.Hinge(), critic=spectral),
    "wasserstein": Method(objectives.Wasserstein()),
    "wasserstein-clip": Method(
        objectives.Wasserstein(),
        lambda gamma: [penalties.WeightClipping(0.1)],
        settings={"critic_steps": 3},
    ),
    "wasserstein-gp": Method(
        objectives.Wasserstein(),
        lambda gamma: [penalties.GradientPenalty(0.1)],
        settings={"critic_steps": 3},
    ),
    "relativistic": Method(objectives.Relativistic()),
    "relativistic-r1-r2": Method(objectives.Relativistic(), r1_r2),
    "non-saturating-r1": Method(objectives.NonSaturating(), r1),
    "unrolled": Method(objectives.Minimax(), settings={"unroll": 5}, rate=0.2),
    "kl": Method(objectives.FDivergence("kl")),
    "reverse_kl": Method(objectives.FDivergence("reverse_kl")),
}
DEFAULT = tuple(METHODS)
# Variants with one or two things changed, and the other divergences.
METHODS |= {
    "maximum-likelihood-r1": Method(objectives.MaximumLikelihood(max_score=2.0), r1),
    "minimax-slow": Method(objectives.Minimax(), rate=0.2),
    "kl-r1": Method(objectives.FDivergence("kl"), r1),
    "kl-slow": Method(objectives.FDivergence("kl"), rate=0.2),
    "hinge-spectral-1": Method(objectives.Hinge(), critic=penalties.spectral_norm),
    "strong-r1": Method(objectives.NonSaturating(), lambda gamma: r1(30 * gamma)),
    "batch-norm": Method(objectives.NonSaturating(), critic=with_batch_norm),
    "batch-norm-r1": Method(objectives.NonSaturating(), r1, critic=with_batch_norm),
    "r1-3-critic-steps": Method(objectives.NonSaturating(), r1, settings={"critic_steps": 3}),
    "r1-constant-rate": Method(objectives.NonSaturating(), r1, decay=False),
    "r1-constant-rate-ema": Method(
        objectives.NonSaturating(), r1, settings={"ema": 0.99}, decay=False
    ),
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "jensen_shannon_weighted": {"pi": 0.3},
    "alpha": {"alpha": 0.5},
}
for divergence in objectives.FDivergence.names():
    METHODS.setdefault(
        divergence, Method(objectives.FDivergence(divergence, **PARAMETERS.get(divergence, {})))
    )


# ----------------------------------------------------------------------------------------- one fit


def fit(method: Method, data: str, args: argparse.Namespace) -> tuple[Tensor, str]:
    """Trains a generator; returns samples, and what went wrong."""
    toy = DATA[data](device=args.device)
    net = MLP(2, [128, 128], 2, device=args.device)
    critic = method.critic(MLP(2, [128, 128], 1, device=args.device))
    noise = dist.Normal(torch.zeros(2, device=args.device), 1.0).to_event(1)

    def model(x: Tensor) -> None:
        pyro.module("generator", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", Implicit(net, noise, event_shape=2), obs=x)

    rate = method.rate * args.learning_rate
    optim = torch.optim.Adam(net.parameters(), lr=rate, betas=BETAS)
    critic_optim = torch.optim.Adam(critic.parameters(), lr=rate, betas=BETAS)
    terms = method.penalties(GAMMA[data])
    gan = GAN(model, critic, optim, critic_optim, method.objective, terms, **method.settings)
    steps = 50 if args.smoke else args.num_steps or NUM_STEPS[data]
    # The steps shrink to nothing: without a fixed point to come to, a game at least slows down.
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            o, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
        )
        for o in (optim, critic_optim)
        if method.decay
    ]
    failure = ""
    try:
        train(
            gan,
            lambda step: toy.sample(args.batch_size),
            steps,
            callbacks=schedules,
            progress=args.progress,
            description=repr(gan),
        )
    except NonFiniteLossError as error:
        failure = f"loss {error.value} at step {error.step}"
    with torch.no_grad():
        draws = noise.sample((NUM_SAMPLES,))
        if method.settings.get("ema") is None:
            return net(draws), failure
        with gan.averaged():
            return net(draws), failure


def run(data: str, name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one seed, or reads what an earlier run left."""
    method = METHODS[name]
    settings = {key: getattr(args, key) for key in SETTINGS} | {"method": describe(method, data)}

    def one() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        toy = DATA[data](device=args.device)
        start = time.perf_counter()
        with warnings.catch_warnings():
            # The methods that the trainer warns of are here to be seen failing.
            warnings.filterwarnings("ignore", message=".*(needs a critic|has batch normalisation)")
            samples, failure = fit(method, data, args)
        result: dict[str, Any] = {"seconds": time.perf_counter() - start, "failure": failure}
        if torch.isfinite(samples).all():
            result |= score(samples, toy)
        else:
            # As of samples that are all far from any mode, the cell of a share of exp(-3^2 / 2).
            result |= {"modes": 0, "hq": 0.0, "kl": 4.5, "failure": failure or "samples not finite"}
        result["samples"] = samples[:NUM_PLOTTED].cpu().clone()
        return result

    return kept(args.out / "cache" / f"{data}-{name}-{seed}.pt", settings, one)


def describe(method: Method, data: str) -> str:
    """Says what decides a fit, so that a change of it is not read from the cache."""
    parts = (method.objective, method.penalties(GAMMA[data]), method.settings, NUM_STEPS, BETAS)
    return f"{parts} {method.critic.__name__} {method.rate} {method.decay}"


# ------------------------------------------------------------------------------ table and picture


def print_table(data: str, rows: dict[str, dict[str, list[Any]]]) -> None:
    """Prints means over seeds."""
    toy = DATA[data]()
    print(f"\n{data}, {len(centres(toy))} modes")
    print(f"{'':28}{'modes':>7}{'HQ':>8}{'KL':>8}{'seconds':>9}")
    for method, figures in rows.items():
        modes, hq, kl, seconds = (statistics.fmean(figures[name]) for name in FIGURES)
        failures = "; ".join(failure for failure in figures["failure"] if failure)
        print(f"{method:28}{modes:7.1f}{hq:8.3f}{kl:8.3f}{seconds:9.0f}   {failures}".rstrip())
    print(f"{'perfect':28}{len(centres(toy)):7.1f}{0.9889:8.3f}{0:8.3f}")


def draw(results: dict[str, dict[str, dict[str, Any]]], path: Path, columns: int = 5) -> None:
    """Draws the first seed's samples over the centres, a panel for each method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {data: math.ceil(len(found) / columns) for data, found in results.items()}
    size = (2.3 * columns, 2.65 * sum(rows.values()) + 0.4 * len(rows))
    figure = plt.figure(figsize=size, layout="constrained")
    parts = figure.subfigures(len(rows), 1, height_ratios=list(rows.values()), squeeze=False)
    for part, (data, found) in zip(parts[:, 0], results.items(), strict=True):
        toy = DATA[data]()
        part.suptitle(f"{data}: samples over the centres of {len(centres(toy))} modes")
        axes = part.subplots(rows[data], columns, squeeze=False).ravel()
        limit = view_limit(toy)
        for axis in axes:
            axis.set_axis_off()
        for axis, (method, result) in zip(axes, found.items(), strict=False):
            axis.set_axis_on()
            draw_samples(axis, result["samples"], toy)
            label = f"modes: {result['modes']}, HQ: {result['hq']:.2f}"
            if torch.isnan(result["samples"]).any():
                axis.text(0, 0, "not finite", ha="center", va="center")
            elif (result["samples"].abs().amax(-1) < limit).float().mean() < 0.01:
                far = float(result["samples"].norm(dim=-1).median())
                axis.text(0, 0, f"out of view,\nat radius {far:.2g}", ha="center", va="center")
            axis.set_title(f"{method}\n{result['failure'] or label}", fontsize=8.5)
    figure.savefig(path, dpi=80)
    plt.close(figure)


SETTINGS = ("smoke", "num_steps", "batch_size", "learning_rate")


def chosen(methods: str) -> list[str]:
    """Reads the comma list, in which `default` and `divergences` stand for several."""
    groups = {"default": DEFAULT, "divergences": objectives.FDivergence.names()}
    found = [m for name in methods.split(",") for m in groups.get(name, (name,))]
    unknown = [name for name in found if name not in METHODS]
    if unknown:
        known = ", ".join((*groups, *METHODS))
        raise ValueError(f"`methods` must be a comma list of {known}; was with {unknown}")
    return list(dict.fromkeys(found))


def main(args: argparse.Namespace) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Runs every data set, method and seed; writes metrics.json and gan_zoo.png."""
    args.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict[str, dict[str, list[Any]]]] = {}
    pictures: dict[str, dict[str, dict[str, Any]]] = {}
    methods = chosen(args.methods)
    for data in args.data.split(","):
        if data not in DATA:
            raise ValueError(f"`data` must be among {', '.join(DATA)}, was {data!r}")
        metrics[data], pictures[data] = {}, {}
        for method in methods:
            figures = metrics[data][method] = {name: [] for name in (*FIGURES, "failure")}
            for seed in range(args.seed, args.seed + args.seeds):
                result = run(data, method, seed, args)
                pictures[data].setdefault(method, result)
                for name, values in figures.items():
                    values.append(result[name])
                print(
                    f"{data}, {method}, seed {seed}: {result['modes']} modes, "
                    f"HQ {result['hq']:.3f}, {result['seconds']:.0f} s {result['failure']}",
                    flush=True,
                )
    for data, rows in metrics.items():
        print_table(data, rows)
    (args.out / "metrics.json").write_text(json.dumps({"data": metrics}, indent=1))
    draw(pictures, args.out / "gan_zoo.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ring,grid", help="comma list of: " + ", ".join(DATA))
    parser.add_argument(
        "--methods",
        default="default",
        help="comma list of: default, divergences, " + ", ".join(METHODS),
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--num-steps", type=int, help=f"by default {NUM_STEPS}")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of both players")
    parser.add_argument("--device", default="cpu")
    add_quiet(parser)
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/gan_zoo"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
