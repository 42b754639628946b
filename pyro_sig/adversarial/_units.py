"""The exchangeable units of a program: what a critic judges one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

__all__ = [
    "Run",
    "finish_rows",
    "find_unit_plates",
    "observed_sites",
    "subsampling",
    "unit_mask",
    "unit_rows",
    "whole_units",
]


class Run(Protocol):
    """A record of a run of a program, such as Pyro's trace."""

    nodes: Any


def observed_sites(trace: Run) -> dict[str, dict[str, Any]]:
    """Returns the sites that were released, without those that hold no data.

    :param trace: of a program whose observations were released.
    :raises ValueError: if there is none.
    """
    found = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and "obs" in site["infer"]
        and not site["infer"].get("_deterministic")
        and not site_is_factor(site)
        and not site_is_subsample(site)
    }
    if not found:
        names = [
            n
            for n, site in trace.nodes.items()
            if site["type"] == "sample" and not site_is_subsample(site)
        ]
        raise ValueError(
            "`model` must have an observed site, pyro.sample(name, ..., obs=data), but its sample "
            f"sites were {names}"
        )
    return found


def find_unit_plates(trace: Run) -> frozenset[str]:
    """Finds the plates whose rows are independent: all observed and random sites are inside.

    :param trace: of a program whose observations were released.
    :return: names of plates; empty for a program that has none.
    :raises ValueError: if there are plates, but no row of any has its own draw of all sites, or no
        plates, and data in rows beside a site that is drawn once for them.
    """
    observed = observed_sites(trace)
    inside = {
        name: {f.name for f in site["cond_indep_stack"] if f.vectorized}
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and (name in observed or not site["is_observed"])
        and not site_is_subsample(site)
        and not site_is_factor(site)
    }
    plates = frozenset.intersection(*map(frozenset, inside.values()))
    if not plates and any(inside.values()):
        sites = ", ".join(f"{name!r} in {sorted(frames)}" for name, frames in inside.items())
        raise ValueError(
            "`model` must have a plate that holds every random site, whose rows a critic can "
            f"judge one by one, had {sites}: rows that share a draw are not independent. "
            "Give `view`, which says what the critic sees"
        )
    if not plates:
        rows = {name: trace.nodes[name]["fn"].batch_shape for name in inside}
        most = max((rows[name] for name in observed), key=math.prod)
        shared = {
            n: tuple(shape) for n, shape in rows.items() if math.prod(shape) < math.prod(most)
        }
        if shared:
            raise ValueError(
                f"`model` must draw every site once for each row of the data, whose batch_shape is "
                f"{tuple(most)}, or say by to_event that they are one datum, but had batch shapes "
                f"{shared}: put the sites into a pyro.plate"
            )
    return plates


def unit_rows(
    site: dict[str, Any], value: Tensor, event_dim: int, plates: frozenset[str]
) -> Tensor:
    """Lays a value out as one row for each unit.

    :param site: the site that it belongs to.
    :param torch.Tensor value: of shape ``[*batch, *event]``, with the site's batch shape.
    :param int event_dim: number of its event dimensions.
    :param plates: those that make the units; if empty, all of the batch shape.
    :return: a tensor of shape ``[units, *rest, *event]``.
    """
    batch_dim = value.dim() - event_dim
    if batch_dim == 0:
        return value.unsqueeze(0)
    if not plates or batch_dim == 1:
        return value.flatten(0, batch_dim - 1) if batch_dim > 1 else value
    frames = {f.dim: f.name for f in site["cond_indep_stack"] if f.vectorized}
    units = [i for i in range(batch_dim) if frames.get(i - batch_dim) in plates]
    rest = [i for i in range(batch_dim) if i not in units]
    events = list(range(batch_dim, value.dim()))
    # Dimensions of no plate are there for alignment only.
    kept = [i for i in rest if i - batch_dim in frames or value.shape[i] > 1]
    value = value.permute(*units, *rest, *events)
    shape = [value.shape[: len(units)].numel()]
    shape += [size for i, size in zip(rest, value.shape[len(units) :], strict=False) if i in kept]
    return value.reshape(*shape, *value.shape[batch_dim:])


def unit_mask(
    site: dict[str, Any], plates: frozenset[str], batch_shape: torch.Size | None = None
) -> Tensor | None:
    """Returns which entries of a site count, ``[units, *rest]``; None for all of them.

    :param site: a site.
    :param plates: those that make the units.
    :param batch_shape: by default the site's.
    """
    mask = site["mask"]
    if mask is None or mask is True:
        return None
    batch_shape = site["fn"].batch_shape if batch_shape is None else batch_shape
    if mask is False:
        mask = torch.zeros((), dtype=torch.bool)
    return unit_rows(site, mask.expand(batch_shape), 0, plates)


def whole_units(mask: Tensor | None) -> Tensor | None:
    """Returns which units have an entry that counts, ``[units]``; None for all of them.

    :param torch.Tensor mask: of shape ``[units, *rest]``; None for no mask.
    """
    return mask if mask is None or mask.dim() == 1 else mask.flatten(1).any(1)


def finish_rows(rows: Iterable[Tensor], mask: Tensor | None) -> list[Tensor]:
    """Makes rows what a critic sees: by the mask, and with a last dimension for single numbers.

    Units that are masked wholly are dropped; where others are masked stands zero.

    :param rows: tensors of shape ``[units, *rest, *event]``.
    :param torch.Tensor mask: of shape ``[units, *rest]``; None for no mask.
    :return: tensors of at least two dimensions.
    """
    masked = list(rows) if mask is None else _apply_mask(rows, mask)
    return [row.unsqueeze(-1) if row.dim() == 1 else row for row in masked]


def _apply_mask(rows: Iterable[Tensor], mask: Tensor) -> list[Tensor]:
    kept = whole_units(mask)
    assert kept is not None
    inner = mask[kept]
    masked = []
    for row in rows:
        chosen = row[kept.to(row.device)]
        missing = ~inner.reshape(inner.shape + (1,) * (chosen.dim() - inner.dim()))
        masked.append(chosen.masked_fill(missing, 0) if inner.dim() > 1 else chosen)
    return masked


def subsampling(site: dict[str, Any], plates: frozenset[str] | None) -> float:
    """Tells how many units of the data stand for each that was drawn.

    :param site: an observed site.
    :param plates: those that make the units; None for all of the site.
    """
    inside = site["cond_indep_stack"]
    frames = [f for f in inside if f.full_size and (plates is None or f.name in plates)]
    return float(math.prod(f.full_size / f.size for f in frames))
