"""Checks of arguments, each naming the argument in its error, and tensors made from them."""

import math

import numpy as np
import torch
from torch import Tensor

Dtype = torch.dtype | None
Device = torch.device | str | None


def floating(dtype: Dtype) -> torch.dtype:
    """Return the floating point type to use, torch's default for None."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating point type, was {dtype}")
    return dtype or torch.get_default_dtype()


def tensor(value: float | np.ndarray, dtype: Dtype, device: Device) -> Tensor:
    """Make a floating point tensor."""
    return torch.tensor(value, dtype=floating(dtype), device=device)


def arange(n: int, dtype: Dtype, device: Device) -> Tensor:
    """Return 0, 1, ..., n - 1 in floating point."""
    return torch.arange(n, dtype=floating(dtype), device=device)


def _number(value: float) -> float:
    """Convert to a float; NaN for what is no number, so that every range check fails."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def positive(name: str, value: float) -> float:
    """Return a positive finite number or raise."""
    number = _number(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"`{name}` must be positive and finite, was {value!r}")
    return number


def probability(name: str, value: float) -> float:
    """Return a number strictly between 0 and 1 or raise."""
    number = _number(value)
    if not 0 < number < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1, was {value!r}")
    return number


def integer(name: str, value: int, minimum: int) -> int:
    """Return an integer of at least `minimum` or raise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, was {value!r}")
    return int(value)


def normalise(weights: Tensor) -> Tensor:
    """Return positive weights divided by their sum, or raise."""
    if not (weights.isfinite() & (weights > 0)).all():
        raise ValueError(f"`weights` must be positive and finite, was {weights.tolist()}")
    return weights / weights.sum()
