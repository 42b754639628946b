import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import (
    Categorical,
    Cauchy,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)

from pyro_sig.adversarial.objectives import (
    FDivergence,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Wasserstein,
)
from pyro_sig.adversarial.optimal_critic import optimal_critic


def double(*values):
    return [torch.tensor(value, dtype=torch.double) for value in values]


def normal(loc, scale):
    return Normal(*double(loc, scale))


def mixture(weights, locs, scales):
    weights, locs, scales = double(weights, locs, scales)
    return MixtureSameFamily(Categorical(weights), Normal(locs, scales))


@pytest.mark.parametrize(
    "objective", [Minimax(), NonSaturating(), LeastSquares(), Hinge(), FDivergence("kl")], ids=repr
)
def test_scores_of_the_log_ratio(objective):
    data, model = normal(0.5, 1.2), mixture([0.4, 0.6], [-1.0, 2.0], [0.5, 1.0])
    x = torch.randn(4, 3).double().requires_grad_()
    scores = optimal_critic(objective, data, model)(x)
    assert scores.shape == (4, 3)
    torch.testing.assert_close(
        scores, objective.optimal_score(data.log_prob(x) - model.log_prob(x))
    )
    assert torch.autograd.gradcheck(optimal_critic(objective, data, model), x)


def test_shape_is_that_of_log_prob():
    data = MultivariateNormal(torch.ones(3), torch.eye(3))
    model = Independent(Normal(torch.zeros(3), 1.0), 1)
    x = torch.randn(5, 2, 3)
    scores = optimal_critic(Minimax(), data, model)(x)
    torch.testing.assert_close(scores, x.sum(-1) - 1.5)


def test_gradients_reach_the_parameters_of_the_model():
    loc = torch.zeros((), requires_grad=True)
    scores = optimal_critic(Minimax(), Normal(1.0, 1.0), Normal(loc, 1.0))(torch.tensor([3.0]))
    assert torch.autograd.grad(scores.sum(), loc)[0] == -3.0
    fixed = optimal_critic(Minimax(), Normal(1.0, 1.0), Normal(loc.detach(), 1.0))
    assert not fixed(torch.tensor([3.0])).requires_grad


def test_where_a_law_has_no_density():
    data = Uniform(0.0, 2.0, validate_args=False)
    model = Uniform(1.0, 3.0, validate_args=False)
    critic = optimal_critic(Minimax(), data, model)
    scores = critic(torch.tensor([0.5, 1.5, 2.5, 9.0]))
    assert scores.tolist() == [math.inf, 0.0, -math.inf, 0.0]


PAIRS = [
    (normal(1.0, 1.0), normal(0.0, 1.0)),
    (normal(1.0, 0.7), normal(0.0, 1.5)),
    (normal(0.0, 1.0), normal(0.0, 2.0)),
    (mixture([0.3, 0.7], [-4.0, 3.0], [0.5, 1.0]), normal(0.0, 2.0)),
    (normal(0.0, 1.0), mixture([0.25] * 4, [-6.0, -2.0, 2.0, 6.0], [0.3] * 4)),
    (Gamma(*double(2.0, 1.0)), Exponential(*double(0.4))),
    (LogNormal(*double(0.0, 0.5)), Gamma(*double(3.0, 2.0))),
    (Uniform(*double(5.0, 6.0)), Uniform(*double(-3.0, -2.0))),
    (Laplace(*double(1000.0, 0.01)), normal(999.9, 0.02)),
    (normal(0.0, 1e4), normal(1e-3, 1e-3)),
    (Uniform(*double(-1.0, 1.0)), Uniform(*double(-2.0, 2.0))),
]
EACH = pytest.mark.parametrize("data, model", PAIRS, ids=str)


def expectation(law, function, size=200_000):
    """A mean over quantiles of equal mass, found without the code under test."""
    levels = (torch.arange(size, dtype=torch.double) + 0.5) / size
    return function(quantiles(law, levels)).mean()


