"""Penalties and constraints that keep a critic smooth, and what evaluates several at once."""

from pyro_sig.adversarial.penalties.gradient_penalty import GradientPenalty
from pyro_sig.adversarial.penalties.lipschitz import controls_lipschitz
from pyro_sig.adversarial.penalties.mixes_rows import mixes_rows
from pyro_sig.adversarial.penalties.penalty import Penalty, gradient_points, penalize
from pyro_sig.adversarial.penalties.spectral_norm import spectral_norm
from pyro_sig.adversarial.penalties.weight_clipping import WeightClipping
from pyro_sig.adversarial.penalties.zero_centred import R1, R2

__all__ = [
    "R1",
    "R2",
    "GradientPenalty",
    "Penalty",
    "WeightClipping",
    "controls_lipschitz",
    "gradient_points",
    "mixes_rows",
    "penalize",
    "spectral_norm",
]
