"""ParticleMixing: an exact finite mixture, gradients to particles, plates, errors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch.distributions import constraints

from pyro_sig.distributions import ParticleMixing, SemiImplicit

SIGMAS = 5.0  # one failure in 1.7 million
PARTICLES = torch.tensor([-2.0, 0.5, 1.0, 4.0])


def normal(psi):
    return dist.Normal(psi, 0.5)


def mixture(particles=PARTICLES):
    weights = dist.Categorical(torch.ones(len(particles)))
    return dist.MixtureSameFamily(weights, dist.Normal(particles, 0.5))


@pytest.mark.parametrize("share_draws", [True, False])
@pytest.mark.parametrize("num_mixing", [1, 3, 50])
def test_log_prob_is_that_of_the_finite_mixture(num_mixing, share_draws):
    q = SemiImplicit(ParticleMixing(PARTICLES), normal, num_mixing, share_draws)
    given, drawn = torch.linspace(-4, 6, 11), q.rsample((20,))
    for value in (given, drawn):
        for estimate in (q.log_prob(value), q.log_prob(value, psi_0=None)):
            assert torch.allclose(estimate, mixture().log_prob(value), rtol=1e-5)
    lower, upper = q.log_prob_bounds(drawn)
    assert torch.equal(lower, upper)  # psi_0 is one of the particles and not counted twice
    assert q.num_mixing == 4


def test_draws_have_the_mixtures_moments():
    q = SemiImplicit(ParticleMixing(PARTICLES), normal, 1)
    draws = q.rsample((40_000,))
    error = SIGMAS * draws.std() / 200
    assert abs(draws.mean() - mixture().mean) < error
    squares = (draws - mixture().mean).square()
    assert abs(squares.mean() - mixture().variance) < SIGMAS * squares.std() / 200
    shares = torch.stack([(q.psi(draws) == p).float().mean() for p in PARTICLES])
    assert (shares - 0.25).abs().max() < SIGMAS * math.sqrt(0.25 * 0.75 / 40_000)


def test_the_gradient_of_a_draw_goes_to_its_particle():
    particles = torch.randn(6, 2).requires_grad_()
    mixing = ParticleMixing(particles)
    draws = mixing.rsample((5,))
    index = [int((particles == draw).all(-1).nonzero()) for draw in draws]
    weights = torch.randn(5, 2)
    (grad,) = torch.autograd.grad((weights * draws).sum(), particles)
    truth = torch.zeros(6, 2).index_add(0, torch.tensor(index), weights)
    assert torch.allclose(grad, truth)
    assert not mixing.sample((5,)).requires_grad


def test_shapes_and_expansion():
    mixing = ParticleMixing(torch.randn(6, 2, 3))
    assert mixing.batch_shape == () and mixing.event_shape == (2, 3)
    wide = mixing.expand((4, 1)).expand((4, 5))
    assert wide.batch_shape == (4, 5) and wide.particles is mixing.particles
    draws = wide.rsample((7,))
    assert draws.shape == (7, 4, 5, 2, 3)
    assert len(draws.reshape(-1, 6).unique(dim=0)) == 6  # rows are drawn one by one
    assert mixing.support == constraints.independent(constraints.real, 2) or (
        mixing.support.event_dim == 2 and mixing.support.check(draws).all()
    )
    q = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 1.0).to_event(2), 1).expand((5,))
    value = q.rsample((3,))
    assert value.shape == (3, 5, 2, 3) and q.log_prob(value).shape == (3, 5)


@pytest.mark.parametrize("vectorize", [True, False])
def test_evidence_bound_is_exact_in_a_plate(vectorize):
    """No psi but the particles: the bound is the divergence to the model, 5 SE."""

    def model():
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(0.0, 3.0))

    def guide():
        particles = pyro.param("particles", PARTICLES)
        with pyro.plate("rows", 3):
            pyro.sample("z", SemiImplicit(ParticleMixing(particles), normal, 1))

    elbo = Trace_ELBO(
        num_particles=400 if vectorize else 20,
        vectorize_particles=vectorize,
        max_plate_nesting=1,
    )
    losses = torch.tensor([elbo.loss(model, guide) for _ in range(50)])
    grid = torch.linspace(-12, 14, 20_001)
    density = mixture().log_prob(grid).exp()
    gap = mixture().log_prob(grid) - dist.Normal(0.0, 3.0).log_prob(grid)
    truth = 3 * torch.trapezoid(density * gap, grid)
    assert abs(losses.mean() - truth) <= SIGMAS * losses.std() / math.sqrt(50)


def test_an_optimiser_moves_the_particles():
    def model():
        pyro.sample("z", dist.Normal(3.0, 1.0))

    def guide():
        particles = pyro.param("particles", torch.linspace(-1.0, 1.0, 20))
        pyro.sample("z", SemiImplicit(ParticleMixing(particles), normal, 1))

    elbo = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, Adam({"lr": 0.05}), elbo)
    for _ in range(200):
        svi.step()
    particles = pyro.param("particles")
    # N(3, 1) is this mixture's with particles of mean 3 and variance 3 / 4; 0.15 for the fit.
    assert abs(particles.mean() - 3.0) < 0.15
    assert abs(particles.var(unbiased=False) - 0.75) < 0.15


@pytest.mark.parametrize("particles", [torch.zeros(()), torch.zeros(0, 2), [1.0, 2.0]])
def test_bad_particles(particles):
    with pytest.raises(ValueError, match=r"`particles` must be .* of shape \[M, \*event_shape\]"):
        ParticleMixing(particles)


def test_particles_have_no_density():
    with pytest.raises(NotImplementedError, match="mix a conditional over it"):
        ParticleMixing(PARTICLES).log_prob(PARTICLES)
