"""One call that runs every diagnostic that applies to a fit."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_sig._arguments import check_flag, check_instance, check_integer, refusal
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._given_draws import Draws
from pyro_sig.diagnostics._program_sites import Call
from pyro_sig.diagnostics._report_checks import (
    FAILED,
    NOT_RUN,
    ReportLine,
    check_chains,
    entries_of,
    run_check,
    worst,
)
from pyro_sig.diagnostics._report_fit import ReportedFit, Weighed, arrays_of, check_calibration
from pyro_sig.diagnostics._report_page import draw_page
from pyro_sig.diagnostics._streams import random_state
from pyro_sig.diagnostics.evidence_bounds import EvidenceBounds
from pyro_sig.diagnostics.inference_data import to_inference_data
from pyro_sig.diagnostics.k_hat import KHat
from pyro_sig.diagnostics.sbc import SBC

__all__ = ["Report", "ReportLine", "report"]

_LEAST_SAMPLES = 50
_WIDTH = 100
# Lines whose bad verdict speaks against the model, not against the way it was fitted.
_OF_THE_MODEL = ("LOO", "predictive", "PIT", "prior")
# Lines that look at the posterior itself: the others pass draws that are far from it.
_OF_THE_POSTERIOR = ("evidence", "k-hat", "chains", "reference", "SBC")
_UNSEEN = (
    "Nothing looked at the posterior itself: the table says why. Clear the way for k-hat, or pass "
    "several trained guides, a `reference` or an `sbc`."
)
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
        """The worst verdict of all lines; not good where none looked at the posterior itself."""
        found = worst([line.verdict for line in self.lines])
        return "look" if found == "good" and self._is_unseen else found

    @property
    def _has_posterior(self) -> bool:
        return bool(arrays_of(self.data, "posterior"))

    @property
    def _is_unseen(self) -> bool:
        """Whether there is a posterior and no line looked at it."""
        return self._has_posterior and all(
            line.value in (NOT_RUN, FAILED) for line in self.lines if line.name in _OF_THE_POSTERIOR
        )

    @property
    def overall(self) -> str:
        """The overall verdict in a sentence or two."""
        blamed = [line.name for line in self.lines if line.verdict == self.verdict]
        doubts = [
            f"this {what} (see {', '.join(names)})"
            for what, names in (
                ("posterior", [name for name in blamed if name not in _OF_THE_MODEL]),
                ("model", [name for name in blamed if name in _OF_THE_MODEL]),
            )
            if names
        ]
        judged = "posterior" if self._has_posterior else "model"
        sentence = {
            "none": "No check applies.",
            "good": f"Good: no check that applies speaks against this {judged}.",
            "look": f"Look again before believing {' and '.join(doubts or ['this posterior'])}.",
            "bad": f"Bad: do not believe {' nor '.join(doubts)}.",
        }[self.verdict]
        return f"{sentence} {_UNSEEN}" if self._is_unseen else sentence

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
            posterior=entries_of(arrays_of(self.data, "posterior")),
            prior=entries_of(arrays_of(self.data, "prior")),
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
    progress: bool | None = None,
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
    Where none of evidence, k-hat, chains, reference and SBC ran, nothing looked at the posterior
    itself, and the overall verdict is "look" at best.
    Posterior predictive p-values use the data twice and are conservative: p = 0.2 is no proof. The
    contraction of a latent is :math:`1 - (w / w_0)^2` with the widths of the central 80 % of
    posterior and prior, for normal laws one less the ratio of variances.

    No check sees everything: k-hat and evidence overlook what the guide never draws, such as
    another mode; a reference, or several trainings, may show it.

    :param model: a Pyro program.
    :param guide: its guide, or a list of independently trained guides; or None with ``posterior``.
    :param args: arguments of ``model`` and ``guide``.
    :param num_samples: draws of each guide, at least 50; k-hat and evidence take five times
        as many, in five tails of which k-hat is the median. :func:`~pyro_sig.infer.fit` looks at
        one tail of 2,000 draws, and may say something else.
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
    :param progress: show bars; None does where someone watches: on a terminal or in a notebook, not
        under CI.
    :param kwargs: keyword arguments of ``model`` and ``guide``.
    :return: the table, with the results behind it.
    :raises ValueError: as :func:`to_inference_data`; if there is neither a guide nor a posterior;
        if ``num_samples`` is less than 50, ``reference`` does not fit the model, ``exact`` is
        True without it, ``sbc`` is no :class:`SBC`, or the folder of ``path`` does not exist.

    Sources: A. Gelman et al. (2020), "Bayesian workflow", https://arxiv.org/abs/2011.01808;
    A. Gelman, X.-L. Meng and H. Stern (1996), "Posterior predictive assessment of model fitness
    via realized discrepancies"; those of the functions that it calls.

    Example::

        >>> import pyro, pyro.distributions as dist, torch
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
    for name, flag in (("exact", exact), ("parallel", parallel), ("quiet", quiet)):
        check_flag(name, flag)
    _check_arguments(guide, num_samples, posterior, exact, reference, sbc, num_mixing)
    if path is not None:
        _check_path(path)
    call = Call(args, kwargs)
    bar = Progress(progress, 9, "report")  # the lines, and the draws
    with bar, random_state(seed), _without_known_warnings():
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
        bar.update()
        guides = _as_list(guide)
        fit = ReportedFit(model, guides, call, parallel, data, unscored, posterior)
        trusted = {} if reference is None else fit.split(reference)
        if guides:
            weighed = fit.weigh(num_samples, num_mixing, trusted if exact else None)
        else:
            weighed = Weighed([], None, None, None)
            reason = "draws without a guide have no density of their own"
            weighed.lines = [ReportLine(n, NOT_RUN, "none", reason) for n in ("evidence", "k-hat")]
        lines = list(weighed.lines)
        for name, check, *given in (
            ("chains", check_chains, data, len(guides), fit.entries("posterior")),
            ("LOO", fit.check_loo),
            ("predictive", fit.check_predictive),
            ("PIT", fit.check_pit),
            ("prior", fit.check_prior),
            ("reference", fit.check_reference, trusted),
            ("SBC", check_calibration, sbc),
        ):
            bar.update()
            lines.append(run_check(name, check, *given))
        bar.update()
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


def _name(model: Callable[..., Any], guides: list[Callable[..., Any]]) -> str:
    names = [getattr(one, "__name__", type(one).__name__) for one in (model, *guides[:1])]
    if len(guides) > 1:
        names[-1] += f" (of {len(guides)})"
    return ", ".join(names)


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
) -> None:
    if guide is None and posterior is None:
        raise ValueError("`guide` must be given where `posterior` is not, but both were None")
    check_integer("num_samples", num_samples, _LEAST_SAMPLES)
    check_integer("num_mixing", num_mixing, 1)
    if exact and reference is None:
        raise ValueError("`exact` must be False where `reference` is None, was True")
    check_instance("sbc", sbc, (SBC, type(None)), "what sbc(...) returns, or None")


def _check_path(path: Any) -> None:
    """Refuses before the checks run, not after, what no page can be saved to."""
    from matplotlib.backend_bases import FigureCanvasBase

    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name or Path(name).is_dir():
        raise refusal("path", "the name of a file", path)
    if not Path(name).absolute().parent.is_dir():
        raise refusal("path", "in a folder that exists: make it first", name)
    suffix, known = Path(name).suffix[1:].lower(), FigureCanvasBase.get_supported_filetypes()
    if suffix and suffix not in known:
        raise ValueError(f"`path` must end in one of {sorted(known)}, was {name!r}")


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    """Hides what the lines say."""
    with warnings.catch_warnings():
        for message in ("These sites are inside a plate that sub", "`sample_stats` goes without"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield
