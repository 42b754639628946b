"""Random states of torch, NumPy and Python: kept as they were, saved and restored."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["preserved_random_state", "random_state", "set_random_state"]


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leaves the random states of torch, NumPy and Python as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Named devices: by default torch warns where there are several.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def random_state() -> dict[str, Any]:
    """Returns the random states in tensors and numbers, which a file can hold without code.

    Devices count once CUDA has been used.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if used else [],
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what :func:`random_state` returned.

    :param state: the state; those of devices that are not here are left out.
    """
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved.cpu(), device)
    own = state["numpy"]
    keys = own["keys"].numpy().astype(np.uint32)
    np.random.set_state((own["name"], keys, own["position"], own["has_gauss"], own["cached"]))
    own = state["python"]
    random.setstate((own["version"], tuple(own["words"].tolist()), own["gauss"]))
