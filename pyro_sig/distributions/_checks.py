"""Checks of what a law scores, and of the shape that it is expanded to.

None of them waits for a device but :func:`check_inside`, which looks at values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_sig._arguments import check_tensor, shape_of

__all__ = ["check_inside", "check_value", "expanded_shape"]


def expanded_shape(own: torch.Size, batch_shape: Sequence[int]) -> torch.Size:
    """Returns the shape that a law is expanded to.

    :param own: its batch shape.
    :param batch_shape: the desired one.
    :raises ValueError: if the one cannot become the other.
    """
    shape = shape_of("batch_shape", batch_shape)
    extra = len(shape) - len(own)
    if not own or shape == own:
        return shape
    if extra < 0 or any(a not in (1, b) for a, b in zip(own, shape[extra:], strict=True)):
        raise ValueError(
            f"`batch_shape` must be one that {tuple(own)} can be expanded to, was {tuple(shape)}"
        )
    return shape


def check_value(value: Any, event_shape: torch.Size, batch_shape: torch.Size) -> None:  # noqa: ANN401
    """Checks the shape of a value that is scored.

    :raises ValueError: unless it is a tensor of shape ``[*, *batch_shape, *event_shape]``.
    """
    check_tensor("value", value)
    shape = value.shape
    num_rows = max(0, len(shape) - len(event_shape))
    if shape[num_rows:] != event_shape:
        raise ValueError(
            f"`value` must end in event_shape {tuple(event_shape)}, was of shape "
            f"{tuple(value.shape)}"
        )
    if not batch_shape or shape[:num_rows] == batch_shape:
        return
    pairs = zip(reversed(shape[:num_rows]), reversed(batch_shape), strict=False)
    if any(a != b and a != 1 and b != 1 for a, b in pairs):
        raise ValueError(
            f"`value` must have leading dimensions that broadcast with batch_shape "
            f"{tuple(batch_shape)}, was of shape {tuple(value.shape)}"
        )


def check_inside(value: Tensor, support: constraints.Constraint, whose: str) -> None:
    """Checks that a value lies in a support.

    :raises ValueError: if not.
    """
    if not value.numel():  # which torch's constraints of vectors cannot take
        return
    inside = support.check(value)
    if not inside.all():
        raise ValueError(
            f"`value` must lie in the {whose} support {support}, was "
            f"{value[~inside].flatten()[:3].tolist()} in some entries"
        )
