"""The picture of ranks that should be uniform."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_sig.diagnostics.uniformity import ecdf_bands

__all__: list[str] = []

# More lines in one panel than this are drawn without the others standing out.
_MANY_LINES = 20

# Characters of a name above a panel.
_LONGEST_NAME = 30


class Differences(NamedTuple):
    """Distribution functions of ranks, and their bands, less the uniform one.

    :param points: from 0 to 1, shape ``[K]``.
    :param lower: end of the band at every point, shape ``[K]``.
    :param upper: the other end.
    :param lines: one for each column of ranks, shape ``[E, K]``.
    """

    points: Tensor
    lower: Tensor
    upper: Tensor
    lines: Tensor

    def draw_bands(self, axes: Any, **options: Any) -> None:
        """Fills the bands, and draws the line of uniform ranks."""
        axes.fill_between(self.points, self.lower, self.upper, color="0.87", linewidth=0, **options)
        axes.axhline(0.0, color="0.5", linewidth=0.8)


def differences_to_uniform(ranks: Tensor, num_draws: int, level: float) -> Differences:
    """Compares ranks of shape ``[N, E]`` with uniform ones; the bands hold for one line."""
    num_ranks, num_lines = ranks.shape
    bands = ecdf_bands(num_ranks, num_draws, level)
    sorted_ranks = ranks.cpu().long().mT.contiguous().sort().values
    cuts = bands.ranks.expand(num_lines, -1).contiguous()
    ecdf = torch.searchsorted(sorted_ranks, cuts, right=True).double() / num_ranks

    def pinned(values: Tensor) -> Tensor:
        """Less the uniform function, which all of them meet at both ends."""
        return torch.nn.functional.pad(values - bands.points, (1, 1))

    points = torch.nn.functional.pad(bands.points, (1, 1))
    points[-1] = 1.0
    return Differences(points, pinned(bands.lower), pinned(bands.upper), pinned(ecdf))


def plot_ranks(
    ranks: Mapping[str, Tensor],
    num_draws: int,
    p_values: Mapping[str, float],
    level: float,
    x_label: str,
    y_label: str,
    title: str,
    worst: Mapping[str, int],
    columns: int | None = None,
) -> Any:
    """Draws the difference to the uniform distribution function, one panel for each entry.

    Ranks are of shape ``[N, E]``. The bands are simultaneous over the panels and the E lines of
    each, so that some line leaves its bands exactly if the least of ``p_values``, which are
    adjusted for the lines by Bonferroni, times the number of panels is at most ``1 - level``.
    ``worst`` says by panel which line stands out; it is red if it leaves the bands.
    """
    from matplotlib import pyplot

    columns = columns or min(len(ranks), 4 if len(ranks) > 4 else 3)
    rows = math.ceil(len(ranks) / columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(max(3.2 * columns, 5.2), 2.7 * rows + 0.7),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    panels = list(grid.flat)
    share = (1 - level) / len(ranks)
    for axes in panels[len(ranks) :]:
        axes.remove()
    for i, (axes, (name, of_name)) in enumerate(zip(panels, ranks.items(), strict=False)):
        num_lines = of_name.shape[1]
        found = differences_to_uniform(of_name, num_draws, 1 - share / num_lines)
        found.draw_bands(axes)
        rejected = p_values[name] <= share
        for line, values in enumerate(found.lines):
            stands_out = line == worst[name]
            axes.plot(
                found.points,
                values,
                color=("C3" if rejected else "C0") if stands_out else "C7",
                linewidth=1.6 if stands_out else 0.7,
                alpha=1.0 if stands_out else (0.3 if num_lines > _MANY_LINES else 0.6),
                zorder=3 if stands_out else 2,
            )
        entries = f"{num_lines} entries, " if num_lines > 1 else ""
        label = f"{shorten(name, _LONGEST_NAME)}\n{entries}p = {short_p_value(p_values[name])}"
        axes.set_title(label.strip(), fontsize="medium")
        axes.set_xlim(0, 1)
        extent = 1.08 * max(float(x.abs().max()) for x in found[1:])
        axes.set_ylim(-extent, extent)
        axes.locator_params(axis="y", nbins=5)
        axes.tick_params(labelsize="small")
        if i + columns >= len(ranks):
            axes.tick_params(labelbottom=True)
    figure.supxlabel(x_label, fontsize="medium")
    figure.supylabel(y_label, fontsize="medium")
    figure.suptitle(title, fontsize="medium")
    return figure


def short_p_value(p_value: float) -> str:
    """Writes a p-value in few characters."""
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.1e}"


def shorten(name: str, longest: int) -> str:
    """Leaves out the middle of a name that would run into the next panel's."""
    if len(name) <= longest:
        return name
    half = longest // 2
    return f"{name[: half - 1]}...{name[2 - half :]}"
