"""Objectives and loops that train programs with implicit parts."""

from pyro_sig.infer.aisivi import AISIVI, ImportanceScore
from pyro_sig.infer.auto_local_semi_implicit import AutoLocalSemiImplicit
from pyro_sig.infer.auto_semi_implicit import AutoSemiImplicit
from pyro_sig.infer.divi import DIVI, DenoisingScore
from pyro_sig.infer.find_scale import ScaleReport, find_scale
from pyro_sig.infer.fit import Fit, fit
from pyro_sig.infer.gradient_noise import GradientNoise, gradient_noise
from pyro_sig.infer.history import History
from pyro_sig.infer.ksivi import KSIVI
from pyro_sig.infer.mixing_gap import mixing_gap
from pyro_sig.infer.no_guide import no_guide
from pyro_sig.infer.path_gradient import MixtureScore, PathGradient_ELBO, ScoreEstimator
from pyro_sig.infer.pvi import PVI
from pyro_sig.infer.sig_elbo import SIG_ELBO
from pyro_sig.infer.sivism import SIVISM
from pyro_sig.infer.train import (
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteLossError,
    StopTraining,
    train,
)
from pyro_sig.infer.uivi import UIVI, HMCScore

__all__ = [
    "AISIVI",
    "DIVI",
    "KSIVI",
    "PVI",
    "SIG_ELBO",
    "SIVISM",
    "UIVI",
    "AutoLocalSemiImplicit",
    "AutoSemiImplicit",
    "DenoisingScore",
    "Fit",
    "GradientNoise",
    "HMCScore",
    "History",
    "ImportanceScore",
    "MixtureScore",
    "NonFiniteError",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "PathGradient_ELBO",
    "ScaleReport",
    "ScoreEstimator",
    "StopTraining",
    "find_scale",
    "fit",
    "gradient_noise",
    "mixing_gap",
    "no_guide",
    "train",
]
