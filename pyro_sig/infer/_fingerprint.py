"""A short digest of data, by which a run that goes on knows its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["fingerprint"]

# Of a larger tensor, entries at equal distances: a look at all of it would cost more than a step.
_MAX_ENTRIES = 2**20


def fingerprint(data: Any) -> str:
    """Returns a digest of tensors, arrays, numbers and text in tuples, lists and dicts.

    :param data: anything; what is none of these counts by its type alone.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, data)
    return digest.hexdigest()


def _add(digest: Any, data: Any) -> None:
    if isinstance(data, np.ndarray) and data.dtype.kind in "biufc":
        data = torch.from_numpy(np.ascontiguousarray(data))
    if isinstance(data, Tensor) and data.layout == torch.strided:
        digest.update(f"{tuple(data.shape)} {data.dtype};".encode())
        entries = data.detach().reshape(-1)
        entries = entries[:: 1 + entries.numel() // _MAX_ENTRIES].resolve_conj().resolve_neg().cpu()
        digest.update(entries.contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(data, Mapping):
        for key, value in data.items():
            digest.update(f"{key!r}:".encode())
            _add(digest, value)
    elif isinstance(data, (tuple, list)):
        digest.update(f"{len(data)}(".encode())
        for value in data:
            _add(digest, value)
    elif isinstance(data, (bool, int, float, complex, str, bytes)):
        digest.update(f"{data!r};".encode())
    else:
        digest.update(f"{type(data).__name__};".encode())
