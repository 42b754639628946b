"""Objectives and loops that train programs with implicit parts."""

from pyro_sig.infer.no_guide import no_guide
from pyro_sig.infer.sig_elbo import SIG_ELBO
from pyro_sig.infer.train import History, NonFiniteLossError, StopTraining, train

__all__ = ["SIG_ELBO", "History", "NonFiniteLossError", "StopTraining", "no_guide", "train"]
