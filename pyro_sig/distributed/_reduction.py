"""Gradients of one optimiser, reduced over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_sig.distributed._agreement import broadcast, by_kind, check_alike, signature

__all__ = ["GradientReduction"]


class GradientReduction:
    """Adds up gradients over processes, in one reduction for each type of parameter.

    Parameters are met when an optimiser first has them: all processes must meet the same ones at
    the same step, and take their values from the first process. From then on a process may leave
    some out, whose gradient is then zero there.

    :param group: the process group.
    :param float factor: of the sum, 1 / size for the mean.
    """

    def __init__(self, group: Any, factor: float) -> None:  # noqa: ANN401
        self.group, self.factor = group, factor
        self.params: dict[str, Tensor] = {}
        self._kinds: list[dict[str, Tensor]] = []

    def __call__(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Writes the reduced gradients, and returns the parameters that any process has one for.

        :param params: those of this step, by names that are the same in every process, in the same
            order.
        :raises ValueError: if another process meets other parameters; in all processes.
        """
        while True:
            new = {n: p for n, p in params.items() if self.params.get(n) is not p}
            if self.params:
                found = self._reduce(params, bool(new))
                if found is not None:
                    return found
            self.meet(new)
            if not self.params:
                return {}

    def meet(self, new: Mapping[str, Tensor]) -> None:
        """Takes in parameters; all processes have to come here together."""
        check_alike(signature(new), self.group)
        broadcast(new, self.group)
        self.params = {**self.params, **new}
        self._kinds = by_kind(self.params)

    @torch.no_grad()
    def _reduce(self, params: Mapping[str, Tensor], stop: bool) -> dict[str, Tensor] | None:
        """Reduces; returns None if any process has to stop for new parameters."""
        reduced: dict[str, Tensor] = {}
        for kind in self._kinds:
            own = [p.grad if n in params else None for n, p in kind.items()]
            like = next(iter(kind.values()))
            # Behind the gradients: who has one, and whether to stop.
            present = [float(grad is not None) for grad in own] + [float(stop)]
            pieces = [
                like.new_zeros(p.numel())
                if g is None
                else g.to_dense().reshape(-1)
                if g.is_sparse
                else g.reshape(-1)
                for p, g in zip(kind.values(), own, strict=True)
            ]
            flat = torch.cat([*pieces, like.new_tensor(present)])
            dist.all_reduce(flat, group=self.group)
            counts = flat[-len(present) :].tolist()
            if counts[-1]:
                return None  # the same in every process, and before anything was written
            flat *= self.factor
            parts = flat[: -len(present)].split([p.numel() for p in kind.values()])
            for (name, _), part, count in zip(kind.items(), parts, counts, strict=False):
                if count:
                    reduced[name] = part
        for name, part in reduced.items():
            param = self.params[name]
            grad = param.grad
            if grad is None or grad.is_sparse or name not in params:
                param.grad = part.view(param.shape)
            else:
                grad.copy_(part.view(param.shape))
        return {name: self.params[name] for name in reduced}
