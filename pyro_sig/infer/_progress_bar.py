"""The bar of a training run."""

from __future__ import annotations

import sys
from typing import Any

from pyro.optim import PyroOptim

from pyro_sig._optimizers import optimizers_of

__all__ = ["NoProgress", "ProgressBar"]

# Weight of the newest loss in the smoothed one.
_SMOOTHING = 0.05


class NoProgress:
    def update(self, losses: dict[str, float], inference: Any) -> None:
        pass

    def close(self) -> None:
        pass


class ProgressBar(NoProgress):
    def __init__(self, num_steps: int, description: str | None, done: int) -> None:
        from tqdm.auto import tqdm

        total = None if num_steps == sys.maxsize else num_steps  # someone else ends the run
        self._bar = tqdm(total=total, desc=description, initial=done)
        self._smoothed: dict[str, float] = {}

    def update(self, losses: dict[str, float], inference: Any) -> None:
        for name, value in losses.items():
            before = self._smoothed.get(name, value)
            self._smoothed[name] = before + _SMOOTHING * (value - before)
        shown = {name: f"{value:.4g}" for name, value in self._smoothed.items()}
        rate = _learning_rate(inference)
        if rate is not None:
            shown["lr"] = f"{rate:.2e}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def _learning_rate(inference: Any) -> float | None:
    for optimizer in optimizers_of(inference):
        held: Any = optimizer
        if isinstance(optimizer, PyroOptim):
            held = next(iter(optimizer.optim_objs.values()), None)
            held = getattr(held, "optimizer", held)  # a scheduler wraps its optimiser
        if held is not None:
            return float(held.param_groups[0]["lr"])
    return None
