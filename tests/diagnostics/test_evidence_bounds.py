"""Bounds bracket the evidence of conjugate models, at every K, and close in on it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import constraints

from pyro_sig.diagnostics import evidence_bounds
from pyro_sig.distributions import SemiImplicit
from pyro_sig.infer import AutoSemiImplicit

DOUBLE = {"dtype": torch.float64}
X = torch.tensor([0.3, -1.0, 2.0, 0.5], **DOUBLE)
EVIDENCE = dist.Normal(0.0, math.sqrt(2)).log_prob(X).sum().item()
SIZES = (1, 4, 16, 64)


def model():
    with pyro.plate("rows", 4):
        z = pyro.sample("z", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def guide_of(scale, shift=0.0):
    def guide():
        with pyro.plate("rows", 4):
            pyro.sample("z", dist.Normal(X / 2 + shift, scale * math.sqrt(0.5)))

    return guide


def semi_implicit_guide():
    with pyro.plate("rows", 4):
        mixing = dist.Normal(X / 2, 0.6)
        pyro.sample("z", SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.6), 10))


def exact_draws(num_draws):
    return {"z": X / 2 + math.sqrt(0.5) * torch.randn(num_draws, 4, **DOUBLE)}


GUIDES = {
    "wide": guide_of(1.6),
    "narrow": guide_of(0.7),
    "shifted": guide_of(1.2, 0.5),
    "semi-implicit": semi_implicit_guide,
}


@pytest.mark.parametrize("name", GUIDES)
def test_bounds_bracket_the_evidence_and_the_gap_shrinks(name):
    """Every bound on its side and every gap below the one before, 5 standard errors apart."""
    found = evidence_bounds(
        model,
        GUIDES[name],
        num_importance=SIZES,
        num_samples=300,
        posterior=exact_draws(1000),
        num_mixing=200,
        parallel=True,
    )
    assert (found.lower - 5 * found.lower_error < EVIDENCE).all()
    assert (found.upper + 5 * found.upper_error > EVIDENCE).all()
    assert (found.gap > -5 * (found.lower_error + found.upper_error)).all()
    error = 5 * (found.lower_error + found.upper_error)
    assert (found.gap[1:] < found.gap[:-1] + error[1:] + error[:-1]).all()
    assert found.gap[-1] + error[-1] < found.gap[0] - error[0]


@pytest.mark.parametrize("scale", [1.5, 0.6])
def test_one_draw_gives_the_two_divergences(scale):
    """At K = 1 the bounds are off by KL(q || p) and KL(p || q), within 5 standard errors."""
    found = evidence_bounds(
        model,
        guide_of(scale),
        num_importance=[1],
        num_samples=4000,
        posterior=exact_draws(4000),
        parallel=True,
    )
    q, p = dist.Normal(0.0, scale), dist.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence
    below = EVIDENCE - 4 * kl(q, p)
    above = EVIDENCE + 4 * kl(p, q)
    assert abs(found.lower - below) < 5 * found.lower_error
    assert abs(found.upper - above) < 5 * found.upper_error


def test_the_exact_guide_leaves_no_gap():
    found = evidence_bounds(model, guide_of(1.0), num_samples=5, posterior=exact_draws(50))
    torch.testing.assert_close(found.lower, torch.full((3,), EVIDENCE, **DOUBLE))
    torch.testing.assert_close(found.upper, torch.full((3,), EVIDENCE, **DOUBLE))


def positive_model():
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, **DOUBLE), 1.0))
    with pyro.plate("rows", 3):
        pyro.sample("x", dist.Poisson(rate), obs=torch.tensor([1.0, 4.0, 2.0], **DOUBLE))


@pytest.mark.parametrize("automatic", [AutoNormal, AutoMultivariateNormal, AutoSemiImplicit])
def test_automatic_guides_of_a_positive_latent(automatic):
    """Draws of the Gamma posterior are mapped back: the bounds bracket the closed form."""
    guide = automatic(positive_model)
    with torch.no_grad():
        guide()
    posterior = dist.Gamma(torch.tensor(9.0, **DOUBLE), 4.0)
    at = torch.tensor(2.0, **DOUBLE)
    prior = dist.Gamma(torch.tensor(2.0, **DOUBLE), 1.0)
    counts = torch.tensor([1.0, 4.0, 2.0], **DOUBLE)
    evidence = prior.log_prob(at) + dist.Poisson(at).log_prob(counts).sum()
    evidence = evidence - posterior.log_prob(at)
    found = evidence_bounds(
        positive_model,
        guide,
        num_importance=(1, 20),
        num_samples=100,
        posterior={"rate": posterior.sample((300,))},
        num_mixing=100,
        parallel=True,
    )
    assert (found.lower - 5 * found.lower_error < evidence).all()
    assert (found.upper + 5 * found.upper_error > evidence).all()
    assert found.gap[1] < found.gap[0]


def test_latents_that_simulated_the_data_are_a_posterior_draw():
    """On average over data sets that the model made, one draw each brackets the log evidence."""
    gaps = []
    for _ in range(200):
        z = torch.randn(4, **DOUBLE)
        x = z + torch.randn(4, **DOUBLE)

        def simulated(x=x):
            with pyro.plate("rows", 4):
                z = pyro.sample("z", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x=x):
            with pyro.plate("rows", 4):
                pyro.sample("z", dist.Normal(x / 2, 1.0))

        found = evidence_bounds(
            simulated,
            guide,
            num_importance=[8],
            num_samples=4,
            posterior={"z": z[None]},
            parallel=True,
        )
        evidence = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum()
        gaps.append(torch.cat([evidence - found.lower, found.upper - evidence]))
    gaps = torch.stack(gaps)
    assert (gaps.mean(0) > -5 * gaps.std(0) / math.sqrt(200)).all()


def test_without_posterior_draws_there_is_no_upper_bound():
    found = evidence_bounds(model, guide_of(1.2), num_importance=[1, 3], num_samples=4)
    assert found.upper is None and found.gap is None
    assert "upper" not in repr(found)
    assert len(repr(found).splitlines()) == 3


def test_the_table_has_both_bounds():
    found = evidence_bounds(model, guide_of(1.2), num_samples=4, posterior=exact_draws(4))
    assert "upper bound (SE)        gap" in repr(found)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"num_importance": []}, "`num_importance` must hold at least one number"),
        ({"num_importance": [0]}, "`num_importance` must be a positive integer, was 0"),
        ({"num_samples": 0}, "`num_samples` must be a positive integer, was 0"),
        ({"num_importance": "12"}, "`num_importance` must be a sequence of numbers, was '12'"),
        ({"parallel": "no"}, "`parallel` must be True or False, was 'no'"),
        # Broadcast, the copies of a draw would all be scored.
        (
            {"posterior": {"z": X[None, None].repeat(2, 3, 1)}},
            "`posterior` must hold 'z' in",
        ),
        ({"posterior": {}}, "`posterior` must hold equally many draws"),
        ({"posterior": {"y": X[None]}}, "held none of 'z'"),
        ({"posterior": {"z": X[None], "y": torch.zeros(2)}}, "equally many draws"),
        ({"posterior": {"z": X[None] * math.inf}}, "`posterior` must be finite"),
    ],
)
def test_bad_arguments_raise(arguments, problem):
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=problem):
        evidence_bounds(model, guide_of(1.0), **{"num_samples": 2, **arguments})


def test_no_upper_bound_where_the_guide_leaves_a_latent():
    """The model's density of that latent would have nothing to cancel with."""

    def two():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    exact = {"z": torch.zeros(3), "w": torch.zeros(3)}
    assert evidence_bounds(two, guide, num_samples=2).lower.isfinite().all()
    with pytest.raises(ValueError, match="`posterior` must be None where the guide leaves.* 'w'"):
        evidence_bounds(two, guide, num_samples=2, posterior=exact)


def test_no_upper_bound_of_a_semi_implicit_model():
    def estimated():
        prior = SemiImplicit(dist.Normal(0.0, 1.0), lambda psi: dist.Normal(psi, 1.0), 5)
        pyro.sample("z", prior)

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.4))

    evidence_bounds(estimated, guide, num_samples=2)
    with pytest.raises(
        ValueError, match="`posterior` must be None where the model has a semi-impl"
    ):
        evidence_bounds(estimated, guide, num_samples=2, posterior={"z": torch.zeros(3)})


def test_parameters_are_left_alone():
    loc = pyro.param("loc", torch.zeros(4, **DOUBLE), constraint=constraints.real)

    def guide():
        with pyro.plate("rows", 4):
            pyro.sample("z", dist.Normal(pyro.param("loc"), 1.0))

    evidence_bounds(model, guide, num_samples=2, posterior=exact_draws(2))
    assert torch.equal(pyro.param("loc"), loc)
