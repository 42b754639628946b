"""Data of the semi-implicit and adversarial literature: toys, counts, digits, reference posteriors.

Each toy is a :class:`Toy`: a Pyro distribution that can be sampled and scored exactly, with the
centres of its modes and, for counts, the true mixing law. Readers take files that are already on
disk; nothing is downloaded. Where `dtype` or `device` is None, torch's default holds.

The seed of the toys is Yin and Zhou, *Semi-Implicit Generative Model* (2019), "the SIG paper".
"""

from pyro_sig.datasets.binarized_mnist import load_binarized_mnist
from pyro_sig.datasets.cifar import load_cifar10
from pyro_sig.datasets.counts import (
    ACCIDENT_FREQUENCIES,
    MITE_FREQUENCIES,
    FiniteMixture,
    accident_counts,
    mite_counts,
    negative_binomial,
    poisson_negative_binomial,
)
from pyro_sig.datasets.groups import pad_groups
from pyro_sig.datasets.posteriordb import PosteriorDB, posteriordb_names, read_posteriordb
from pyro_sig.datasets.readers import load_digits, load_mnist, read_idx
from pyro_sig.datasets.stacked_digits import StackedDigits
from pyro_sig.datasets.toys import (
    NoisyRing,
    Toy,
    grid_of_gaussians,
    noisy_ring,
    ring_of_gaussians,
    uneven_grid_of_gaussians,
)

__all__ = [
    "ACCIDENT_FREQUENCIES",
    "MITE_FREQUENCIES",
    "FiniteMixture",
    "NoisyRing",
    "PosteriorDB",
    "StackedDigits",
    "Toy",
    "accident_counts",
    "grid_of_gaussians",
    "load_binarized_mnist",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "mite_counts",
    "negative_binomial",
    "noisy_ring",
    "pad_groups",
    "poisson_negative_binomial",
    "posteriordb_names",
    "read_idx",
    "read_posteriordb",
    "ring_of_gaussians",
    "uneven_grid_of_gaussians",
]
