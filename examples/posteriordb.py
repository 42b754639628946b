"""Guides at equal wall time on eleven posteriors of posteriordb, scored by reference draws.

AutoSemiImplicit is trained by `fit`, Pyro's guides as its users would: a feasible start,
ClippedAdam with a falling learning rate, 16 vectorised particles, single precision. The score is
the sliced W2 distance of 5,000 draws from each of two halves of the 10,000 reference draws, the
parameters standardised, averaged, and divided by the distance of the halves (the floor): a perfect
guide has a ratio of about 1.

    python examples/posteriordb.py --data-dir data --out out/posteriordb

Every (posterior, guide) is kept in the output folder: a run that was stopped goes on where it was.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from _guides import OURS, PYROS, Diverged, add_flags, choice_of, draw, seconds_of, trained
from posteriordb_models import MODELS, load, load_draws, posteriordb_folder
from torch import Tensor

from pyro_sig.diagnostics import draw_matrix, sliced_wasserstein
from pyro_sig.infer import NonFiniteLossError

GUIDES = [OURS, *PYROS]
NUM_SCORED = 5000  # the size of half a reference
AS_GOOD = 1.1  # a ratio within this factor of the best is not told from it
SMOKE = "eight_schools-eight_schools_noncentered"
RIVAL = "AutoMultivariateNormal"  # in the picture of one posterior

Result = dict[str, Any]
Results = dict[str, dict[str, Result]]


# ------------------------------------------------------------------------------------------- scores


class Reference:
    """The reference draws of a posterior, and distances from them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.parameters = MODELS[name].parameters
        samples = load_draws(folder, name)
        draws = draw_matrix(samples, self.parameters)
        self.labels = [
            label
            for parameter in self.parameters
            for label in labels_of(parameter, samples[parameter][0].numel())
        ]
        self.mean, self.sd = draws.mean(0), draws.std(0)
        order = torch.randperm(len(draws), generator=torch.Generator().manual_seed(0))
        first, second = self.standardise(draws[order]).chunk(2)
        self.halves = first, second
        self.floor = float(sliced_wasserstein(first, second))

    def standardise(self, draws: Tensor) -> Tensor:
        """Put all parameters on the scale of the reference."""
        return (draws.cpu().double() - self.mean) / self.sd

    def distance(self, draws: Tensor) -> float:
        """Return the mean distance of standardised draws from the halves."""
        return statistics.fmean(float(sliced_wasserstein(draws, half)) for half in self.halves)

    def skewness(self) -> Tensor:
        """Return that of each parameter."""
        return torch.cat(self.halves).pow(3).mean(0)


def labels_of(parameter: str, size: int) -> list[str]:
    """Name the columns of a parameter."""
    return [parameter] if size == 1 else [f"{parameter}[{i}]" for i in range(size)]


def compare(name: str, guide_name: str, reference: Reference, args: argparse.Namespace) -> Result:
    """Train and score one guide; the draws are left for the picture."""
    posterior = MODELS[name]
    data = load(args.folder, name, device=args.device)
    result = {"sliced_w2": None, "ratio": None, "floor": reference.floor}
    result |= {"steps": None, "k_hat": None, "seconds": None, "problem": None}
    kept = cache_of(name, guide_name, args).with_suffix(".pt")
    kept.unlink(missing_ok=True)
    try:
        found = trained(guide_name, posterior.model, (data,), args.limit, args.seed, args.progress)
        samples = draw(found.guide, (data,), NUM_SCORED)
        matrix = draw_matrix(posterior.to_parameters(samples), posterior.parameters)
        draws = reference.standardise(matrix)
        distance = reference.distance(draws)
    except (Diverged, NonFiniteLossError, ValueError, RuntimeError) as error:
        # NaN parameters raise in a factorisation or where a distribution checks its arguments.
        return result | {"problem": str(error).split("\n")[0]}
    torch.save(draws.float(), kept)
    return result | {
        "sliced_w2": distance,
        "ratio": distance / reference.floor,
        "steps": found.steps,
        "k_hat": found.k_hat,
        "seconds": found.seconds,
    }


