"""The bar of a training run."""

from __future__ import annotations

import sys
from typing import Any

from pyro.optim import PyroOptim

from pyro_sig._optimizers import optimizers_of
from pyro_sig._progress import Progress

__all__ = ["LossBar"]

# Weight of the newest loss in the smoothed one.
_SMOOTHING = 0.05


class LossBar(Progress):
    """Shows the smoothed losses and the learning rate too."""

    def __init__(self, progress: bool | None, num_steps: int, description: str | None) -> None:
        total = None if num_steps == sys.maxsize else num_steps  # someone else ends the run
        super().__init__(progress, total, description)
        self._smoothed: dict[str, float] = {}

    def step(self, losses: dict[str, float], inference: Any) -> None:
        """Counts a step.

        :param losses: of the step.
        :param inference: what took it.
        """
        if self._bar is None:
            return
        for name, value in losses.items():
            before = self._smoothed.get(name, value)
            self._smoothed[name] = before + _SMOOTHING * (value - before)
        shown = {name: f"{value:.4g}" for name, value in self._smoothed.items()}
        rate = _learning_rate(inference)
        if rate is not None:
            shown["lr"] = f"{rate:.2e}"
        self.update(1, **shown)


def _learning_rate(inference: Any) -> float | None:
    for optimizer in optimizers_of(inference):
        held: Any = optimizer
        if isinstance(optimizer, PyroOptim):
            held = next(iter(optimizer.optim_objs.values()), None)
            held = getattr(held, "optimizer", held)  # a scheduler wraps its optimiser
        if held is not None:
            return float(held.param_groups[0]["lr"])
    return None
