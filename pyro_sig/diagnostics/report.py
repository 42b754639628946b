"""One call that runs every diagnostic that applies to a fit."""

from __future__ import annotations

import math
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent

from pyro_sig.diagnostics._arviz_labels import Draws, stack_chains
from pyro_sig.diagnostics._program_sites import Call, Sites, describe_sites, scored_sites
from pyro_sig.diagnostics._report_checks import (
    VERDICTS,
    DoesNotApplyError,
    Entries,
    Judgement,
    ReportLine,
    check_chains,
    check_evidence,
    check_k_hat,
    check_loo,
    check_pit,
    check_predictive,
    check_prior,
    check_reference,
    check_sbc,
    entries_of,
    run_check,
    worst,
)
from pyro_sig.diagnostics._report_page import draw_page
from pyro_sig.diagnostics.evidence_bounds import EvidenceBounds, evidence_bounds
from pyro_sig.diagnostics.importance import log_importance_weights
from pyro_sig.diagnostics.inference_data import (
    _check_tensors,
    _parameters_of,
    _random_state,
    _split_chains,
    to_inference_data,
)
from pyro_sig.diagnostics.k_hat import KHat, effective_share
from pyro_sig.diagnostics.pareto import pareto_k_hat
from pyro_sig.diagnostics.sbc import SBC
from pyro_sig.distributions.components import check_positive

__all__ = ["Report", "ReportLine", "report"]

_NUM_REPEATS = 5  # of k-hat
_NUM_IMPORTANCE = (1, 10, 100)
_LEAST_GROUPS = 10  # of a size K that the evidence is estimated with
_MOST_EXACT = 200  # draws of a reference that are scored one by one for the upper bound
_LEAST_SAMPLES = 50
_WIDTH = 100
# Lines whose bad verdict speaks against the model, not against the way it was fitted.
_OF_THE_MODEL = ("LOO", "predictive", "PIT", "prior")
_DPI = 150


@dataclass(frozen=True, repr=False, eq=False)
class Report:
    """Result of :func:`report`; printed, it is a table.

    :param lines: the table, a :class:`ReportLine` for each check.
    :param data: the draws, an ``arviz.InferenceData``.
    :param name: of model and guide.
    :param k_hat: of the guide, of several the worst; None where there is none.
    :param evidence: its evidence bounds, or None.
    :param log_weights: its log importance weights, of shape ``[repeats, draws]``, or None.
    :param reference: draws of the reference, of shape ``[chains, draws, *]`` by site.
    :param observations: by observed site, the data of shape ``[n]`` and their predictions of shape
        ``[S, n]``.
    :param sbc: the simulation-based calibration that was passed.
    """

    lines: list[ReportLine]
    data: Any
    name: str
    k_hat: KHat | None = None
    evidence: EvidenceBounds | None = None
    log_weights: Tensor | None = None
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)
    observations: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    sbc: SBC | None = None

    @property
    def verdict(self) -> str:
        """The worst verdict of all lines."""
        return worst([line.verdict for line in self.lines])

    @property
    def overall(self) -> str:
        """The overall verdict in one sentence."""
        blamed = [line.name for line in self.lines if line.verdict == self.verdict]
        doubts = [
            f"this {what} (see {', '.join(names)})"
            for what, names in (
                ("posterior", [name for name in blamed if name not in _OF_THE_MODEL]),
                ("model", [name for name in blamed if name in _OF_THE_MODEL]),
            )
            if names
        ]
        return {
            "none": "No check applies.",
            "good": "Good: no check that applies speaks against this posterior.",
            "look": f"Look again before believing {' and '.join(doubts)}.",
            "bad": f"Bad: do not believe {' nor '.join(doubts)}.",
        }[self.verdict]

    def __repr__(self) -> str:
        margin = max(len(line.name) for line in self.lines) + 2
        rows = []
        for line in self.lines:
            mark = "-" if line.verdict == "none" else line.verdict
            wrapped = textwrap.wrap(f"{line.value}: {line.text}", _WIDTH - margin - 6)
            rows.append(f"{mark:6}{line.name:{margin}}{wrapped[0]}")
            rows += [" " * (margin + 6) + rest for rest in wrapped[1:]]
        rows += textwrap.wrap(self.overall, _WIDTH)
        return "\n".join(rows)

    def plot(self) -> Any:
        """Draws the report on one page, in portrait format.

        On top are the verdicts. Below are, as far as they exist, the marginals of up to six
        latents: those that differ most from the reference, or else from chain to chain, or else
        the least from their prior. Then come the largest importance weights with the fitted Pareto
        tail; the bounds of the evidence; the data among their predictions; and simulation-based
        calibration.

        :return: a matplotlib ``Figure``, which pyplot does not know of.
        """
        return draw_page(
            lines=self.lines,
            title=self.name,
            overall=self.overall,
            posterior=entries_of(_arrays(self.data, "posterior")),
            prior=entries_of(_arrays(self.data, "prior")),
            reference=entries_of(self.reference),
            observations=self.observations,
            log_weights=self.log_weights,
            k_hat=self.k_hat,
            evidence=self.evidence,
            sbc=self.sbc,
        )


