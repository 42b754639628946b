"""Distributions that can be sampled but not, or not wholly, scored."""

from pyro_sig.distributions import exponential_families  # noqa: F401 - fills the registry
from pyro_sig.distributions.affine_maps import (
    LowRankAffine,
    SharedTransform,
    TriangularAffine,
)
from pyro_sig.distributions.backward_modes import BackwardReport, Responsibility, TopK
from pyro_sig.distributions.discretized_logistic import DiscretizedLogistic
from pyro_sig.distributions.fixed_mixture import FixedMixture
from pyro_sig.distributions.implicit import Implicit
from pyro_sig.distributions.log_mixture import log_mixture
from pyro_sig.distributions.pairwise import (
    Terms,
    mixture_log_prob,
    pairwise_log_prob,
    pairwise_terms,
    register_pairwise,
)
from pyro_sig.distributions.particle_mixing import ParticleMixing
from pyro_sig.distributions.psi_posterior import PsiPosterior
from pyro_sig.distributions.semi_implicit import SemiImplicit

__all__ = [
    "BackwardReport",
    "DiscretizedLogistic",
    "FixedMixture",
    "Implicit",
    "LowRankAffine",
    "ParticleMixing",
    "PsiPosterior",
    "Responsibility",
    "SemiImplicit",
    "SharedTransform",
    "Terms",
    "TopK",
    "TriangularAffine",
    "log_mixture",
    "mixture_log_prob",
    "pairwise_log_prob",
    "pairwise_terms",
    "register_pairwise",
]
