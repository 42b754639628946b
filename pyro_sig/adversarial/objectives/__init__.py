"""What critic and generator minimise, as functions of the critic's scores.

The order of arguments is (real, fake) everywhere, and a larger score means more real.
"""

from pyro_sig.adversarial.objectives.cross_entropy import (
    MaximumLikelihood,
    Minimax,
    NonSaturating,
    ReverseKL,
)
from pyro_sig.adversarial.objectives.f_divergence import FDivergence
from pyro_sig.adversarial.objectives.hinge import Hinge
from pyro_sig.adversarial.objectives.least_squares import LeastSquares
from pyro_sig.adversarial.objectives.objective import Objective
from pyro_sig.adversarial.objectives.relativistic import Relativistic
from pyro_sig.adversarial.objectives.wasserstein import Wasserstein

__all__ = [
    "FDivergence",
    "Hinge",
    "LeastSquares",
    "MaximumLikelihood",
    "Minimax",
    "NonSaturating",
    "Objective",
    "Relativistic",
    "ReverseKL",
    "Wasserstein",
]
