"""Posterior of psi: against conjugate posteriors, batched against streaming."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_sig.distributions import (
    FixedMixture,
    Implicit,
    ParticleMixing,
    PsiPosterior,
    SemiImplicit,
)
from pyro_sig.distributions.psi_posterior import resample_psi, weigh_psi

DOUBLE = {"dtype": torch.float64}
COUNTS = torch.tensor([0.0, 1.0, 4.0], **DOUBLE)


def gamma_poisson(**kwargs):
    gamma = dist.Gamma(torch.tensor(2.0, **DOUBLE), torch.tensor(1.5, **DOUBLE))
    return SemiImplicit(gamma, dist.Poisson, num_mixing=50_000, **kwargs)


@pytest.mark.parametrize("chunk_size", [None, 7000])
def test_gamma_poisson(chunk_size):
    """Self-normalised means lie within 5 standard errors of Gamma(a + x, b + 1)."""
    posterior = gamma_poisson().psi_posterior(COUNTS, chunk_size=chunk_size, num_draws=4000)
    truth = dist.Gamma(2.0 + COUNTS, torch.tensor(2.5, **DOUBLE))
    error = (truth.variance / posterior.effective_sample_size).sqrt()
    assert ((posterior.mean - truth.mean).abs() < 5 * error).all()
    kurtosis = 6 / truth.concentration  # excess, of a Gamma
    spread = truth.variance * ((2 + kurtosis) / posterior.effective_sample_size).sqrt()
    assert ((posterior.variance - truth.variance).abs() < 5 * spread).all()
    evidence = dist.GammaPoisson(2.0, torch.tensor(1.5, **DOUBLE)).log_prob(COUNTS)
    # The relative error of the mean weight is at most 1 / sqrt(effective sample size).
    relative = 5 / posterior.effective_sample_size.sqrt()
    assert ((posterior.log_evidence - evidence).abs() < relative).all()


def test_streamed_draws_follow_the_posterior():
    """A KS distance of 3 x 2000 draws stays below its 1e-6 quantile, rows together."""
    posterior = gamma_poisson().psi_posterior(COUNTS, 200_000, chunk_size=3000, num_draws=2000)
    draws = posterior._samples.sort(-1).values
    truth = dist.Gamma(2.0 + COUNTS.unsqueeze(-1), torch.tensor(2.5, **DOUBLE)).cdf(draws)
    levels = torch.arange(1, 2001, **DOUBLE) / 2000
    distance = (truth - levels).abs().max() + 1 / 2000
    assert distance < math.sqrt(-math.log(1e-6 / 6) / 2 / 2000) + 1 / 2000


def test_streaming_has_the_moments_of_the_whole():
    """The same atoms in chunks and at once: moments, evidence and size agree to rounding."""
    psi = torch.randn(100, 1, 2, **DOUBLE) + 1000
    log_weights = 3 * torch.randn(100, 4, **DOUBLE)
    whole = weigh_psi(psi, log_weights)
    for size in (1, 33, 100):
        chunks = zip(psi.split(size), log_weights.split(size), strict=True)
        streamed = resample_psi(chunks, 5)
        assert streamed.batch_shape == whole.batch_shape == (4,)
        assert streamed.event_shape == whole.event_shape == (2,)
        torch.testing.assert_close(streamed.mean, whole.mean)
        torch.testing.assert_close(streamed.variance, whole.variance)
        torch.testing.assert_close(streamed.log_evidence, whole.log_evidence)
        expected = whole.effective_sample_size
        torch.testing.assert_close(streamed.effective_sample_size, expected)


def test_kept_draws_are_any_atom_with_its_weight():
    """Shares of 5 atoms in chunks of 2, over 40,000 kept draws, within 5 standard errors."""
    weights = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])
    psi, log_weights = torch.arange(5.0), weights.log().unsqueeze(-1)
    chunks = zip(psi.unsqueeze(-1).split(2), log_weights.split(2), strict=True)
    kept = resample_psi(chunks, 40_000)._samples.flatten()
    shares = torch.bincount(kept.long(), minlength=5) / 40_000
    assert ((shares - weights).abs() < 5 * (weights * (1 - weights) / 40_000).sqrt()).all()


@pytest.mark.parametrize("chunk_size", [None, 300])
def test_shapes_of_rows_and_of_amortised_mixings(chunk_size):
    loc = torch.randn(4, 2)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    for mixing, rows in [
        (Implicit(lambda e: 2 * e, noise, 2), (3, 4)),
        (Implicit(lambda e, x: x + e, noise, 2, inputs=loc), (3, 4)),
    ]:
        p = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 1.0).to_event(1), 10)
        posterior = p.psi_posterior(torch.zeros(*rows, 2), 1000, chunk_size, num_draws=50)
        assert posterior.batch_shape == rows and posterior.event_shape == (2,)
        assert posterior.sample((6,)).shape == (6, *rows, 2)
        assert posterior.mean.shape == posterior.variance.shape == (*rows, 2)
        assert posterior.log_evidence.shape == posterior.effective_sample_size.shape == rows


def test_amortised_rows_have_their_own_posterior():
    """Normal prior at each row's loc: the mean lies halfway between loc and x (5 errors)."""
    loc = torch.tensor([-2.0, 0.0, 3.0], **DOUBLE)
    p = SemiImplicit(dist.Normal(loc, 1.0), lambda psi: dist.Normal(psi, 1.0), 20_000)
    x = torch.tensor([-1.0, 1.0, 2.0], **DOUBLE)
    posterior = p.psi_posterior(x)
    error = (0.5 / posterior.effective_sample_size).sqrt()
    assert ((posterior.mean - (loc + x) / 2).abs() < 5 * error).all()