def report(
    model: Callable[..., Any],
    guide: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    *args: Any,
    num_samples: int = 1000,
    posterior: Draws | None = None,
    reference: Draws | None = None,
    exact: bool = False,
    sbc: SBC | None = None,
    num_mixing: int = 1000,
    parallel: bool = False,
    seed: int | None = None,
    path: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    **kwargs: Any,
) -> Report:
    r"""Runs every diagnostic that applies to a fit; prints a verdict on each, and saves a page.

    ==========  ==================================  ==============================================
    line        needs                               is bad if
    ==========  ==================================  ==============================================
    evidence    a guide, data, densities            its bound rises by over 3 nats in K = 1 to 100
    k-hat       a guide, data, densities            :func:`k_hat` says so
    chains      several guides, or Markov chains    :math:`\hat R > 1.05`, or ESS < 100
    LOO         draws of all latents, data          never: k > 0.7 somewhere means "look"
    predictive  data                                a test quantity has p < 0.01 / their number
    PIT         independent data                    observations are in the tails, p < 0.01
    prior       a prior to draw from                never: silent data, or a conflict, mean "look"
    reference   ``reference``                       means are off by 0.3 sd, or sds by 30 %
    SBC         ``sbc``                             its overall p < 0.01
    ==========  ==================================  ==============================================

    A check that does not apply says why, and one that fails with which error; the others go on.
    Posterior predictive p-values use the data twice and are conservative: p = 0.2 is no proof. The
    contraction of a latent is :math:`1 - (w / w_0)^2` with the widths of the central 80 % of
    posterior and prior, for normal laws one less the ratio of variances.

    No check sees everything: k-hat and evidence overlook what the guide never draws, such as
    another mode; a reference, or several trainings, may show it.

    :param model: a Pyro program.
    :param guide: its guide, or a list of independently trained guides; or None with ``posterior``.
    :param args: arguments of ``model`` and ``guide``.
    :param num_samples: draws of each guide, at least 50; k-hat and evidence take five times
        as many.
    :param posterior: draws in place of a guide's, such as
        ``mcmc.get_samples(group_by_chain=True)``: of shape ``[draws, *]`` or
        ``[chains, draws, *]``.
    :param reference: draws of a trusted posterior to compare with, shaped alike; of some latents or
        of all.
    :param exact: whether the draws of ``reference`` are exact and independent: they then bound the
        evidence from above, as :func:`evidence_bounds` says.
    :param sbc: a result of :func:`~pyro_sig.diagnostics.sbc`, which is too costly to be run here.
    :param num_mixing: fresh psi at semi-implicit sites, for the importance weights.
    :param parallel: run the programs once for many draws; they must broadcast under one more plate.
    :param seed: of all draws. If given, the global random states are left untouched; if not, the
        draws consume them.
    :param path: where to save the page, for example ``"report.png"``.
    :param quiet: do not print the table.
    :param kwargs: keyword arguments of ``model`` and ``guide``.
    :return: the table, with the results behind it.
    :raises ValueError: as :func:`to_inference_data`; if there is neither a guide nor a posterior;
        if ``num_samples`` is less than 50, ``reference`` does not fit the model, ``exact`` is
        True without it, ``sbc`` is no :class:`SBC`, or the folder of ``path`` does not exist.

    Sources: A. Gelman et al. (2020), "Bayesian workflow", https://arxiv.org/abs/2011.01808;
    A. Gelman, X.-L. Meng and H. Stern (1996), "Posterior predictive assessment of model fitness
    via realized discrepancies"; those of the functions that it calls.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(data)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=data)
        >>> def guide(data):  # the posterior has a standard deviation of 0.3
        ...     pyro.sample("loc", dist.Normal(data.mean(), 0.03))
        >>> data = torch.linspace(-2.0, 2.0, 10)
        >>> report(model, guide, data, num_samples=200, parallel=True, seed=0).verdict
        look  evidence    ...
        bad   k-hat       ...
        Bad: do not believe this posterior (see k-hat).
        'bad'
    """
    _check_arguments(guide, num_samples, posterior, exact, reference, sbc, num_mixing, path)
    call = Call(args, kwargs)
    with _random_state(seed), _without_known_warnings():
        # What it refuses without scores is an error of the caller.
        options: dict[str, Any] = {"num_samples": num_samples, "parallel": parallel}
        options |= {"posterior": posterior, "attrs": {} if seed is None else {"seed": seed}}
        unscored = None
        try:
            data = to_inference_data(model, guide, *args, **options, **kwargs)
        except ValueError as error:
            unscored = error
            options |= {"sample_stats": False, "log_likelihood": False}
            try:
                data = to_inference_data(model, guide, *args, **options, **kwargs)
            except ValueError:
                raise error from None
        guides = _as_list(guide)
        fit = _Fit(model, guides, call, parallel, data, unscored, posterior)
        trusted = {} if reference is None else fit.split(reference)
        if guides:
            weighed = fit.weigh(num_samples, num_mixing, trusted if exact else None)
        else:
            weighed = _Weighed([], None, None, None)
            reason = "draws without a guide have no density of their own"
            weighed.lines = [
                ReportLine(n, "not run", "none", reason) for n in ("evidence", "k-hat")
            ]
        lines = [
            *weighed.lines,
            run_check("chains", check_chains, data, len(guides), fit.entries("posterior")),
            run_check("LOO", fit.check_loo),
            run_check("predictive", fit.check_predictive),
            run_check("PIT", fit.check_pit),
            run_check("prior", fit.check_prior),
            run_check("reference", fit.check_reference, trusted),
            run_check("SBC", _check_sbc, sbc),
        ]
    found = Report(
        lines,
        data,
        _name(model, guides),
        weighed.k_hat,
        weighed.evidence,
        weighed.log_weights,
        trusted,
        fit.observations,
        sbc,
    )
    if not quiet:
        print(found)
    if path is not None:
        found.plot().savefig(path, dpi=_DPI)
    return found


