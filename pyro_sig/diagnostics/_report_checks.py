"""The judgements of a report: each takes arrays or results and says good, look or bad."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_sig.diagnostics._rank_plot import short_p_value
from pyro_sig.diagnostics.c2st import c2st
from pyro_sig.diagnostics.energy import energy_test
from pyro_sig.diagnostics.evidence_bounds import EvidenceBounds
from pyro_sig.diagnostics.k_hat import KHat
from pyro_sig.diagnostics.sbc import SBC, sbc_ranks
from pyro_sig.diagnostics.uniformity import uniformity_test

__all__: list[str] = []

# From the best to the worst; the first is no verdict, but says that there is none.
VERDICTS = ("none", "good", "look", "bad")

# Nats between bounds of the evidence, above which to look, and which are bad.
_NATS = (0.3, 3.0)
_ROUNDING = 1e-5  # of single precision
_R_HAT = (1.01, 1.05)
_ESS = (400, 100)
_HIGH_PARETO_K = 0.7
# Of p-values, after a correction for their number.
_P_VALUE = (0.05, 0.01)
_LEAST_CONTRACTION, _WIDER = 0.1, -0.5
# Of a comparison with a reference: means in its standard deviations, log ratios of these.
_MEAN_OFF, _SD_OFF = (0.1, 0.3), (math.log(1.1), math.log(1.3))
_NOISE_RATE = 0.01
_MANY_ROWS = 1000

# What a line has found where its check did not apply, and where it raised.
NOT_RUN, FAILED = "not run", "failed"

Judgement = tuple[str, str, str]


class ReportLine(NamedTuple):
    """One line of a :class:`Report`.

    :param name: what was checked.
    :param value: what was found, in a few words.
    :param verdict: ``"good"``, ``"look"``, ``"bad"``, or ``"none"`` where the check does not apply.
    :param text: what that means.
    """

    name: str
    value: str
    verdict: str
    text: str


class Entries(NamedTuple):
    """Scalar entries of draws: their names, and the draws of shape ``[chains, draws, E]``."""

    names: list[str]
    draws: np.ndarray

    @property
    def pooled(self) -> np.ndarray:
        """The draws of all chains, of shape ``[S, E]``."""
        return self.draws.reshape(-1, self.draws.shape[-1])

    def select(self, names: Sequence[str]) -> Entries:
        """Picks some of the entries."""
        place = {name: i for i, name in enumerate(self.names)}
        return Entries(list(names), self.draws[..., [place[name] for name in names]])


class DoesNotApplyError(Exception):
    """Says in a few words why a check does not apply."""


def run_check(name: str, check: Callable[..., Judgement], *args: Any) -> ReportLine:
    """Runs a check; what it raises becomes its line, so that the others are not lost."""
    try:
        return ReportLine(name, *check(*args))
    except DoesNotApplyError as reason:
        return ReportLine(name, NOT_RUN, "none", str(reason))
    except Exception as error:
        message = (str(error).strip().splitlines() or [""])[0]
        return ReportLine(name, FAILED, "look", f"{type(error).__name__}: {message}")


def entries_of(arrays: Mapping[str, np.ndarray]) -> Entries:
    """Takes sites of shape ``[chains, draws, *]`` apart into scalar entries."""
    names: list[str] = []
    parts = []
    for name, array in arrays.items():
        shape = array.shape[2:]
        indices = np.ndindex(*shape) if shape else iter([()])
        names += [f"{name}[{','.join(map(str, i))}]" if shape else name for i in indices]
        parts.append(array.reshape(*array.shape[:2], -1).astype(float))
    return Entries(names, np.concatenate(parts, -1) if parts else np.empty((1, 0, 0)))


# -------------------------------------------------------------------------------------- the weights


def check_evidence(bounds: EvidenceBounds, label: str) -> Judgement:
    """Judges how much the lower bound rises with K, and the gap to an upper one."""
    sizes = bounds.num_importance.tolist()
    lower, last = bounds.lower.tolist(), sizes[-1]
    value = (
        f"{label}{', '.join(f'{x:.2f}' for x in lower)} at K = {', '.join(map(str, sizes))} "
        f"(SE {float(bounds.lower_error[-1]):.2f})"
    )
    if not math.isfinite(lower[0]):
        return value, "bad", "the model gives some draws of the guide no density at all"
    rise = lower[-1] - lower[0]
    verdict = _grade(rise, _NATS)
    meaning = {
        "good": "nothing here speaks against the guide",
        "look": "the guide is that far from the posterior, or farther",
        "bad": "the guide is far from the posterior",
    }[verdict]
    text = f"the bound rises by {rise:.2f} nats, a lower estimate of KL(guide || posterior): "
    text += meaning
    if bounds.upper is None or bounds.upper_error is None:
        return value, verdict, text
    gaps, errors = bounds.upper - bounds.lower, bounds.upper_error.hypot(bounds.lower_error)
    gap = float(gaps[-1])
    value += f"; upper bound {float(bounds.upper[-1]):.2f}"
    if (gaps < -5 * errors - _ROUNDING * bounds.lower.abs()).any():
        return value, "look", "the upper bound is below the lower one: `reference` is not exact"
    verdict = worst([verdict, _grade(gap, _NATS)])
    return value, verdict, f"{text}; the gap at K = {last} is {gap:.2f} nats"


def check_k_hat(result: KHat, label: str) -> Judgement:
    """Hands on the verdict of a k-hat."""
    low, high = result.spread
    value = (
        f"{label}{result.k_hat:.2f} ({low:.2f} to {high:.2f}), "
        f"effective share {result.effective_share:.2g}"
    )
    verdict = {"good": "good", "usable with importance weights": "look"}.get(result.verdict, "bad")
    text = "the guide covers the posterior" if verdict == "good" else result.verdict
    return value, verdict, text


# ---------------------------------------------------------------------------------------- the draws


def check_chains(data: Any, num_guides: int, entries: Entries) -> Judgement:
    """Judges whether chains agree, be they trainings or Markov chains."""
    import arviz

    if not entries.names:
        raise DoesNotApplyError("no draws of a posterior")
    if num_guides == 1:
        raise DoesNotApplyError("one guide; pass several independently trained ones to compare")
    r_hat = _by_entry(arviz.rhat, data)
    if not np.isfinite(r_hat).any():
        raise DoesNotApplyError("no entry varies, or there are too few draws")
    place = int(np.nanargmax(r_hat))
    largest = float(r_hat[place])
    value = f"largest r_hat {largest:.3f} at {entries.names[place]}"
    verdict = _grade(largest, _R_HAT)
    if num_guides:
        text = {"good": "agree", "look": "disagree somewhat", "bad": "disagree"}[verdict]
        return value, verdict, f"{num_guides} independent trainings {text}"
    ess = np.fmin(_by_entry(arviz.ess, data), _by_entry(arviz.ess, data, method="tail"))
    place = int(np.nanargmin(ess))
    value += f", least ESS {ess[place]:.0f} at {entries.names[place]}"
    enough = _grade(-float(ess[place]), (-_ESS[0], -_ESS[1]))
    text = "the chains mix" if verdict == "good" else "the chains have not mixed"
    if enough != "good":
        text += f"; few effective draws: {_ESS[0]} are usual"
    return value, worst([verdict, enough]), text


def _by_entry(function: Callable[..., Any], data: Any, **options: Any) -> np.ndarray:
    """Applies a diagnostic of ArviZ to every scalar entry of the posterior."""
    group = data["posterior"]
    dataset = group.to_dataset() if hasattr(group, "to_dataset") else group
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # entries that do not vary
        found = function(dataset.astype(float), **options)
    return np.concatenate([np.ravel(found[name].values) for name in group.data_vars])


def check_loo(data: Any, names: Sequence[str], independent: bool) -> Judgement:
    """Finds what the model would predict of each observation without having seen it."""
    import arviz

    results = {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the k that are counted below
            warnings.simplefilter("ignore", RuntimeWarning)
            results[name] = arviz.loo(
                data, var_name=name, pointwise=True, reff=1.0 if independent else None
            )
    # ArviZ 1.0 renamed them.
    elpd = sum(float(_first(result, "elpd_loo", "elpd")) for result in results.values())
    effective = sum(float(_first(result, "p_loo", "p")) for result in results.values())
    error = math.sqrt(sum(float(result.se) ** 2 for result in results.values()))
    pareto_k = np.concatenate([np.ravel(np.asarray(r.pareto_k)) for r in results.values()])
    high = int((pareto_k > _HIGH_PARETO_K).sum())
    value = (
        f"elpd {elpd:.1f} (SE {error:.1f}), p_loo {effective:.1f}, "
        f"k > {_HIGH_PARETO_K} at {high} of {pareto_k.size}"
    )
    if effective > pareto_k.size / 2:
        return value, "look", "p_loo is over half of the data: a flexible or a wrong model"
    if high:
        return value, "look", "the elpd leans on influential observations: refit without them"
    return value, "good", "the elpd can be trusted as far as the posterior can"


def _first(result: Any, *names: str) -> Any:
    return next(getattr(result, name) for name in names if hasattr(result, name))


# -------------------------------------------------------------------------------- the observations


def check_predictive(observed: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> Any:
    """Compares test quantities of the data ``[n]`` with those of draws ``[S, n]``."""
    p_values = {}
    for name, data in observed.items():
        for label, quantity in _quantities(data).items():
            of_draws, of_data = quantity(draws[name]), quantity(data[np.newaxis])[0]
            # Rounding must not break a tie.
            margin = _ROUNDING * abs(float(of_data))
            above, below = (of_draws >= of_data - margin).mean(), (of_draws <= of_data + margin)
            key = label if len(observed) == 1 else f"{label} of {name}"
            p_values[key] = min(1.0, 2 * float(min(above, below.mean())))
    ordered = sorted(p_values, key=lambda key: p_values[key])
    least = ordered[0]
    num_draws = len(next(iter(draws.values())))
    shown = list(p_values) if len(p_values) <= 5 else ordered[:3]
    value = "p: " + ", ".join(f"{key} {_short_p(p_values[key], num_draws)}" for key in shown)
    verdict = _grade_p(p_values[least] * len(p_values))
    if verdict == "good":
        return value, verdict, "new data look like the data (these p-values are conservative)"
    listed = [key for key in ordered if _grade_p(p_values[key] * len(p_values)) == verdict]
    text = ", ".join(listed[:4]) + (" and others" if len(listed) > 4 else "")
    return value, verdict, f"new data differ from the data in {text} (p is conservative)"


def _quantities(data: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    if data.size == 1:
        return {"value": lambda x: x[:, 0]}
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mean": lambda x: x.mean(1)}
    values = np.unique(data[:_MANY_ROWS])
    if len(values) <= 2 and set(values) <= {0, 1}:
        return found  # of zeros and ones the mean says all
    found |= {"sd": lambda x: x.std(1), "min": lambda x: x.min(1), "max": lambda x: x.max(1)}
    if is_count(data):
        found["zeros"] = lambda x: (x == 0).mean(1)
        del found["min"]
    return found


def is_count(data: np.ndarray) -> bool:
    """Tells numbers of something from measurements."""
    return bool((data >= 0).all() and (data == np.round(data)).all())


def check_pit(observed: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> Judgement:
    """Ranks every observation among its draws; ties are broken at random."""
    p_values, spreads = {}, {}
    for name, data in observed.items():
        step = math.ceil(data.size / _MANY_ROWS)
        values = torch.from_numpy(np.ascontiguousarray(draws[name][:, ::step].T))
        ranks = sbc_ranks(torch.from_numpy(data[::step].copy()), values)
        p_values[name] = float(uniformity_test(ranks, values.shape[1]).p_value)
        pit = (ranks.double() + 0.5) / (values.shape[1] + 1)
        spreads[name] = float((pit - 0.5).square().mean())
    least = min(p_values, key=lambda name: p_values[name])
    p_value = min(1.0, p_values[least] * len(p_values))
    where = f" at {least}" if len(p_values) > 1 else ""
    value = f"uniform: p = {short_p_value(p_value)}{where}"
    verdict = _grade_p(p_value)
    if verdict == "good":
        return value, verdict, "the observations lie among their predictions as they should"
    if spreads[least] < 1 / 12:
        # They were seen in the fit. What is too wide for other reasons has a wrong sd.
        text = "observations are in the middle of their predictions, as if each had its own latent"
        return value, "good", text
    return value, verdict, "observations lie in the tails of their predictions, or on one side"


# --------------------------------------------------------------------------- prior and reference


def contraction(posterior: Entries, prior: Entries) -> np.ndarray:
    """One less the ratio of variances, from intervals: a Cauchy prior has no variance."""
    squares = []
    for draws in (posterior.pooled, prior.pooled):
        low, high = np.quantile(draws, [0.1, 0.9], axis=0)
        squares.append((high - low) ** 2)
    with np.errstate(all="ignore"):
        return np.where(squares[1] > 0, 1 - squares[0] / squares[1], np.nan)


def check_prior(posterior: Entries, prior: Entries) -> Judgement:
    """Finds entries that the data say nothing about, or that the prior had ruled out."""
    shares = contraction(posterior, prior)
    if not np.isfinite(shares).any():
        raise DoesNotApplyError("no entry varies under the prior")
    low, high = np.quantile(prior.pooled, [0.005, 0.995], axis=0)
    mean = posterior.pooled.mean(0)
    conflict = np.isfinite(shares) & ((mean < low) | (mean > high))
    wider, silent = shares < _WIDER, (shares >= _WIDER) & (shares < _LEAST_CONTRACTION)
    value = (
        f"contraction {np.nanmin(shares):.2f} to {np.nanmax(shares):.2f}, "
        f"median {np.nanmedian(shares):.2f}"
    )
    if len(shares) == 1:
        value = f"contraction {shares[0]:.2f}"
    texts = []
    for found, text in (
        (conflict, "the data contradict the prior of"),
        (wider, "wider than under the prior:"),
        (silent, "the data say nothing about"),
    ):
        if found.any():
            texts.append(f"{text} {_name_some(posterior.names, found, shares)}")
    if texts:
        return value, "look", "; ".join(texts)
    return value, "good", "the data inform every latent, and inside of its prior"


def _name_some(names: Sequence[str], chosen: np.ndarray, order: np.ndarray) -> str:
    places: list[int] = sorted(np.flatnonzero(chosen).tolist(), key=lambda i: order[i])
    text = ", ".join(names[i] for i in places[:3])
    return text + (f" and {len(places) - 3} more" if len(places) > 3 else "")


class Mismatch(NamedTuple):
    """Of every entry: the difference of means in reference sd, the log ratio of sds; errors."""

    mean: np.ndarray
    log_sd: np.ndarray
    mean_error: np.ndarray
    log_sd_error: np.ndarray


def mismatch(draws: Entries, reference: Entries) -> Mismatch:
    """Compares entries of the same names."""
    moments = []
    for sample in (draws.pooled, reference.pooled):
        centred = sample - sample.mean(0)
        variance = np.maximum((centred**2).mean(0), np.finfo(float).tiny)
        kurtosis = np.maximum((centred**4).mean(0) / variance**2, 1.0)
        moments.append((sample.mean(0), variance, kurtosis, len(sample)))
    (mean, variance, kurtosis, count), (centre, scale, tails, total) = moments
    return Mismatch(
        (mean - centre) / np.sqrt(scale),
        np.log(variance / scale) / 2,
        np.sqrt((variance / count + scale / total) / scale),
        np.sqrt((kurtosis - 1) / (4 * count) + (tails - 1) / (4 * total)),
    )


def check_reference(draws: Entries, reference: Entries) -> Judgement:
    """Judges by the size of the differences; with many draws a test rejects tiny ones."""
    found = mismatch(draws, reference)
    # What the noise of finite draws may add at the worst of all entries.
    normal = torch.distributions.Normal(0.0, 1.0)
    z = float(normal.icdf(torch.tensor(1 - _NOISE_RATE / (4 * len(draws.names))).double()))
    off, off_sd = np.abs(found.mean), np.abs(found.log_sd)
    verdicts = [
        _grade(float((off - z * found.mean_error).max()), _MEAN_OFF),
        _grade(float((off_sd - z * found.log_sd_error).max()), _SD_OFF),
    ]
    i, j = int(off.argmax()), int(off_sd.argmax())
    value = (
        f"means differ by up to {off[i]:.2f} sd ({draws.names[i]}), sds by a factor "
        f"{math.exp(min(found.log_sd[j], 99.0)):.2f} ({draws.names[j]})"
    )
    tests, p_value = _test_samples(draws.pooled, reference.pooled)
    value += "; " + tests
    verdict = worst(verdicts)
    if verdict == "good" and p_value < min(_P_VALUE):
        return (
            value,
            "look",
            (
                "means and sds fit, but a test tells the draws apart: a small difference, or a "
                "reference of dependent draws"
            ),
        )
    text = {
        "good": "as the reference, as far as these draws tell",
        "look": "somewhat off the reference",
        "bad": "not the law of the reference",
    }[verdict]
    return value, verdict, text


def _test_samples(draws: np.ndarray, reference: np.ndarray) -> tuple[str, float]:
    """Standardises both samples, thins them, and tests whether their laws are equal."""
    scale = reference.std(0)
    scale[scale == 0] = 1.0
    x, y = (
        torch.from_numpy((sample - reference.mean(0)) / scale)[_evenly(len(sample))]
        for sample in (draws, reference)
    )
    found = energy_test(x, y, 499).p_value
    parts = [f"energy test p = {short_p_value(found)}"]
    if find_spec("sklearn") is not None and min(len(x), len(y)) >= 20:
        accuracy, p_value = c2st(x, y)
        parts.append(f"C2ST {accuracy:.2f} (p = {short_p_value(p_value)})")
    return ", ".join(parts), found


def _evenly(count: int) -> Tensor:
    return torch.linspace(0, count - 1, min(count, _MANY_ROWS)).round().long()


def check_sbc(result: SBC) -> Judgement:
    """Hands on the overall p-value."""
    p_values = result.adjusted_p_values
    least = min(p_values, key=lambda name: p_values[name])
    value = f"p = {short_p_value(result.p_value)}, {result.num_simulations} simulations"
    verdict = _grade_p(result.p_value)
    if verdict == "good":
        return value, verdict, "calibrated over data sets of the model"
    return value, verdict, f"not calibrated over data sets of the model, see {least}"


# ------------------------------------------------------------------------------------- the verdicts


def worst(verdicts: Sequence[str]) -> str:
    """Picks the worst of some verdicts."""
    return max(verdicts, key=VERDICTS.index, default="none")


def _grade(value: float, limits: tuple[float, float]) -> str:
    if not value <= limits[1]:  # NaN is bad
        return "bad"
    return "good" if value <= limits[0] else "look"


def _grade_p(p_value: float) -> str:
    return _grade(-p_value, (-_P_VALUE[0], -_P_VALUE[1]))


def _short_p(p_value: float, num_draws: int) -> str:
    return f"{p_value:.2g}" if p_value > 0 else f"< {2 / num_draws:.1g}"
