"""The Pyro models of ``examples/posteriordb_models.py`` against the densities of the Stan programs.

The Stan programs are written out again in numpy and SciPy, from the raw data and in the parameters
that they declare.
"""

import importlib.util
import math
import os
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_feasible
from pyro.infer.inspect import is_sample_site
from scipy import stats

from pyro_sig.datasets import posteriordb_names, read_posteriordb
from pyro_sig.diagnostics import draw_matrix


def import_script():
    """Import the script under its own name, as another script beside it does."""
    path = Path(__file__).parents[1] / "examples" / "posteriordb_models.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


models = import_script()
EACH = pytest.mark.parametrize("name", models.MODELS)


@pytest.fixture(scope="session")
def folder():
    if "PYRO_SIG_DATA" not in os.environ:
        pytest.skip("PYRO_SIG_DATA is not set")
    root = Path(os.environ["PYRO_SIG_DATA"]) / "posteriordb"
    if not root.is_dir():
        pytest.skip(f"no folder {root}")
    return root


def every(draws, step):
    """Return every step-th draw; the chains are after one another."""
    return {name: values[::step] for name, values in draws.items()}


def log_joint(model, data, latents):
    """Score one value of each latent."""
    conditioned = poutine.condition(model, latents)
    return poutine.trace(conditioned).get_trace(data).log_prob_sum()


def one_by_one(model, data, latents):
    num = len(next(iter(latents.values())))
    singles = [{key: value[i] for key, value in latents.items()} for i in range(num)]
    return torch.stack([log_joint(model, data, single) for single in singles])


# ---------------------------------------------------------------------- the Stan programs in SciPy


def normal(x, mean, sd):
    return stats.norm.logpdf(x, mean, sd).sum()


def cauchy(x, scale):
    return stats.cauchy.logpdf(x, 0, scale)


def gp_regr(d, p):
    x = d["x"]
    cov = p["alpha"] ** 2 * np.exp(-((x[:, None] - x) ** 2) / (2 * p["rho"] ** 2))
    cov += np.diag(np.repeat(p["sigma"], len(x)))
    prior = stats.gamma.logpdf(p["rho"], 25, scale=1 / 4)
    prior += normal(p["alpha"], 0, 2) + normal(p["sigma"], 0, 1)
    return prior + stats.multivariate_normal.logpdf(d["y"], np.zeros(len(x)), cov)


def kidscore_momiq(d, p):
    mean = p["beta"][0] + p["beta"][1] * d["mom_iq"]
    return cauchy(p["sigma"], 2.5) + normal(d["kid_score"], mean, p["sigma"])


def garch11(d, p):
    total, sigma = 0.0, float(d["sigma1"])
    for t, y in enumerate(d["y"]):
        if t > 0:
            shock = p["alpha1"] * (d["y"][t - 1] - p["mu"]) ** 2
            sigma = math.sqrt(p["alpha0"] + shock + p["beta1"] * sigma**2)
        total += normal(y, p["mu"], sigma)
    # The density of the fraction: beta1 = fraction (1 - alpha1).
    return total + math.log(1 - p["alpha1"])


def logearn_interaction_z(d, p):
    z = (d["height"] - np.mean(d["height"])) / np.std(d["height"], ddof=1)
    b = p["beta"]
    mean = b[0] + b[1] * z + b[2] * d["male"] + b[3] * z * d["male"]
    return normal(np.log(d["earn"]), mean, p["sigma"])


def kidscore_interaction_c(d, p):
    hs, iq = (d[key] - np.mean(d[key]) for key in ("mom_hs", "mom_iq"))
    b = p["beta"]
    return normal(d["kid_score"], b[0] + b[1] * hs + b[2] * iq + b[3] * hs * iq, p["sigma"])


def low_dim_gauss_mix(d, p):
    prior = normal(p["sigma"], 0, 2) + normal(p["mu"], 0, 2) + stats.beta.logpdf(p["theta"], 5, 5)
    first, second = (stats.norm.logpdf(d["y"], p["mu"][k], p["sigma"][k]) for k in (0, 1))
    mix = np.logaddexp(np.log(p["theta"]) + first, np.log1p(-p["theta"]) + second)
    return prior + mix.sum()


def blr(d, p):
    prior = normal(p["beta"], 0, 10) + normal(p["sigma"], 0, 10)
    return prior + normal(d["y"], d["X"] @ p["beta"], p["sigma"])


def arK(d, p):
    total = normal(p["alpha"], 0, 10) + normal(p["beta"], 0, 10) + cauchy(p["sigma"], 2.5)
    for t in range(d["K"], d["T"]):
        mean = p["alpha"] + sum(p["beta"][k] * d["y"][t - k - 1] for k in range(d["K"]))
        total += normal(d["y"][t], mean, p["sigma"])
    return total


