"""Every test starts from an empty parameter store, a fixed seed, and validation switched on.

Tolerances of statistical tests follow from a stated failure rate: the seed makes a failure
repeatable, it does not make a test pass.
"""

import os
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_start():
    """Clear the parameter store, seed, and validate arguments."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield


def pytest_collection_modifyitems(items):
    """Skip what is marked ``cuda`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


def pytest_ignore_collect(collection_path):
    """Look for doctests in the package only: importing a benchmark needs its extra."""
    inside = collection_path.is_relative_to(Path(__file__).parent)
    if inside and collection_path.suffix == ".py" and not collection_path.name.startswith("test_"):
        return True
    return None
