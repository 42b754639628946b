"""Random numbers of several processes: one seed, a stream for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro

from pyro_sig._arguments import check_integer
from pyro_sig._rank_sum import check_group

__all__ = ["seed_ranks"]


def seed_ranks(seed: int, group: Any = None) -> int:  # noqa: ANN401
    """Seeds torch, NumPy and Python in this process, by a seed of all and its rank.

    Streams of different ranks, and of different seeds, have nothing to do with each other, as
    those of ``seed + rank`` would: rank 1 of seed 0 is not rank 0 of seed 1.

    :param int seed: the seed of the run, the same in every process; zero or positive.
    :param group: the process group, None for all processes.
    :return: the seed of this process.
    :raises ValueError: without a process group, or for another seed.

    Example::

        >>> import tempfile, torch.distributed
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> own = seed_ranks(0)
        >>> torch.distributed.destroy_process_group()
    """
    rank = check_group(group)[0]
    check_integer("seed", seed, 0, int)
    own = int(np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1)[0])
    pyro.set_rng_seed(own)
    return own