def cache_of(name: str, guide_name: str, args: argparse.Namespace) -> Path:
    """Return where the result of a guide is kept; its draws have another suffix."""
    return args.out / "cache" / f"{name}.{guide_name}.json"


def run(name: str, guide_name: str, reference: Reference, args: argparse.Namespace) -> Result:
    """Compare, or read what an earlier run with these settings left."""
    settings = {"seconds": args.limit, "seed": args.seed, "device": args.device}
    cache = cache_of(name, guide_name, args)
    if cache.exists() and not args.fresh:
        found = json.loads(cache.read_text())
        if found["settings"] == settings:
            return found["result"]
    cache.parent.mkdir(parents=True, exist_ok=True)
    result = compare(name, guide_name, reference, args)
    partial = cache.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "result": result}))
    partial.rename(cache)
    return result


# -------------------------------------------------------------------------------------------- table


def best_ratio(row: dict[str, Result]) -> float:
    """Return the least ratio of a posterior; infinity where every guide diverged."""
    return min(
        (result["ratio"] for result in row.values() if result["ratio"] is not None),
        default=float("inf"),
    )


def print_table(results: Results) -> None:
    """Print the ratios, the best with a star, and a summary of ours."""
    guides = list(next(iter(results.values())))
    short = [name.removeprefix("Auto").replace("MultivariateNormal", "MVN") for name in guides]
    print("\nratio of the sliced W2 distance to its floor (* best)")
    print(f"{'posterior':44}{''.join(f'{name:>14}' for name in short)}{'floor':>9}{'k-hat':>7}")
    for name, row in results.items():
        cells = []
        for result in row.values():
            ratio = result["ratio"]
            star = "*" if ratio == best_ratio(row) else " "
            cells.append("diverged " if ratio is None else f"{ratio:.2f}{star}")
        k_hat = row.get(OURS, {}).get("k_hat")
        floor = next(iter(row.values()))["floor"]
        print(
            f"{name:44}{''.join(f'{cell:>14}' for cell in cells)}{floor:>9.4f}"
            f"{'' if k_hat is None else f'{k_hat:.2f}':>7}"
        )
    print(summary(results, OURS) if OURS in guides else "")


def summary(results: Results, guide_name: str) -> str:
    """Say how a guide did over all posteriors; a diverged one is infinitely far."""
    ratios = [row[guide_name]["ratio"] for row in results.values()]
    median = statistics.median(float("inf") if ratio is None else ratio for ratio in ratios)
    good = sum(
        ratio is not None and ratio <= AS_GOOD * best_ratio(row)
        for ratio, row in zip(ratios, results.values(), strict=True)
    )
    return (
        f"{guide_name}: median ratio {median:.2f}; best or within {AS_GOOD - 1:.0%} of the best "
        f"on {good} of {len(results)} posteriors"
    )


# ----------------------------------------------------------------------------------------- pictures


