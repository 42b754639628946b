"""The losses of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pyro_sig._arguments import check_instance

__all__ = ["History"]


class History(Mapping[str, list[float]]):
    """The losses of a run by name, as read-only mapping.

    A step that returns one number has the name ``"loss"``; a tuple has the ``loss_names`` of the
    inference object, or else ``"loss_0"``, ``"loss_1"``, ...; a dict has its own keys. A name that
    a step does not report is NaN there, so that every list has one entry per step.

    :ivar num_steps: steps taken.
    :ivar num_skipped: how many of them changed nothing, because a gradient was not finite.
    :ivar seconds: wall-clock time of the run, in seconds.
    :ivar stopped: whether a callback ended the run early.

    Example::

        >>> history = History()
        >>> history.append({"loss": 2.0})
        >>> history["loss"]
        [2.0]
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_skipped = 0
        self.seconds = 0.0
        self.stopped = False
        self._losses: dict[str, list[float]] = {}

    def __getitem__(self, name: str) -> list[float]:
        return self._losses[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)

    def __repr__(self) -> str:
        last = "".join(f", {name}={values[-1]:.4g}" for name, values in self.items() if values)
        skipped = f", num_skipped={self.num_skipped}" if self.num_skipped else ""
        return f"History(num_steps={self.num_steps}{skipped}{last})"

    def append(self, losses: Mapping[str, float]) -> None:
        """Adds the losses of one step.

        :param losses: losses by name.
        """
        check_instance("losses", losses, Mapping, "losses by name")
        for name in losses:
            self._losses.setdefault(name, [math.nan] * self.num_steps)
        for name, values in self._losses.items():
            values.append(losses.get(name, math.nan))
        self.num_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses and counts."""
        losses = {n: torch.tensor(v, dtype=torch.float64) for n, v in self._losses.items()}
        return {"losses": losses, "num_skipped": self.num_skipped, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the losses of an earlier part of the run in place of all others.

        :param state: what :meth:`state_dict` returned.
        """
        self._losses = {name: values.tolist() for name, values in state["losses"].items()}
        self.num_steps = max(map(len, self._losses.values()), default=0)
        self.num_skipped, self.seconds = state["num_skipped"], state["seconds"]
