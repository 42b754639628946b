"""Gradients are looked at before an optimiser uses them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import pyro
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ["BadGradient", "GradientGuard"]


class BadGradient(Exception):
    """An optimiser was about to use a gradient that is not finite.

    :param names: the parameters concerned.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


class GradientGuard:
    """Within its context no optimiser takes a step by a gradient that is not finite.

    Where SVI or a trainer steps one optimiser for each parameter, the gradients of all are looked
    at before the first moves. Processes that train together are left alone: their gradients are
    only then put together, and a loss that is not finite ends all of them at the same step.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}
        self._handle: Any = None

    def __enter__(self) -> GradientGuard:
        self._seen.clear()
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            self._handle = register_optimizer_step_pre_hook(self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _look(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        params: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        found = self._new(params)
        if not found:
            return
        store = pyro.get_param_store()
        if any(store.param_name(param) is not None for param in params):
            found += self._new(store._params.values())
        if _finite(grad for _, grad in found):
            return
        names = [_name(p) for p, grad in found if not bool(grad.isfinite().all())]
        if not names:  # the sum of finite numbers was too large
            return
        for param, _ in found:
            param.grad = None
        raise BadGradient(names)

    def _new(self, params: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Gradients that have not been looked at, or have been written to since."""
        found = []
        for param in params:
            grad = param.grad
            if grad is not None:
                mark = (id(grad), grad._version)
                if self._seen.get(id(param)) != mark:
                    self._seen[id(param)] = mark
                    found.append((param, grad))
        return found


def _finite(grads: Iterable[Tensor]) -> bool:
    """Tells quickly, for all at once, whether the sum is finite."""
    sums = [grad.sum() for grad in grads]
    if any(s.is_cuda for s in sums):  # one synchronisation
        device = sums[0].device
        return bool(torch.stack([s.to(device, torch.float32) for s in sums]).sum().isfinite())
    return all(math.isfinite(s.item()) for s in sums)


def _name(param: Tensor) -> str:
    name = pyro.get_param_store().param_name(param)
    return repr(name) if name is not None else f"a tensor of shape {tuple(param.shape)}"
