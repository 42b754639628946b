"""Random streams apart from the user's."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def own_stream(name: str, seed: int) -> torch.Generator:
    """Returns a generator whose stream is not that of ``torch.manual_seed(seed)``.

    A user who draws samples under the same seed would otherwise see them meet directions, splits
    or references that are made of the same numbers, and an exact test would not be one.

    :param name: what the stream is for.
    :param seed: of the stream, at least 0.
    """
    if isinstance(seed, bool) or not (isinstance(seed, int) and seed >= 0):
        raise ValueError(f"`seed` must be an integer of at least 0, but was {seed!r}.")
    state = np.random.SeedSequence([zlib.crc32(name.encode()), seed]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
