"""Checks of what a caller passes, in one wording: "`name` must be this, was that".

They look at kinds, types and shapes and wait for no device. What looks at the values of a tensor,
which does, says so: :func:`check_finite`, and :func:`check_number` of a tensor.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Number, Real
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

Dtype = torch.dtype | None
Device = torch.device | str | None

# What its repr tells best.
_OF_TORCH = (torch.dtype, torch.device, torch.Size)
_BY_REPR = (bool, Number, np.generic, bytes, PurePath, type(None), *_OF_TORCH)


# ---------------------------------------------------------------------------------------- the words


class _Words(reprlib.Repr):
    """Tensors by type and shape, objects by their class, all else by a repr that is cut short."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor):
            if x.is_nested:  # and without a shape
                return f"a nested {x.dtype} tensor on {x.device}"
            layout = "" if x.layout == torch.strided else f"{x.layout} "
            return f"a {layout}{x.dtype} tensor of shape {tuple(x.shape)} on {x.device}"
        if isinstance(x, np.ndarray):
            return f"an array of {x.dtype} of shape {x.shape}"
        return super().repr1(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, type):
            return f"the class {x.__name__}"
        return super().repr_instance(x, level) if isinstance(x, _BY_REPR) else type(x).__name__


_WORDS = _Words()


def describe(value: object) -> str:
    """Says in a few words what an argument was.

    :param value: whatever a caller passed.
    """
    return _WORDS.repr(value)


def refusal(name: str, must_be: str, value: object) -> ValueError:
    """Makes the error for an argument that is not what it must be.

    :param str name: the argument's name.
    :param str must_be: what it must be.
    :param value: what was passed.
    """
    return ValueError(f"`{name}` must be {must_be}, was {describe(value)}")


# -------------------------------------------------------------------------------------- the tensors


def one_number(name: str, value: Any) -> Tensor:
    """Returns what a function of the caller's returned, if it is a loss.

    :param str name: the function's name.
    :param value: what it returned.
    :raises ValueError: unless it is a tensor without dimensions: one of shape (1,) would have a
        gradient until a batch has a second row.
    """
    if not isinstance(value, Tensor) or value.dim():
        raise ValueError(
            f"`{name}` must return one number, a tensor without dimensions such as a mean, "
            f"returned {describe(value)}"
        )
    return value


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Tells a tensor whose entries are real numbers, each with its place in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_complex() or value.is_quantized or value.is_nested)
    )


def check_tensor(
    name: str,
    value: Any,
    must_be: str = "a dense tensor of real numbers",
    fits: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """Returns a dense tensor of real numbers.

    :param str name: the argument's name.
    :param value: what was passed.
    :param str must_be: what it must be.
    :param fits: what else is asked of the tensor.
    :raises ValueError: if it is none, or does not fit.
    """
    if not is_dense(value) or not (fits is None or fits(value)):
        raise refusal(name, must_be, value)
    return value


def check_floating(name: str, value: Any) -> Tensor:
    """Returns a dense tensor of a floating point type.

    :param str name: the argument's name.
    :param value: what was passed.
    :raises ValueError: if it is none.
    """
    return check_tensor(name, value, "a dense floating point tensor", Tensor.is_floating_point)


def check_finite(name: str, tensor: Tensor) -> None:
    """Checks the entries of a tensor.

    :param str name: the argument's name.
    :param torch.Tensor tensor: what was passed.
    :raises ValueError: if some are NaN or infinite.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"`{name}` must be finite, was NaN or infinite in some entries")


def check_like(name: str, value: Any, event_shape: tuple[int, ...], param: Tensor) -> None:
    """Checks what is computed with a parameter.

    :param str name: the argument's name.
    :param value: what was passed.
    :param tuple event_shape: what its shape ends in.
    :param torch.Tensor param: the parameter.
    :raises ValueError: for another shape, or another type or device than the parameter's.
    """
    if not (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.shape[-len(event_shape) :] == event_shape
        and value.device == param.device
        and (
            value.dtype == param.dtype
            or (value.is_floating_point() and torch.is_autocast_enabled(value.device.type))
        )
    ):
        shape = ", ".join(map(str, ["*", *event_shape]))
        must_be = f"a dense {param.dtype} tensor of shape [{shape}] on {param.device}"
        raise refusal(name, must_be, value)


# -------------------------------------------------------------------------------------- the numbers


def check_integer(
    name: str, value: Any, least: float = 0, kind: type[int] | type[Integral] = Integral
) -> int:
    """Returns an integer.

    :param str name: the argument's name.
    :param value: what was passed.
    :param least: the smallest that will do.
    :param kind: ``int`` where those of NumPy will not do, since the value is handed on as it is.
    :raises ValueError: if it is none, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, kind) or value < least:
        bound = "" if least == -math.inf else f" of at least {least}"
        raise refusal(name, "a positive integer" if least == 1 else f"an integer{bound}", value)
    return int(value)