# ---------------------------------------------------------------------------------- what is checked


@dataclass
class _Weighed:
    """What the importance weights say, of the worst guide."""

    lines: list[ReportLine]
    k_hat: KHat | None
    evidence: EvidenceBounds | None
    log_weights: Tensor | None


class _Fit:
    """A fit, and what is known of its sites: decides what applies to it."""

    def __init__(
        self,
        model: Callable[..., Any],
        guides: list[Callable[..., Any]],
        call: Call,
        parallel: bool,
        data: Any,
        unscored: ValueError | None,
        posterior: Draws | None,
    ) -> None:
        self.model, self.guides, self.call = model, guides, call
        self.parallel, self.data, self.unscored = parallel, data, unscored
        with torch.no_grad(), poutine.block():
            given = {} if posterior is None else _split_chains(model, call, posterior)[0]
            first = {name: value[0] for name, value in given.items()}
            with _parameters_of(guides, 0):
                guide = guides[0] if guides else None
                self.sites: Sites = describe_sites(model, guide, call, first, score=False)
                if guide is not None:
                    trace: Any = call.trace(guide)
                    first = {n: s["value"] for n, s in scored_sites(trace)}
                trace = call.trace(poutine.condition(model, first))
        nodes = dict(scored_sites(trace))
        self.observations = _observations(data, nodes)
        # A factor is an observation that leaves no data.
        self.has_evidence = any(s["is_observed"] and n not in first for n, s in nodes.items())
        self.independent = {
            name for name in self.sites.observed if _has_independent_entries(nodes[name]["fn"])
        }

    def entries(self, group: str) -> Entries:
        return entries_of(_arrays(self.data, group))

    def split(self, reference: Draws) -> dict[str, np.ndarray]:
        """Reads the reference into arrays as those of the posterior."""
        _check_tensors("reference", reference)
        if not reference:
            raise ValueError("`reference` must hold draws of the latents, but was empty.")
        try:
            with torch.no_grad(), poutine.block():
                chains = _split_chains(self.model, self.call, reference)
        except ValueError as error:
            raise ValueError(str(error).replace("`posterior`", "`reference`")) from error
        return {
            name: self.sites.shaped(name, array, num_lead=2)
            for name, array in stack_chains(chains).items()
        }

    # ---------------------------------------------------------------------------------- the weights

    def weigh(
        self, num_samples: int, num_mixing: int, exact: Mapping[str, np.ndarray] | None
    ) -> _Weighed:
        """Weighs the draws of every guide, for both of k-hat and evidence."""
        options: dict[str, Any] = {"num_mixing": num_mixing, "parallel": self.parallel}
        found: list[_Weighed] = []
        for index, guide in enumerate(self.guides):
            label = f"guide {index + 1} of {len(self.guides)}: " if len(self.guides) > 1 else ""
            one = _Weighed([], None, None, None)
            k_hat = run_check("k-hat", self._check_k_hat, one, guide, label, num_samples, options)
            evidence = run_check(
                "evidence", self._check_evidence, one, guide, label, exact, options
            )
            one.lines = [evidence, k_hat]
            found.append(one)
        return max(found, key=_badness)

    def _check_k_hat(
        self,
        one: _Weighed,
        guide: Callable[..., Any],
        label: str,
        num_samples: int,
        options: Mapping[str, Any],
    ) -> Judgement:
        self._check_weighable()
        log_weights = log_importance_weights(
            self.model,
            guide,
            *self.call.args,
            num_samples=_NUM_REPEATS * num_samples,
            **options,
            **self.call.kwargs,
        )
        one.log_weights = log_weights.reshape(_NUM_REPEATS, num_samples)
        values = torch.tensor([pareto_k_hat(repeat) for repeat in one.log_weights])
        one.k_hat = KHat(float(values.median()), values, effective_share(log_weights))
        return check_k_hat(one.k_hat, label)

    def _check_evidence(
        self,
        one: _Weighed,
        guide: Callable[..., Any],
        label: str,
        exact: Mapping[str, np.ndarray] | None,
        options: Mapping[str, Any],
    ) -> Judgement:
        self._check_weighable()
        if one.log_weights is None:
            raise DoesNotApplyError("there are no importance weights, see k-hat")
        one.evidence = _lower_bounds(one.log_weights.flatten())
        if exact is not None:
            one.evidence = self._both_bounds(guide, one.evidence, exact, options)
        return check_evidence(one.evidence, label)

    def _check_weighable(self) -> None:
        if not self.sites.guided:
            raise DoesNotApplyError("the guide draws no latent of the model")
        if not self.has_evidence:
            raise DoesNotApplyError("no observations")
        if self.sites.subsampled:
            plate = next(iter(self.sites.subsampled.values()))
            raise DoesNotApplyError(f"the plate {plate!r} subsamples")
        with torch.no_grad(), poutine.block(), _parameters_of(self.guides, 0):
            scored = describe_sites(self.model, self.guides[0], self.call, {}, score=True)
        for name in scored.unscored + scored.unscored_guide:
            raise DoesNotApplyError(f"the site {name!r} has no log_prob")

    def _both_bounds(
        self,
        guide: Callable[..., Any],
        lower: EvidenceBounds,
        exact: Mapping[str, np.ndarray],
        options: Mapping[str, Any],
    ) -> EvidenceBounds:
        draws = {
            name: torch.as_tensor(array.reshape(-1, *self.sites.values[name].shape)).to(
                self.sites.values[name].device
            )
            for name, array in exact.items()
        }
        step = math.ceil(len(next(iter(draws.values()))) / _MOST_EXACT)
        return evidence_bounds(
            self.model,
            guide,
            *self.call.args,
            num_importance=lower.num_importance.tolist(),
            posterior={name: value[::step] for name, value in draws.items()},
            **options,
            **self.call.kwargs,
        )

    # ------------------------------------------------------------------------------------ the draws

    def check_loo(self) -> Judgement:
        if not self.sites.observed:
            raise DoesNotApplyError("no observations")
        if "posterior" not in self.data:
            raise DoesNotApplyError("no draws of a posterior")
        if self.unscored is not None:
            raise self.unscored
        names = list(_arrays(self.data, "log_likelihood"))
        if not names:
            left = [name for name in self.sites.latent if name not in self.sites.guided]
            self._check_observed()
            raise DoesNotApplyError(
                f"the latent {left[0]!r} is not among the draws of the posterior"
                if left
                else "the observations have no log_prob"
            )
        return check_loo(self.data, names, bool(self.guides))

    def _check_observed(self) -> None:
        if not self.sites.observed:
            raise DoesNotApplyError("no observations")
        for name in self.sites.observed:
            if name in self.sites.subsampled:
                raise DoesNotApplyError(f"the plate {self.sites.subsampled[name]!r} subsamples")

    def check_predictive(self) -> Judgement:
        self._check_observed()
        if not self.observations:
            raise DoesNotApplyError("no predictions of the observations")
        observed = {name: data for name, (data, _) in self.observations.items()}
        return check_predictive(observed, {n: draws for n, (_, draws) in self.observations.items()})

    def check_pit(self) -> Judgement:
        self._check_observed()
        found = {
            name: pair
            for name, pair in self.observations.items()
            if name in self.independent and pair[0].size > 1
        }
        if not found:
            raise DoesNotApplyError("no site has several observations, independent given latents")
        return check_pit(
            {n: x for n, (x, _) in found.items()}, {n: y for n, (_, y) in found.items()}
        )

    def check_prior(self) -> Judgement:
        prior, posterior = _arrays(self.data, "prior"), _arrays(self.data, "posterior")
        if not posterior:
            raise DoesNotApplyError("no draws of a posterior")
        names = [name for name in self.sites.latent if name in prior and name in posterior]
        if not names:
            raise DoesNotApplyError("the prior cannot be drawn from")
        return check_prior(
            entries_of({name: posterior[name] for name in names}),
            entries_of({name: prior[name] for name in names}),
        )

    def check_reference(self, reference: Mapping[str, np.ndarray]) -> Judgement:
        if not reference:
            raise DoesNotApplyError("none given")
        posterior = _arrays(self.data, "posterior")
        names = [name for name in reference if name in posterior]
        if not names:
            raise DoesNotApplyError("no draws of a posterior")
        return check_reference(
            entries_of({name: posterior[name] for name in names}),
            entries_of({name: reference[name] for name in names}),
        )


