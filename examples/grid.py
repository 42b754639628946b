"""The 5 x 5 grid of Gaussians: Table 1 of the SIG paper, and samples beside data.

    python examples/grid.py --methods gan,vae,veegan,unrolled,sig,lbt,lbt-gan,bigan,gan-si

Protocol (VEEGAN's, which the paper follows; the spacing of 2 is assumed): 25 equal Gaussians of
std 0.05, a generator with two hidden layers of 100 ReLU units, 50,000 samples. A sample has high
quality (HQ) within 3 std of a centre, a mode is captured with more than 1000 of them. KL is from
the samples to the truth over 26 cells. A perfect sampler scores 25, 0.9889 and 0.

All methods train the same generator, the adversaries against the same critic (one layer of 100),
encoders have two layers of 100. GAN-SI shows its critic the psi; its samples, as those of SIG, VAE,
VEEGAN and BiGAN, are x given psi. The student of LBT is a kernel density of the draws.

Every (method, seed) is kept in the output folder: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from _grid_fits import DEFAULTS, FIT
from _kept import kept
from _modes import score
from _quiet import add_quiet
from torch import Tensor

from pyro_sig import datasets

NUM_SAMPLES = 50_000
FIGURES = ("modes", "hq", "kl", "seconds")
# Mean and SD over five trials, as printed in Table 1.
PAPER = {
    "gan": {"modes": (4.0, 3.08), "hq": (0.36, 0.16), "kl": (2.87, 0.78)},
    "vae": {"modes": (25, 0), "hq": (0.83, 0.02), "kl": (0.32, 0.07)},
    "veegan": {"modes": (23.2, 0.84), "hq": (0.82, 0.03), "kl": (0.38, 0.08)},
    "unrolled": {"modes": (6.2, 8.6), "hq": (0.42, 0.13), "kl": (1.97, 0.60)},
    "sig": {"modes": (25, 0), "hq": (0.91, 0.04), "kl": (0.14, 0.07)},
}


# ------------------------------------------------------------------------------------ one seed each


def run(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one seed, or reads what an earlier run left."""
    settings = {**DEFAULTS[method], **({"num_steps": 200} if args.smoke else {})}
    for name in settings:
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    settled = argparse.Namespace(**{**vars(args), **settings})

    def fit() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        pyro.enable_validation(False)  # it takes a tenth of a step
        toy = datasets.grid_of_gaussians(device=args.device)
        start = time.perf_counter()
        sample = FIT[method](toy, settled)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            x = sample((NUM_SAMPLES,))
        return {**score(x, toy), "seconds": seconds, "samples": x[:5000].cpu().clone()}

    return kept(args.out / "cache" / f"{method}-{seed}.pt", settings, fit)


# ------------------------------------------------------------------------------ table and picture


def print_table(metrics: dict[str, dict[str, list[float]]]) -> None:
    """Prints mean and SD over seeds (SE in brackets) beside the paper's figures."""
    print(f"\n{'':11}{'modes':>22}{'HQ':>26}{'KL':>28}{'seconds':>10}")
    for method, figures in metrics.items():
        cells = []
        for name, digits in (("modes", 1), ("hq", 4), ("kl", 4)):
            values = figures[name]
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            se = sd / math.sqrt(len(values))
            mean = statistics.fmean(values)
            cells.append(f"{mean:.{digits}f} +- {sd:.{digits}f} ({se:.{digits}f})")
        seconds = statistics.fmean(figures["seconds"])
        print(f"{method:11}{cells[0]:>22}{cells[1]:>26}{cells[2]:>28}{seconds:>10.0f}")
        if method in PAPER:
            cells = [f"{m} +- {sd}" for m, sd in PAPER[method].values()]
            print(f"{'  paper':11}{cells[0]:>22}{cells[1]:>26}{cells[2]:>28}")
    print(f"{'perfect':11}{'25':>22}{'0.9889':>26}{'0':>28}   (SD over seeds, SE in brackets)\n")


def draw(samples: dict[str, Tensor], path: Path) -> None:
    """Draws data beside the first seed's samples of each method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"data": datasets.grid_of_gaussians().sample(5000), **samples}
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.8 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, x) in zip(axes.flat, panels.items(), strict=False):
        axis.scatter(*x.T.numpy(), s=1.5, alpha=0.4, linewidths=0, color="C0")
        axis.set(title=title, aspect="equal", xlim=(-5, 5), ylim=(-5, 5))
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Runs every method and seed; writes metrics.json and grid.png."""
    args.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict[str, list[float]]] = {}
    samples: dict[str, Tensor] = {}
    for method in FIT if args.methods == "all" else args.methods.split(","):
        if method not in FIT:
            raise ValueError(f"`methods` must be among {', '.join(FIT)}, was {method!r}")
        metrics[method] = {name: [] for name in FIGURES}
        for seed in range(args.seed, args.seed + args.seeds):
            result = run(method, seed, args)
            print(
                f"{method}, seed {seed}: {result['modes']} modes, HQ {result['hq']:.4f}, "
                f"KL {result['kl']:.4f}, {result['seconds']:.0f} s"
            )
            for name in FIGURES:
                metrics[method][name].append(result[name])
            samples.setdefault(method, result["samples"])
    print_table(metrics)
    (args.out / "metrics.json").write_text(json.dumps({"methods": metrics}, indent=1))
    draw(samples, args.out / "grid.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", default="sig", help="all, or a comma list of: " + ", ".join(FIT)
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--num-steps", type=int, help="for all methods of this run")
    parser.add_argument("--batch-size", type=int, help="for all methods of this run")
    parser.add_argument("--num-mixing", type=int, help="of SIG and GAN-SI")
    parser.add_argument("--learning-rate", type=float, help="for all methods of this run")
    parser.add_argument("--elbo-weight", type=float, help="of the SIG term in GAN-SI")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/grid"))
    add_quiet(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
