"""Learning by teaching: a network on noise teaches a density estimator to score the data.

    python examples/lbt.py --out out/lbt

Two laws: eight Gaussians of std 0.1 on a ring, and a hundred of std 0.01 on a grid with a spacing
of 0.2. The teacher is a network on noise, without a density. The student is a kernel density of its
draws, which needs no training, and whose width falls to the std of a mode; with the method lbt-gan
there is a critic of the draws, too.

A mode is captured if it has half its share of 50,000 samples within 3 std (HQ); "seen" counts the
modes with any of 2,500 samples that close. The output folder gets `metrics.json` and `lbt.png`:
the data, and samples of each teacher.

Every (data, method, seed) is kept in the output folder: a run that was stopped goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _kept import kept
from _modes import centres, draw_samples, mode_std, score
from _quiet import add_quiet
from _teaching import teach
from torch import Tensor

from pyro_sig import datasets
from pyro_sig.diagnostics import mode_coverage
from pyro_sig.nn import MLP

NUM_SAMPLES = 50_000
FEW = 2_500
METHODS = ("lbt", "lbt-gan")
# `unit` is the scale of the data's detail, where the student's width begins. A hundred
# modes are easier to tell apart for a network whose noise is wide.
CASES: dict[str, dict[str, Any]] = {
    "ring": {
        "noise_scale": 1.0,
        "settings": {"num_steps": 3000, "batch_size": 512, "learning_rate": 0.04, "unit": 1.0},
    },
    "grid": {
        "noise_scale": 4.0,
        "settings": {"num_steps": 4000, "batch_size": 1024, "learning_rate": 0.02, "unit": 0.2},
    },
}


def make_data(name: str, device: str) -> datasets.Toy:
    """The law of the data."""
    if name == "ring":
        return datasets.ring_of_gaussians(std=0.1, device=device)
    return datasets.grid_of_gaussians(10, spacing=0.2, std=0.01, device=device)


def run(data: str, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one teacher, or reads what an earlier run left."""
    case = CASES[data]
    settings = dict(case["settings"])
    if args.smoke:
        settings |= {"num_steps": 20, "batch_size": 64}

    def fit() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(args.seed)
        pyro.enable_validation(False)
        toy = make_data(data, args.device)
        bound = torch.full((2,), math.sqrt(3.0) * case["noise_scale"], device=args.device)
        start = time.perf_counter()
        sample = teach(
            toy,
            MLP(2, [128, 128], 2, device=args.device),
            dist.Uniform(-bound, bound).to_event(1),
            critic=MLP(2, [100], 1, device=args.device) if method == "lbt-gan" else None,
            name=f"{data}, {method}",
            progress=args.progress,
            **settings,
        )
        seconds = time.perf_counter() - start
        with torch.no_grad():
            x = sample((NUM_SAMPLES,))
        few = mode_coverage(x[:FEW], centres(toy), mode_std(toy), min_count=0)
        seen = int(few.captured)
        return {
            **score(x, toy),
            "seen": seen,
            "seconds": seconds,
            "samples": x[:5000].cpu().clone(),
        }

    return kept(args.out / "cache" / f"{data}-{method}-{args.seed}.pt", settings, fit)


def print_row(name: str, figures: dict[str, Any]) -> None:
    """Prints the figures of one teacher."""
    cells = "".join(f"{figures[n]:>10}" for n in ("modes", "seen"))
    cells += "".join(f"{figures[n]:>10.4f}" for n in ("hq", "kl"))
    print(f"{name:18}{cells}{figures['seconds']:>10.0f}", flush=True)


def draw(panels: dict[str, dict[str, Tensor]], path: Path, device: str) -> None:
    """Draws a row for each data set: the data, and samples of each teacher."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 1 + max(map(len, panels.values()))
    figure, axes = plt.subplots(
        len(panels), columns, figsize=(3 * columns, 3.2 * len(panels)), squeeze=False
    )
    for row, (data, samples) in zip(axes, panels.items(), strict=True):
        toy = make_data(data, device)
        shown = {"data": toy.sample(5000), **samples}
        for axis in row[len(shown) :]:
            axis.axis("off")
        for axis, (title, x) in zip(row, shown.items(), strict=False):
            draw_samples(axis, x.cpu(), make_data(data, "cpu"))
            axis.set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Runs all methods on all data; writes metrics.json and lbt.png."""
    args.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict[str, Any]] = {}
    panels: dict[str, dict[str, Tensor]] = {}
    print(f"{'':18}{'modes':>10}{'seen':>10}{'HQ':>10}{'KL':>10}{'seconds':>10}")
    for data in args.data.split(","):
        if data not in CASES:
            raise ValueError(f"`data` must be among {', '.join(CASES)}, was {data!r}")
        for method in args.methods.split(","):
            if method not in METHODS:
                raise ValueError(f"`methods` must be among {METHODS}, was {method!r}")
            figures = run(data, method, args)
            print_row(f"{data}, {method}", figures)
            panels.setdefault(data, {})[method] = figures["samples"]
            names = ("modes", "seen", "hq", "kl", "seconds")
            metrics[f"{data}, {method}"] = {name: figures[name] for name in names}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    draw(panels, args.out / "lbt.png", args.device)
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ring,grid", help="comma list of: " + ", ".join(CASES))
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="comma list of: " + ", ".join(METHODS)
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    add_quiet(parser)
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/lbt"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
