"""Checks of arguments that several laws share, each naming the argument in its error.

None of them waits for a device: they look at kinds, types and shapes, and only
:func:`check_inside` looks at values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

__all__ = [
    "call",
    "check_function",
    "check_inside",
    "check_like",
    "check_not_negative",
    "check_tensor",
    "check_value",
    "expanded_shape",
    "shape_of",
]


def check_tensor(name: str, value: Any) -> None:  # noqa: ANN401 - whatever a caller passed
    """Checks that something is a dense tensor of real numbers that can be read.

    :raises ValueError: if not.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a tensor, was {type(value).__name__}")
    if value.layout != torch.strided or value.is_meta or value.is_complex():
        raise ValueError(
            f"`{name}` must be a dense tensor of real numbers, was {value.layout} of "
            f"{value.dtype} on {value.device}"
        )


def check_like(name: str, value: Any, size: int, param: Tensor) -> None:  # noqa: ANN401
    """Checks rows that are multiplied by a parameter.

    :raises ValueError: for another size, device or type than the parameter's.
    """
    check_tensor(name, value)
    if value.dim() < 1 or value.shape[-1] != size:
        raise ValueError(f"`{name}` must be of shape [*, {size}], was {tuple(value.shape)}")
    if value.device != param.device:
        raise ValueError(f"`{name}` must be on {param.device}, was on {value.device}")
    if value.dtype != param.dtype and not (
        value.is_floating_point() and torch.is_autocast_enabled(value.device.type)
    ):
        raise ValueError(f"`{name}` must be of {param.dtype}, was {value.dtype}")


def check_not_negative(name: str, number: Any) -> None:  # noqa: ANN401
    """Checks a number of dimensions.

    :raises ValueError: unless it is an integer of at least zero.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"`{name}` must be zero or a positive integer, was {number!r}")


def shape_of(name: str, shape: Sequence[int]) -> torch.Size:
    """Returns a shape.

    :raises ValueError: if it is no sequence of sizes.
    """
    if type(shape) is torch.Size:
        return shape
    try:
        size = torch.Size([-1]) if isinstance(shape, bytes) else torch.Size(shape)
    except TypeError:
        size = torch.Size([-1])
    if min(size, default=0) < 0:
        raise ValueError(f"`{name}` must be a sequence of sizes, was {shape!r}")
    return size


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


def check_function(name: str, function: Any, kind: str) -> None:  # noqa: ANN401
    """Checks a callable; laws, optimisers and classes of networks are, but to no purpose.

    :param str kind: what it should be.
    :raises ValueError: if not.
    """
    a_class = isinstance(function, type)
    if (
        not callable(function)
        or isinstance(function, (Distribution, PyroOptim))
        or (a_class and issubclass(function, nn.Module))
    ):
        was = f"the class {function.__name__} itself" if a_class else type(function).__name__
        raise ValueError(f"`{name}` must be {kind}, was {was}")


def call(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Calls a user's function.

    :raises ValueError: if it does not take such arguments; what it raises itself is left alone.
    """
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        # Only now, since a look at the signature takes longer than many a function.
        if _takes(function, args, kwargs):
            raise
        names = [*("a value" for _ in args), *(f"{key}=.." for key in kwargs)]
        raise ValueError(
            f"`{name}` must be callable with ({', '.join(names)}), but: {error}"
        ) from error


def _takes(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> bool:
    own = function.forward if isinstance(function, nn.Module) else function
    try:
        inspect.signature(own).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


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