def quantiles(law, levels):
    scipy_laws = {
        Normal: lambda: stats.norm(law.loc, law.scale),
        Laplace: lambda: stats.laplace(law.loc, law.scale),
        Gamma: lambda: stats.gamma(law.concentration, scale=1 / law.rate),
        Exponential: lambda: stats.expon(scale=1 / law.rate),
        LogNormal: lambda: stats.lognorm(law.scale, scale=law.loc.exp()),
        Uniform: lambda: stats.uniform(law.low, law.high - law.low),
    }
    if isinstance(law, MixtureSameFamily):
        x = torch.linspace(-30, 30, 2_000_001, dtype=torch.double)
        index = torch.searchsorted(law.cdf(x), levels).clamp(max=len(x) - 1)
        return x[index]
    return torch.from_numpy(scipy_laws[type(law)]().ppf(levels.numpy()))


@EACH
def test_the_potential_attains_the_wasserstein_distance(data, model):
    critic = optimal_critic(Wasserstein(), data, model)
    dual = expectation(data, critic) - expectation(model, critic)
    levels = (torch.arange(200_000, dtype=torch.double) + 0.5) / 200_000
    primal = (quantiles(data, levels) - quantiles(model, levels)).abs().mean()
    assert float(dual) == pytest.approx(float(primal), rel=1e-4)


@EACH
def test_the_slope_of_the_potential_is_the_sign_of_the_cdfs(data, model):
    x = quantiles(data, torch.linspace(0.01, 0.99, 99, dtype=torch.double)).requires_grad_()
    critic = optimal_critic(Wasserstein(), data, model)
    (slope,) = torch.autograd.grad(critic(x).sum(), x)
    assert bool((slope.abs() == 1).all())
    support = model.support.check(x.detach())
    difference = model.cdf(x.detach()[support]) - data.cdf(x.detach()[support])
    clear = difference.abs() > 1e-9
    assert torch.equal(slope[support][clear], difference.sign()[clear])


def test_a_heavy_tail():
    data, model = Cauchy(*double(0.0, 1.0)), Cauchy(*double(0.0, 2.0))
    x = torch.tensor([-1e5, -3.0, -1e-3, 1e-3, 3.0, 1e5], dtype=torch.double)
    # Symmetric about the one crossing, and higher where the data are.
    scores = optimal_critic(Wasserstein(), data, model)(x)
    torch.testing.assert_close(scores - scores[2], 1e-3 - x.abs())


def test_distance_by_an_integral():
    data, model = PAIRS[3]
    critic = optimal_critic(Wasserstein(), data, model)
    dual = expectation(data, critic) - expectation(model, critic)
    truth, _ = integrate.quad(
        lambda x: abs(float(data.cdf(*double(x)) - model.cdf(*double(x)))),
        -12, 12, limit=500, points=[-4, 0, 3], epsabs=1e-8,
    )  # fmt: skip
    assert float(dual) == pytest.approx(truth, rel=1e-4)


def test_equal_laws_cannot_be_told_apart():
    x = torch.randn(3, 2)
    critic = optimal_critic(Wasserstein(), Normal(0.5, 2.0), Normal(0.5, 2.0))
    assert torch.equal(critic(x), torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_shape(dtype):
    x = torch.randn(3, 2, dtype=dtype)
    scores = optimal_critic(Wasserstein(), Normal(1.0, 0.7), Normal(0.0, 1.5))(x)
    assert scores.dtype == dtype and scores.shape == (3, 2)
    # The kink is at (1 x 1.5 - 0 x 0.7) / (1.5 - 0.7), where the standardised values are equal.
    kink = 1.875
    torch.testing.assert_close(
        scores - scores[0, 0], (x[0, 0] - kink).abs() - (x - kink).abs(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["data", "model"])
@pytest.mark.parametrize(
    ("law", "match"),
    [
        (Normal(torch.zeros(2), 1.0), r"batch shape \(2,\) and event shape \(\)"),
        (MultivariateNormal(torch.zeros(2), torch.eye(2)), r"batch shape \(\) .* \(2,\)"),
    ],
)
def test_wasserstein_needs_the_line(name, law, match):
    laws = {"data": Normal(0.0, 1.0), "model": Normal(0.0, 1.0), name: law}
    with pytest.raises(ValueError, match=rf"`{name}` must be a law of one real variable.*{match}"):
        optimal_critic(Wasserstein(), **laws)


def test_wasserstein_has_no_pointwise_optimum():
    with pytest.raises(NotImplementedError, match="no function of the log ratio is optimal"):
        Wasserstein().optimal_score(torch.zeros(3))
