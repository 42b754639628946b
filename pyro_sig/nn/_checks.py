"""Checks of sizes, each naming the argument in its error."""

import torch
from torch import Tensor

Dtype = torch.dtype | None
Device = torch.device | str | None


def check_event(name: str, value: Tensor, event_shape: tuple[int, ...]) -> None:
    if value.shape[-len(event_shape) :] != event_shape:
        raise ValueError(f"`{name}` must have shape {['*', *event_shape]}, was {list(value.shape)}")


def positive_integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, was {value!r}")
    return value
