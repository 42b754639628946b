"""Bayesian logistic regression on the waveform data: a semi-implicit posterior against SGLD.

400 observations, 22 coefficients with prior N(0, 100 I): the benchmark of "Semi-Implicit
Variational Inference" (Yin and Zhou 2018), with reference draws from its successors' code.
AutoSemiImplicit and AutoMultivariateNormal get the same time. Distances are those of 1,000 draws,
as many as the reference has, averaged over 10 repeats.

    python examples/waveform.py --data-dir data --out out/waveform
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
from _guides import (
    NUM_DRAWS,
    OURS,
    add_flags,
    choice_of,
    distances,
    draw,
    mean_distances,
    read_arrays,
    seconds_of,
    trained,
)
from posteriordb_models import rows
from scipy.stats import gaussian_kde
from torch import Tensor

GUIDES = [OURS, "AutoMultivariateNormal"]
ARRAYS = {
    "x_train": "design [N, D] with a first column of 1",
    "y_train": "labels 0 and 1 [N]",
    "x_test": "the same for testing",
    "y_test": "their labels",
    "sgld_draws": "draws of the coefficients [S, D] by stochastic gradient Langevin dynamics",
    "mala_draws": "the same by Metropolis-adjusted Langevin",
}
PRIOR_SD = 10.0
REFERENCE, COLOUR = "0.55", "tab:blue"


def logistic_regression(X: Tensor, y: Tensor) -> None:
    """Observe labels given a design."""
    prior = dist.Normal(X.new_zeros(()), PRIOR_SD).expand([X.shape[-1]]).to_event(1)
    beta = pyro.sample("beta", prior)
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Bernoulli(logits=rows(beta @ X.T)), obs=y)


def on_test(beta: Tensor, X: Tensor, y: Tensor) -> dict[str, float]:
    """Score the predictive law, the mean over draws of the coefficients."""
    logits = beta @ X.T
    log_p = dist.Bernoulli(logits=logits).log_prob(y).logsumexp(0) - math.log(len(beta))
    predicted = logits.sigmoid().mean(0) > 0.5
    return {
        "test_accuracy": float((predicted == y.bool()).float().mean()),
        "test_log_likelihood": float(log_p.mean()),
    }


# ------------------------------------------------------------------------------------------ picture


def pairs_to_draw(reference: Tensor, count: int) -> list[tuple[int, int]]:
    """Return the most correlated pairs of coefficients, each coefficient in one pair at most."""
    correlations = np.triu(np.abs(np.corrcoef(reference.T.cpu())), 1)
    pairs = []
    for _ in range(count):
        i, j = np.unravel_index(correlations.argmax(), correlations.shape)
        pairs.append((int(i), int(j)))
        correlations[[i, j]] = correlations[:, [i, j]] = 0
    return pairs


def picture(draws: Tensor, reference: Tensor, path: Path) -> None:
    """Draw pairs of coefficients, ours over SGLD's, and correlations against correlations."""
    x, y = draws.cpu().numpy(), reference.cpu().numpy()
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.9), layout="constrained")
    for ax, (i, j) in zip(axes, pairs_to_draw(reference, 3), strict=False):
        ax.scatter(y[:, i], y[:, j], s=4, color=REFERENCE, linewidths=0, label="SGLD")
        low, high = y[:, [i, j]].min(0), y[:, [i, j]].max(0)
        grid = np.meshgrid(*(np.linspace(*ends, 80) for ends in zip(low, high, strict=True)))
        density = gaussian_kde(x[:, [i, j]].T)(np.stack([g.ravel() for g in grid]))
        ax.contour(*grid, density.reshape(grid[0].shape), levels=6, colors=COLOUR, linewidths=1)
        ax.set(xlabel=f"beta[{i}]", ylabel=f"beta[{j}]")
    axes[0].plot([], [], color=COLOUR, label=OURS)
    axes[0].legend(frameon=False, markerscale=3)
    upper = np.triu_indices(x.shape[1], 1)
    axes[-1].scatter(
        np.corrcoef(y.T)[upper], np.corrcoef(x.T)[upper], s=8, color=COLOUR, linewidths=0
    )
    axes[-1].axline((0, 0), slope=1, color="black", lw=0.8)
    axes[-1].set(xlabel="correlations, SGLD", ylabel=f"correlations, {OURS}", aspect="equal")
    figure.savefig(path, dpi=120)
    plt.close(figure)


# --------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> None:
    """Train the guides, print their distances to SGLD, and write the picture."""
    data = read_arrays(args.data_dir, "waveform", ARRAYS, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    reference, test = data["sgld_draws"], (data["x_test"], data["y_test"])
    floor = distances(data["mala_draws"], reference)
    results: dict[str, dict[str, Any]] = {"SGLD": on_test(reference, *test)}
    program_args = (data["x_train"], data["y_train"])
    for name in args.guides:
        found = trained(
            name, logistic_regression, program_args, seconds_of(args), args.seed, args.progress
        )
        draws = draw(found.guide, program_args, 5 * NUM_DRAWS)["beta"]
        results[name] = {
            **mean_distances(found.guide, "beta", program_args, reference),
            "floor": floor["sliced_w2"],
            "floor_correlation_rmse": floor["correlation_rmse"],
            **on_test(draws, *test),
            "k_hat": found.k_hat,
            "steps": found.steps,
            "seconds": found.seconds,
        }
        if name == args.guides[0]:
            picture(draws, reference, args.out / "waveform.png")
    print_table(results, floor)
    (args.out / "metrics.json").write_text(json.dumps({"waveform": results}, indent=1))
    print(f"wrote metrics.json and waveform.png to {args.out}")


def print_table(results: dict[str, dict[str, Any]], floor: dict[str, float]) -> None:
    """Print a line for each guide and what SGLD and MALA say."""
    columns = f"{'sliced W2':>10}{'corr. RMSE':>12}{'accuracy':>10}{'log-lik':>9}"
    print(f"\n{'':24}{columns}{'steps':>8}{'seconds':>9}")
    for name, row in results.items():
        w2, rmse = (f"{row[key]:.4f}" if key in row else "" for key in floor)
        print(
            f"{name:24}{w2:>10}{rmse:>12}{row['test_accuracy']:>10.4f}"
            f"{row['test_log_likelihood']:>9.4f}"
            + (f"{row['steps']:>8}{row['seconds']:>9.1f}" if "steps" in row else "")
        )
    least_w2, least_rmse = floor.values()
    print(f"{'MALA to SGLD (floor)':24}{least_w2:>10.4f}{least_rmse:>12.4f}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser, seconds=50, out="out/waveform")
    parser.add_argument("--guides", type=choice_of(GUIDES), default=GUIDES, help=",".join(GUIDES))
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        parser.error(str(error))
