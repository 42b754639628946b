"""The page of a report: its verdicts, and the pictures behind them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_sig.diagnostics._rank_plot import differences_to_uniform, short_p_value, shorten
from pyro_sig.diagnostics._report_checks import Entries, ReportLine, contraction, is_count, mismatch
from pyro_sig.diagnostics.evidence_bounds import EvidenceBounds
from pyro_sig.diagnostics.k_hat import KHat
from pyro_sig.diagnostics.sbc import SBC

__all__: list[str] = []

_SIZE = (8.27, 11.69)  # A4, in inches
_MARGIN = 0.45
_COLUMNS = 3
_MOST_MARGINALS = 6
_MOST_SITES = 2
_LINE_HEIGHT, _PADDING = 0.14, 0.55  # of the table; the second in lines
_LEAST_PANEL, _LARGEST_PANEL, _GAP = 1.2, 2.5, 0.85
_HEADLINE = 80  # characters
_LONGEST_NAME = 28
_MOST_BINS = 30
_PRIOR_BINS = 16
# Log weights that differ by less show no tail.
_FLAT = 1e-3
# Means of chains that differ by more, in standard deviations, are worth a picture.
_APART = 0.3

# By verdict: marker and colour, which red-green blind readers tell apart too.
_MARKS = {
    "good": ("o", "#1b7837"),
    "look": ("^", "#b35806"),
    "bad": ("X", "#b2182b"),
    "none": ("_", "0.55"),
}
_POSTERIOR, _PRIOR, _REFERENCE = "#2166ac", "0.6", "black"


def draw_page(
    *,
    lines: Sequence[ReportLine],
    title: str,
    overall: str,
    posterior: Entries,
    prior: Entries,
    reference: Entries,
    observations: Mapping[str, tuple[np.ndarray, np.ndarray]],
    log_weights: Tensor | None,
    k_hat: KHat | None,
    evidence: EvidenceBounds | None,
    sbc: SBC | None,
) -> Any:
    """Draws the page as a figure that pyplot does not know of."""
    from matplotlib.figure import Figure

    panels: list[Callable[[Any], None]] = [
        _marginal(name, posterior, prior, reference)
        for name in _choose(posterior, prior, reference)
    ]
    if log_weights is not None and k_hat is not None:
        panels.append(lambda axes: _draw_weights(axes, log_weights, k_hat))
    if evidence is not None:
        panels.append(lambda axes: _draw_evidence(axes, evidence))
    for name, (data, draws) in list(observations.items())[:_MOST_SITES]:
        panels.append(_prediction(name, data, draws))
    if sbc is not None:
        panels.append(lambda axes: _draw_sbc(axes, sbc))

    wrapped = [_wrap(line) for line in lines]
    num_rows = math.ceil(len(panels) / _COLUMNS)
    table = _LINE_HEIGHT * sum(rows + _PADDING for _, _, rows in wrapped) + 0.9
    table += 0.17 * (len(textwrap.wrap(overall, _HEADLINE)) - 1)
    # A4, but shorter where little is drawn, and longer where the table is.
    least, most = (table + _MARGIN + num_rows * (x + _GAP) for x in (_LEAST_PANEL, _LARGEST_PANEL))
    height = max(least, min(_SIZE[1], most))
    figure = Figure(figsize=(_SIZE[0], height))
    _draw_table(figure, lines, wrapped, title, overall, height)
    row_height = min(_LARGEST_PANEL, (height - table - _MARGIN) / max(1, num_rows) - _GAP)
    left, between = 0.7, 0.6
    width = (_SIZE[0] - left - _MARGIN + between) / _COLUMNS - between
    for i, draw in enumerate(panels):
        row, column = divmod(i, _COLUMNS)
        x = left + column * (width + between)
        y = height - table - (row + 1) * (row_height + _GAP) + 0.3
        axes = figure.add_axes((x / _SIZE[0], y / height, width / _SIZE[0], row_height / height))
        axes.tick_params(labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        try:
            draw(axes)
        except Exception as error:  # one panel must not lose the page
            axes.clear()
            axes.set_axis_off()
            message = f"A panel failed: {type(error).__name__}: {error}"
            axes.text(0, 1, textwrap.fill(message, 40), fontsize=7, va="top")
    return figure


# ---------------------------------------------------------------------------------------- the table


def _wrap(line: ReportLine) -> tuple[list[str], list[str], int]:
    value, text = textwrap.wrap(line.value, 47) or [""], textwrap.wrap(line.text, 60) or [""]
    return value, text, max(len(value), len(text))


def _draw_table(
    figure: Any,
    lines: Sequence[ReportLine],
    wrapped: Sequence[tuple[list[str], list[str], int]],
    title: str,
    overall: str,
    height: float,
) -> None:
    from matplotlib.lines import Line2D

    def write(x: float, y: float, text: str, **options: Any) -> None:
        options = {"fontsize": 7.5, "va": "baseline", **options}
        figure.text(x / _SIZE[0], 1 - y / height, text, **options)

    def write_lines(x: float, y: float, rows: Sequence[str], **options: Any) -> None:
        for i, row in enumerate(rows):
            write(x, y + i * _LINE_HEIGHT, row, **options)

    def rule(y: float, width: float) -> None:
        ends = [_MARGIN / _SIZE[0], 1 - _MARGIN / _SIZE[0]]
        figure.add_artist(Line2D(ends, [1 - y / height] * 2, color="0.8", linewidth=width))

    write(_MARGIN, 0.45, f"Report on {title}", fontsize=9, color="0.35")
    y = 0.7
    for row in textwrap.wrap(overall, _HEADLINE):
        write(_MARGIN, y, row, fontsize=11, weight="bold")
        y += 0.17
    for line, (value, text, rows) in zip(lines, wrapped, strict=True):
        rule(y, 0.6)
        base = y + 0.98 * _LINE_HEIGHT
        marker, colour = _MARKS[line.verdict]
        figure.add_artist(
            Line2D(
                [(_MARGIN + 0.07) / _SIZE[0]],
                [1 - (base - 0.036) / height],
                marker=marker,
                color=colour,
                markersize=6,
                markeredgewidth=1.5 if marker == "_" else 0.5,
                linestyle="",
            )
        )
        faint = {"color": "0.45"} if line.verdict == "none" else {}
        label = "" if line.verdict == "none" else line.verdict
        write(_MARGIN + 0.2, base, label, color=colour, weight="bold")
        write(_MARGIN + 0.57, base, line.name, weight="bold", **faint)
        write_lines(_MARGIN + 1.3, base, value, **faint)
        write_lines(_MARGIN + 4.0, base, text, **faint)
        y += (rows + _PADDING) * _LINE_HEIGHT
    rule(y, 0.6)


# ------------------------------------------------------------------------------------ the marginals


def _choose(posterior: Entries, prior: Entries, reference: Entries) -> list[str]:
    """Picks entries by their mismatch with the reference, among chains, or with the prior."""
    if not posterior.names:
        return []
    apart = np.ptp(posterior.draws.mean(1), axis=0) / (posterior.pooled.std(0) + 1e-30)
    if not reference.names and apart.max() > _APART:
        places = np.sort(np.argsort(-apart, kind="stable")[:_MOST_MARGINALS])
        return [posterior.names[i] for i in places]
    for other, badness in ((reference, _mismatch_size), (prior, _lack_of_contraction)):
        names = sorted(set(posterior.names) & set(other.names), key=posterior.names.index)
        if names:
            values = badness(posterior.select(names), other.select(names))
            order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
            chosen = {names[i] for i in order[:_MOST_MARGINALS]}
            return [name for name in names if name in chosen]
    return posterior.names[:_MOST_MARGINALS]


def _mismatch_size(posterior: Entries, reference: Entries) -> np.ndarray:
    found = mismatch(posterior, reference)
    return np.maximum(np.abs(found.mean), np.abs(found.log_sd))


def _lack_of_contraction(posterior: Entries, prior: Entries) -> np.ndarray:
    return -contraction(posterior, prior)


def _marginal(
    name: str, posterior: Entries, prior: Entries, reference: Entries
) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        fitted = posterior.select([name]).draws[..., 0]
        main = [fitted.reshape(-1)]
        note = ""
        if name in reference.names:
            main.append(reference.select([name]).pooled[:, 0])
            found = mismatch(posterior.select([name]), reference.select([name]))
            note = (
                f"mean off by {float(found.mean[0]):+.2f} sd, "
                f"sd × {math.exp(min(float(found.log_sd[0]), 99.0)):.2f}"
            )
        before = prior.select([name]).pooled[:, 0] if name in prior.names else None
        if before is not None and not note:
            share = contraction(posterior.select([name]), prior.select([name]))[0]
            note = f"contraction {share:.2f}"
        low, high = _view(main, before)
        bins = _bins(np.concatenate(main), low, high)
        if before is not None:
            coarse = bins
            if bins[0] != math.floor(bins[0]) + 0.5:  # not the integers
                coarse = np.linspace(bins[0], bins[-1], _PRIOR_BINS + 1)
            _step(axes, before, coarse, color=_PRIOR, label="prior", linestyle=(0, (4, 1.5)))
        if len(fitted) == 1:
            axes.hist(
                fitted[0], bins, weights=_density(fitted[0], bins), color=_POSTERIOR, alpha=0.35
            )
            _step(axes, fitted[0], bins, color=_POSTERIOR, label="posterior")
        for i, chain in enumerate(fitted if len(fitted) > 1 else ()):
            label = "posteriors, by chain" if i == 0 else None
            style = ("-", "--", "-.", ":")[i % 4]
            _step(axes, chain, bins, color=f"C{i % 10}", label=label, linestyle=style)
        if len(main) > 1:
            _step(axes, main[1], bins, color=_REFERENCE, label="reference", linewidth=1.3)
        axes.set_xlim(bins[0], bins[-1])
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
        _entitle(axes, name, note)
        handles, labels = axes.get_legend_handles_labels()
        axes.set_ylim(0, axes.get_ylim()[1] * 1.28)
        axes.legend(
            handles,
            labels,
            fontsize=6,
            frameon=False,
            loc="upper center",
            ncols=len(labels),
            handlelength=1.4,
            columnspacing=0.8,
            borderaxespad=0.0,
        )

    return draw


def _view(samples: Sequence[np.ndarray], prior: np.ndarray | None) -> tuple[float, float]:
    """All of the posteriors, and of the prior what does not make them a needle."""
    low = min(float(np.quantile(sample, 0.001)) for sample in samples)
    high = max(float(np.quantile(sample, 0.999)) for sample in samples)
    extent = high - low or max(1.0, abs(low))
    low, high = low - 0.05 * extent, high + 0.05 * extent
    if prior is not None:
        first, last = np.quantile(prior, [0.01, 0.99])
        low = min(low, max(float(first), low - 0.7 * extent))
        high = max(high, min(float(last), high + 0.7 * extent))
    return low, high


def _bins(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Edges: around the integers where the values are some, else as many as the draws bear."""
    if (values == np.round(values)).all() and high - low <= 2 * _MOST_BINS:
        return np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    first, third = np.quantile(values, [0.25, 0.75])
    width = 2 * (third - first) / len(values) ** (1 / 3)
    count = _MOST_BINS if width <= 0 else math.ceil((high - low) / width)
    return np.linspace(low, high, min(max(count, 12), 60) + 1)


