"""DiscretizedLogistic: its probabilities, tails and gradient, and its place in mixtures."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_sig.distributions import DiscretizedLogistic, FixedMixture, Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO

F64 = torch.float64


def tensor(*x):
    return torch.tensor(x, dtype=F64)


# ----------------------------------------------------------------------------------- probabilities


def test_probabilities_are_differences_of_the_logistic_cdf():
    loc, scale, half = 0.2, 0.3, 1 / 255
    p = DiscretizedLogistic(tensor(loc), tensor(scale))
    x = p.levels
    upper, lower = (((x + shift - loc) / scale).sigmoid() for shift in (half, -half))
    upper[-1], lower[0] = 1.0, 0.0
    torch.testing.assert_close(p.log_prob(x).exp(), upper - lower, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("low", "high", "num"), [(-1.0, 1.0, 256), (0.0, 255.0, 256), (2.0, 5.0, 2)]
)
def test_probabilities_sum_to_one(dtype, low, high, num):
    span = high - low
    loc = torch.tensor([-0.7, 0.0, 0.31, 1.0, 5.0], dtype=dtype) * span
    scale = torch.tensor([[1e-4], [0.05], [3.0], [1e3]], dtype=dtype) * span
    p = DiscretizedLogistic(loc, scale, low, high, num)
    total = p.log_prob(p.enumerate_support()).logsumexp(0)
    # 256 terms, each with a few roundings of logarithms that are up to about ten.
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=tolerance)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_tails(sign, dtype):
    # Far out P(x) is the tail e^{-(distance - half)/s} times 1 - e^{-delta/s}; the difference of
    # two sigmoids would be exactly zero there, or one minus one.
    loc, scale = torch.tensor(0.0, dtype=dtype), torch.tensor(1e-3, dtype=dtype)
    loc.requires_grad_()
    p = DiscretizedLogistic(loc, scale)
    k = 127 if sign < 0 else 128
    index = torch.tensor([k - 100, k - 50] if sign < 0 else [k + 50, k + 100])
    x = p.levels[index]
    half = 1 / 255
    expected = -(x.abs() - half) / 1e-3 + math.log1p(-math.exp(-2 * half / 1e-3))
    found = p.log_prob(x)
    torch.testing.assert_close(
        found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0
    )
    (grad,) = torch.autograd.grad(found.sum(), loc)
    torch.testing.assert_close(grad, torch.tensor(2 * sign * 1e3, dtype=dtype))


def test_the_edges_take_the_tails():
    p = DiscretizedLogistic(tensor(-30.0, 30.0), tensor(0.1))
    torch.testing.assert_close(p.log_prob(tensor(-1.0, 1.0)).exp(), tensor(1.0, 1.0))
    assert p.log_prob(tensor(1.0, -1.0)).isfinite().all()


def test_gradient_by_finite_differences():
    p_levels = DiscretizedLogistic(tensor(0.0), tensor(1.0)).levels
    x = p_levels[torch.tensor([0, 1, 100, 254, 255])]
    loc = tensor(-0.9, -1.3, 0.4, 0.2, 1.7).requires_grad_()
    scale = tensor(0.02, 0.3, 0.004, 1.0, 0.5).requires_grad_()

    def log_prob(loc, scale):
        return DiscretizedLogistic(loc, scale).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (loc, scale))


@pytest.mark.parametrize("scale", [1e-4, 0.2, 50.0])
def test_moments(scale):
    p = DiscretizedLogistic(tensor(-0.3, 0.9), tensor(scale), low=-1, high=2, num_levels=7)
    probs = p.log_prob(p.enumerate_support()).exp()
    levels = p.levels.unsqueeze(-1)
    mean = (probs * levels).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(
        p.variance, (probs * levels**2).sum(0) - mean**2, rtol=1e-9, atol=1e-12
    )


def test_draws_have_these_probabilities():
    p = DiscretizedLogistic(tensor(0.4), tensor(0.5), low=0, high=1, num_levels=5)
    n = 40_000
    draws = p.sample((n,))
    probs = p.log_prob(p.levels).exp()
    counts = torch.stack([(draws == level).sum() for level in p.levels])
    assert counts.sum() == n
    # Five shares; 5 standard errors fail once in 300,000.
    se = (probs * (1 - probs) / n).sqrt()
    assert ((counts / n - probs).abs() < 5 * se).all()


# ------------------------------------------------------------------------------------------ shapes


def test_shapes_and_expand():
    p = DiscretizedLogistic(torch.zeros(3), torch.ones(2, 1))
    assert (p.batch_shape, p.event_shape) == ((2, 3), ())
    q = p.expand([4, 2, 3])
    x = q.sample((5,))
    assert x.shape == (5, 4, 2, 3)
    assert x.unique().numel() > 10  # the copies are drawn independently
    torch.testing.assert_close(q.log_prob(x), p.log_prob(x))
    assert q.enumerate_support().shape == (256, 4, 2, 3)
    assert q.enumerate_support(expand=False).shape == (256, 1, 1, 1)
    assert q.to_event(3).log_prob(x).shape == (5,)
    assert (q.low, q.high, q.num_levels) == (-1.0, 1.0, 256)
    assert not q.has_rsample
    again = pickle.loads(pickle.dumps(p))
    torch.testing.assert_close(again.log_prob(x), p.log_prob(x))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_support(dtype):
    p = DiscretizedLogistic(torch.zeros((), dtype=dtype), 1.0, validate_args=True)
    pixels = torch.arange(256, dtype=torch.uint8)
    for values in (pixels.to(dtype) / 127.5 - 1, 2 * (pixels.to(dtype) / 255) - 1, p.levels):
        assert p.support.check(values).all()
        assert p.log_prob(values).shape == (256,)
    spacing = 2 / 255
    for value in (0.3 * spacing - 1, 1 + spacing, -1 - spacing, math.nan, math.inf):
        value = torch.tensor(value, dtype=dtype)
        assert not p.support.check(value).any()
        with pytest.raises(ValueError, match="support"):
            p.log_prob(value)
    assert p.support.is_discrete
    assert "num_levels=256" in repr(p.support)
    greys = DiscretizedLogistic(0.0, 1.0, low=0, high=255)
    assert greys.support.check(pixels).all()  # whole numbers are levels of these
    assert constraints.is_dependent(DiscretizedLogistic.support)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"low": 1.0}, r"`high` must be above `low` = 1\.0, was 1\.0"),
        ({"high": math.inf}, "`high` must be a finite number, was inf"),
        ({"num_levels": 1}, "`num_levels` must be an integer of at least 2, was 1"),
        ({"num_levels": 2.5}, "`num_levels` must be an integer"),
        ({"scale": torch.tensor(0.0)}, "scale"),
    ],
)
def test_arguments_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        DiscretizedLogistic(
            **{"loc": 0.0, "scale": torch.tensor(1.0), "validate_args": True} | options
        )


# ---------------------------------------------------------------------------------------- mixtures


def conditional(psi):
    return DiscretizedLogistic(psi, 0.05).to_event(1)


def by_hand(psi, x):
    """Log of the mean over psi [K, D] of the probability of each row of x [N, D]."""
    scores = DiscretizedLogistic(psi.unsqueeze(1), 0.05).log_prob(x).sum(-1)
    return scores.logsumexp(0) - math.log(len(psi))


def test_a_mixture_larger_than_one_chunk():
    psi = 0.5 * torch.randn(900, 48)
    x = conditional(0.5 * torch.randn(110, 48)).sample()  # 4.7 million pairs of coordinates
    found = FixedMixture(psi, conditional, 1).log_prob(x)
    torch.testing.assert_close(found, by_hand(psi, x))


def two_points(noise):
    """Moves psi to one of two places with equal probability, smoothly nowhere between."""
    return torch.where(noise > 0, 0.3, -0.4)


def test_semi_implicit():
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    p = SemiImplicit(Implicit(two_points, noise, 2), conditional, num_mixing=4000)
    assert not p.has_rsample
    x = p.sample((50,))
    assert p.support.check(x).all()
    places = torch.cartesian_prod(*[torch.tensor([0.3, -0.4])] * 2)
    exact = by_hand(places, x)
    found = p.log_prob(x, psi_0=None)
    # Of each place's share, 1/4, the standard error is below 0.007; 5 of them fail once in
    # 400,000 for each of the four.
    assert ((found - exact).abs() < 5 * 0.007 / 0.25).all()


def test_sig_elbo():
    x = DiscretizedLogistic(torch.tensor([-0.4, 0.3]).repeat(25), 0.05).sample()
    noise = dist.Normal(0.0, 1.0)
    num_mixing, repeats = 2000, 16

    def run(scale):
        def model():
            with pyro.plate("data", len(x)):
                psi = pyro.sample("psi", Implicit(lambda eps: scale * eps, noise))
                pyro.sample("x", DiscretizedLogistic(psi, 0.05), obs=x)

        loss = SIG_ELBO(num_mixing, max_plate_nesting=1).differentiable_loss(model, lambda: None)
        return torch.stack([loss, *torch.autograd.grad(loss, scale)]).detach()

    scale = torch.tensor(0.15, requires_grad=True)
    found = torch.stack([run(scale) for _ in range(repeats)])

    grid = torch.linspace(-6, 6, 4001)
    log_weight = (noise.log_prob(grid) + math.log(12 / 4000)).unsqueeze(-1)
    scores = DiscretizedLogistic(scale * grid.unsqueeze(-1), 0.05).log_prob(x)
    log_evidence = (scores + log_weight).logsumexp(0)
    exact = -log_evidence.sum()
    slope = torch.autograd.grad(exact, scale, retain_graph=True)[0]
    # The mean of M terms has a bias in the log of half their squared coefficient of variation
    # by M; it is counted twice. Both comparisons fail once in a million.
    squared = (2 * scores + log_weight).logsumexp(0)
    bias = ((squared - 2 * log_evidence).exp() - 1).sum() / num_mixing
    error = found.mean(0) - torch.stack([exact, slope]).detach()
    tolerance = 5 * found.std(0) / repeats**0.5
    assert -tolerance[0] < error[0] < tolerance[0] + float(bias.detach())
    assert error[1].abs() < tolerance[1] + float(bias.detach()) / 0.15
    assert tolerance[1] < 0.1 * slope.abs()  # it can tell
