"""Checks of arguments, each naming the argument in its error, and tensors made from them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Dtype = torch.dtype | None
Device = torch.device | str | None


def floating(dtype: Dtype) -> torch.dtype:
    """Return the floating point type to use, torch's default for None."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"`dtype` must be a floating point type, was {dtype!r}")
    return dtype or torch.get_default_dtype()


def check_device(device: Device) -> Device:
    """Return a device on which tensors can be made or raise."""
    try:
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError) as error:  # the last without CUDA
        raise ValueError(f"`device` must be a device at hand, was {device!r}: {error}") from error
    return device


def any_type(dtype: Dtype) -> torch.dtype:
    """Return the type to use, torch's default for None."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"`dtype` must be a type of tensors, was {dtype!r}")
    return dtype or torch.get_default_dtype()


def tensor(value: float | np.ndarray, dtype: Dtype, device: Device) -> Tensor:
    """Make a floating point tensor."""
    return torch.tensor(value, dtype=floating(dtype), device=check_device(device))


def arange(n: int, dtype: Dtype, device: Device) -> Tensor:
    """Return 0, 1, ..., n - 1 in floating point."""
    return torch.arange(n, dtype=floating(dtype), device=check_device(device))


def _number(value: float) -> float:
    """Convert to a float; NaN for what is no number, so that every range check fails."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last of tensors of other shapes
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


def check_tensor(name: str, value: Tensor, device: torch.device | None = None) -> Tensor:
    """Return a dense tensor of real numbers that are there to be read, or raise."""
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a tensor, was {type(value).__name__}")
    if value.is_complex() or value.layout != torch.strided or value.is_meta:
        raise ValueError(
            f"`{name}` must be a dense tensor of real numbers, was {value.layout} of "
            f"{value.dtype} on {value.device}"
        )
    if device is not None and value.device != device:
        raise ValueError(f"`{name}` must be on {device}, was on {value.device}")
    return value


def numbers(name: str, values: Tensor | Sequence[float] | float) -> Tensor:
    """Return a dense tensor of the numbers or raise."""
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be numbers, was {values!r}") from error
    return check_tensor(name, found)


def check_points(value: Tensor, law: torch.distributions.Distribution) -> None:
    """Check what a law scores, where torch would refuse it in other words."""
    check_tensor("value", value)
    if value.dtype == torch.bool:
        raise ValueError("`value` must be a tensor of numbers, was torch.bool")
    if law.event_shape and not value.numel():
        raise ValueError(f"`value` must not be empty, was of shape {tuple(value.shape)}")


def shape_of(name: str, shape: Sequence[int]) -> torch.Size:
    """Return a shape or raise."""
    try:
        size = torch.Size(() if isinstance(shape, bytes) else shape)
    except TypeError:
        size = torch.Size([-1])
    if isinstance(shape, bytes) or min(size, default=0) < 0:
        raise ValueError(f"`{name}` must be a sequence of sizes, was {shape!r}")
    return size


def normalise(weights: Tensor) -> Tensor:
    """Return positive weights divided by their sum, or raise."""
    if not (weights.isfinite() & (weights > 0)).all():
        raise ValueError(f"`weights` must be positive and finite, was {weights.tolist()}")
    return weights / weights.sum()
