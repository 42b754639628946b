"""Valid calls of `pyro_sig.checkpoint`."""

import contextlib
import tempfile

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_sig import checkpoint
from tests.faults.recipes import Recipe


def in_a_folder(function):
    """Calls in an empty folder; a file that cannot be opened is an OSError, as is documented."""

    def call(**arguments):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            try:
                return function(**arguments)
            except OSError as error:
                raise ValueError(str(error)) from error

    return call


def network():
    return torch.nn.Linear(2, 1)


def svi():
    def model():
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=torch.ones(2))

    return SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def save_and_load(path, inference):
    checkpoint.save(path, inference)
    checkpoint.load(path, inference)


def load(path, inference, map_location):
    """The file that is there holds the state of a network."""
    checkpoint.save("file", network())
    checkpoint.load(path, inference, map_location=map_location)


def folder(path, keep, step, state, item, map_location):
    if isinstance(state, dict):
        state = {**state, "item": item}
    with checkpoint.CheckpointFolder(path, keep) as found:
        for i in range(2):
            assert found.write(i, {"i": i})
        assert found.write(step, state)
        return found.steps(), found.newest(map_location)


def check_folder(result, keep, step, **_):
    steps, (newest, state) = result
    assert len(steps) <= keep
    assert newest == max(1, step)
    assert isinstance(state, dict)


RECIPES: dict[str, Recipe] = {
    "checkpoint.save": Recipe(
        in_a_folder(save_and_load), lambda: {"path": "file", "inference": network()}
    ),
    "checkpoint.save, of SVI": Recipe(
        in_a_folder(save_and_load), lambda: {"path": "file", "inference": svi()}
    ),
    "checkpoint.save, of several": Recipe(
        in_a_folder(save_and_load),
        lambda: {"path": "file", "inference": {"net": network(), "random": torch.Generator()}},
    ),
    "checkpoint.load": Recipe(
        in_a_folder(load),
        lambda: {"path": "file", "inference": network(), "map_location": None},
    ),
    "checkpoint.CheckpointFolder": Recipe(
        in_a_folder(folder),
        lambda: {
            "path": "runs",
            "keep": 2,
            "step": 5,
            "state": {"loc": torch.zeros(2)},
            "item": torch.ones(2),
            "map_location": None,
        },
        check=check_folder,
    ),
}
