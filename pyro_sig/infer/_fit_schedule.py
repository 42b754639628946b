"""The schedule of `fit`: how long it trains, at which rate, and over which iterates it averages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.optim import PyroOptim
from torch import Tensor

__all__ = ["Average", "Schedule", "tempered"]

_WARM_UP = 0.02  # share of the budget
_FINAL_RATE = 0.01  # relative to the first
# Windows of the smoothed loss, as shares of the budget, and how much a window may gain when the
# loss counts as level: two standard errors or this many nats.
_WINDOW = 0.1
_LEVEL = 5e-3
_LEAST_WINDOW = 50  # losses without which a window's error is not known
_LAST_FIRST_PHASE = 0.5
_AVERAGED = 0.5  # share of the cooling over which iterates are averaged
_FIRST_POWER = 0.1
# What a schedule has to remember to go on.
_PLACE = (
    "step",
    "progress",
    "cooling_from",
    "level",
    "judged",
    "_window",
    "_window_from",
    "_last_window",
)


class Schedule:
    """Warm-up, a constant phase until the loss is level, and a cosine to the end."""

    def __init__(
        self, budget: int, max_seconds: float | None, annealing: float, start: float
    ) -> None:
        self.budget, self.max_seconds, self.annealing = budget, max_seconds, annealing
        self.start = start
        self.step = 0
        self.progress = 0.0
        self.cooling_from: float | None = None
        self.level = False
        self.judged = False  # whether there were two windows to compare
        self._window: list[float] = []
        self._window_from = 0.0
        self._last_window: list[float] | None = None

    @property
    def cooled(self) -> float:
        """Share of the cooling that is over. It takes half of the budget, or what is left."""
        if self.cooling_from is None:
            return 0.0
        length = min(1 - _LAST_FIRST_PHASE, 1 - self.cooling_from)
        if length <= 0:
            return 1.0  # the first step was the last
        return min(1.0, (self.progress - self.cooling_from) / length)

    @property
    def rate(self) -> float:
        """The learning rate, relative to the first."""
        warm_up = min(1.0, (self.progress + 1e-3) / _WARM_UP)
        cosine = (1 + math.cos(math.pi * self.cooled)) / 2
        return warm_up * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)

    @property
    def temperature(self) -> float:
        """The power of the model's density."""
        if not self.annealing:
            return 1.0
        risen = self.progress / (self.annealing * _LAST_FIRST_PHASE)
        return min(1.0, _FIRST_POWER + (1 - _FIRST_POWER) * risen)

    @property
    def averages(self) -> bool:
        """Whether iterates are being averaged."""
        return self.cooled >= 1 - _AVERAGED

    @property
    def finished(self) -> bool:
        """Whether the rate is at its end."""
        return self.cooled >= 1.0

    def advance(self, loss: float) -> None:
        """Takes in the loss of a step."""
        self.step += 1
        self.progress = self.step / self.budget
        if self.max_seconds is not None:
            elapsed = (time.perf_counter() - self.start) / self.max_seconds
            self.progress = max(self.progress, min(1.0, elapsed))
        if self.cooling_from is not None:
            return
        if self.temperature < 1.0:
            self._window_from = self.progress
            return
        self._window.append(loss)
        if self.progress - self._window_from >= _WINDOW:
            self.level = self._is_level()
            self._last_window, self._window = self._window, []
            self._window_from = self.progress
        if self.level or self.progress >= _LAST_FIRST_PHASE:
            self.cooling_from = self.progress

    def state_dict(self) -> dict[str, Any]:
        """Returns where the schedule is, and the settings that it belongs to."""
        elapsed = time.perf_counter() - self.start
        return {
            "settings": self._settings(),
            "elapsed": elapsed,
            **{name: getattr(self, name) for name in _PLACE},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state.

        :param state: what :meth:`state_dict` returned.
        """
        for name, own in self._settings().items():
            saved = state["settings"][name]
            if saved != own:
                raise ValueError(
                    f"`{name}` must be that of the run in `checkpoint`, {saved}, was {own}; "
                    "pass another folder for another run"
                )
        self.start = time.perf_counter() - state["elapsed"]
        for name in _PLACE:
            setattr(self, name, state[name])

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("budget", "max_seconds", "annealing")}

    def _is_level(self) -> bool:
        before, now = self._last_window, self._window
        if before is None or min(len(before), len(now)) < _LEAST_WINDOW:
            return False
        self.judged = True
        old, new = torch.tensor(before).double(), torch.tensor(now).double()
        # A few diverging draws must not hide the trend: trim a hundredth on either side.
        old, new = (x.sort().values[len(x) // 100 : len(x) - len(x) // 100] for x in (old, new))
        error = math.hypot(old.std() / len(old) ** 0.5, new.std() / len(new) ** 0.5)
        return float(old.mean() - new.mean()) < max(2 * error, _LEVEL)


def tempered(model: Callable[..., Any], schedule: Schedule) -> Callable[..., Any]:
    if not schedule.annealing:
        return model

    def scaled(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        power = schedule.temperature
        if power >= 1.0:
            return model(*args, **kwargs)
        with poutine.scale(scale=power):
            return model(*args, **kwargs)

    return scaled


class Average:
    """The mean of the parameters over the steps at which it was updated, by their names."""

    def __init__(self, optim: PyroOptim) -> None:
        self.optim = optim
        self.count = 0
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the present parameters."""
        self.count += 1
        for name, param in self._params():
            mean = self.means.setdefault(name, torch.zeros_like(param))
            mean.lerp_(param, 1 / self.count)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the means in place of the parameters."""
        for name, param in self._params():
            if name in self.means:
                param.copy_(self.means[name])

    def _params(self) -> list[tuple[str, Tensor]]:
        named = ((pyro.get_param_store().param_name(p), p) for p in self.optim.optim_objs)
        return [(name, param) for name, param in named if name is not None]

    def state_dict(self) -> dict[str, Any]:
        """Returns the means and their number."""
        means = {name: mean.clone() for name, mean in self.means.items()}
        return {"count": self.count, "means": means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state in place of its own.

        :param state: what :meth:`state_dict` returned.
        """
        self.count, self.means = state["count"], dict(state["means"])
