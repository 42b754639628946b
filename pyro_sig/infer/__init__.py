"""Objectives and loops that train programs with implicit parts."""

from pyro_sig.infer.auto_semi_implicit import AutoSemiImplicit
from pyro_sig.infer.find_scale import ScaleReport, find_scale
from pyro_sig.infer.fit import Fit, fit
from pyro_sig.infer.no_guide import no_guide
from pyro_sig.infer.sig_elbo import SIG_ELBO
from pyro_sig.infer.train import History, NonFiniteLossError, StopTraining, train

__all__ = [
    "SIG_ELBO",
    "AutoSemiImplicit",
    "Fit",
    "History",
    "NonFiniteLossError",
    "ScaleReport",
    "StopTraining",
    "find_scale",
    "fit",
    "no_guide",
    "train",
]
