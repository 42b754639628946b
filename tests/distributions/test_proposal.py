"""SemiImplicit with a proposal: unbiased weights, bounds on both sides, exactness, errors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_sig.distributions import Implicit, SemiImplicit

SIGMAS = 5.0  # one failure in 1.7 million
DOUBLE = {"dtype": torch.float64}

# psi = A + B eps, x | psi ~ N(psi, C^2): x ~ N(A, B^2 + C^2), eps | x normal.
A, B, C = 1.0, 1.5, 0.5
VAR = B**2 + C**2


def marginal():
    return dist.Normal(torch.tensor(A, **DOUBLE), math.sqrt(VAR))


def push_forward():
    noise = dist.Normal(torch.zeros(1, **DOUBLE), 1.0).to_event(1)
    return Implicit(lambda eps: A + B * eps, noise, 1)


def conditional(psi):
    return dist.Normal(psi.squeeze(-1), C)


def rough(value):
    """Between the noise's own law and the reverse conditional, and wider than both."""
    loc = 0.5 * (value - A) * B / VAR
    return dist.Normal(loc.unsqueeze(-1), 1.2).to_event(1)


def exact(value):
    return dist.Normal(((value - A) * B / VAR).unsqueeze(-1), C / math.sqrt(VAR)).to_event(1)


def law(proposal=rough, num_mixing=3, mixing=None):
    return SemiImplicit(mixing or push_forward(), conditional, num_mixing, proposal=proposal)


def close(values, truth):
    return (values.mean() - truth).abs() <= SIGMAS * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("rows", [1, 4])
def test_mean_importance_weight_is_one(rows):
    """Of all rows together: every row has psi of its own."""
    q = law().expand([rows])
    z = q.rsample((40_000,))
    weights = (marginal().log_prob(z) - q.log_prob(z)).sum(-1).exp()
    assert close(weights, 1.0)


@pytest.mark.parametrize("value", [-2.0, 1.0, 4.0])
def test_density_is_unbiased(value):
    value = torch.tensor(value, **DOUBLE).expand(40_000)
    assert close(law().log_prob(value).exp(), marginal().log_prob(value[0]).exp())


def test_bounds_hold_on_both_sides():
    q = law()
    z = q.rsample((40_000,))
    lower, upper = (x - marginal().log_prob(z) for x in q.log_prob_bounds(z))
    assert lower.mean() + SIGMAS * lower.std() / 200 < 0
    assert upper.mean() - SIGMAS * upper.std() / 200 > 0
    better = law(exact)
    assert better.log_prob_bounds(torch.zeros(3, **DOUBLE))[1] is None  # not drawn: no psi_0


@pytest.mark.parametrize("num_mixing", [1, 5])
def test_reverse_conditional_gives_the_density_itself(num_mixing):
    q = law(exact, num_mixing)
    for z in (q.rsample((50,)), torch.linspace(-5, 7, 20, **DOUBLE)):
        for estimate in (q.log_prob(z), q.log_prob(z, psi_0=None)):
            assert torch.allclose(estimate, marginal().log_prob(z), rtol=1e-10)


def test_mixing_that_is_no_push_forward_proposes_psi():
    def posterior(value):
        loc = (value * B**2 + A * C**2) / VAR
        return dist.Normal(loc.unsqueeze(-1), B * C / math.sqrt(VAR)).to_event(1)

    mixing = dist.Normal(torch.tensor([A], **DOUBLE), B).to_event(1)
    q = law(posterior, 2, mixing)
    z = q.rsample((20,))
    truth = marginal().log_prob(z)
    assert torch.allclose(q.log_prob(z), truth, rtol=1e-10)
    assert torch.allclose(q.log_prob(z.clone(), psi_0=q.psi(z)), truth, rtol=1e-10)


