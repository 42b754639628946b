"""50,000 rows against 50,000 in the plane stay within 2 GiB."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from pyro_sig.diagnostics import (
    energy_distance,
    energy_test,
    mmd,
    mmd_test,
    precision_recall_density_coverage,
    sliced_wasserstein,
)
from tests.bench.measure import added_memory

COUNT = 50_000

CALLS = {
    "mmd": mmd,
    "energy_distance": energy_distance,
    "sliced_wasserstein": sliced_wasserstein,
    "precision_recall_density_coverage": precision_recall_density_coverage,
    "mmd_test": lambda x, y: mmd_test(x, y, num_permutations=9, bandwidth=1.0),
    "energy_test": lambda x, y: energy_test(x, y, num_permutations=9),
}


def added_by(name):
    """MiB that a call adds to the resident memory at its peak, the samples included.

    Not ``ru_maxrss``: that begins at the size of the process that started this one.
    """
    torch.set_num_threads(1)

    def call():
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(COUNT, 2, generator=generator) for _ in range(2))
        CALLS[name](x, y)

    return added_memory(call)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", CALLS)
def test_peak_memory(name):
    # One matrix of all pairs would take 9.3 GiB.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(added_by, name).result() < 2048
