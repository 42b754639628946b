"""Counts: masses against quadrature and sums, draws against masses, the tables of frequencies."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_sig import datasets
from tests.datasets.chi_square import RATE, Z, chi2_p_value
from tests.datasets.laws import COUNTS


@pytest.mark.parametrize("make", COUNTS)
def test_pmf_sums_to_one_and_moments_match(make):
    toy = make(dtype=torch.float64)
    k = torch.arange(400)
    pmf = toy.pmf(k)
    # What is left out beyond 400 is below 400 * 0.8**400 = 1e-36.
    assert abs(pmf.sum().item() - 1) < 1e-12
    mean = (pmf * k).sum()
    torch.testing.assert_close(toy.distribution.mean, mean)
    torch.testing.assert_close(toy.distribution.variance, (pmf * (k - mean) ** 2).sum())
    torch.testing.assert_close(toy.mixing.mean, mean)
    # Var x = E psi + Var psi for a mixed Poisson.
    torch.testing.assert_close(toy.mixing.variance + mean, toy.distribution.variance)


@pytest.mark.parametrize(("r", "p"), [(2.0, 0.8), (1.0, 0.5), (3.5, 0.4)])
def test_negative_binomial_is_a_gamma_mixture_of_poissons(r, p):
    toy = datasets.negative_binomial(r, p, dtype=torch.float64)
    k = torch.arange(30, dtype=torch.float64)
    # psi = u^2 removes the root singularities at 0; the tail beyond 900 is below e^-200.
    u = torch.linspace(0, 30, 20001, dtype=torch.float64)[1:]
    density = toy.mixing.log_prob(u**2) + (2 * u).log()
    integrand = (dist.Poisson((u**2).unsqueeze(-1)).log_prob(k) + density.unsqueeze(-1)).exp()
    by_quadrature = integrand.sum(0) * (u[1] - u[0])
    torch.testing.assert_close(by_quadrature, toy.pmf(k), rtol=1e-5, atol=1e-9)


def test_mixing_of_poisson_negative_binomial():
    toy = datasets.poisson_negative_binomial(5.0, 2.0, 0.5, 0.3, dtype=torch.float64)
    gamma = datasets.negative_binomial(2.0, 0.5, dtype=torch.float64).mixing
    x = torch.tensor([4.999, 5.0], dtype=torch.float64)
    jump = torch.tensor([0.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(toy.mixing.cdf(x), 0.7 * gamma.cdf(x) + jump)
    psi = toy.mixing.sample((20_000,))
    share = (psi == 5.0).double().mean().item()
    assert abs(share - 0.3) < Z * math.sqrt(0.3 * 0.7 / 20_000)
    with pytest.raises(NotImplementedError, match="no density"):
        toy.mixing.log_prob(psi)


def test_poisson_negative_binomial_mass():
    toy = datasets.poisson_negative_binomial(5.0, 2.0, 0.5, 0.3, dtype=torch.float64)
    expected = 0.3 * math.exp(-5.0) * 5.0**2 / 2 + 0.7 * 3 * 0.5**2 * 0.5**2
    assert toy.pmf(2).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", COUNTS)
@pytest.mark.parametrize("mixed", [False, True], ids=["direct", "poisson_of_mixing"])
def test_count_samples_match_pmf(make, mixed):
    n = 20_000
    toy = make(dtype=torch.float64)
    x = dist.Poisson(toy.mixing.sample((n,))).sample() if mixed else toy.sample(n)
    expected = n * toy.pmf(torch.arange(int(x.max()) + 1))
    observed = torch.bincount(x.long(), minlength=len(expected)).double()
    cut = expected.argmax() + int((expected[expected.argmax() :] >= 10).sum())
    keep = torch.arange(len(expected)) < cut
    keep &= expected >= 10
    rest = n - expected[keep].sum()
    observed = torch.cat([observed[keep], (n - observed[keep].sum()).unsqueeze(0)])
    assert chi2_p_value(observed, torch.cat([expected[keep], rest.unsqueeze(0)])) > RATE


def test_counts():
    assert (len(datasets.accident_counts()), len(datasets.mite_counts())) == (9461, 150)
    for make, frequencies in (
        (datasets.accident_counts, datasets.ACCIDENT_FREQUENCIES),
        (datasets.mite_counts, datasets.MITE_FREQUENCIES),
    ):
        counts = make(dtype=torch.int64)
        assert counts.dtype == torch.int64
        assert tuple(torch.bincount(counts).tolist()) == frequencies
        assert make().dtype == torch.get_default_dtype()
        assert dist.Poisson(1.0).log_prob(make()).isfinite().all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: datasets.negative_binomial(0.0, 0.5),
            r"`total_count` must be a finite number above 0, was 0\.0",
        ),
        (
            lambda: datasets.negative_binomial(1.0, 1.0),
            r"`probs` must be a number above 0 and below 1, was 1\.0",
        ),
        (
            lambda: datasets.poisson_negative_binomial(rate=-1),
            "`rate` must be a finite number above 0, was -1",
        ),
        (
            lambda: datasets.poisson_negative_binomial(weight=None),
            "`weight` must be a number above 0 and below 1, was None",
        ),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_bad_mixture():
    one, two = dist.Poisson(torch.tensor(1.0)), dist.Poisson(torch.ones(2))
    support = constraints.nonnegative_integer
    with pytest.raises(ValueError, match="`components` must be scalar laws of one batch shape"):
        datasets.FiniteMixture(torch.ones(2), [one, two], support)
    with pytest.raises(ValueError, match="`components` must be scalar laws"):
        datasets.FiniteMixture(torch.ones(1), [two.to_event(1)], support)
    with pytest.raises(ValueError, match=r"`weights` must have shape \[1\].*had \[2\]"):
        datasets.FiniteMixture(torch.ones(2), [one], support)
    with pytest.raises(ValueError, match="`weights` must be positive"):
        datasets.FiniteMixture(torch.tensor([-1.0]), [one], support)


def test_mixture_with_a_batch():
    rates = torch.tensor([1.0, 20.0])
    law = datasets.FiniteMixture(
        torch.tensor([1.0, 3.0]),
        [dist.Poisson(rates), dist.Poisson(rates + 1)],
        constraints.nonnegative_integer,
    )
    assert law.batch_shape == law.mean.shape == law.variance.shape == (2,)
    assert law.sample((5,)).shape == law.log_prob(torch.ones(5, 2)).shape == (5, 2)
    torch.testing.assert_close(law.mean, rates + 0.75)
    torch.testing.assert_close(law.variance, rates + 0.75 + 0.25 * 0.75)
