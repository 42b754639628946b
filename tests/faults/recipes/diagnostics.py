"""Valid calls of `pyro_sig.diagnostics`."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from sklearn.linear_model import LogisticRegression

from pyro_sig import diagnostics
from pyro_sig.diagnostics import SBC, TARP
from tests.faults.recipes import Recipe

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(count, 2, generator=GENERATOR) + shift for count, shift in ((12, 0), (10, 1)))
DATA = torch.randn(3, 2, generator=GENERATOR)


# ------------------------------------------------------------------------------------- the programs


def model(data):
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("row", len(data)):
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)


def guide(data):
    pyro.sample("z", dist.Normal(data.mean(0), 0.6).to_event(1))


def other_guide(data):
    pyro.sample("z", dist.Normal(data.mean(0) + 0.1, 0.5).to_event(1))


def posterior(count, *lead):
    generator = torch.Generator().manual_seed(1)
    return {"z": DATA.mean(0) + torch.randn(*lead, count, 2, generator=generator) / 2}


def of_data(function):
    """Gives the programs data, so that a module, or any other function of a tensor, is one too."""

    def call(**arguments):
        programs = [arguments.pop(name) for name in ("model", "guide") if name in arguments]
        return function(*programs, DATA, **arguments)

    return call


def quiet(**arguments):
    """Arguments of small runs."""
    return {"num_samples": 8, "parallel": True} | arguments


# --------------------------------------------------------------------------------------- the checks


def is_finite(result, **_):
    assert math.isfinite(result)


def is_scalar(result, **_):
    assert result.shape == () and result.is_floating_point() and result.isfinite()


def is_test(result, **_):
    assert math.isfinite(result.statistic) and 0 < result.p_value <= 1
    assert "p_value" in repr(result)


def are_shares(result, **_):
    assert all(math.isfinite(value) and value >= 0 for value in result)
    assert max(result.precision, result.recall, result.coverage) <= 1


def are_draws(result, num_samples, **_):
    assert all(value.shape[0] == num_samples for value in result.values()) and result


def are_weights(result, num_samples, **_):
    assert result.shape == (num_samples,) and result.dtype is torch.double
    assert not result.isnan().any() and (result < torch.inf).all()


def is_k_hat(result, **_):
    assert not math.isnan(result.k_hat) and 0 < result.effective_share <= 1
    assert result.verdict and repr(result)


def are_bounds(result, num_importance, posterior, **_):
    assert result.lower.shape == result.lower_error.shape == (len(num_importance),)
    assert (result.upper is None) == (posterior is None) == (result.gap is None)
    assert not result.lower.isnan().any() and repr(result)


def are_sorted_bands(result, **_):
    assert (result.lower <= result.upper).all() and result.points.isfinite().all()
    assert result.lower.min() >= 0 and result.upper.max() <= 1


def are_p_values(result, ranks, **_):
    assert result.p_value.shape == ranks.shape[1:]
    assert ((result.p_value > 0) & (result.p_value <= 1)).all()


def are_calibrated(result, **_):
    assert 0 < result.p_value <= 1 and repr(result)


def are_ranks(result, truths, draws, **_):
    assert result.shape == truths.shape and not result.is_floating_point()
    assert result.min() >= 0 and result.max() <= draws.shape[1]


def is_coverage_curve(result, **_):
    assert result.coverage.shape == result.levels.shape == (result.num_draws,)
    assert result.coverage.isfinite().all()
    are_calibrated(result)


def is_class_coverage(result, num_classes, **_):
    assert 1 <= result.covered <= num_classes and result.counts.shape == (num_classes,)
    assert math.isfinite(result.kl + result.floor + result.floor_std) and repr(result)


def is_mode_coverage(result, modes, **_):
    assert 0 <= result.captured <= len(modes) and result.counts.shape == (len(modes),)
    assert 0 <= result.high_quality <= 1 and math.isfinite(result.kl) and repr(result)


def is_matrix(result, **_):
    assert result.dim() == 2 and result.numel() and not result.is_complex()


def are_scores(result, **_):
    points, score = result
    assert points.shape == score.shape and points.dim() == 2
    assert points.isfinite().all() and score.isfinite().all()


def is_inception_score(result, **_):
    assert all(math.isfinite(value) for value in result)
    assert result.mean >= 1 - 1e-6 and result.std >= 0


def is_kernel_distance(result, **_):
    assert math.isfinite(result.mean) and result.standard_error >= 0 and result.std >= 0
    assert repr(result)


def is_labelled(result, **_):
    """Reads every array of every group, as whoever is handed the object does."""
    groups = list(result.groups()) if callable(result.groups) else list(result.groups)
    arrays = [x.values for group in groups for x in result[group.strip("/")].data_vars.values()]
    assert arrays and all(isinstance(array, np.ndarray) for array in arrays)


def is_report(result, **_):
    assert len(result.lines) == 9 and result.overall and repr(result)


# -------------------------------------------------------------------------------------- the recipes


def samples(**arguments):
    return lambda: {"x": X.clone(), "y": Y.clone()} | arguments


def features(**arguments):
    return lambda: {"real": X.clone(), "fake": Y.clone()} | arguments


def plot_sbc(level, columns):
    from matplotlib import pyplot

    ranks = {"mu": torch.arange(20) % 10, "nu": torch.arange(40).reshape(20, 2) % 10}
    pyplot.close(SBC(ranks, num_draws=9).plot(level, columns))


def plot_tarp(level):
    from matplotlib import pyplot

    pyplot.close(TARP(torch.arange(20) % 10, num_draws=9).plot(level))


def tolerant(program):
    """Lets a program of the user's fail by itself only where it is told to.

    What an optimiser or a network does with arguments that are not for it is no affair of ours.
    """
    foreign = isinstance(program, (torch.nn.Module, pyro.optim.PyroOptim))
    return torch.nn.Identity() if foreign else program


def calibrate(model, posterior, **arguments):
    return diagnostics.sbc(model, tolerant(posterior), DATA, progress=False, **arguments)


def posterior_of(observations):
    return diagnostics.draws_from(guide, observations["x"], num_samples=9)


def largest(latents, observations):
    return latents["z"].max() + observations["x"].sum()


def score_draws(result, model, **_):
    return result({"z": torch.zeros(2)}, {"x": DATA})


def score_values(latents, observations):
    return diagnostics.log_likelihood_of(model, DATA)(latents, observations)


def automatic_guide_log_prob(values):
    automatic = AutoNormal(model)
    automatic(DATA)
    return diagnostics.guide_log_prob(automatic, values, DATA)


def save_report(path):
    """Saves into a folder of its own, whatever the name."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return diagnostics.report(
                model, guide, DATA, num_samples=50, parallel=True, seed=0, quiet=True, path=path
            )
        finally:
            os.chdir(before)