def is_number(value: object) -> TypeGuard[float]:
    """Tells a real number from a tensor, a truth and all else."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(
    name: str,
    value: Any,
    must_be: str | None = None,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    finite: bool = True,
    tensors: bool = True,
) -> float:
    """Returns a number within bounds.

    :param str name: the argument's name.
    :param value: what was passed.
    :param str must_be: what it must be, in other words than the bounds'.
    :param above: what it must exceed.
    :param least: the smallest that will do.
    :param below: what must exceed it.
    :param most: the largest that will do.
    :param finite: whether infinity will not do.
    :param tensors: whether a tensor of one entry will do.
    :raises ValueError: if it is none, or beyond a bound.
    """
    number = value.item() if tensors and is_dense(value) and value.numel() == 1 else value
    if is_number(number):
        size = float(number)
        inside = (above < size or above == -math.inf) and (size < below or below == math.inf)
        if inside and least <= size <= most and (math.isfinite(size) or not finite):
            return size
    if must_be is None:
        bounds = {"above": above, "of at least": least, "below": below, "at most": most}
        stated = [f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound)]
        unbounded = math.isinf(below) and math.isinf(most)
        must_be = f"a {'finite ' if finite and unbounded else ''}number {' and '.join(stated)}"
    raise refusal(name, must_be.rstrip(), number)


# ---------------------------------------------------------------------- switches, choices and kinds


def is_flag(value: object) -> bool:
    """Tells True and False from what only counts as true in an if."""
    return isinstance(value, (bool, np.bool_))


def check_flag(name: str, value: Any) -> bool:
    """Returns a switch.

    :param str name: the argument's name.
    :param value: what was passed.
    :raises ValueError: unless it is True or False.
    """
    if not is_flag(value):
        raise refusal(name, "True or False", value)
    return bool(value)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Checks a word.

    :param str name: the argument's name.
    :param value: what was passed.
    :param choices: the words that will do.
    :raises ValueError: for any other.
    """
    if not (isinstance(value, str) and value in choices):
        raise refusal(name, f"one of {', '.join(map(repr, choices))}", value)


def check_instance(
    name: str, value: object, kind: type | tuple[type, ...], must_be: str = "a torch module"
) -> None:
    """Checks what kind of object an argument is.

    :param str name: the argument's name.
    :param value: what was passed.
    :param kind: its class, or several.
    :param str must_be: the same in words.
    :raises ValueError: for any other.
    """
    if not isinstance(value, kind):
        raise refusal(name, must_be, value)


def as_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Returns a path; a number would be a file that is open already.

    :param str name: the argument's name.
    :param path: what was passed.
    :raises ValueError: if it is none.
    """
    check_instance(name, path, (str, os.PathLike), "a path")
    return Path(path)


# ------------------------------------------------------------------------ shapes, types and devices


def shape_of(name: str, shape: Any) -> torch.Size:
    """Returns a shape.

    :param str name: the argument's name.
    :param shape: what was passed.
    :raises ValueError: if it is no sequence of sizes.
    """
    if type(shape) is torch.Size:
        return shape
    try:
        size = torch.Size([-1]) if isinstance(shape, bytes) else torch.Size(shape)
    except TypeError:
        size = torch.Size([-1])
    if min(size, default=0) < 0:
        raise refusal(name, "a sequence of sizes", shape)
    return size


def check_sizes(name: str, sizes: Any, kind: type[int] | type[Integral] = Integral) -> list[int]:
    """Returns the sizes of the layers of a network.

    :param str name: the argument's name.
    :param sizes: what was passed.
    :param kind: as of :func:`check_integer`.
    :raises ValueError: unless it is a sequence of positive integers.
    """
    if not isinstance(sizes, Sequence) or isinstance(sizes, (str, bytes)):
        raise refusal(name, "a sequence of positive integers", sizes)
    return [check_integer(name, size, 1, kind) for size in sizes]


def floating(dtype: Any) -> torch.dtype:
    """Returns the floating point type to use, torch's default for None.

    :param dtype: what was passed.
    :raises ValueError: for any other type.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise refusal("dtype", "a floating point type", dtype)
    return dtype or torch.get_default_dtype()


def check_device(device: Any) -> Device:
    """Returns a device on which tensors can be made.

    :param device: what was passed.
    :raises ValueError: if it is none, or not here.
    """
    try:
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError) as error:  # the last without CUDA
        raise ValueError(f"{refusal('device', 'a device at hand', device)}: {error}") from error
    return device
