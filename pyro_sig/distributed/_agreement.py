"""What processes have to have alike: whether they do, and how it is brought about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["broadcast", "by_kind", "check_alike", "check_values", "gather", "signature"]

_MAX_LISTED = 4


def gather(item: Any, group: Any) -> list[Any]:  # noqa: ANN401
    """Returns what every process has, in the order of their ranks."""
    items: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(items, item, group)
    return items


def signature(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Returns names with shapes and types."""
    return [(name, f"{tuple(t.shape)}, {t.dtype}") for name, t in tensors.items()]


def check_alike(own: list[tuple[str, str]], group: Any) -> None:  # noqa: ANN401
    """Checks that every process has the same list; in all of them, so that none goes on alone.

    :raises ValueError: if not.
    """
    lists = gather(own, group)
    for rank, other in enumerate(lists):
        if other != lists[0]:
            raise ValueError(
                "`inference` must train the same parameters in every process, but "
                + "; ".join(_differences(dict(lists[0]), dict(other), rank))
            )


def _differences(first: dict[str, str], other: dict[str, str], rank: int) -> list[str]:
    names = [n for n in {**first, **other} if first.get(n) != other.get(n)]
    if not names:
        return [f"rank {rank} has them in another order than rank 0"]
    lines = [
        f"{name!r} is {first.get(name, 'missing')} on rank 0 and {other.get(name, 'missing')} "
        f"on rank {rank}"
        for name in names[:_MAX_LISTED]
    ]
    if len(names) > _MAX_LISTED:
        lines.append(f"and {len(names) - _MAX_LISTED} more")
    return lines


def by_kind(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Sorts tensors by type and device, so that each kind travels in one piece."""
    kinds: dict[Any, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kinds.setdefault((tensor.dtype, tensor.device), {})[name] = tensor
    return list(kinds.values())


def _first_values(tensors: Mapping[str, Tensor], group: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Returns what the first process has."""
    source = 0 if group is None else dist.get_global_rank(group, 0)
    found: dict[str, Tensor] = {}
    for kind in by_kind(tensors):
        flat = torch.cat([t.detach().reshape(-1) for t in kind.values()])
        dist.broadcast(flat, source, group=group)
        parts = flat.split([t.numel() for t in kind.values()])
        found |= {n: p.view(t.shape) for (n, t), p in zip(kind.items(), parts, strict=True)}
    return found


@torch.no_grad()
def broadcast(tensors: Mapping[str, Tensor], group: Any) -> None:  # noqa: ANN401
    """Writes the values of the first process into the tensors of all."""
    for name, value in _first_values(tensors, group).items():
        tensors[name].copy_(value)


@torch.no_grad()
def check_values(tensors: Mapping[str, Tensor], group: Any) -> None:  # noqa: ANN401
    """Checks that every process has the same values.

    :raises ValueError: if not, in every process.
    """
    differing: dict[str, float] = {}
    for name, first in _first_values(tensors, group).items():
        own = tensors[name].detach()
        if not bool(((own == first) | ((own != own) & (first != first))).all()):
            differing[name] = float((own.double() - first.double()).abs().max())
    for rank, names in enumerate(gather(differing, group)):
        if names:
            listed = [f"{n!r} by {d:.2g}" for n, d in list(names.items())[:_MAX_LISTED]]
            raise ValueError(
                f"`inference` must have the same state in every process, but {len(names)} tensors "
                f"of rank {rank} differ from those of rank 0: {', '.join(listed)}"
            )
