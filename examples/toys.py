"""Semi-implicit generators of the toys in figures 1 and 3 a of "Semi-Implicit Generative Model".

Counts are x ~ Poisson(psi), points of the plane are x ~ Normal(psi, sigma^2 I). The law of psi is
implicit: a network of two hidden layers pushes normal noise forward. Pyro's own SVI trains it on
fresh data, since every toy can be sampled. The output folder gets `metrics.json`, and `figure1.png`
and `figure3a.png` with data, samples and psi side by side.

    python examples/toys.py --out out/toys

Points need a trick: sigma starts wide and shrinks to the noise of the toy. With the small one from
the start, no psi is near enough to most of the data to be drawn to them.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from pyro_sig import datasets
from pyro_sig.datasets import Toy
from pyro_sig.diagnostics import energy_test, mode_coverage
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import train
from pyro_sig.nn import MLP

NUM_MIXING = 512  # psi in each step, shared by its data
BATCH_SIZE = 256
BETAS = (0.95, 0.999)
START_SIGMA = 1.0  # the toys of points have coordinates of this order
ANNEALED = 0.9  # share of the steps in which sigma shrinks
WARM_UP = 0.1  # share of the steps in which the learning rate grows

MAX_COUNT = 300  # no toy has a count above it in a million draws
NUM_TEST = 2000  # data, and samples, of the two-sample test
NUM_COVERAGE = 50_000
NUM_PLOTTED = 5000
DATA, SAMPLES, PSI = "0.45", "tab:blue", "tab:orange"


@dataclass(frozen=True)
class Task:
    """A toy and how to train on it.

    The noise of the counts is the paper's. Modes that lie in the plane are easier to reach from
    noise that does, too.
    """

    title: str
    figure: str
    make_toy: Callable[..., Toy]
    noise_dim: int
    num_steps: int
    rate: float

    def shortened(self) -> "Task":
        """Return the task with few steps, to see that it runs."""
        return replace(self, num_steps=100)


TASKS = {
    task.make_toy.__name__: task
    for task in [
        Task("Negative binomial", "figure1", datasets.negative_binomial, 10, 4000, 0.01),
        Task("Poisson + negative binomial", "figure1", datasets.poisson_negative_binomial, 10, 4000, 0.01),
        Task("Ring + noise", "figure1", datasets.noisy_ring, 2, 4000, 0.02),
        Task("8 Gaussians on a ring", "figure1", datasets.ring_of_gaussians, 2, 8000, 0.02),
        Task("Columns 1, 3, 5 twice as heavy", "figure3a", datasets.uneven_grid_of_gaussians, 2, 10_000, 0.04),
    ]
}
