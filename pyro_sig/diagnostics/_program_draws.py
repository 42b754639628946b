"""Draws from a guide, and what the model says under each of them.

A program runs once for each draw, or once for all of them in an outermost plate. Either way a run
is read, and its trace dropped, before the next one begins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_sig._progress import Progress
from pyro_sig._release import Release
from pyro_sig.diagnostics._guide_parameters import own_parameters
from pyro_sig.diagnostics._program_sites import (
    Call,
    Sites,
    sample_sites,
    scored_sites,
    site_log_prob,
    site_masks,
)

_ALONE = " To export the draws alone, pass sample_stats=False and log_likelihood=False."
_VECTORIZING_PLATE = "_draws_of_pyro_sig"


@dataclass
class ModelDraws:
    """What a model says under the draws of one chain; S draws lead every shape."""

    # Deterministic sites under the data, and what was drawn in place of the data.
    deterministic: dict[str, Tensor] = field(default_factory=dict)
    predicted: dict[str, Tensor] = field(default_factory=dict)
    log_joint: Tensor | None = None
    log_likelihood: dict[str, Tensor] = field(default_factory=dict)
    # By observed site: the entries that no mask took out in every draw.
    unmasked: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Runner:
    """Runs programs for a number of draws."""

    sites: Sites
    call: Call
    num_draws: int
    parallel: bool
    # Whether a density may be zero: of importance weights, but not of exported draws.
    allow_zero: bool = False
    bar: Progress | None = None

    @property
    def rows(self) -> int:
        """Draws in one run."""
        return self.num_draws if self.parallel else 1

    # ------------------------------------------------------------------------------------- programs

    def guide(
        self, guide: Callable[..., Any], names: list[str], score: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Draws the named latents, and scores each draw under the guide."""
        draws: dict[str, list[Tensor]] = {name: [] for name in names}
        log_probs, bad = [], _Count(self.num_draws, self.allow_zero)
        for trace in self._traces(guide, {}) if names else ():
            for name, collected in draws.items():
                collected.append(self._values(name, trace, "guide"))
            if score:
                log_probs.append(self._log_joint(scored_sites(trace), "guide", bad))
        bad.check("`guide` must draw where its own density is finite")
        return _join(draws), torch.cat(log_probs) if log_probs else None

    def model(
        self,
        model: Callable[..., Any],
        given: Mapping[str, Tensor],
        predict: list[str],
        score: bool,
        pointwise: list[str],
        source: str,
    ) -> ModelDraws:
        """Runs the model under given latents: with the data, and with data drawn anew."""
        sites, result = self.sites, ModelDraws()
        wanted = list(sites.deterministic) if given else []
        # With nothing observed, the data are what the first run draws.
        released = bool(sites.observed)
        draws: dict[str, list[Tensor]] = {n: [] for n in [*wanted, *([] if released else predict)]}
        log_likelihood: dict[str, list[Tensor]] = {name: [] for name in pointwise}
        log_joint, bad = [], _Count(self.num_draws, self.allow_zero)
        if draws or score or pointwise:
            for trace in self._traces(model, given):
                for name, collected in draws.items():
                    collected.append(self._values(name, trace, "model"))
                for name, collected in log_likelihood.items():
                    entries, mask = self._pointwise(trace.nodes[name])
                    collected.append(entries)
                    result.unmasked[name] = result.unmasked.get(name, mask) | mask
                    if not score:
                        bad.add(name, entries)
                if score:
                    # What the model drew itself stands in the joint density and in that of the
                    # draws, and cancels.
                    fixed = ((n, s) for n, s in scored_sites(trace) if s["is_observed"])
                    log_joint.append(self._log_joint(fixed, "model", bad))
        bad.check(f"`{source}` must hold draws at which the density of `model` is finite")
        result.deterministic = _join({name: draws[name] for name in wanted})
        result.log_joint = torch.cat(log_joint) if log_joint else None
        result.log_likelihood = _join(log_likelihood)
        if released:
            result.predicted = self.release(model, given, predict)
        else:
            result.predicted = _join({name: draws[name] for name in predict})
        return result

    def release(
        self, model: Callable[..., Any], given: Mapping[str, Tensor], names: list[str]
    ) -> dict[str, Tensor]:
        """Draws the named sites, the observed ones anew, under given latents."""
        draws: dict[str, list[Tensor]] = {name: [] for name in names}
        for trace in self._traces(Release()(model), given) if names else ():
            for name, collected in draws.items():
                collected.append(self._values(name, trace, "model"))
        return _join(draws)

    def _traces(self, program: Callable[..., Any], given: Mapping[str, Tensor]) -> Iterator[Trace]:
        if not self.parallel:
            for s in range(self.num_draws):
                values = {name: value[s] for name, value in given.items()}
                yield self.call.trace(poutine.condition(program, values) if values else program)
                self._count(1)
            return
        # To the left of every plate of the program.
        nesting = self.sites.max_plate_nesting
        plate = pyro.plate(_VECTORIZING_PLATE, self.num_draws, dim=-nesting - 1)
        values = {name: self._spread(name, value) for name, value in given.items()}
        try:
            trace = self.call.trace(poutine.condition(plate(program), values))
        except NotImplementedError:  # what cannot be drawn from, in turn neither
            raise
        except (RuntimeError, ValueError, IndexError) as error:  # mostly shapes
            raise ValueError(
                "`parallel` must be False, or the programs broadcast under one more plate; was "
                f"True, and a run for {self.num_draws} draws failed with {type(error).__name__}: "
                f"{error}"
            ) from error
        yield trace
        self._count(self.num_draws)

    def _count(self, num_draws: int) -> None:
        if self.bar is not None:
            self.bar.update(num_draws)

    # ------------------------------------------------------------------------------ what a run says

    def _spread(self, name: str, value: Tensor) -> Tensor:
        """Aligns draws ``[S, *]`` with the outermost plate."""
        shape = value.shape[1:]
        padding = self.sites.max_plate_nesting - (len(shape) - self.sites.event_dims[name])
        return value.reshape(len(value), *[1] * padding, *shape)

    def _values(self, name: str, trace: Trace, program: str) -> Tensor:
        if name not in trace.nodes:
            raise ValueError(
                f"`{program}` must have the same sites at every run, lacked {name!r} in one"
            )
        value: Any = trace.nodes[name]["value"]
        return self._entries(name, value, tuple(self.sites.values[name].shape))

    def _entries(self, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        if value.numel() == self.rows * size:
            return value.reshape(self.rows, *shape)
        if self.parallel and value.numel() == size:  # the same in every draw
            return value.reshape(1, *shape).expand(self.rows, *shape)
        raise ValueError(
            f"`model` must give {name!r} the same shape at every run, but that was {shape} "
            f"and then {tuple(value.shape)}"
        )

    def _log_joint(self, sites: Iterable[tuple[str, Any]], program: str, bad: _Count) -> Tensor:
        """Sums the sites' log-densities over all but the draws, as the evidence bound does."""
        total = torch.zeros(self.rows, dtype=torch.float64)
        for name, site in sites:
            log_prob = site_log_prob(site, program)
            log_prob = scale_and_mask(log_prob, site["scale"], site["mask"])
            log_prob = log_prob.reshape(self._rows_of(name, log_prob), -1).sum(1)
            bad.add(name, log_prob)
            total = total + log_prob.double().cpu()
        return total

    def _rows_of(self, name: str, log_prob: Tensor) -> int:
        """How many draws a log-density counts along its first dimension."""
        if not self.parallel or log_prob.dim() <= self.sites.max_plate_nesting:
            return 1  # the same in every draw
        if log_prob.dim() > self.sites.max_plate_nesting + 1 or len(log_prob) != self.rows:
            raise ValueError(
                f"`parallel` must be False here, was True: the log-density at {name!r} has "
                f"shape {tuple(log_prob.shape)}, in which plates do not tell draws from rows"
            )
        return self.rows

    def _pointwise(self, site: Any) -> tuple[Tensor, Tensor]:
        """The log-density of every observation, unscaled, and which of them are no data."""
        name = site["name"]
        log_prob = site_log_prob(site, "model")
        used = torch.ones_like(log_prob, dtype=torch.bool)
        for mask in site_masks(site):
            used = used & mask
        shape = self.sites.log_prob_shapes[name]
        entries = self._entries(name, torch.where(used, log_prob, 0.0), shape)
        return entries, self._entries(name, used, shape).any(0)


class _Count:
    """Counts by site the draws whose log-density is not finite."""

    def __init__(self, num_draws: int, allow_zero: bool) -> None:
        self.num_draws = num_draws
        self.allow_zero = allow_zero
        self.sites: Counter[str] = Counter()

    def add(self, name: str, log_prob: Tensor) -> None:
        finite = log_prob.isfinite()
        if self.allow_zero:
            finite = finite | (log_prob == -math.inf)
        if not finite.all():
            self.sites[name] += int((~finite.reshape(len(finite), -1).all(1)).sum())

    def check(self, requirement: str) -> None:
        if self.sites:
            where = ", ".join(
                f"at {name!r} in {count} of {self.num_draws} draws"
                for name, count in self.sites.items()
            )
            raise ValueError(
                f"{requirement}, but log-densities were infinite or NaN {where}."
                + ("" if self.allow_zero else _ALONE)
            )


def _join(draws: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(parts) for name, parts in draws.items()}


# --------------------------------------------------------------------------------- several guides


def check_guides_differ(guides: list[Callable[..., Any]], call: Call) -> None:
    """Refuses guides that draw the same values from the same random numbers."""
    first: list[dict[str, Tensor]] = []
    for index, guide in enumerate(guides):
        devices = range(torch.cuda.device_count())
        with own_parameters(guide), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            trace = call.trace(guide)
        values = {name: site["value"] for name, site in sample_sites(trace)}
        for other, found in enumerate(first):
            if set(found) != set(values):
                raise ValueError(
                    "`guide` must be guides that draw the same sites, but guide "
                    f"{other} draws {sorted(found)} and guide {index} {sorted(values)}"
                )
            if values and all(torch.equal(found[name], values[name]) for name in values):
                raise ValueError(
                    f"`guide` must be independently trained guides, but guides {other} and "
                    f"{index} draw the same values under the same seed. Programs that give their "
                    "parameters the same names share them through the param store: train each "
                    "guide after pyro.clear_param_store(), or in a pyro.get_param_store().scope()"
                )
        first.append(values)
