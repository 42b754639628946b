"""What to look at before believing a fit.

Everything here takes samples, programs and distributions; nothing here trains.
"""

from pyro_sig.diagnostics.importance import log_importance_weights
from pyro_sig.diagnostics.inference_data import draws_to_inference_data, to_inference_data
from pyro_sig.diagnostics.mode_coverage import ModeCoverage, mode_coverage
from pyro_sig.diagnostics.pareto import pareto_k_hat
from pyro_sig.diagnostics.sliced_wasserstein import sliced_wasserstein
from pyro_sig.diagnostics.two_sample import TwoSampleTest, energy_distance, energy_test

__all__ = [
    "ModeCoverage",
    "TwoSampleTest",
    "draws_to_inference_data",
    "energy_distance",
    "energy_test",
    "log_importance_weights",
    "mode_coverage",
    "pareto_k_hat",
    "sliced_wasserstein",
    "to_inference_data",
]
