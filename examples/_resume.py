"""Training that goes on where it was killed, to the same end as if it had not been."""

from __future__ import annotations

import math
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


def train_resumable(
    path: Path,
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
    """Trains as :func:`pyro_sig.infer.train` does, and saves the state on the way.

    :param path: the file of the state; without one, or with one of other settings, training
        begins at the first step.
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
    done, before = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["settings"] == settings:
            done, before = state["step"], state["seconds"]
            inference.load_state_dict(state["inference"])
            for schedule, saved in zip(schedules, state["schedules"], strict=True):
                schedule.load_state_dict(saved)
            _set_random_state(state["random_state"])
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(taken: int) -> None:
        state = {
            "settings": settings,
            "step": taken,
            "seconds": before + time.perf_counter() - start,
            "inference": inference.state_dict(),
            "schedules": [schedule.state_dict() for schedule in schedules],
            "random_state": _random_state(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(path)

    def advance(step: int, loss: Any, _: Any) -> None:
        taken = done + step + 1
        for schedule in schedules:
            schedule.step()
        elapsed = before + time.perf_counter() - start
        late = seconds is not None and elapsed > seconds
        if on_progress is not None:
            on_progress(min(1.0, max(taken / num_steps, elapsed / (seconds or math.inf))))
        if taken % every == 0 or late or taken == num_steps:
            save(taken)
        if late:
            raise StopTraining

    history = train(
        inference,
        lambda step: batches(done + step),
        max(0, num_steps - done),
        callbacks=[advance],
        **options,
    )
    return done + history.num_steps, before + time.perf_counter() - start


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[1:])