def _check_sbc(sbc: SBC | None) -> Judgement:
    if sbc is None:
        raise DoesNotApplyError("none given")
    return check_sbc(sbc)


def _lower_bounds(log_weights: Tensor) -> EvidenceBounds:
    """Averages the same weights in groups of K."""
    sizes, means, errors = [], [], []
    for size in _NUM_IMPORTANCE:
        count = len(log_weights) // size
        if count < _LEAST_GROUPS:
            continue
        bounds = log_weights[: count * size].reshape(count, size).logsumexp(1) - math.log(size)
        sizes.append(size)
        means.append(float(bounds.mean()))
        errors.append(float(bounds.std()) / math.sqrt(count))
    lower, error = (torch.tensor(values, dtype=torch.float64) for values in (means, errors))
    return EvidenceBounds(torch.tensor(sizes), lower, error, None, None)


def _badness(found: _Weighed) -> tuple[int, float]:
    verdict = worst([line.verdict for line in found.lines])
    return VERDICTS.index(verdict), -found.k_hat.effective_share if found.k_hat else 0.0


def _has_independent_entries(fn: Any) -> bool:
    """Tells whether no entry of a draw depends on another."""
    while fn.event_dim and (isinstance(fn, Independent) or hasattr(fn, "_mask")):
        fn = fn.base_dist
    return not fn.event_dim


