"""What one run of a program says about its sites: their kind, their shape, their plates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_sig.diagnostics._own_draws import refuse_shared_draws

# Dimensions that ArviZ gives a meaning to.
RESERVED_DIMS = ("chain", "draw")


@dataclass(frozen=True)
class Call:
    """The arguments that model and guides are run with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def trace(self, program: Callable[..., Any]) -> Trace:
        """Runs a program once."""
        return poutine.trace(program).get_trace(*self.args, **self.kwargs)


@dataclass
class Sites:
    """What one run of the program says about its sites."""

    latent: list[str] = field(default_factory=list)
    deterministic: list[str] = field(default_factory=list)
    observed: list[str] = field(default_factory=list)
    # The latents that a guide or given draws supply.
    guided: set[str] = field(default_factory=set)
    values: dict[str, Tensor] = field(default_factory=dict)
    # By site: how many rightmost dimensions of the value are one event.
    event_dims: dict[str, int] = field(default_factory=dict)
    # By site: the plate of each dimension of the value, None for an event dimension.
    plates: dict[str, list[str | None]] = field(default_factory=dict)
    # By site: dimensions of the value that are there for alignment only.
    singletons: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # By site: the plate that subsamples.
    subsampled: dict[str, str] = field(default_factory=dict)
    # By site: the size of a dimension of many rows that has no plate.
    unplated: dict[str, int] = field(default_factory=dict)
    # The deepest plate of model and guide.
    max_plate_nesting: int = 0
    # By observed site: the shape of its log-density.
    log_prob_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    # Sites without a density, in the model and in the guide.
    unscored: list[str] = field(default_factory=list)
    unscored_guide: list[str] = field(default_factory=list)
    # What the guide draws and the model does not know.
    foreign: list[str] = field(default_factory=list)
    # Why the joint weight of a draw would be biased.
    bias: str | None = None

    @property
    def left(self) -> list[str]:
        """The latents that are left to the model."""
        return [name for name in self.latent if name not in self.guided]

    def shaped(self, name: str, array: np.ndarray, num_lead: int) -> np.ndarray:
        """Drops the dimensions of the value, after the leading ones, that only align it."""
        return array.squeeze(tuple(num_lead + axis for axis in self.singletons[name]))

    def check_parallel(self) -> None:
        """Refuses rows that no plate tells from draws.

        :raises ValueError: if a site has such rows.
        """
        for name, size in self.unplated.items():
            raise ValueError(
                f"`parallel` must be False here, was True: no plate says that the {size} rows "
                f"of the site {name!r} are independent"
            )

    def merge_dims(self, dims: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Names the dimensions of every site, by its plates and by what the user gave."""
        merged = {}
        for name, plates in self.plates.items():
            unnamed = sum(plate is None for plate in plates)
            given = list(dims.get(name, [f"{name}_dim_{i}" for i in range(unnamed)]))
            if len(given) == len(plates):
                merged[name] = given
            elif len(given) == unnamed:
                rest = iter(given)
                merged[name] = [next(rest) if plate is None else plate for plate in plates]
            else:
                raise ValueError(
                    f"`dims` must name all {len(plates)} dimensions of {name!r}, or the {unnamed} "
                    f"that no plate names, was {given}"
                )
        return merged


def describe_sites(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    call: Call,
    given: Mapping[str, Tensor],
    score: bool,
) -> Sites:
    """Runs guide and model once, the model under the guide's or the given values.

    :param model: the model.
    :param guide: its guide, if there is one.
    :param call: their arguments.
    :param given: values of latents that stand in for the guide's.
    :param score: whether to find out what can be scored.
    """
    sites = Sites()
    guide_trace = None if guide is None else call.trace(guide)
    if guide_trace is not None:
        given = {name: site["value"] for name, site in sample_sites(guide_trace)}
    # Under these values the program runs even where a prior cannot be drawn from.
    trace = call.trace(poutine.condition(model, dict(given)))
    for name, site in sample_sites(trace):
        if site["infer"].get("_deterministic"):
            sites.deterministic.append(name)
        elif site["is_observed"] and name not in given:
            sites.observed.append(name)
        else:
            sites.latent.append(name)
            if name in given:
                sites.guided.add(name)

        value = sites.values[name] = site["value"]
        shape = tuple(site["fn"].batch_shape + site["fn"].event_shape)
        if name in sites.observed and value.numel() != int(np.prod(shape)):
            raise ValueError(
                f"`model` must give the site {name!r} a law of the shape of its data, "
                f"{tuple(value.shape)}, but that was {shape}: put the site into a plate, or expand "
                "the law"
            )
        if name in sites.guided and tuple(value.shape) != shape:
            raise ValueError(
                f"`guide` must give {name!r} the shape that `model` gives it, {shape}, "
                f"but its draw had shape {tuple(value.shape)}"
            )
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        for frame in frames:
            if frame.full_size is not None and frame.full_size != frame.size:
                sites.subsampled[name] = frame.name
        event_dim = site["fn"].event_dim
        if site["infer"].get("_deterministic") and event_dim == value.dim():
            # pyro.deterministic takes all dimensions for event dimensions unless told otherwise.
            aligned = all(-f.dim <= event_dim and value.shape[f.dim] == f.size for f in frames)
            event_dim = 0 if aligned else event_dim
        num_batch = value.dim() - event_dim
        names: list[str | None] = []
        singletons = []
        for axis, size in enumerate(value.shape):
            plate = next((f.name for f in frames if num_batch + f.dim == axis), None)
            if axis < num_batch and plate is None and size == 1:
                singletons.append(axis)
            else:
                names.append(f"{plate}_plate" if plate in RESERVED_DIMS else plate)
                if axis < num_batch and plate is None and name not in sites.deterministic:
                    sites.unplated[name] = size
        sites.plates[name] = names
        sites.singletons[name] = tuple(singletons)
        sites.event_dims[name] = site["fn"].event_dim

    if guide_trace is not None:
        sites.foreign = [
            name
            for name, site in sample_sites(guide_trace)
            if name not in trace.nodes and not site["infer"].get("_deterministic")
        ]
    traces = [trace] if guide_trace is None else [trace, guide_trace]
    depths = [
        -frame.dim
        for found in traces
        for node in found.nodes.values()
        if node["type"] == "sample"
        for frame in node["cond_indep_stack"]
        if frame.dim is not None
    ]
    sites.max_plate_nesting = max(depths, default=0)
    if score:
        _describe_scores(sites, trace, guide_trace)
    return sites


def _describe_scores(sites: Sites, trace: Trace, guide_trace: Trace | None) -> None:
    for name, site in scored_sites(trace):
        if not site["is_observed"]:
            continue  # a latent drawn from the model
        try:
            site_log_prob(site, "model")
        except NotImplementedError:
            sites.unscored.append(name)
            continue
        if name in sites.observed:
            value = site["value"]
            num_batch = value.dim() - sites.event_dims[name]
            sites.log_prob_shapes[name] = tuple(value.shape[:num_batch])
    for name, site in scored_sites(guide_trace) if guide_trace is not None else ():
        try:
            site_log_prob(site, "guide")
        except NotImplementedError:
            sites.unscored_guide.append(name)
    for found in (trace, guide_trace):
        try:
            if found is not None and sites.bias is None:
                refuse_shared_draws(found)
        except ValueError as error:
            sites.bias = str(error)


def sample_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Yields the sites that hold a value worth exporting."""
    for name, site in scored_sites(trace, deterministic=True):
        # A factor has an empty value; an auxiliary site is a guide's own.
        if not site["infer"].get("is_auxiliary") and site["value"].numel() > 0:
            yield name, site


def scored_sites(trace: Trace, deterministic: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields the sites that have a share in the joint density, factors among them."""
    name: str
    site: Any
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if deterministic or not site["infer"].get("_deterministic"):
            yield name, site


def site_masks(site: Any) -> list[Any]:
    """Masks that handlers set on a site, or that its law carries."""
    own = site["fn"]._mask if isinstance(site["fn"], MaskedDistribution) else None
    return [mask for mask in (site["mask"], own) if mask is not None]


def site_log_prob(site: Any, program: str) -> Tensor:
    """Scores a site pointwise, without the scale and the mask that handlers set on it.

    Once for each trace: an estimate is then the same number wherever it enters.
    """
    if "unscaled_log_prob" in site:
        return site["unscaled_log_prob"]
    try:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:  # a value outside the support, under validation
        raise ValueError(
            f"`{program}` must be able to score every draw, but could not at the site "
            f"{site['name']!r}: {error} To export the draws alone, pass sample_stats=False and "
            "log_likelihood=False"
        ) from error
    site["unscaled_log_prob"] = torch.as_tensor(log_prob)
    return site["unscaled_log_prob"]
