"""What to look at before believing a fit.

Everything here takes samples, programs and distributions; nothing here trains.
"""

from pyro_sig.diagnostics.c2st import c2st
from pyro_sig.diagnostics.class_coverage import ClassCoverage, class_coverage
from pyro_sig.diagnostics.draw_matrix import draw_matrix
from pyro_sig.diagnostics.energy import energy_distance, energy_test
from pyro_sig.diagnostics.evidence_bounds import EvidenceBounds, evidence_bounds
from pyro_sig.diagnostics.feature_distances import (
    KernelDistance,
    frechet_distance,
    kernel_distance,
)
from pyro_sig.diagnostics.guide_density import guide_log_prob
from pyro_sig.diagnostics.guide_draws import draws_from
from pyro_sig.diagnostics.importance import log_importance_weights
from pyro_sig.diagnostics.inception_score import InceptionScore, inception_score
from pyro_sig.diagnostics.inference_data import draws_to_inference_data, to_inference_data
from pyro_sig.diagnostics.k_hat import KHat, effective_share, k_hat
from pyro_sig.diagnostics.mmd import mmd, mmd_test
from pyro_sig.diagnostics.mode_coverage import ModeCoverage, mode_coverage
from pyro_sig.diagnostics.pareto import pareto_k_hat
from pyro_sig.diagnostics.permutation import TwoSampleTest
from pyro_sig.diagnostics.precision_recall import (
    PrecisionRecall,
    precision_recall_density_coverage,
)
from pyro_sig.diagnostics.report import Report, ReportLine, report
from pyro_sig.diagnostics.sbc import SBC, log_likelihood_of, sbc, sbc_ranks
from pyro_sig.diagnostics.sliced_wasserstein import sliced_wasserstein, sliced_wasserstein_test
from pyro_sig.diagnostics.stein import SteinTest, kernel_stein_discrepancy, kernel_stein_test
from pyro_sig.diagnostics.tarp import TARP, tarp
from pyro_sig.diagnostics.unconstrained_score import unconstrained_score
from pyro_sig.diagnostics.uniformity import (
    EcdfBands,
    UniformityTest,
    ecdf_bands,
    uniformity_test,
)

__all__ = [
    "ClassCoverage",
    "EcdfBands",
    "EvidenceBounds",
    "InceptionScore",
    "KHat",
    "KernelDistance",
    "ModeCoverage",
    "PrecisionRecall",
    "Report",
    "ReportLine",
    "SBC",
    "SteinTest",
    "TARP",
    "TwoSampleTest",
    "UniformityTest",
    "c2st",
    "class_coverage",
    "draw_matrix",
    "draws_from",
    "draws_to_inference_data",
    "ecdf_bands",
    "effective_share",
    "energy_distance",
    "energy_test",
    "evidence_bounds",
    "frechet_distance",
    "guide_log_prob",
    "inception_score",
    "k_hat",
    "kernel_distance",
    "kernel_stein_discrepancy",
    "kernel_stein_test",
    "log_importance_weights",
    "log_likelihood_of",
    "mmd",
    "mmd_test",
    "mode_coverage",
    "pareto_k_hat",
    "precision_recall_density_coverage",
    "report",
    "sbc",
    "sbc_ranks",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
    "tarp",
    "to_inference_data",
    "unconstrained_score",
    "uniformity_test",
]
