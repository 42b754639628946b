"""What is known of a fit, and which checks of a report apply to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent

from pyro_sig.diagnostics._arviz_labels import stack_chains
from pyro_sig.diagnostics._given_draws import Draws, check_tensors, split_chains
from pyro_sig.diagnostics._guide_parameters import parameters_of
from pyro_sig.diagnostics._program_sites import (
    Call,
    Sites,
    describe_sites,
    scored_sites,
    site_masks,
)
from pyro_sig.diagnostics._report_checks import (
    VERDICTS,
    DoesNotApplyError,
    Entries,
    Judgement,
    ReportLine,
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
from pyro_sig.diagnostics.evidence_bounds import EvidenceBounds, bounds_of, weigh_draws
from pyro_sig.diagnostics.importance import log_importance_weights
from pyro_sig.diagnostics.k_hat import KHat, summarise_weights
from pyro_sig.diagnostics.sbc import SBC

_NUM_REPEATS = 5  # of k-hat
_NUM_IMPORTANCE = (1, 10, 100)
_LEAST_GROUPS = 10  # of a size K that the evidence is estimated with
_MOST_EXACT = 200  # draws of a reference that are scored one by one for the upper bound


@dataclass
class Weighed:
    """What the importance weights say, of the worst guide."""

    lines: list[ReportLine]
    k_hat: KHat | None
    evidence: EvidenceBounds | None
    log_weights: Tensor | None


class ReportedFit:
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
            given = (
                {} if posterior is None else split_chains(model, call, "posterior", posterior)[0]
            )
            first = {name: value[0] for name, value in given.items()}
            with parameters_of(guides, 0):
                guide = guides[0] if guides else None
                self.sites: Sites = describe_sites(model, guide, call, first, score=False)
                if guide is not None:
                    trace: Any = call.trace(guide)
                    first = {n: s["value"] for n, s in scored_sites(trace)}
                trace = call.trace(poutine.condition(model, first))
        nodes = dict(scored_sites(trace))
        self.observations = observations_of(data, nodes)
        # A factor is an observation that leaves no data.
        self.has_evidence = any(s["is_observed"] and n not in first for n, s in nodes.items())
        self.independent = {
            name for name in self.sites.observed if _has_independent_entries(nodes[name]["fn"])
        }

    def entries(self, group: str) -> Entries:
        return entries_of(arrays_of(self.data, group))

    def split(self, reference: Draws) -> dict[str, np.ndarray]:
        """Reads the reference into arrays as those of the posterior."""
        check_tensors("reference", reference)
        if not reference:
            raise ValueError("`reference` must hold draws of the latents, was empty")
        with torch.no_grad(), poutine.block():
            chains = split_chains(self.model, self.call, "reference", reference)
        return {
            name: self.sites.shaped(name, array, num_lead=2)
            for name, array in stack_chains(chains).items()
        }

    # ---------------------------------------------------------------------------------- the weights

    def weigh(
        self, num_samples: int, num_mixing: int, exact: Mapping[str, np.ndarray] | None
    ) -> Weighed:
        """Weighs the draws of every guide, for both of k-hat and evidence."""
        options: dict[str, Any] = {"num_mixing": num_mixing, "parallel": self.parallel}
        found: list[Weighed] = []
        for index, guide in enumerate(self.guides):
            label = f"guide {index + 1} of {len(self.guides)}: " if len(self.guides) > 1 else ""
            one = Weighed([], None, None, None)
            with parameters_of(self.guides, index):
                k_hat = run_check(
                    "k-hat", self._check_k_hat, one, guide, label, num_samples, options
                )
                evidence = run_check(
                    "evidence", self._check_evidence, one, guide, label, exact, options
                )
            one.lines = [evidence, k_hat]
            found.append(one)
        return max(found, key=_badness)

    def _check_k_hat(
        self,
        one: Weighed,
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
        one.k_hat = summarise_weights(one.log_weights)
        return check_k_hat(one.k_hat, label)

    def _check_evidence(
        self,
        one: Weighed,
        guide: Callable[..., Any],
        label: str,
        exact: Mapping[str, np.ndarray] | None,
        options: Mapping[str, Any],
    ) -> Judgement:
        self._check_weighable()
        if one.log_weights is None:
            raise DoesNotApplyError("there are no importance weights, see k-hat")
        log_weights = one.log_weights.flatten()
        sizes = [k for k in _NUM_IMPORTANCE if len(log_weights) >= _LEAST_GROUPS * k]
        known = None if exact is None else self._weigh_exact(guide, exact, options["num_mixing"])
        one.evidence = bounds_of(log_weights, sizes, known)
        return check_evidence(one.evidence, label)

    def _check_weighable(self) -> None:
        if self.sites.foreign:  # an error, not a bound of what applies: a latent may be misspelt
            raise ValueError(
                f"`guide` must draw latents of `model` only, drew {self.sites.foreign[0]!r}, which "
                "`model` lacks"
            )
        if not self.sites.guided:
            raise DoesNotApplyError("the guide draws no latent of the model")
        if not self.has_evidence:
            raise DoesNotApplyError("no observations")
        left = self.sites.left
        if left:  # weights would judge its prior as a proposal
            raise DoesNotApplyError(f"the latent {left[0]!r} is left to the model")
        if self.sites.subsampled:
            plate = next(iter(self.sites.subsampled.values()))
            raise DoesNotApplyError(
                f"the plate {plate!r} subsamples: run model and guide on whole plates; an "
                "autoguide needs `create_plates` for that"
            )
        for name in self._without_density:
            raise DoesNotApplyError(f"the site {name!r} has no log_prob")

    @cached_property
    def _without_density(self) -> list[str]:
        with torch.no_grad(), poutine.block(), parameters_of(self.guides, 0):
            scored = describe_sites(self.model, self.guides[0], self.call, {}, score=True)
        return scored.unscored + scored.unscored_guide

    def _weigh_exact(
        self, guide: Callable[..., Any], exact: Mapping[str, np.ndarray], num_mixing: int
    ) -> Tensor:
        draws = {
            name: torch.as_tensor(array.reshape(-1, *self.sites.values[name].shape)).to(
                self.sites.values[name].device
            )
            for name, array in exact.items()
        }
        step = math.ceil(len(next(iter(draws.values()))) / _MOST_EXACT)
        few = {name: value[::step] for name, value in draws.items()}
        with torch.no_grad():
            return weigh_draws(self.model, guide, self.call, few, num_mixing)

    # ------------------------------------------------------------------------------------ the draws

    def check_loo(self) -> Judgement:
        if not self.sites.observed:
            raise DoesNotApplyError("no observations")
        if "posterior" not in self.data:
            raise DoesNotApplyError("no draws of a posterior")
        if self.unscored is not None:
            raise self.unscored
        names = list(arrays_of(self.data, "log_likelihood"))
        if not names:
            left = self.sites.left
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
        prior, posterior = arrays_of(self.data, "prior"), arrays_of(self.data, "posterior")
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
        posterior = arrays_of(self.data, "posterior")
        names = [name for name in reference if name in posterior]
        if not names:
            raise DoesNotApplyError("no draws of a posterior")
        return check_reference(
            entries_of({name: posterior[name] for name in names}),
            entries_of({name: reference[name] for name in names}),
        )


def check_calibration(sbc: SBC | None) -> Judgement:
    if sbc is None:
        raise DoesNotApplyError("none given")
    return check_sbc(sbc)


def _badness(found: Weighed) -> tuple[int, float]:
    verdict = worst([line.verdict for line in found.lines])
    return VERDICTS.index(verdict), -found.k_hat.effective_share if found.k_hat else 0.0


def _has_independent_entries(fn: Any) -> bool:
    """Tells whether no entry of a draw depends on another."""
    while fn.event_dim and (isinstance(fn, Independent) or hasattr(fn, "_mask")):
        fn = fn.base_dist
    return not fn.event_dim


# ---------------------------------------------------------------------------------------- the draws


def arrays_of(data: Any, group: str) -> dict[str, np.ndarray]:
    if group not in data:
        return {}
    return {name: variable.values for name, variable in data[group].data_vars.items()}


def observations_of(
    data: Any, nodes: Mapping[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs the data ``[n]`` of each site with draws ``[S, n]``; what a mask hides is left out."""
    found = {}
    draws = arrays_of(data, "posterior_predictive")
    for name, observed in arrays_of(data, "observed_data").items():
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
    for mask in site_masks(node):
        used = used & torch.as_tensor(mask).cpu()
    return used.reshape([*used.shape, *[1] * fn.event_dim]).expand(shape).numpy()
