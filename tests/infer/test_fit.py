"""fit: closed-form posteriors, several fits, guides and losses, limits, the report, bad input."""

import itertools
import math
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger

from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import AutoSemiImplicit, PathGradient_ELBO, fit, no_guide
from pyro_sig.infer._check_programs import check_programs
from pyro_sig.nn import MLP

SIGMAS = 5.0  # one failure in 1.7 million

# A fit of the budgets below is within this many posterior deviations of the truth; 10,000 draws
# add 5 SE of a mean (0.05) and of a deviation (0.036).
FIT = 0.1
MEAN_TOLERANCE = FIT + SIGMAS / 100
STD_TOLERANCE = FIT + SIGMAS / 140

Y = torch.tensor([0.3, -1.2, 2.0, 0.7])


def conjugate(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def normal_posterior(y):
    precision = 1 + len(y) / 0.25
    return 4 * float(y.sum()) / precision, precision**-0.5


def check(draws, mean, std):
    assert abs(draws.mean() - mean) < MEAN_TOLERANCE * std
    assert abs(draws.std() / std - 1) < STD_TOLERANCE


def efficiency(guide, log_target):
    """Effective share of 2,000 weighted draws: 1 for the exact posterior."""
    with torch.no_grad():
        posterior = guide.get_posterior(num_mixing=2000)
        z = posterior.sample((2000,))
        weights = (log_target(z.squeeze(-1)) - posterior.log_prob(z)).softmax(0)
    return 1 / (len(weights) * weights.square().sum())


def test_normal_normal():
    result = fit(conjugate, Y, budget=1000, progress=False)
    mean, std = normal_posterior(Y)
    check(result.guide.sample_posterior(10_000)["z"], mean, std)
    assert isinstance(result.guide, AutoSemiImplicit)
    assert efficiency(result.guide, dist.Normal(mean, std).log_prob) > 0.95
    # No bound on k-hat: it is the shape of the tail, also where all weights are near one.
    assert result.converged and math.isfinite(result.k_hat)
    # The negative bound: the evidence, up to the fit's gap and the noise of its mean.
    cov = torch.ones(4, 4) + 0.25 * torch.eye(4)
    evidence = dist.MultivariateNormal(torch.zeros(4), cov).log_prob(Y).item()
    assert abs(result.loss + evidence) < 0.1
    assert result.history.num_steps <= 1000
    assert repr(result) == f"Fit({result.report})"
    for part in ("scale: ", f"after {result.history.num_steps} steps", "k-hat: ", "level before"):
        assert part in result.report


def test_gamma_poisson():
    """Constrained, and skewed: the posterior is Gamma(2 + 9, 1 + 3); compared on both scales."""
    counts = torch.tensor([2.0, 3.0, 4.0])

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("counts", dist.Poisson(rate), obs=counts)

    result = fit(model, budget=1000, progress=False)
    draws = result.guide.sample_posterior(10_000)["rate"]
    check(draws, 11 / 4, 11**0.5 / 4)
    logs = draws.log()
    truth = dist.Gamma(11.0, 4.0).sample((1_000_000,)).log()  # 5 SE of these: 0.005 deviations
    check(logs, truth.mean(), truth.std())
    # The log of a gamma is skewed to the left, by -1 / sqrt(11) in the first order: not a normal.
    skewness = ((logs - logs.mean()) / logs.std()).pow(3).mean()
    error = SIGMAS * math.sqrt(6 / 10_000)
    assert abs(skewness - ((truth - truth.mean()) / truth.std()).pow(3).mean()) < error + 0.15
    gamma = dist.Gamma(11.0, 4.0)
    assert efficiency(result.guide, lambda z: gamma.log_prob(z.exp()) + z) > 0.95
    assert math.isfinite(result.k_hat)


def test_a_model_that_cannot_be_vectorised_is_looped():
    """`X @ beta` takes one vector: with a particle plate it would be wrong or fail."""
    torch.manual_seed(1)
    x = torch.randn(30, 2)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(30)

    def model():
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 30):
            pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)

    torch.manual_seed(0)
    result = fit(model, budget=300, progress=False)
    precision = torch.eye(2) + x.T @ x / 0.25
    cov = precision.inverse()
    mean = cov @ (x.T @ y) / 0.25
    draws = result.guide.sample_posterior(10_000)["beta"]
    std = cov.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 2 * MEAN_TOLERANCE * std).all()  # a short fit
    error = (draws.T.cov() - cov) / torch.outer(std, std)
    assert error.abs().max() < 3 * STD_TOLERANCE


