"""Plates that subsample, beside data of another size."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["PlateSizes"]


class PlateSizes(Messenger):
    """Notes the plates of observed sites within its context, and compares them with data.

    A plate that is as long as its data is checked by Pyro. One that draws a subsample scales it to
    its own size, and nothing tells when this is not the size of the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[str, tuple[int, int, torch.Size]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or not isinstance(msg["value"], Tensor):
            return
        event = getattr(msg["fn"], "event_shape", torch.Size())
        for frame in msg["cond_indep_stack"]:
            full = getattr(frame, "full_size", None)
            if full is not None and full != frame.size and frame.dim is not None:
                self._found[frame.name] = full, frame.size, event

    def check(self, arguments: Iterable[Any]) -> None:
        """Warns where no argument has the rows of a subsampling plate, and one has others.

        :param arguments: of the step.
        """
        tensors = [value for value in arguments if isinstance(value, Tensor) and value.dim() > 0]
        for name, (full, size, event) in self._found.items():
            # The rows themselves were given, or all of them were.
            if any(len(value) in (full, size) for value in tensors):
                continue
            others = [value for value in tensors if value.shape[1:] == event]
            if others:
                warnings.warn(
                    f"plate {name!r} has the size {full} and draws {size} of it, but the data have "
                    f"{len(others[0])} rows: the likelihood is scaled to {full} rows, and with "
                    "fewer of them than of data some would never be seen",
                    stacklevel=3,
                )
