"""Checks of what a caller passes: tensors, numbers, switches, programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor


def describe(value: object) -> str:
    """Says in a few words what an argument was."""
    if isinstance(value, Tensor):
        kind = "" if value.layout is torch.strided else f", {value.layout}"
        kind += ", on the meta device" if value.is_meta else ""
        return f"{tuple(value.shape)} of {value.dtype}{kind}"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (list, tuple, dict)) and not value:
        return repr(value)
    if value is None or isinstance(value, (bool, np.bool_, Real, complex, str, bytes)):
        return repr(value)
    return type(value).__name__


# -------------------------------------------------------------------------------------- the tensors


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Tells a tensor whose entries are real numbers, each with its place in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_complex() or value.is_quantized or value.is_nested)
    )


def as_tensor(value: Any) -> Any:
    """Turns an array of numbers into a tensor, and leaves all else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return torch.as_tensor(value)
    return value


def check_tensor(
    name: str,
    value: Any,
    wanted: str,
    fits: Callable[[Tensor], bool] = lambda tensor: True,
    arrays: bool = False,
) -> Tensor:
    """Returns a tensor of real numbers.

    :param name: of the argument.
    :param value: what was passed.
    :param wanted: what it must be, for the message.
    :param fits: what else is asked of the tensor.
    :param arrays: whether an array of numpy will do.
    :raises ValueError: if it is none, or does not fit.
    """
    tensor = as_tensor(value) if arrays else value
    if not (is_dense(tensor) and fits(tensor)):
        raise ValueError(f"`{name}` must be {wanted}, but was {describe(value)}.")
    return tensor


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises if a tensor has NaN or infinite entries."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"`{name}` must be finite, but has NaN or infinite entries.")


# -------------------------------------------------------------------------------------- the numbers


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raises unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}, but was {describe(value)}."
        )


def check_number(
    name: str, value: Any, wanted: str, fits: Callable[[float], bool] = lambda number: True
) -> float:
    """Returns a finite number; a tensor of one entry is one too.

    :param name: of the argument.
    :param value: what was passed.
    :param wanted: what it must be, for the message.
    :param fits: what is asked of the number.
    :raises ValueError: if it is none, or does not fit.
    """
    tensor = as_tensor(value)
    number = tensor.item() if is_dense(tensor) and tensor.numel() == 1 else value
    real = isinstance(number, Real) and not isinstance(number, bool)
    if not (real and math.isfinite(number) and fits(float(number))):
        raise ValueError(f"`{name}` must be {wanted}, but was {describe(value)}.")
    return float(number)


def check_positive_number(name: str, value: Any) -> float:
    """Returns a number above zero."""
    return check_number(name, value, "a positive number", lambda number: number > 0)


def check_share(name: str, value: Any) -> float:
    """Returns a number between 0 and 1, neither of which it is."""
    return check_number(name, value, "between 0 and 1", lambda number: 0 < number < 1)


# ------------------------------------------------------------------------------------- and the rest


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not (isinstance(value, str) and value in choices):
        wanted = " or ".join(map(repr, choices))
        raise ValueError(f"`{name}` must be {wanted}, but was {describe(value)}.")


def check_flag(name: str, value: object) -> None:
    """Raises unless ``value`` is True or False: almost anything else counts as true in an if."""
    if not is_flag(value):
        raise ValueError(f"`{name}` must be True or False, but was {describe(value)}.")


def is_flag(value: object) -> bool:
    return isinstance(value, (bool, np.bool_, int)) and value in (0, 1)


def check_generator(generator: object) -> None:
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise ValueError(
            f"`generator` must be a torch.Generator or None, but was {describe(generator)}."
        )


def check_callable(name: str, value: object, wanted: str = "callable") -> None:
    """Raises for what cannot be run as a program is."""
    if not is_program(value):
        raise ValueError(f"`{name}` must be {wanted}, but was {describe(value)}.")


def is_program(value: object) -> TypeGuard[Callable[..., Any]]:
    """Tells what can be run as a program is.

    A class makes an instance and a distribution draws a sample when they are called: neither is
    what the caller meant.
    """
    return callable(value) and not isinstance(value, (type, dist.Distribution))


def check_mapping(name: str, value: object, of: str) -> None:
    """Raises unless ``value`` is a dict with names for keys."""
    if not isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be a dict of {of} by name, but was {describe(value)}.")
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"`{name}` must have names for keys, but {key!r} was among them.")


def check_names(name: str, value: Any) -> list[str]:
    """Returns a sequence of names as a list; a single name is none."""
    names = as_list(value)
    if names is None or not all(isinstance(one, str) for one in names):
        raise ValueError(f"`{name}` must be a sequence of names, but was {describe(value)}.")
    return names


def as_list(value: Any) -> list[Any] | None:
    """Returns the entries of a sequence, but not those of a text; None of what is no sequence."""
    if isinstance(value, np.ndarray) or (is_dense(value) and value.dim()):
        return value.tolist() if value.ndim else None
    if isinstance(value, (str, bytes, Tensor)) or not isinstance(value, Iterable):
        return None
    return list(value)