def test_two_fits_do_not_disturb_each_other():
    first = fit(conjugate, Y, budget=200, progress=False)
    torch.manual_seed(1)
    before = first.guide.sample_posterior(100)["z"]
    second = fit(conjugate, Y + 10.0, budget=200, progress=False)
    torch.manual_seed(1)
    assert torch.equal(first.guide.sample_posterior(100)["z"], before)
    for result, y in ((first, Y), (second, Y + 10.0)):
        mean, std = normal_posterior(y)
        assert abs(result.guide.sample_posterior(10_000)["z"].mean() - mean) < 0.3 * std
    names = set(pyro.get_param_store().keys())
    assert {name.split(".")[0] for name in names} == {"AutoSemiImplicit", "AutoSemiImplicit_1"}


def test_a_hand_written_guide_and_a_loss():
    net = MLP(2, [8], 2)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def guide(y):
        pyro.module("net", net)
        mixing = Implicit(net, noise, 2)

        def conditional(psi):
            return dist.Normal(psi[..., 0], torch.nn.functional.softplus(psi[..., 1]))

        pyro.sample("z", SemiImplicit(mixing, conditional, 20))

    loss = PathGradient_ELBO(num_particles=16)
    result = fit(conjugate, Y, guide=guide, loss=loss, budget=600, progress=False)
    assert result.guide is guide and "scale" not in result.report
    assert math.isfinite(result.k_hat)
    with pyro.plate("draws", 10_000), torch.no_grad():
        trace = pyro.poutine.trace(guide).get_trace(Y)
    check(trace.nodes["z"]["value"], *normal_posterior(Y))


def test_another_autoguide():
    guide = AutoNormal(conjugate)
    result = fit(conjugate, Y, guide=guide, budget=300, progress=False)
    mean, std = normal_posterior(Y)
    assert abs(guide.median()["z"] - mean) < 2 * FIT * std
    assert math.isfinite(result.k_hat)


# ------------------------------------------------------------------------------------------ limits


def test_the_clock_stops_it(monkeypatch):
    clock = itertools.count(step=0.01)  # seconds: a machine's own may stand still for long
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    result = fit(conjugate, Y, max_seconds=2.0, progress=False)
    taken = next(clock)
    # The k-hat at the end is not in the limit; a step looks at the clock a few times.
    assert 2.0 < taken < 2.5
    assert 10 < result.history.num_steps < 200


def test_a_limit_that_is_over_at_once():
    result = fit(conjugate, Y, max_seconds=1e-6, progress=False)
    assert result.history.num_steps == 1 and not result.converged


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_small_budget(budget):
    result = fit(conjugate, Y, budget=budget, progress=False)
    assert result.history.num_steps == budget
    assert not result.converged and "too few to tell whether it was level" in result.report
    assert result.guide.median()["z"].isfinite()


def test_not_converged_while_the_loss_still_falls():
    def model():
        pyro.sample("z", dist.Normal(100.0, 1.0))

    def guide():
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(loc, 1.0))

    result = fit(model, guide=guide, loss=Trace_ELBO(), budget=600, progress=False)
    assert not result.converged and "NOT level" in result.report
    assert result.history.num_steps == 600


def test_annealing_runs_and_ends_at_the_posterior():
    result = fit(conjugate, Y, budget=600, annealing=0.5, progress=False)
    mean, std = normal_posterior(Y)
    check(result.guide.sample_posterior(10_000)["z"], mean, std)


def test_progress_bar(capsys):
    fit(conjugate, Y, budget=3, progress=True)
    assert "fit: 100%" in capsys.readouterr().err


def test_the_global_state_stays_but_for_parameters():
    dtype, validation = torch.get_default_dtype(), pyro.settings.get("validate_distributions_pyro")
    fit(conjugate, Y, budget=3, progress=False)
    assert torch.get_default_dtype() == dtype and torch.is_grad_enabled()
    assert pyro.settings.get("validate_distributions_pyro") == validation


# --------------------------------------------------------------------------------------- the k-hat