def draw_page(result, **_):
    result.plot()
    return result


SCORE = -X
LOG_WEIGHTS = torch.randn(60, generator=GENERATOR)

RECIPES: dict[str, Recipe] = {
    "diagnostics.c2st": Recipe(
        diagnostics.c2st,
        samples(classifier=LogisticRegression(), held_out=0.5, seed=0),
        check=is_test,
    ),
    "diagnostics.class_coverage": Recipe(
        diagnostics.class_coverage,
        lambda: {"classes": torch.tensor([0, 0, 1, 2, 2, 1]), "num_classes": 6},
        check=is_class_coverage,
    ),
    "diagnostics.draw_matrix": Recipe(
        diagnostics.draw_matrix,
        lambda: {"draws": {"a": torch.zeros(4, 2), "b": torch.ones(4)}, "sites": ["a"]},
        check=is_matrix,
    ),
    "diagnostics.draw_matrix, entry": Recipe(
        lambda a, b: diagnostics.draw_matrix({"a": a, "b": b}),
        lambda: {"a": torch.zeros(3, 2), "b": np.ones(3)},
        check=is_matrix,
    ),
    "diagnostics.draws_from": Recipe(
        of_data(diagnostics.draws_from),
        lambda: {"guide": guide, "num_samples": 3},
        check=are_draws,
    ),
    "diagnostics.draws_to_inference_data": Recipe(
        diagnostics.draws_to_inference_data,
        lambda: {
            "posterior": {"z": torch.zeros(1, 3, 2)},
            "prior": {"z": torch.zeros(4, 2)},
            "posterior_predictive": {"x": np.zeros((1, 3, 2))},
            "prior_predictive": {"x": torch.zeros(4, 2)},
            "log_likelihood": {"x": torch.zeros(1, 3, 2)},
            "sample_stats": {"lp": torch.zeros(1, 3)},
            "observed_data": {"x": torch.zeros(2)},
            "chains": True,
            "coords": {"axis": ["a", "b"]},
            "dims": {"z": ["axis"]},
            "attrs": {"seed": 0},
        },
        check=is_labelled,
    ),
    "diagnostics.draws_to_inference_data, entry": Recipe(
        lambda draws, observed, coords, dims, attr: diagnostics.draws_to_inference_data(
            {"z": draws, "w": torch.zeros(3)},
            observed_data={"x": observed},
            coords={"axis": coords},
            dims={"z": dims},
            attrs={"note": attr},
        ),
        lambda: {
            "draws": torch.zeros(3, 2),
            "observed": torch.zeros(2),
            "coords": ["a", "b"],
            "dims": ["axis"],
            "attr": "text",
        },
        check=is_labelled,
    ),
    "diagnostics.ecdf_bands": Recipe(
        diagnostics.ecdf_bands,
        lambda: {
            "num_ranks": 20,
            "num_draws": 9,
            "level": 0.9,
            "num_points": 5,
            "num_simulations": 99,
        },
        check=are_sorted_bands,
    ),
    "diagnostics.effective_share": Recipe(
        diagnostics.effective_share,
        lambda: {"log_weights": LOG_WEIGHTS.clone()},
        check=is_finite,
    ),
    "diagnostics.energy_distance": Recipe(
        diagnostics.energy_distance, samples(unbiased=True), check=is_scalar
    ),
    "diagnostics.energy_test": Recipe(
        diagnostics.energy_test, samples(num_permutations=19, generator=None), check=is_test
    ),
    "diagnostics.evidence_bounds": Recipe(
        of_data(diagnostics.evidence_bounds),
        lambda: quiet(
            model=model,
            guide=guide,
            num_importance=[1, 3],
            num_samples=4,
            posterior=posterior(3),
            num_mixing=5,
        ),
        check=are_bounds,
    ),
    "diagnostics.evidence_bounds, draws": Recipe(
        lambda z, size: diagnostics.evidence_bounds(
            model,
            guide,
            DATA,
            num_importance=[size],
            num_samples=4,
            posterior={"z": z},
            parallel=True,
        ),
        lambda: {"z": posterior(3)["z"], "size": 2},
        check=lambda result, **_: is_scalar(result.upper[0]),
    ),
    "diagnostics.frechet_distance": Recipe(
        diagnostics.frechet_distance, features(), check=is_scalar
    ),
    "diagnostics.guide_log_prob": Recipe(
        lambda guide, values: diagnostics.guide_log_prob(guide, values, DATA),
        lambda: {"guide": guide, "values": {"z": torch.zeros(2)}},
        check=is_scalar,
    ),
    "diagnostics.guide_log_prob, value": Recipe(
        lambda z: diagnostics.guide_log_prob(guide, {"z": z}, DATA),
        lambda: {"z": torch.zeros(2)},
        check=is_scalar,
    ),
    "diagnostics.guide_log_prob, automatic": Recipe(
        automatic_guide_log_prob,
        lambda: {"values": {"z": torch.zeros(2)}},
        check=is_scalar,
    ),
    "diagnostics.guide_log_prob, value of an automatic one": Recipe(
        lambda z: automatic_guide_log_prob({"z": z}),
        lambda: {"z": torch.zeros(2)},
        check=is_scalar,
    ),
    "diagnostics.inception_score": Recipe(
        diagnostics.inception_score,
        lambda: {"probabilities": X.softmax(-1), "num_splits": 3},
        check=is_inception_score,
    ),
    "diagnostics.k_hat": Recipe(
        of_data(diagnostics.k_hat),
        lambda: {
            "model": model,
            "guide": guide,
            "num_samples": 50,
            "num_repeats": 2,
            "num_mixing": 5,
            "parallel": True,
            "progress": False,
        },
        check=is_k_hat,
    ),
    "diagnostics.kernel_distance": Recipe(
        diagnostics.kernel_distance,
        features(num_subsets=3, subset_size=4, generator=None),
        check=is_kernel_distance,
    ),
    "diagnostics.kernel_stein_discrepancy": Recipe(
        diagnostics.kernel_stein_discrepancy,
        lambda: {
            "samples": X.clone(),
            "log_prob": lambda x: -x.square().sum(-1) / 2,
            "kernel": "rbf",
            "bandwidth": 1.0,
            "unbiased": True,
        },
        check=is_scalar,
    ),
    "diagnostics.kernel_stein_discrepancy, score": Recipe(
        diagnostics.kernel_stein_discrepancy,
        lambda: {"samples": X.clone(), "score": SCORE.clone(), "bandwidth": None},
        check=is_scalar,
    ),
    "diagnostics.kernel_stein_test": Recipe(
        diagnostics.kernel_stein_test,
        lambda: {
            "samples": X.clone(),
            "log_prob": lambda x: -x.square().sum(-1) / 2,
            "score": None,
            "kernel": "imq",
            "bandwidth": 1.0,
            "num_bootstraps": 19,
            "generator": None,
        },
        check=is_test,
    ),
    "diagnostics.log_importance_weights": Recipe(
        of_data(diagnostics.log_importance_weights),
        lambda: quiet(model=model, guide=guide, num_mixing=5),
        check=are_weights,
    ),
    "diagnostics.log_likelihood_of": Recipe(
        lambda model: diagnostics.log_likelihood_of(model, DATA),
        lambda: {"model": model},
        then=score_draws,
        check=is_scalar,
    ),
    "diagnostics.log_likelihood_of, values": Recipe(
        score_values,
        lambda: {"latents": {"z": torch.zeros(2)}, "observations": {"x": DATA.clone()}},
        check=is_scalar,
    ),
    "diagnostics.mmd": Recipe(
        diagnostics.mmd, samples(unbiased=True, kernel="imq", bandwidth=[1.0]), check=is_scalar
    ),
    "diagnostics.mmd_test": Recipe(
        diagnostics.mmd_test,
        samples(num_permutations=19, generator=None, kernel="rbf", bandwidth=None),
        check=is_test,
    ),
    "diagnostics.mode_coverage": Recipe(
        diagnostics.mode_coverage,
        lambda: {
            "samples": X.clone(),
            "modes": torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]),
            "std": 0.3,
            "num_std": 3.0,
            "min_count": 1.0,
            "weights": torch.ones(3),
        },
        check=is_mode_coverage,
    ),
    "diagnostics.pareto_k_hat": Recipe(
        diagnostics.pareto_k_hat,
        lambda: {"log_weights": LOG_WEIGHTS.clone()},
        check=is_finite,
    ),
    "diagnostics.precision_recall_density_coverage": Recipe(
        diagnostics.precision_recall_density_coverage, features(num_neighbors=2), check=are_shares
    ),
    "diagnostics.report": Recipe(
        of_data(diagnostics.report),
        lambda: {
            "model": model,
            "guide": guide,
            "num_samples": 50,
            "num_mixing": 5,
            "parallel": True,
            "seed": 0,
            "quiet": True,
        },
        check=is_report,
    ),
    "diagnostics.report, posterior": Recipe(
        of_data(diagnostics.report),
        lambda: {
            "model": model,
            "guide": None,
            "num_samples": 50,
            "posterior": posterior(50, 2),
            "reference": posterior(60),
            "exact": False,
            "sbc": SBC({"z": torch.arange(20) % 10}, num_draws=9),
            "parallel": True,
            "quiet": True,
        },
        check=is_report,
    ),
    "diagnostics.report, reference": Recipe(
        lambda reference, exact: diagnostics.report(
            model,
            [guide, other_guide],
            DATA,
            num_samples=50,
            parallel=True,
            seed=0,
            quiet=True,
            reference={"z": reference},
            exact=exact,
        ),
        lambda: {"reference": posterior(10)["z"], "exact": True},
        check=is_report,
    ),
    "diagnostics.report, page": Recipe(
        save_report, lambda: {"path": "report.png"}, then=draw_page, check=is_report
    ),
    "diagnostics.sbc": Recipe(
        calibrate,
        lambda: {
            "model": model,
            "posterior": posterior_of,
            "num_simulations": 3,
            "quantities": {"largest": largest},
            "seed": 0,
        },
        check=are_calibrated,
    ),
    "diagnostics.sbc, draws": Recipe(
        lambda draws, quantity: calibrate(
            model,
            lambda observations: draws,
            num_simulations=2,
            quantities={"quantity": lambda latents, observations: quantity},
        ),
        lambda: {"draws": {"z": torch.zeros(3, 2)}, "quantity": torch.tensor(0.0)},
        check=are_calibrated,
    ),
    "diagnostics.sbc, draws of a latent": Recipe(
        lambda z: calibrate(model, lambda observations: {"z": z}, num_simulations=2),
        lambda: {"z": torch.zeros(3, 2)},
        check=are_calibrated,
    ),
    "diagnostics.sbc, ranks": Recipe(
        SBC,
        lambda: {"ranks": {"mu": torch.arange(20).reshape(10, 2) % 10}, "num_draws": 9},
        check=are_calibrated,
    ),
    "diagnostics.sbc, ranks of one": Recipe(
        lambda mu: SBC({"mu": mu}, num_draws=9),
        lambda: {"mu": torch.arange(20).reshape(10, 2) % 10},
        check=are_calibrated,
    ),
    "diagnostics.sbc, plot": Recipe(plot_sbc, lambda: {"level": 0.9, "columns": 2}),
    "diagnostics.sbc_ranks": Recipe(
        diagnostics.sbc_ranks,
        lambda: {"truths": torch.zeros(4, 2), "draws": torch.zeros(4, 3, 2), "generator": None},
        check=are_ranks,
    ),
    "diagnostics.sliced_wasserstein": Recipe(
        diagnostics.sliced_wasserstein, samples(num_projections=5, seed=0), check=is_scalar
    ),
    "diagnostics.sliced_wasserstein_test": Recipe(
        diagnostics.sliced_wasserstein_test,
        samples(num_permutations=19, generator=None, num_projections=5, seed=0),
        check=is_test,
    ),
    "diagnostics.tarp": Recipe(
        diagnostics.tarp,
        lambda: {
            "truths": torch.zeros(3, 2),
            "draws": torch.randn(3, 4, 2),
            "references": torch.ones(3, 2),
            "seed": 0,
        },
        check=is_coverage_curve,
    ),
    "diagnostics.tarp, ranks": Recipe(
        TARP,
        lambda: {"ranks": torch.arange(20) % 10, "num_draws": 9},
        check=is_coverage_curve,
    ),
    "diagnostics.tarp, plot": Recipe(plot_tarp, lambda: {"level": 0.9}),
    "diagnostics.to_inference_data": Recipe(
        of_data(diagnostics.to_inference_data),
        lambda: {
            "model": model,
            "guide": guide,
            "num_samples": 3,
            "seed": 0,
            "parallel": True,
            "log_likelihood": True,
            "sample_stats": True,
            "coords": {"axis": ["a", "b"]},
            "dims": {"z": ["axis"]},
            "attrs": {"note": "text"},
        },
        check=is_labelled,
    ),
    "diagnostics.to_inference_data, posterior": Recipe(
        of_data(diagnostics.to_inference_data),
        lambda: {
            "model": model,
            "guide": None,
            "num_samples": 3,
            "posterior": posterior(4, 2),
            "parallel": True,
        },
        check=is_labelled,
    ),
    "diagnostics.to_inference_data, draws": Recipe(
        lambda z, first: diagnostics.to_inference_data(
            model, None, DATA, posterior={"z": z}, num_samples=2, parallel=True, coords=first
        ),
        lambda: {"z": posterior(4)["z"], "first": None},
        check=is_labelled,
    ),
    "diagnostics.to_inference_data, guides": Recipe(
        lambda model, first, second, dims: diagnostics.to_inference_data(
            model, [first, second], DATA, num_samples=3, parallel=True, dims={"z": dims}
        ),
        lambda: {"model": model, "first": guide, "second": other_guide, "dims": ["axis"]},
        check=is_labelled,
    ),
    "diagnostics.unconstrained_score": Recipe(
        lambda model, draws: diagnostics.unconstrained_score(model, draws, DATA),
        lambda: {"model": model, "draws": posterior(3)},
        check=are_scores,
    ),
    "diagnostics.unconstrained_score, draws": Recipe(
        lambda z: diagnostics.unconstrained_score(model, {"z": z}, DATA),
        lambda: {"z": posterior(3)["z"]},
        check=are_scores,
    ),
    "diagnostics.uniformity_test": Recipe(
        diagnostics.uniformity_test,
        lambda: {
            "ranks": torch.arange(20).reshape(10, 2) % 10,
            "num_draws": 9,
            "num_points": 5,
            "num_simulations": 99,
        },
        check=are_p_values,
    ),
}
