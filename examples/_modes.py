"""Laws of separate modes: which there are, how samples of them are scored and drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_sig import datasets
from pyro_sig.diagnostics import mode_coverage

DATA: dict[str, Callable[..., datasets.Toy]] = {
    "ring": datasets.ring_of_gaussians,
    "grid": datasets.grid_of_gaussians,
}


def centres(toy: datasets.Toy) -> Tensor:
    """The centres of the modes."""
    assert toy.modes is not None
    return toy.modes


def mode_std(toy: datasets.Toy) -> float:
    """The standard deviation of a mode."""
    assert toy.mode_std is not None
    return toy.mode_std


def score(x: Tensor, toy: datasets.Toy) -> dict[str, Any]:
    """Counts modes captured, the share near a centre (HQ), and KL to the truth over the modes."""
    coverage = mode_coverage(x, centres(toy), mode_std(toy))
    return {
        "modes": int(coverage.captured),
        "hq": float(coverage.high_quality),
        "kl": float(coverage.kl),
    }


def view_limit(toy: datasets.Toy) -> float:
    """How far a panel goes, with a margin around the modes."""
    return 1.25 * float(centres(toy).abs().max())


def draw_samples(axis: Any, x: Tensor, toy: datasets.Toy) -> None:
    """Draws samples over the centres."""
    axis.scatter(*centres(toy).T, s=60, facecolors="none", edgecolors="0.6", linewidths=0.7)
    axis.scatter(*x.T, s=1.2, alpha=0.35, linewidths=0, color="tab:blue")
    limit = view_limit(toy)
    axis.set(aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