def draw_ratios(results: Results, path: Path) -> None:
    """Draw a row of dots for each posterior."""
    figure, ax = plt.subplots(figsize=(11, 1.6 + 0.42 * len(results)), layout="constrained")
    guides = list(next(iter(results.values())))
    rows = np.arange(len(results))[::-1]
    for number, guide in enumerate(guides):
        ratios = [row[guide]["ratio"] for row in results.values()]
        values = np.array([np.nan if ratio is None else ratio for ratio in ratios])
        ours = guide == OURS
        style: dict[str, Any] = {
            "s": 70 if ours else 30,
            "zorder": 3 if ours else 2,
            "linewidths": 0,
        }
        # A little below one another: some are alike.
        heights = rows + 0.1 * ((len(guides) - 1) / 2 - number)
        ax.scatter(values, heights, label=guide, color=f"C{number}", **style)
    for ratio, dashes in ((1, "-"), (2, "--")):
        ax.axvline(ratio, color="black", lw=0.8, ls=dashes, zorder=1)
    ax.set(xscale="log", xlabel="sliced W2 to the reference / between its halves")
    ax.set_yticks(rows, list(results))
    ax.grid(axis="y", alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=len(guides), fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_posterior(
    name: str, reference: Reference, guides: Iterable[str], args: argparse.Namespace
) -> None:
    """Draw the marginals of the two most skewed parameters, and both together."""
    chosen = reference.skewness().abs().topk(2).indices
    samples = {"reference": torch.cat(reference.halves)}
    for guide in (OURS, RIVAL):
        draws = cache_of(name, guide, args).with_suffix(".pt")
        if guide in guides and draws.exists():
            samples[guide] = torch.load(draws, weights_only=True).double()
    # In the parameters' own units.
    points = {
        key: (values * reference.sd + reference.mean)[:, chosen].numpy()
        for key, values in samples.items()
    }
    labels = [reference.labels[i] for i in chosen]
    ranges = np.quantile(points["reference"], [0.0005, 0.9995], axis=0)
    colours = ["0.55", "C0", "C2"]

    figure, axes = plt.subplots(
        1, 2 + len(points), figsize=(3.3 * (2 + len(points)), 3.4), layout="constrained"
    )
    for k, ax in enumerate(axes[:2]):
        bins = np.linspace(ranges[0, k], ranges[1, k], 60)
        for (key, values), colour in zip(points.items(), colours, strict=False):
            kind: dict[str, Any] = {"histtype": "step", "lw": 1.5}
            if key == "reference":
                kind = {"histtype": "stepfilled", "alpha": 0.5}
            ax.hist(values[:, k], bins, density=True, color=colour, label=key, **kind)
        ax.set(xlabel=labels[k], yticks=[])
    axes[0].legend(frameon=False, fontsize="small")
    for ax, (key, values), colour in zip(axes[2:], points.items(), colours, strict=False):
        ax.scatter(*values[:3000].T, s=3, alpha=0.4, linewidths=0, color=colour)
        ax.set(xlim=ranges[:, 0], ylim=ranges[:, 1], xlabel=labels[0], ylabel=labels[1], title=key)
    figure.suptitle(name)
    figure.savefig(args.out / "posteriordb_worst.png", dpi=120)
    plt.close(figure)


# --------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> None:
    """Compare the guides on every posterior, print the table, and write the pictures."""
    args.folder, args.limit = posteriordb_folder(args.data_dir), seconds_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    names = [SMOKE] if args.smoke else args.posteriors
    results: Results = {}
    most_skewed, skewness = None, -1.0
    for name in names:
        reference = Reference(args.folder, name)
        results[name] = {}
        for guide in args.guides:
            results[name][guide] = result = run(name, guide, reference, args)
            outcome = (
                f"diverged ({result['problem']})"
                if result["ratio"] is None
                else f"ratio {result['ratio']:.2f}, {result['steps']} steps, "
                f"{result['seconds']:.1f} s"
            )
            print(f"{name}, {guide}: {outcome}", flush=True)
        if float(reference.skewness().abs().max()) > skewness:
            most_skewed, skewness = (name, reference), float(reference.skewness().abs().max())
    print_table(results)
    (args.out / "metrics.json").write_text(json.dumps(results, indent=1))
    draw_ratios(results, args.out / "posteriordb.png")
    assert most_skewed is not None
    draw_posterior(*most_skewed, args.guides, args)
    print(f"wrote metrics.json, posteriordb.png and posteriordb_worst.png to {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser, seconds=20, out="out/posteriordb")
    parser.add_argument(
        "--posteriors",
        type=choice_of(list(MODELS)),
        default=list(MODELS),
        help="of those that posteriordb_models.py lists",
    )
    parser.add_argument("--guides", type=choice_of(GUIDES), default=GUIDES, help=",".join(GUIDES))
    parser.add_argument("--fresh", action="store_true", help="ignore what an earlier run left")
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        parser.error(str(error))
