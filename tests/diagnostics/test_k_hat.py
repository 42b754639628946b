"""k-hat of good and of bad guides, hand-made and trained, semi-implicit ones too."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_sig.diagnostics import KHat, effective_share, k_hat, log_importance_weights
from pyro_sig.diagnostics.pareto import k_hat_verdict
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import AutoLocalSemiImplicit, fit

DIM = 5
COVARIANCE = 0.9 * torch.ones(DIM, DIM) + 0.1 * torch.eye(DIM)


def gaussian():
    """A posterior of known mean and correlated covariance."""
    pyro.sample("z", dist.MultivariateNormal(torch.zeros(DIM), COVARIANCE))
    pyro.sample("x", dist.Normal(torch.zeros(DIM), 1.0).to_event(1), obs=torch.ones(DIM))


def narrow():
    """The weights have tail index 1 - 0.01 / 0.82 in the widest direction."""
    pyro.sample("z", dist.Normal(torch.zeros(DIM), 0.1).to_event(1))


def full():
    pyro.sample("z", dist.MultivariateNormal(torch.zeros(DIM) + 0.05, 1.1 * COVARIANCE))


def test_full_covariance_is_good_and_a_narrow_guide_is_not():
    """The median of 7 estimates of an index of 0.99 has a standard error of 0.05."""
    sizes = {"num_samples": 2000, "num_repeats": 7, "parallel": True, "progress": False}
    good, bad = (k_hat(gaussian, guide, **sizes) for guide in (full, narrow))
    assert good.k_hat < 0.5 and good.verdict == "good"
    assert bad.k_hat > 0.7 and bad.verdict.startswith("do not trust")
    assert good.effective_share > 0.8 > 0.2 > bad.effective_share
    assert len(good.values) == 7 and good.spread[0] <= good.k_hat <= good.spread[1]


def test_one_draw_at_a_time_gives_the_same():
    """Weights in a loop and at once have one law: means within 5 standard errors."""
    loop = log_importance_weights(gaussian, full, num_samples=400)
    at_once = log_importance_weights(gaussian, full, num_samples=400, parallel=True)
    error = math.sqrt((loop.var() + at_once.var()) / 400)
    assert abs(loop.mean() - at_once.mean()) < 5 * error


def test_a_trained_full_covariance_guide():
    found = fit(gaussian, guide=AutoMultivariateNormal(gaussian), budget=600, progress=False)
    result = k_hat(gaussian, found.guide, num_samples=500, num_repeats=3, progress=False)
    assert result.k_hat < 0.5 or result.effective_share > 0.95
    assert result.verdict == "good"


def test_a_semi_implicit_guide_of_several_rows_gets_draws_of_its_own():
    """The exact posterior as a mixture: good with many psi, worse with one."""
    rows, x = 6, torch.linspace(-1, 1, 6)

    def model():
        with pyro.plate("rows", rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("rows", rows):
            mixing = dist.Normal(x / 2, 0.5)
            pyro.sample("z", SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.5), 3))

    with pytest.raises(ValueError, match="`share_draws` must be False .* Or pass `num_mixing`"):
        log_importance_weights(model, guide, num_samples=2)
    shares = {}
    for num_mixing in (1, 300):
        log_weights = log_importance_weights(
            model, guide, num_samples=3000, num_mixing=num_mixing, parallel=True
        )
        evidence = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum()
        weights = (log_weights - evidence).exp()
        # The mean weight is one at any number of psi: 5 standard errors.
        assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(3000)
        shares[num_mixing] = effective_share(log_weights)
    assert shares[1] < 0.7 < 0.95 < shares[300]
    assert k_hat(model, guide, num_samples=300, parallel=True, progress=False).verdict == "good"


def test_a_semi_implicit_prior_counts_too():
    """Prior and guide both semi-implicit, and the guide exact."""
    x = torch.tensor([0.4, -1.0])

    def model():
        with pyro.plate("rows", 2):
            noise = dist.Normal(torch.zeros(()), 1.0)
            mixing = Implicit(lambda e: 0.8 * e, noise)
            z = pyro.sample("z", SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.6), 5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("rows", 2):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    found = k_hat(model, guide, num_samples=500, num_repeats=2, parallel=True, progress=False)
    assert found.verdict == "good" and found.effective_share > 0.95


def test_an_amortised_semi_implicit_guide_runs():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(4)
    guide = AutoLocalSemiImplicit(model)
    guide(x)
    found = k_hat(model, guide, x, num_samples=60, num_repeats=2, num_mixing=20, progress=False)
    assert not math.isnan(found.k_hat)


def test_latents_that_the_guide_leaves_to_the_model_cancel():
    """Mean weight over draws of both: the evidence, within 5 standard errors."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(y, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Normal(0.3, 1.0))

    found = k_hat(model, guide, num_samples=50, num_repeats=1, parallel=True, progress=False)
    assert found.left == ("y",)
    assert "the guide and the prior of 'y' together, which is left to the model" in repr(found)
    weights = log_importance_weights(model, guide, num_samples=3000, parallel=True).exp()
    evidence = dist.Normal(0.0, math.sqrt(3)).log_prob(torch.tensor(1.0)).exp()
    assert abs(weights.mean() - evidence) < 5 * weights.std() / math.sqrt(3000)


def test_draws_that_the_model_rules_out_weigh_nothing():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("positive", torch.where(z > 0, 0.0, -math.inf))

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    log_weights = log_importance_weights(model, guide, num_samples=200)
    assert set(log_weights.tolist()) == {0.0, -math.inf}
    assert 0.3 < effective_share(log_weights) < 0.7


def test_nan_densities_raise():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("bad", z * math.nan)

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    problem = "infinite or NaN at 'bad' in 50 of 50 draws"
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=problem):
        k_hat(model, guide, num_samples=50, progress=False)


def test_what_has_no_weight_raises():
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def implicit():
        pyro.sample("psi", Implicit(lambda e: e, noise, 2))

    def psi():
        pyro.sample("psi", noise)

    with pytest.raises(ValueError, match="`model` must have a density at every site, but 'psi'"):
        k_hat(implicit, psi, num_samples=50, progress=False)

    def subsampled():
        with pyro.plate("rows", 10, subsample_size=5):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="must not subsample"):
        k_hat(subsampled, subsampled, num_samples=50, progress=False)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"num_samples": 49}, "`num_samples` must be an integer of at least 50, was 49"),
        ({"num_repeats": 0}, "`num_repeats` must be a positive integer"),
        ({"num_mixing": 0}, "`num_mixing` must be a positive integer"),
    ],
)
def test_bad_numbers_raise(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        k_hat(gaussian, full, progress=False, **arguments)


def test_verdicts():
    assert k_hat_verdict(0.49, 0.1) == "good"
    assert k_hat_verdict(0.9, 0.96) == "good"  # the shape of nearly equal weights says nothing
    assert k_hat_verdict(0.6, 0.1) == "usable with importance weights"
    assert k_hat_verdict(math.inf, 0.1).startswith("do not trust")
    assert k_hat_verdict(0.3, 0.01).startswith("do not trust")  # the tail was not drawn
    found = KHat(0.92, torch.tensor([0.8, 0.92, 1.1]), 0.01)
    assert repr(found).startswith("k-hat 0.92 (0.80 to 1.10 in 3 repeats)")


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.full((3,), -math.inf), torch.zeros(2, 2)])
def test_effective_share_needs_weights(bad):
    with pytest.raises(
        ValueError, match="`log_weights` must be (a dense .* of shape|finite in some)"
    ):
        effective_share(bad)
