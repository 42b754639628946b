"""The picture of ranks that should be uniform."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_sig.diagnostics.uniformity import ecdf_bands

__all__: list[str] = []

# More lines in one panel than this are drawn without the others standing out.
_MANY_LINES = 20

# Characters of a name above a panel.
_LONGEST_NAME = 30


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
        num_ranks, num_lines = of_name.shape
        bands = ecdf_bands(num_ranks, num_draws, 1 - share / num_lines)
        ends = torch.tensor([0.0, 1.0], dtype=torch.double)
        points = torch.cat([ends[:1], bands.points, ends[1:]])
        flat = torch.zeros(1, dtype=torch.double)
        lower, upper = (
            torch.cat([flat, band - bands.points, flat]) for band in (bands.lower, bands.upper)
        )
        axes.fill_between(points, lower, upper, color="0.87", linewidth=0)
        axes.axhline(0.0, color="0.5", linewidth=0.8)
        sorted_ranks = of_name.cpu().long().mT.contiguous().sort().values
        cuts = bands.ranks.expand(num_lines, -1).contiguous()
        ecdf = torch.searchsorted(sorted_ranks, cuts, right=True) / num_ranks
        differences = ecdf.double() - bands.points
        rejected = p_values[name] <= share
        for line, values in enumerate(differences):
            stands_out = line == worst[name]
            axes.plot(
                points,
                torch.cat([flat, values, flat]),
                color=("C3" if rejected else "C0") if stands_out else "C7",
                linewidth=1.6 if stands_out else 0.7,
                alpha=1.0 if stands_out else (0.3 if num_lines > _MANY_LINES else 0.6),
                zorder=3 if stands_out else 2,
            )
        entries = f"{num_lines} entries, " if num_lines > 1 else ""
        label = f"{_shortened(name)}\n{entries}p = {short_p_value(p_values[name])}"
        axes.set_title(label.strip(), fontsize="medium")
        axes.set_xlim(0, 1)
        extent = 1.08 * max(float(x.abs().max()) for x in (lower, upper, differences))
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


def _shortened(name: str) -> str:
    """Leaves out the middle of a name that would run into the next panel's."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = _LONGEST_NAME // 2
    return f"{name[: half - 1]}...{name[2 - half :]}"