# ---------------------------------------------------------------------------------------- the draws


def _arrays(data: Any, group: str) -> dict[str, np.ndarray]:
    if group not in data:
        return {}
    return {name: variable.values for name, variable in data[group].data_vars.items()}


def _observations(data: Any, nodes: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs the data ``[n]`` of each site with draws ``[S, n]``; what a mask hides is left out."""
    found = {}
    draws = _arrays(data, "posterior_predictive")
    for name, observed in _arrays(data, "observed_data").items():
        if name not in draws:
            continue
        flat = draws[name].reshape(math.prod(draws[name].shape[:2]), -1)
        flat = flat.astype(np.result_type(flat.dtype, np.float32), copy=False)
        values = observed.reshape(-1).astype(flat.dtype)
        used = _unmasked(nodes[name]).reshape(-1) & np.isfinite(values)
        if used.any():
            found[name] = values[used], flat[:, used]
    return found


def _unmasked(node: Any) -> np.ndarray:
    """Tells which entries of an observed value are data."""
    shape, fn = node["value"].shape, node["fn"]
    used = torch.ones(shape[: len(shape) - fn.event_dim], dtype=torch.bool)
    for mask in (node["mask"], getattr(fn, "_mask", None)):
        if mask is not None:
            used = used & torch.as_tensor(mask).cpu()
    return used.reshape([*used.shape, *[1] * fn.event_dim]).expand(shape).numpy()


def _name(model: Callable[..., Any], guides: list[Callable[..., Any]]) -> str:
    names = [getattr(one, "__name__", type(one).__name__) for one in (model, *guides[:1])]
    if len(guides) > 1:
        names[-1] += f" (of {len(guides)})"
    return ", ".join(names)


# ----------------------------------------------------------------------------------- what is asked


def _as_list(guide: Any) -> list[Callable[..., Any]]:
    if guide is None:
        return []
    return list(guide) if isinstance(guide, (list, tuple)) else [guide]


def _check_arguments(
    guide: Any,
    num_samples: int,
    posterior: Draws | None,
    exact: bool,
    reference: Draws | None,
    sbc: SBC | None,
    num_mixing: int,
    path: str | os.PathLike[str] | None,
) -> None:
    if guide is None and posterior is None:
        raise ValueError("`guide` must be given where `posterior` is not, but both were None.")
    check_positive("num_samples", num_samples)
    if num_samples < _LEAST_SAMPLES:
        raise ValueError(f"`num_samples` must be at least {_LEAST_SAMPLES}, but was {num_samples}.")
    check_positive("num_mixing", num_mixing)
    if exact and reference is None:
        raise ValueError("`exact` must be False where `reference` is None, but was True.")
    if sbc is not None and not isinstance(sbc, SBC):
        raise ValueError(f"`sbc` must be an SBC or None, but was {type(sbc).__name__}.")
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"`path` must be in a folder that exists, but was {str(path)!r}.")


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    """Hides what the lines say."""
    with warnings.catch_warnings():
        for message in ("These sites are inside a plate that sub", "`sample_stats` goes without"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield
