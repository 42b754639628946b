"""The toys that every test of the contract runs over."""

from collections.abc import Callable

from pyro_sig import datasets
from pyro_sig.datasets.toys import Toy

COUNTS: list[Callable[..., Toy]] = [
    lambda **kw: datasets.negative_binomial(2.0, 0.8, **kw),
    lambda **kw: datasets.negative_binomial(0.7, 0.4, **kw),
    lambda **kw: datasets.poisson_negative_binomial(30.0, 2.0, 0.8, 0.3, **kw),
]
POINTS: list[Callable[..., Toy]] = [
    datasets.noisy_ring,
    datasets.ring_of_gaussians,
    datasets.grid_of_gaussians,
    datasets.uneven_grid_of_gaussians,
]
MIXTURES = POINTS[1:]
