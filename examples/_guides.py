"""What the comparisons of guides share: training by the clock, draws, distances to a reference."""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from _quiet import add_quiet
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoGuide,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_feasible,
)
from torch import Tensor

from pyro_sig.diagnostics import sliced_wasserstein
from pyro_sig.infer import AutoSemiImplicit, fit

Model = Callable[..., Any]

OURS = "AutoSemiImplicit"
PYROS = {
    guide.__name__: guide
    for guide in (AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoIAFNormal)
}

NUM_PARTICLES = 16  # for Pyro's guides; `fit` chooses its own
PLATE_NESTING = 1  # the models have a plate of data at most; particles are left of it
FIRST_RATE, LAST_RATE = 1e-2, 1e-4
NUM_DRAWS, NUM_REPEATS = 1000, 10  # as many draws as the references of the papers have


# ----------------------------------------------------------------------------------------- training


class Trained(NamedTuple):
    """A guide after training, the steps and the seconds of it, and k-hat where it is known."""

    guide: AutoGuide
    steps: int
    seconds: float
    k_hat: float | None


class Diverged(Exception):
    """A guide of Pyro's got parameters that are NaN."""


def trained(
    name: str, model: Model, args: tuple, seconds: float, seed: int, progress: bool | None = None
) -> Trained:
    """Train the guide of this name from scratch within the time, everything counted."""
    pyro.clear_param_store()  # guides of one name share their parameters
    pyro.set_rng_seed(seed)
    if name == OURS:
        return train_ours(model, args, seconds, progress)
    return train_pyros(name, model, args, seconds)


def train_ours(model: Model, args: tuple, seconds: float, progress: bool | None) -> Trained:
    """Call `fit` with the time that the search for the scale leaves."""
    start = time.perf_counter()
    guide = AutoSemiImplicit(model)
    with torch.no_grad():
        guide(*args)  # finds the scale
    left = seconds - (time.perf_counter() - start)
    limit = max(left, 0.1 * seconds)
    found = fit(model, *args, guide=guide, max_seconds=limit, progress=progress)
    print(f"  {found.report}")
    # k-hat is computed after training: it is no part of it.
    spent = seconds - left + found.history.seconds
    k_hat = found.k_hat if math.isfinite(found.k_hat) else None
    return Trained(guide, found.history.num_steps, spent, k_hat)


def train_pyros(name: str, model: Model, args: tuple, seconds: float) -> Trained:
    """Train as a user of Pyro would, the learning rate falling by the clock."""
    start = time.perf_counter()

    def progress() -> float:
        return min(1.0, (time.perf_counter() - start) / seconds)

    # Pyro's usual start, a draw from the prior, is wild where the prior is flat. A flow has none.
    start_at = {} if PYROS[name] is AutoIAFNormal else {"init_loc_fn": init_to_feasible}
    guide = PYROS[name](model, **start_at)
    optim = pyro.optim.LambdaLR(
        {
            "optimizer": pyro.optim.clipped_adam.ClippedAdam,
            "optim_args": {"lr": FIRST_RATE},
            "lr_lambda": lambda _: (LAST_RATE / FIRST_RATE) ** progress(),
        }
    )
    elbo = Trace_ELBO(
        num_particles=NUM_PARTICLES, vectorize_particles=True, max_plate_nesting=PLATE_NESTING
    )
    svi = SVI(model, guide, optim, elbo)
    steps = 0
    while progress() < 1:
        loss = svi.step(*args)
        optim.step()
        steps += 1
        if math.isnan(loss):
            raise Diverged(f"the loss is NaN at step {steps}")
    return Trained(guide, steps, time.perf_counter() - start, None)


@torch.no_grad()
def draw(guide: AutoGuide, args: tuple, num_draws: int) -> dict[str, Tensor]:
    """Draw from a guide: shape [num_draws, *] for each latent site."""
    with pyro.plate("draws", num_draws, dim=-1 - PLATE_NESTING):
        samples = guide(*args)
    return {name: values.squeeze(1) for name, values in samples.items()}


# ---------------------------------------------------------------------------------------- distances


def correlation_rmse(x: Tensor, y: Tensor) -> float:
    """Return the root mean square by which correlations of different columns differ."""
    difference = torch.corrcoef(x.T) - torch.corrcoef(y.T)
    pairs = difference.numel() - len(difference)
    return float((difference.square().sum() / pairs).sqrt())


def distances(x: Tensor, y: Tensor) -> dict[str, float]:
    """Compare two samples: sliced W2 in the units of the columns, and correlations."""
    return {
        "sliced_w2": float(sliced_wasserstein(x, y)),
        "correlation_rmse": correlation_rmse(x, y),
    }


def mean_distances(guide: AutoGuide, site: str, args: tuple, reference: Tensor) -> dict[str, float]:
    """Average over repeats: the draws of one are too few to rank guides."""
    repeats = [distances(draw(guide, args, NUM_DRAWS)[site], reference) for _ in range(NUM_REPEATS)]
    return {key: sum(found[key] for found in repeats) / NUM_REPEATS for key in repeats[0]}


# --------------------------------------------------------------------------------- scripts and data


def add_flags(parser: argparse.ArgumentParser, seconds: float, out: str) -> None:
    """Add the flags that the comparisons have in common."""
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("PYRO_SIG_DATA"),
        help="where the data are; PYRO_SIG_DATA by default",
    )
    add_quiet(parser)
    parser.add_argument("--seconds", type=float, default=seconds, help="for each guide")
    parser.add_argument("--smoke", action="store_true", help="2 seconds, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--out", type=Path, default=Path(out))


def seconds_of(args: argparse.Namespace) -> float:
    """Return the time for each guide."""
    return min(2.0, args.seconds) if args.smoke else args.seconds


def choice_of(names: list[str]) -> Callable[[str], list[str]]:
    """Make a parser of a list at commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"unknown {sorted(unknown)}; has {', '.join(names)}")
        return chosen

    return parse


def read_arrays(
    data_dir: str | os.PathLike[str] | None, name: str, arrays: dict[str, str], device: str
) -> dict[str, Tensor]:
    """Read the arrays of a file, or say what it must hold."""
    path = Path(data_dir or ".") / "sivi" / f"{name}.npz"
    if data_dir is None or not path.is_file():
        problem = "--data-dir or PYRO_SIG_DATA must be set" if data_dir is None else f"no {path}"
        held = "; ".join(f"{key}: {meaning}" for key, meaning in arrays.items())
        raise FileNotFoundError(f"{problem}: the file sivi/{name}.npz there must hold {held}")
    with np.load(path) as file:
        return {
            key: torch.as_tensor(file[key], dtype=torch.get_default_dtype(), device=device)
            for key in arrays
        }
