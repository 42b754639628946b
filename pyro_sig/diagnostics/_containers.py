"""Dicts, sequences and arrays that a caller passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import is_dense, refusal


def as_tensor(value: Any) -> Any:
    """Turns an array of numbers into a tensor, and leaves all else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return torch.as_tensor(value)
    return value


def check_mapping(name: str, value: object, of: str) -> None:
    """Raises unless ``value`` is a dict with names for keys."""
    if not isinstance(value, Mapping):
        raise refusal(name, f"a dict of {of} by name", value)
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"`{name}` must have names for keys, but {key!r} was among them")


def check_names(name: str, value: Any) -> list[str]:
    """Returns a sequence of names as a list; a single name is none."""
    names = as_list(value)
    if names is None or not all(isinstance(one, str) for one in names):
        raise refusal(name, "a sequence of names", value)
    return names


def as_list(value: Any) -> list[Any] | None:
    """Returns the entries of a sequence, but not those of a text; None of what is no sequence."""
    if isinstance(value, np.ndarray) or (is_dense(value) and value.dim()):
        return value.tolist() if value.ndim else None
    if isinstance(value, (str, bytes, Tensor)) or not isinstance(value, Iterable):
        return None
    return list(value)
