"""Checks of what a caller passes, each naming the argument in its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_sig._program_run import is_function
from pyro_sig.distributions.components import check_positive

__all__ = [
    "check_callable",
    "check_elbo",
    "check_flag",
    "check_integer",
    "check_number",
    "check_sizes",
    "check_tensor",
    "describe",
]


def describe(value: Any) -> str:  # noqa: ANN401 - whatever a caller passed
    """What a value was, in few words.

    :param value: whatever a caller passed.
    """
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f"{value.layout} "
        return f"a {layout}{value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return repr(value)


def check_callable(
    name: str,
    value: Any,  # noqa: ANN401
    optional: bool = False,
    module: bool = True,
) -> None:
    """Checks that something is a function or a module, or None where this will do.

    :param str name: the argument's name.
    :param value: what was passed.
    :param optional: whether None will do.
    :param module: whether a module will do.
    :raises ValueError: if it is neither.
    """
    fits = is_function(value) and (module or not isinstance(value, nn.Module))
    if not fits and not (optional and value is None):
        must_be = "a function or a module" if callable(value) else "callable"
        raise ValueError(f"`{name}` must be {must_be}, was {describe(value)}")


def check_flag(name: str, value: Any) -> bool:  # noqa: ANN401
    """Checks a switch.

    :param str name: the argument's name.
    :param value: what was passed.
    :raises ValueError: unless it is True or False.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False, was {describe(value)}")
    return bool(value)


def check_integer(name: str, value: Any, least: float = 0) -> None:  # noqa: ANN401
    """Checks an integer.

    :param str name: the argument's name.
    :param value: what was passed.
    :param least: the smallest that will do.
    :raises ValueError: if it is none, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        bound = f" of at least {least}" if least > -math.inf else ""
        raise ValueError(f"`{name}` must be an integer{bound}, was {describe(value)}")


def check_tensor(name: str, value: Any) -> None:  # noqa: ANN401
    """Checks that something is a tensor to compute with.

    :param str name: the argument's name.
    :param value: what was passed.
    :raises ValueError: unless it is a dense floating point tensor that holds numbers.
    """
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if not dense or not value.is_floating_point():
        raise ValueError(f"`{name}` must be a dense floating point tensor, was {describe(value)}")


def check_number(
    name: str,
    value: Any,  # noqa: ANN401
    *,
    positive: bool = False,
    most: float = math.inf,
    finite: bool = True,
) -> float:
    """Returns a number that is large enough.

    :param str name: the argument's name.
    :param value: a number, or a tensor that holds one.
    :param positive: whether 0 is too small.
    :param most: the largest that will do.
    :param finite: whether infinity is too large.
    :raises ValueError: if it is not.
    """
    number = value
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        number = value.item()
    good = isinstance(number, Real) and not isinstance(number, bool)
    if good:
        number = float(number)
        good = (number > 0 if positive else number >= 0) and number <= most
        good = good and (math.isfinite(number) or not finite)
    if not good:
        least = "a positive number" if positive else "a number of at least 0"
        if most < math.inf:
            least = f"a number between 0 and {most:g}"
        raise ValueError(
            f"`{name}` must be {least}{'' if finite else ' or inf'}, was {describe(value)}"
        )
    return number


def check_sizes(name: str, sizes: Any) -> list[int]:  # noqa: ANN401
    """Returns the sizes of the layers of a network.

    :param str name: the argument's name.
    :param sizes: what was passed.
    :raises ValueError: unless it is a sequence of positive integers.
    """
    if not isinstance(sizes, Sequence) or isinstance(sizes, (str, bytes)):
        raise ValueError(f"`{name}` must be a sequence of positive integers, was {describe(sizes)}")
    for size in sizes:
        check_positive(name, size)
    return list(sizes)


def check_elbo(
    num_particles: Any = 1,  # noqa: ANN401
    max_plate_nesting: Any = math.inf,  # noqa: ANN401
    vectorize_particles: Any = False,  # noqa: ANN401
    **others: Any,  # noqa: ANN401
) -> None:
    """Checks what every ELBO takes, of which Pyro's own do not look at all.

    :param num_particles: the number of draws.
    :param max_plate_nesting: dimensions of plates; infinite if it is to be found.
    :param vectorize_particles: whether the draws are made at once.
    :param others: what else an ELBO takes, not looked at.
    :raises ValueError: if one of them is something else.
    """
    check_positive("num_particles", num_particles)
    if not (isinstance(max_plate_nesting, float) and max_plate_nesting == math.inf):
        check_integer("max_plate_nesting", max_plate_nesting)
    check_flag("vectorize_particles", vectorize_particles)
