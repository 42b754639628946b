"""Which optimisers an inference object holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["optimizers_of"]


def optimizers_of(holder: Any, depth: int = 3) -> Iterator[torch.optim.Optimizer | PyroOptim]:
    """The optimisers held by an object, a container, or an attribute that has a ``step``."""
    if isinstance(holder, (torch.optim.Optimizer, PyroOptim)):
        yield holder
    elif isinstance(holder, LRScheduler):
        yield holder.optimizer
    elif depth > 0 and not isinstance(holder, Tensor):
        held: Iterable[Any] = ()
        if isinstance(holder, Mapping):
            held = holder.values()
        elif isinstance(holder, (list, tuple)):
            held = holder
        elif callable(getattr(holder, "step", None)):
            held = getattr(holder, "__dict__", {}).values()
        for item in list(held):
            # SVI keeps methods of its loss, which may have networks of its own.
            inner = getattr(getattr(item, "__self__", item), "inner_optimizers", None)
            if callable(inner):
                yield from inner()
            yield from optimizers_of(item, depth - 1)