def test_amortised_mixing():
    """Each row has inputs of its own: the reverse conditional is exact for each."""
    x = torch.tensor([-2.0, 0.0, 3.0], **DOUBLE)
    noise = dist.Normal(torch.zeros(1, **DOUBLE), 1.0).to_event(1)
    mixing = Implicit(lambda e, x: x + B * e, noise, 1, inputs=x.unsqueeze(-1))

    def proposal(value):
        return dist.Normal(((value - x) * B / VAR).unsqueeze(-1), C / math.sqrt(VAR)).to_event(1)

    q = SemiImplicit(mixing, conditional, 4, proposal=proposal)
    for shape in ((), (6,), (2, 6)):
        z = q.rsample(shape)
        assert z.shape == shape + (3,)
        assert torch.allclose(q.log_prob(z), dist.Normal(x, VAR**0.5).log_prob(z), rtol=1e-10)


@pytest.mark.parametrize("tight", [False, True])
def test_the_bound_trains_the_proposal(tight):
    """The gap of the bound falls where the proposal nears the reverse conditional."""
    params = [torch.zeros((), **DOUBLE).requires_grad_() for _ in range(2)]

    def learned(value):
        slope, log_scale = params
        return dist.Normal((slope * (value - A)).unsqueeze(-1), log_scale.exp()).to_event(1)

    q = law(learned, 5)
    optimizer = torch.optim.Adam(params, lr=0.05)
    for _ in range(300):
        z = q.rsample((200,)).detach()
        if tight:  # the lower bound of given values
            loss = -q.log_prob(z, psi_0=None).mean()
        else:  # the upper bound, at a guide's site
            z = q.rsample((200,))
            loss = q.log_prob(z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    slope, log_scale = params
    # Both bounds are exact at the reverse conditional; 0.1 for 300 noisy steps.
    assert abs(slope.item() - B / VAR) < 0.1
    assert abs(log_scale.exp().item() - C / math.sqrt(VAR)) < 0.1


def test_in_a_guide_the_bound_is_the_exact_one():
    def model():
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(torch.tensor(0.0, **DOUBLE), 2.0))

    def guide():
        with pyro.plate("rows", 3):
            pyro.sample("z", law(exact))

    elbo = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    losses = torch.tensor([elbo.loss(model, guide) for _ in range(20)])
    truth = 3 * torch.distributions.kl_divergence(marginal(), dist.Normal(0.0, 2.0))
    assert (losses.mean() - truth).abs() <= 1.3 * SIGMAS * losses.std() / math.sqrt(20)


def test_a_guide_without_rsample_is_refused():
    """The gradient of a score function would need the law of psi_0 given the value."""
    mixing = dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def model():
        pyro.sample("z", dist.Bernoulli(0.3))

    def guide():
        q = SemiImplicit(
            mixing,
            lambda psi: dist.Bernoulli(logits=psi.squeeze(-1)),
            3,
            proposal=lambda z: dist.Normal(z.unsqueeze(-1), 1.0).to_event(1),
        )
        pyro.sample("z", q)

    with pytest.raises(ValueError, match="`proposal` must be None.*rsample"):
        Trace_ELBO().loss_and_grads(model, guide)


# --------------------------------------------------------------------------------------- bad input


def scalar_normal(value):
    return dist.Normal(value, 1.0)


def wide_vector(value):
    return dist.Normal(torch.zeros(*value.shape, 2, **DOUBLE), 1.0).to_event(1)


def one_row(value):
    return dist.Normal(torch.zeros(1, **DOUBLE), 1.0).to_event(1)


def discrete(value):
    return dist.Bernoulli(0.5 * torch.ones(*value.shape, 1, **DOUBLE)).to_event(1)


@pytest.mark.parametrize("proposal", [scalar_normal, wide_vector, one_row, discrete])
def test_wrong_proposals(proposal):
    q = law(proposal)
    with pytest.raises(ValueError, match="`proposal` must return a distribution of batch_shape"):
        q.log_prob(torch.zeros(4, **DOUBLE))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`proposal` must be a callable"):
        law(dist.Normal(0.0, 1.0))
    q = law()
    z = q.rsample((3,))
    with pytest.raises(ValueError, match="`psi_0` must be left to what the distribution remembers"):
        q.log_prob(z, psi_0=q.psi(z))