def test_a_proposal_that_is_the_posterior_has_constant_weights():
    """All draws count fully, and the evidence is exact."""
    noise = dist.Normal(torch.zeros((), **DOUBLE), 1.0)
    p = SemiImplicit(
        Implicit(lambda e: e, noise),
        lambda psi: dist.Normal(psi, 1.0),
        num_mixing=10,
        proposal=lambda x: dist.Normal(x / 2, 0.5**0.5),
    )
    x = torch.tensor([-1.0, 5.0], **DOUBLE)
    for chunk_size in (None, 100):
        posterior = p.psi_posterior(x, 1000, chunk_size)
        expected = torch.full((2,), 1000.0, **DOUBLE)
        torch.testing.assert_close(posterior.effective_sample_size, expected)
        truth = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        torch.testing.assert_close(posterior.log_evidence, truth)


def test_finite_mixtures_are_exact():
    atoms = torch.tensor([-1.0, 0.5, 2.0], **DOUBLE)
    x = torch.tensor([0.0, 1.0], **DOUBLE)

    def conditional(psi):
        return dist.Normal(psi, 1.0)

    weights = conditional(atoms).log_prob(x.unsqueeze(-1)).softmax(-1)
    for mixture in (
        FixedMixture(atoms, conditional),
        SemiImplicit(ParticleMixing(atoms), conditional, 1),
    ):
        posterior = mixture.psi_posterior(x)
        torch.testing.assert_close(posterior.mean, weights @ atoms)
        torch.testing.assert_close(posterior.log_evidence, mixture.log_prob(x))


def test_large_events_take_the_matrix_product():
    """512 rows of 784 pixels under 2000 psi: [M, N, D] would take 3 GiB."""
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    mixing = Implicit(torch.nn.Linear(2, 784), noise, 784)
    p = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 1.0).to_event(1), 2000)
    posterior = p.psi_posterior(torch.zeros(512, 784), chunk_size=500, num_draws=3)
    assert posterior.mean.shape == (512, 784)


def test_what_no_psi_can_emit_raises():
    p = SemiImplicit(dist.Uniform(0.0, 1.0), lambda psi: dist.Uniform(psi, psi + 1), 10)
    for chunk_size in (None, 5):
        with pytest.raises(ValueError, match="no draw of psi can have emitted"):
            p.psi_posterior(torch.tensor([0.5, 7.0]), chunk_size=chunk_size)


@pytest.mark.parametrize("name", ["num_mixing", "chunk_size", "num_draws"])
@pytest.mark.parametrize("bad", [0, -1, 2.5, True])
def test_numbers_must_be_positive(name, bad):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
        gamma_poisson().psi_posterior(COUNTS, **{name: bad})


def test_bad_values_and_weights_raise():
    with pytest.raises(ValueError, match="support"):
        gamma_poisson().psi_posterior(COUNTS - 1)
    with pytest.raises(ValueError, match="`chunks` must not be empty"):
        resample_psi([], 5)
    with pytest.raises(ValueError, match="`log_weights` must not be NaN"):
        PsiPosterior(torch.zeros(2), torch.tensor([0.0, math.nan]))
