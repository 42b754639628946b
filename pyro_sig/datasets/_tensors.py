"""Tensors made from arguments, and those that a law of the toys scores."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import Device, Dtype, check_device, check_tensor, floating, refusal


def tensor(value: float | np.ndarray, dtype: Dtype, device: Device) -> Tensor:
    """Make a floating point tensor."""
    return torch.tensor(value, dtype=floating(dtype), device=check_device(device))


def arange(n: int, dtype: Dtype, device: Device) -> Tensor:
    """Return 0, 1, ..., n - 1 in floating point."""
    return torch.arange(n, dtype=floating(dtype), device=check_device(device))


def numbers(name: str, values: Tensor | Sequence[float] | float) -> Tensor:
    """Return a dense tensor of the numbers or raise."""
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise refusal(name, "numbers", values) from error
    return check_tensor(name, found)


def check_points(value: Tensor, law: torch.distributions.Distribution) -> None:
    """Check what a law scores, where torch would refuse it in other words."""
    check_tensor("value", value, "a dense tensor of numbers", lambda x: x.dtype != torch.bool)
    if law.event_shape and not value.numel():
        raise ValueError(f"`value` must not be empty, was of shape {tuple(value.shape)}")


def normalise(weights: Tensor) -> Tensor:
    """Return positive weights divided by their sum, or raise."""
    if not (weights.isfinite() & (weights > 0)).all():
        raise ValueError("`weights` must be positive and finite, was not in some entries")
    return weights / weights.sum()
