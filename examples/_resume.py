"""Training that goes on where it was killed, to the same end as if it had not been."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_sig.infer import StopTraining, train


class GradientSteps:
    """Steps a torch optimiser on one loss, with a state that can be saved.

    Pyro's ELBOs have the method ``differentiable_loss``, which fits.

    :param callable loss: arguments of a step -> scalar.
    :param networks: what the loss trains, by name.
    :param torch.optim.Optimizer optim: the optimiser of their parameters.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        networks: dict[str, nn.Module],
        optim: torch.optim.Optimizer,
    ) -> None:
        self.loss = loss
        self.networks = networks
        self.optim = optim

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Takes one step and returns the loss."""
        self.optim.zero_grad(set_to_none=True)
        loss = self.loss(*args, **kwargs)
        loss.backward()
        self.optim.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of networks and optimiser."""
        networks = {name: network.state_dict() for name, network in self.networks.items()}
        return {"networks": networks, "optim": self.optim.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them in place."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        self.optim.load_state_dict(state["optim"])


class _Clock:
    """Ends a run after some seconds, counted over all of its parts."""

    def __init__(self, seconds: float | None, num_steps: int, on_progress: Any) -> None:
        self.before = 0.0
        self._seconds = seconds
        self._num_steps = num_steps
        self._on_progress = on_progress
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return self.before + time.perf_counter() - self._start

    def __call__(self, step: int, loss: Any, inference: Any) -> None:
        if self._on_progress is not None:
            done = max((step + 1) / self._num_steps, self.elapsed / (self._seconds or math.inf))
            self._on_progress(min(1.0, done))
        if self._seconds is not None and self.elapsed > self._seconds:
            raise StopTraining

    def state_dict(self) -> dict[str, float]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.before = state["elapsed"]


def train_resumable(
    folder: Path,
    settings: dict[str, Any],
    inference: Any,
    batches: Callable[[int], Any],
    num_steps: int,
    *,
    schedules: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
    seconds: float | None = None,
    on_progress: Callable[[float], object] | None = None,
    every: int = 500,
    **options: Any,
) -> tuple[int, float]:
    """Trains as :func:`pyro_sig.infer.train` does, from the last checkpoint of the same settings.

    :param folder: of the checkpoints; those of a run with other settings are removed.
    :param settings: what the run depends on.
    :param inference: an object with ``step``, ``state_dict`` and ``load_state_dict``.
    :param batches: step -> arguments; a batch depends on the step alone, or on torch's random
        state.
    :param num_steps: number of steps.
    :param schedules: learning-rate schedules, one step each after a step.
    :param seconds: stop after this time, in seconds, even if steps are left.
    :param on_progress: called after each step with the share of the steps, or of the time, that
        is done.
    :param every: steps between two saves.
    :param options: further arguments of ``train``.
    :return: steps taken and seconds, of all parts together.
    """
    note, text = folder / "settings.json", json.dumps(settings, sort_keys=True, default=str)
    if folder.exists() and not (note.exists() and note.read_text() == text):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(text)
    clock = _Clock(seconds, num_steps, on_progress)
    history = train(
        inference,
        batches,
        num_steps,
        callbacks=[*schedules, clock],
        checkpoint=folder,
        every=every,
        **options,
    )
    return history.num_steps, history.seconds