def test_no_k_hat_where_a_latent_is_left_to_the_model():
    """The weights would judge the prior of `k` as a proposal, and the guide by it."""

    @config_enumerate
    def mixture(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(loc + k, 0.5), obs=y)

    guide = AutoSemiImplicit(poutine.block(mixture, hide=["k"]))
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    result = fit(mixture, Y, guide=guide, loss=loss, budget=3, progress=False)
    assert math.isnan(result.k_hat)
    assert "k-hat: none, the latent 'k' is left to the model" in result.report
    assert "scale: no search: the model draws what is hidden" in result.report


def test_no_k_hat_under_subsampling_and_it_says_why():
    x = torch.randn(100)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample_size=10) as rows:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    result = fit(model, budget=20, progress=False)
    assert math.isnan(result.k_hat) and "k-hat: none, the model subsamples" in result.report


def test_k_hat_tells_a_guide_that_is_too_narrow():
    def model():
        pyro.sample("z", dist.StudentT(2.0, 0.0, 1.0))

    def guide():
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(loc, 0.1))

    result = fit(model, guide=guide, loss=Trace_ELBO(), budget=20, progress=False)
    assert result.k_hat > 0.7 and "do not trust" in result.report


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "`budget`"),
        ({"max_seconds": 0.0}, "`max_seconds` must be a number above 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a finite number above 0"),
        ({"annealing": 1.5}, "`annealing` must be a number of at least 0 and at most 1"),
        ({"annealing": -0.1}, "`annealing` must be a number of at least 0 and at most 1"),
        ({"guide": AutoNormal}, "`guide` must be a program, .* was the class AutoNormal"),
        ({"loss": 3}, "`loss` must be a function or a module, was 3"),
        (
            {"loss": lambda model: 0.0},
            r"`loss` must be callable with \(a value, a value, a value\), but: too many",
        ),
        ({"loss": lambda *args: None}, "`loss` must return a scalar tensor, returned None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(conjugate, Y, progress=False, **arguments)


def observing(law):
    """A model of one latent whose data have this law, given the latent."""

    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", law(z + torch.zeros(len(y))), obs=y)

    return model


def normal(z):
    return dist.Normal(z, 0.5)


def bernoulli(z):
    return dist.Bernoulli(logits=z)


@pytest.mark.parametrize("guide", [None, AutoNormal])
@pytest.mark.parametrize(
    ("law", "y", "message"),
    [
        # Against a law of shape [4] they make a density of [4, 4], and a posterior of it.
        (normal, Y[:, None], r'at site "y", invalid log_prob shape\n.*\n*.*\[4, 4\]'),
        (normal, Y.numpy(), "that of site 'y' cannot be had for an array of float32"),
        (normal, torch.cat([Y, torch.tensor([math.nan])]), "site 'y'"),
        (bernoulli, Y > 0, "that of site 'y' cannot be had for a torch.bool tensor"),
        (bernoulli, (Y > 0) + 1.0, "that of site 'y' .* within the support"),
    ],
)
def test_data_that_the_model_cannot_score_are_named(law, y, message, guide):
    model = observing(law)
    with pytest.raises(ValueError, match="`model` must have .*" + message):
        fit(model, y, guide=guide and guide(model), budget=3, progress=False)


def test_a_density_that_is_not_finite_is_named():
    def guide(y):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    def model(y):
        pyro.factor("wall", pyro.sample("z", dist.Normal(0.0, 1.0)) - math.inf)

    with pytest.raises(ValueError, match="finite log-density at the draws of `guide`.*'wall'"):
        fit(model, Y, guide=guide, budget=3, progress=False)


def test_without_validation_shapes_are_not_looked_at():
    with pyro.validation_enabled(False):
        result = fit(observing(normal), Y[:, None], budget=3, progress=False)
    assert result.history.num_steps == 3


def test_a_guide_of_another_model_is_refused():
    def guide(y):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("foreign", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="`guide` must draw latents of `model`.*'foreign'"):
        fit(conjugate, Y, guide=guide, budget=3, progress=False)


def test_a_look_at_the_programs_draws_no_random_numbers():
    guide = AutoNormal(conjugate)
    guide(Y)
    before = torch.get_rng_state()
    assert check_programs(conjugate, guide, (Y,), {}) == []
    assert check_programs(conjugate, no_guide, (Y,), {}) == ["z"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_guide_that_runs_the_model_itself():
    guide = AutoNormalMessenger(conjugate)
    result = fit(conjugate, Y, guide=guide, loss=Trace_ELBO(), budget=3, progress=False)
    assert result.history.num_steps == 3


def test_a_discrete_latent():
    def model():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="discrete sample site 'k'"):
        fit(model, progress=False)