def _density(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    # Of all values: what is out of the picture counts.
    return np.full(len(values), 1 / (len(values) * (bins[1] - bins[0])))


def _step(axes: Any, values: np.ndarray, bins: np.ndarray, **options: Any) -> None:
    height = np.histogram(values, bins, weights=_density(values, bins))[0]
    axes.stairs(height, bins, **{"linewidth": 1.1, **options})


# --------------------------------------------------------------------------------- the other panels


def _draw_weights(axes: Any, log_weights: Tensor, k_hat: KHat) -> None:
    """Shows how often a weight is exceeded: a Pareto tail falls, and bends, by its shape."""
    median = int((k_hat.values - k_hat.k_hat).abs().nan_to_num(0.0).argmin())
    ordered = log_weights[median].double().sort(descending=True).values
    ordered = ordered - (ordered.logsumexp(0) - math.log(len(ordered)))  # the mean weight is one
    size = len(ordered)
    tail = math.ceil(min(0.2 * size, 3 * math.sqrt(size)))
    share = (torch.arange(size).double() + 0.5) / size
    axes.plot(ordered[:tail], share[:tail], ".", color=_POSTERIOR, markersize=4, label="largest")
    axes.plot(ordered[tail:], share[tail:], ".", color="0.75", markersize=2, zorder=1, label="rest")
    cutoff = ordered[tail]
    excess = ordered[:tail].exp() - cutoff.exp()
    excess = excess[excess > 0].flip(0)
    if len(excess) >= 10 and float(ordered[0] - cutoff) > _FLAT:
        shape, scale = (float(x) for x in fit_generalized_pareto(excess))
        more = torch.logspace(-3, math.log10(float(excess.max()) * 1.5), 200, dtype=torch.double)
        inside = 1 + shape * more / scale > 0
        more = more[inside]
        survival = (1 + shape * more / scale) ** (-1 / shape) if shape else (-more / scale).exp()
        seen = survival > 0.3 / tail
        axes.plot(
            (more + cutoff.exp()).log()[seen],
            survival[seen] * tail / size,
            color="#b2182b",
            linewidth=1.2,
            label=f"Pareto, k = {shape:.2f}",
        )
    axes.set_yscale("log")
    finite = ordered[ordered > -math.inf]
    low, high = float(finite[int(0.98 * (len(finite) - 1))]), float(finite[0])
    if high - low < 0.1:
        low, high = (low + high) / 2 - 0.05, (low + high) / 2 + 0.05
    margin = 0.06 * (high - low)
    axes.set_xlim(low - margin, high + 2 * margin)
    axes.set_ylim(0.3 / size, 1.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("log of weight / mean weight", fontsize=7)
    axes.set_ylabel("share of larger weights", fontsize=7, labelpad=2)
    axes.legend(fontsize=6, frameon=False, loc="lower left", handlelength=1.2)
    note = f"k-hat {k_hat.k_hat:.2f}, effective share {k_hat.effective_share:.2g}"
    _entitle(axes, "importance weights", note)


def _draw_evidence(axes: Any, evidence: EvidenceBounds) -> None:
    places = range(len(evidence.num_importance))
    for bound, error, label, style in (
        (evidence.lower, evidence.lower_error, "lower", {"marker": "o", "color": _POSTERIOR}),
        (evidence.upper, evidence.upper_error, "upper", {"marker": "v", "color": "black"}),
    ):
        if bound is not None and error is not None:
            axes.errorbar(
                places,
                bound,
                2 * error.nan_to_num(0.0),
                markersize=4,
                capsize=2,
                linewidth=1,
                linestyle="--" if label == "upper" else "-",
                label=f"{label} bound ± 2 SE",
                **style,
            )
    low, high = axes.get_ylim()
    # A bound that is flat but for its noise should look flat: no less than a nat is shown.
    middle, half = (low + high) / 2, max(high - low, 1.0) / 2
    axes.set_ylim(middle - 1.1 * half, middle + 1.5 * half)
    axes.set_xlim(-0.3, len(places) - 0.7)
    axes.set_xticks(list(places), [str(size) for size in evidence.num_importance.tolist()])
    axes.locator_params(axis="y", nbins=5)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("number K of draws", fontsize=7)
    axes.legend(fontsize=6, frameon=False, loc="upper left")
    rise = float(evidence.lower[-1] - evidence.lower[0])
    _entitle(axes, "log evidence, in nats", f"the lower bound rises by {rise:.2f}")


def _prediction(name: str, data: np.ndarray, draws: np.ndarray) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        some = draws[np.linspace(0, len(draws) - 1, min(len(draws), 200)).round().astype(int)]
        low = min(float(data.min()), float(np.quantile(some, 0.002)))
        high = max(float(data.max()), float(np.quantile(some, 0.998)))
        extent = high - low or 1.0
        if data.size == 1:
            bins = _bins(some.reshape(-1), low - 0.03 * extent, high + 0.03 * extent)
            _step(axes, some.reshape(-1), bins, color=_POSTERIOR, label="predicted")
            axes.axvline(float(data[0]), color="black", label="observed")
            axes.set_yticks([])
        else:
            count = max(8, math.ceil(2 * data.size ** (1 / 3)))
            bins = np.linspace(low, high, min(count, _MOST_BINS) + 1)
            if is_count(data) or (data == np.round(data)).all():
                step = max(1, math.ceil(extent / min(2 * count, _MOST_BINS)))
                bins = np.arange(math.floor(low), math.ceil(high) + step + 1, step) - 0.5
            counts = np.stack([np.histogram(one, bins)[0] for one in some])
            bottom, middle, top = np.quantile(counts, [0.05, 0.5, 0.95], axis=0)
            axes.stairs(
                top, bins, baseline=bottom, fill=True, color=_POSTERIOR, alpha=0.25, linewidth=0,
                label="predicted, 90 %",
            )  # fmt: skip
            axes.stairs(middle, bins, color=_POSTERIOR, linewidth=1, label="median", baseline=None)
            axes.plot(
                (bins[1:] + bins[:-1]) / 2,
                np.histogram(data, bins)[0],
                "o",
                color="black",
                markersize=3,
                label="data",
            )
            axes.set_ylabel("count", fontsize=7, labelpad=1)
            axes.locator_params(axis="y", nbins=5, integer=True)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
        axes.set_xlim(bins[0], bins[-1])
        axes.locator_params(axis="x", nbins=5, integer=bool((data == np.round(data)).all()))
        axes.set_xlabel(shorten(name, _LONGEST_NAME), fontsize=7)
        axes.legend(
            fontsize=6,
            frameon=False,
            loc="upper center",
            ncols=3,
            handlelength=1.2,
            columnspacing=0.8,
            borderaxespad=0.0,
        )
        _entitle(axes, "posterior predictive", f"{data.size} observations")

    return draw


def _draw_sbc(axes: Any, sbc: SBC) -> None:
    """Shows the worst entry of the worst quantity in its bands."""
    p_values = sbc.adjusted_p_values
    name = min(p_values, key=lambda quantity: p_values[quantity])
    worst_entry = int(sbc.p_values[name].reshape(-1).argmin())
    ranks = sbc.ranks[name].reshape(sbc.num_simulations, -1)[:, worst_entry, None]
    total = sum(values.numel() for values in sbc.p_values.values())
    found = differences_to_uniform(ranks, sbc.num_draws, 1 - 0.05 / total)
    found.draw_bands(axes, label="95 % bands")
    axes.plot(found.points, found.lines[0], color=_POSTERIOR, linewidth=1.3, label="worst entry")
    axes.set_xlim(0, 1)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.35)
    axes.locator_params(nbins=5)
    axes.set_xlabel("rank of the truth, as a fraction", fontsize=7)
    axes.set_ylabel("ECDF - uniform", fontsize=7, labelpad=1)
    axes.legend(fontsize=6, frameon=False, loc="upper right", ncols=2, handlelength=1.2)
    _entitle(
        axes, f"SBC: {shorten(name, _LONGEST_NAME)}", f"overall p = {short_p_value(sbc.p_value)}"
    )


def _entitle(axes: Any, title: str, note: str) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(
        shorten(title, _LONGEST_NAME), (0, 1), (0, 15), fontsize=8, weight="bold", **place
    )
    axes.annotate(note, (0, 1), (0, 5), fontsize=7, color="0.35", **place)
