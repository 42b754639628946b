"""What a semi-implicit distribution and its parents have drawn, kept by the value.

A slot on the object would lose a draw that serves two sites, or is scored after ``expand``; an
attribute on the tensor would follow it into files and copies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_sig._show_settings import show_settings

__all__ = ["Lineage", "Origin"]


class Origin(NamedTuple):
    """Holds how a value was drawn: the psi behind it, and the conditional there.

    :param torch.Tensor psi: the psi_0 of every row.
    :param conditional: the conditional run on it.
    :param torch.Tensor noise: the noise behind psi; where psi is drawn directly, psi itself; None
        if the caller gave psi.
    """

    psi: Tensor
    conditional: Distribution
    noise: Tensor | None = None


class _Memory:
    """The draws of one object; forgotten together with their tensors."""

    def __init__(self) -> None:
        self.origins = WeakTensorKeyDictionary()
        self.scored = WeakTensorKeyDictionary()  # values scored by log_prob, psi_0 included
        self.last: Tensor | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        return _Memory, ()  # a copy has drawn nothing: draws hold graph tensors


class Lineage:
    """The memories of an object and of those it was expanded from.

    A child knows what its parents drew; siblings do not know each other's draws, so that one
    object can be guide and prior of the same plate.

    Example::

        >>> parent, z = Lineage(), torch.zeros(3)
        >>> parent.remember(z, Origin(z, torch.distributions.Normal(z, 1.0)))
        >>> child, sibling = parent.child(), parent.child()
        >>> child.find(z) is not None, sibling.find(z.clone()) is None
        (True, True)
    """

    __repr__ = show_settings

    def __init__(self, *parents: _Memory) -> None:
        self._memories = (_Memory(), *parents)

    def child(self) -> Lineage:
        """Returns the lineage of an expansion."""
        return Lineage(*self._memories)

    def remember(self, value: Tensor, origin: Origin) -> None:
        """Keeps the origin of a value for as long as that tensor lives."""
        self._memories[0].origins[value] = origin
        self._memories[0].last = value.detach()

    def find(self, value: Tensor) -> Origin | None:
        """Returns the origin of a value that was drawn in this line, or None."""
        value = detach_provenance(value)  # TraceGraph_ELBO wraps what has no rsample
        for memory in self._memories:
            origin = memory.origins.get(value)
            if origin is not None:
                return origin
        return None

    def mark_scored(self, value: Tensor) -> None:
        """Notes that this very object scored a remembered value by ``log_prob``."""
        self._memories[0].scored[detach_provenance(value)] = True

    def was_scored(self, value: Tensor) -> bool:
        """Tells whether this very object has scored the value by ``log_prob``."""
        return detach_provenance(value) in self._memories[0].scored

    def holds_copy_of(self, value: Tensor, equal: bool) -> bool:
        """Tells whether a value is a detached alias of the last draw or, if asked, equal to it.

        Equal discrete values are no sign of a copy; equal continuous ones are.
        """
        for memory in self._memories:
            last = memory.last
            if last is None or last.shape != value.shape or last.dtype != value.dtype:
                continue
            if not last.numel() or last.device != value.device:
                continue
            if last.data_ptr() == value.data_ptr():
                return True
            if equal and torch.equal(last, value):
                return True
        return False