def logmesquite(d, p):
    b = p["beta"]
    mean = b[0] + b[1] * np.log(d["diam1"]) + b[2] * np.log(d["diam2"])
    mean = mean + b[3] * np.log(d["canopy_height"]) + b[4] * np.log(d["total_height"])
    mean = mean + b[5] * np.log(d["density"]) + b[6] * d["group"]
    return normal(np.log(d["weight"]), mean, p["sigma"])


def eight_schools_noncentered(d, p):
    theta_trans = (p["theta"] - p["mu"]) / p["tau"]
    prior = normal(theta_trans, 0, 1) + normal(p["mu"], 0, 5) + cauchy(p["tau"], 5)
    return prior + normal(d["y"], p["theta"], d["sigma"])


def nes(d, p):
    b, age = p["beta"], d["age_discrete"]
    mean = b[0] + b[1] * d["real_ideo"] + b[2] * d["race_adj"]
    mean = mean + b[3] * (age == 2) + b[4] * (age == 3) + b[5] * (age == 4)
    mean = mean + b[6] * d["educ1"] + b[7] * d["gender"] + b[8] * d["income"]
    return normal(d["partyid7"], mean, p["sigma"])


def stan_log_densities(folder, name, draws):
    program = globals()[name.partition("-")[2]]
    raw = read_posteriordb(folder, name).data
    raw = {key: v.numpy() if isinstance(v, torch.Tensor) else v for key, v in raw.items()}
    num = len(next(iter(draws.values())))
    singles = [{key: value[i].numpy() for key, value in draws.items()} for i in range(num)]
    values = [float(program(raw, single)) for single in singles]
    return torch.tensor(values, dtype=torch.float64)


@EACH
def test_density(name, folder, monkeypatch):
    posterior = models.MODELS[name]
    data = models.load(folder, name, torch.float64)
    draws = every(models.load_draws(folder, name), 200)
    latents = posterior.to_latents(draws)
    truth = stan_log_densities(folder, name, draws)
    # What Stan leaves out is constant; the width of the priors that stand for flat ones shows.
    constants = one_by_one(posterior.model, data, latents) - truth
    assert len(constants) == 50
    assert constants.max() - constants.min() < 1e-3
    monkeypatch.setattr(models, "WIDE", 1e9)
    constants = one_by_one(posterior.model, data, latents) - truth
    assert constants.std() < 1e-10 * truth.abs().mean()


# ------------------------------------------------------------------------------------------- shapes


@EACH
@pytest.mark.parametrize("depth", [1, 2])
def test_in_plates_of_particles(name, depth, folder):
    posterior = models.MODELS[name]
    data = models.load(folder, name, torch.float64)
    latents = posterior.to_latents(every(models.load_draws(folder, name), 1500))
    expected = one_by_one(posterior.model, data, latents)
    assert len(expected) == 7

    # The innermost plate is at -2, beside the one of the data; the outermost has the draws.
    batched = {key: value[(slice(None),) + (None,) * depth] for key, value in latents.items()}
    program = poutine.condition(posterior.model, batched)
    for i, size in enumerate([1, 7][-depth:]):
        program = pyro.plate(f"particles_{i}", size, dim=-2 - i)(program)
    trace = poutine.trace(program).get_trace(data)
    trace.compute_log_prob()
    sites = [node for node in trace.nodes.values() if is_sample_site(node)]
    assert {site["log_prob"].shape[0] for site in sites} == {7}
    total = sum(site["log_prob"].reshape(7, -1).sum(-1) for site in sites)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-8)

    for key, values in posterior.to_parameters(batched).items():
        torch.testing.assert_close(trace.nodes[key]["value"], values)


