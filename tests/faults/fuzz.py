"""Spoils valid calls, and sorts what comes of them."""

import math
import signal
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from tests.faults.recipes import Recipe

__all__ = ["SPOILERS", "Outcome", "spoil", "variants"]

SECONDS = 20  # for one call, after which it hangs

# What may stand where something else is wanted; every value is made anew.
SPOILERS = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2": lambda: 2,
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "1j": lambda: 1j,
    "text": lambda: "text",
    "empty text": lambda: "",
    "bytes": lambda: b"text",
    "()": lambda: (),
    "[]": lambda: [],
    "{}": lambda: {},
    "[1, 'a']": lambda: [1, "a"],
    "object": lambda: object(),
    "a class": lambda: torch.nn.Linear,
    "lambda x": lambda: lambda x: x,
    "lambda *args": lambda: lambda *args, **kwargs: None,
    "raises": lambda: _raise,
    "scalar tensor": lambda: torch.tensor(1.0),
    "empty tensor": lambda: torch.zeros(0),
    "no rows": lambda: torch.zeros(0, 2),
    "no columns": lambda: torch.zeros(3, 0),
    "vector": lambda: torch.ones(3),
    "matrix": lambda: torch.ones(3, 2),
    "three dimensions": lambda: torch.ones(2, 3, 2),
    "double": lambda: torch.ones(3, 2, dtype=torch.float64),
    "half": lambda: torch.ones(3, 2, dtype=torch.float16),
    "integers": lambda: torch.arange(6).reshape(3, 2),
    "bool": lambda: torch.ones(3, 2, dtype=torch.bool),
    "complex": lambda: torch.ones(3, 2, dtype=torch.complex64),
    "nan tensor": lambda: torch.full((3, 2), math.nan),
    "inf tensor": lambda: torch.full((3, 2), math.inf),
    "meta device": lambda: torch.ones(3, 2, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "array": lambda: np.ones((3, 2)),
    "array of objects": lambda: np.array([object()]),
    "module": lambda: torch.nn.Linear(2, 2),
    "no parameters": lambda: torch.nn.Identity(),
    "Normal": lambda: dist.Normal(torch.zeros(2), 1.0),
    "Normal event": lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "Poisson": lambda: dist.Poisson(torch.ones(2)).to_event(1),
    "Categorical": lambda: dist.Categorical(torch.ones(3)),
    "Adam of Pyro": lambda: pyro.optim.Adam({"lr": 1e-3}),
    "Adam of torch": lambda: torch.optim.Adam(torch.nn.Linear(1, 1).parameters()),
}


def _raise(*args, **kwargs):
    raise ValueError("a callable of the user raises")


class Outcome(Counter):
    """Counts of results, clear errors, and anything else with its cases."""

    def __init__(self):
        super().__init__()
        self.bad = {}  # errors by case


PATIENCE = 10  # alarms, where the processor was elsewhere


class Hang(BaseException):
    """A call took too long."""


@contextmanager
def limit(seconds):
    """Raises after some seconds of work, or many of waiting: other programs may have the cores."""
    start, rings = time.process_time(), 0

    def ring(*_):
        nonlocal rings
        rings += 1
        if rings == PATIENCE or time.process_time() - start >= seconds:
            raise Hang
        signal.alarm(seconds)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def variants(recipe: Recipe):
    """Names of the arguments that may be spoiled."""
    return [name for name in recipe.arguments() if name not in recipe.keep]


def spoil(name: str, recipe: Recipe, spoiled: dict[str, str], outcome: Outcome) -> None:
    """Calls with some arguments replaced, and counts what comes of it.

    :param name: of the recipe.
    :param recipe: the valid call.
    :param spoiled: argument -> key of :data:`SPOILERS`.
    :param outcome: where it is counted.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    case = f"{name}({', '.join(f'{k}={v}' for k, v in spoiled.items())})"
    try:
        with limit(SECONDS), warnings.catch_warnings(), pyro.validation_enabled(True):
            warnings.simplefilter("ignore")
            arguments = recipe.arguments()
            arguments |= {key: SPOILERS[value]() for key, value in spoiled.items()}
            result = recipe.function(**arguments)
            if recipe.then is not None:
                result = recipe.then(result, **arguments)
            if recipe.check is not None:
                recipe.check(result, **arguments)
            outcome["results"] += 1
    except (ValueError, NotImplementedError) as error:
        if str(error).strip():
            outcome["clear errors"] += 1
        else:
            outcome["anything else"] += 1
            outcome.bad[case] = f"{type(error).__name__} without a word"
    except (Hang, Exception) as error:  # whatever it is
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
        outcome["anything else"] += 1
        outcome.bad[case] = f"{type(error).__name__} at {place}: {str(error)[:150]}"
