"""Random streams apart from the user's, and the user's as it was."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch

from pyro_sig._arguments import check_instance, check_integer, refusal
from pyro_sig._random_state import preserved_random_state


def check_generator(generator: object) -> None:
    check_instance(
        "generator", generator, (torch.Generator, type(None)), "a torch.Generator or None"
    )


def own_stream(name: str, seed: int) -> torch.Generator:
    """Returns a generator whose stream is not that of ``torch.manual_seed(seed)``.

    A user who draws samples under the same seed would otherwise see them meet directions, splits
    or references that are made of the same numbers, and an exact test would not be one.

    :param name: what the stream is for.
    :param seed: of the stream, at least 0.
    """
    check_integer("seed", seed, 0)
    state = np.random.SeedSequence([zlib.crc32(name.encode()), seed]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@contextmanager
def random_state(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    check_integer("seed", seed, 0)
    if seed >= 2**32:  # numpy takes no larger one
        raise refusal("seed", "less than 2**32", seed)
    with preserved_random_state():
        pyro.set_rng_seed(seed)
        yield
