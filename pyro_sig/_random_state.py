"""Random states, kept as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["preserved_random_state"]


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