@EACH
def test_under_vmap(name, folder):
    posterior = models.MODELS[name]
    data = models.load(folder, name, torch.float64)
    latents = posterior.to_latents(every(models.load_draws(folder, name), 1500))
    expected = one_by_one(posterior.model, data, latents)

    def score(single):
        return log_joint(posterior.model, data, single)

    with pyro.validation_enabled(False):
        torch.testing.assert_close(torch.func.vmap(score)(latents), expected)
        gradients = torch.func.vmap(torch.func.grad(score))(latents)
        first = torch.func.grad(score)({key: value[0] for key, value in latents.items()})
    for key, value in first.items():
        assert gradients[key].shape == latents[key].shape
        torch.testing.assert_close(gradients[key][0], value)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_under_svi(name, dtype, folder):
    posterior = models.MODELS[name]
    data = models.load(folder, name, dtype)
    guide = AutoMultivariateNormal(posterior.model, init_loc_fn=init_to_feasible)
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True)
    svi = SVI(posterior.model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = [svi.step(data) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    trace = poutine.trace(posterior.model).get_trace(data)
    for key, node in trace.nodes.items():
        if is_sample_site(node):
            assert node["value"].dtype == dtype, key
    samples = {key: trace.nodes[key]["value"].unsqueeze(0) for key in trace.stochastic_nodes}
    matrix = draw_matrix(posterior.to_parameters(samples), posterior.parameters)
    reference = draw_matrix(models.load_draws(folder, name), posterior.parameters)
    assert matrix.shape[1] == reference.shape[1]


def test_every_posterior_has_a_model(folder):
    assert list(models.MODELS) == posteriordb_names(folder)


@EACH
def test_latents_and_parameters(name, folder):
    posterior = models.MODELS[name]
    draws = every(models.load_draws(folder, name), 100)
    assert list(draws) == list(posterior.parameters)
    back = posterior.to_parameters(posterior.to_latents(draws))
    for key in posterior.parameters:
        torch.testing.assert_close(back[key], draws[key])


# ------------------------------------------------------------------------------------ without data


def test_parameters_side_by_side():
    samples = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0, 4.0], [5.0, 6.0]])}
    assert draw_matrix(samples, ("b", "a")).tolist() == [[3, 4, 1], [5, 6, 2]]
    particles = {"a": samples["a"][:, None], "b": samples["b"][:, None]}
    assert draw_matrix(particles, ("a", "b")).tolist() == [[1, 3, 4], [2, 5, 6]]


@pytest.mark.parametrize("length", [1, 2, 5, 16, 21])
def test_discounted_sums(length):
    terms = torch.rand(3, length, dtype=torch.float64)
    factor = torch.rand(3, 1, dtype=torch.float64)
    expected = terms.clone()
    for t in range(1, length):
        expected[:, t] += factor[:, 0] * expected[:, t - 1]
    torch.testing.assert_close(models.discounted_sums(terms, factor), expected)


def test_garch11_is_flat_on_the_triangle():
    data = {"y": torch.zeros(2, dtype=torch.float64), "sigma1": torch.ones((), dtype=torch.float64)}
    prior = poutine.block(models.garch11, hide=["y", "mu", "alpha0"])
    fixed = {"mu": torch.zeros(()), "alpha0": torch.ones(())}
    for alpha1, beta1 in [(0.1, 0.2), (0.1, 0.8), (0.7, 0.1), (0.9, 0.05)]:
        point = torch.tensor([alpha1, beta1], dtype=torch.float64)
        latents = models.garch11_latents(fixed | {"alpha1": point[0], "beta1": point[1]})
        trace = poutine.trace(poutine.condition(prior, latents)).get_trace(data)
        density = trace.log_prob_sum().exp() / (1 - alpha1)  # d fraction / d beta1
        torch.testing.assert_close(density, torch.tensor(2.0).double())


def test_ordered():
    law = models.Ordered(dist.Normal(torch.tensor([0.0, 1.0]), 2.0), 2)
    assert law.batch_shape == (2,) and law.event_shape == (2,)
    draws = law.sample((5,))
    assert draws.shape == (5, 2, 2)
    assert (draws[..., 0] <= draws[..., 1]).all()
    assert law.expand([3, 2]).sample().shape == (3, 2, 2)
    assert law.expand([3, 2]).log_prob(draws[:3]).shape == (3, 2)
    with pytest.raises(ValueError, match="to be within the support"):
        law.log_prob(draws.flip(-1))

    standard = models.Ordered(dist.Normal(torch.tensor(0.0).double(), 1.0), 2)
    grid = torch.linspace(-8, 8, 801, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    points = points[points[:, 0] < points[:, 1]]
    # The cells on the diagonal are left out, half of each: 2 phi(x)^2 is their density.
    step = float(grid[1] - grid[0])
    left_out = step / 2 / math.sqrt(math.pi)
    total = float(standard.log_prob(points).exp().sum()) * step**2
    assert total + left_out == pytest.approx(1, abs=1e-4)


def test_missing_folder(tmp_path):
    for data_dir in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match="github.com/stan-dev/posteriordb"):
            models.posteriordb_folder(data_dir)
    (tmp_path / "posteriordb").mkdir()
    (tmp_path / "posteriordb" / "INDEX.tsv").touch()
    assert models.posteriordb_folder(str(tmp_path)) == tmp_path / "posteriordb"
