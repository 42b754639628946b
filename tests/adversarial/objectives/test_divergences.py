"""Every row of the table against the divergence of two Gaussians, and against convex analysis."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import Normal

from pyro_sig.adversarial.objectives import FDivergence
from pyro_sig.adversarial.objectives.divergences import DIVERGENCES, Divergence

# A family of the table is tried at these parameters.
PARAMETERS = {
    "alpha": [{"alpha": alpha} for alpha in (-1.0, 0.5, 0.9, 1.5, 2.0, 3.0)],
    "jensen_shannon_weighted": [{"pi": pi} for pi in (0.05, 0.3, 0.5, 0.9)],
}
ROWS = [
    FDivergence(name, **parameters)
    for name in FDivergence.names()
    for parameters in PARAMETERS.get(name, [{}])
]
EACH = pytest.mark.parametrize("row", ROWS, ids=repr)

# Means and scales of data and model. For the chi2 divergences and alpha from -1 to 3 to be finite,
# neither variance may be much above the other.
PAIRS = [(0.3, 0.85, 0.0, 1.0), (-0.3, 1.15, 0.2, 1.0)]


def test_every_row_is_tried():
    families = {name for name, row in DIVERGENCES.items() if not isinstance(row, Divergence)}
    assert families == set(PARAMETERS)


def upper_end(row):
    """Where the domain of the conjugate ends, from the slope of f at infinity."""
    ends = {
        "total_variation": 0.5,
        "reverse_kl": 0.0,
        "neyman_chi2": 1.0,
        "squared_hellinger": 1.0,
        "jensen_shannon": math.log(2),
        "jensen_shannon_weighted": -math.log(row.pi or 1) * (row.pi or 0),
        "gan": 0.0,
        "alpha": 1 / (1 - row.alpha) if row.alpha and row.alpha < 1 else math.inf,
    }
    return ends.get(row.name, math.inf)


def power_integral(alpha, pair):
    """The integral of p^alpha q^(1 - alpha) for two Gaussians."""
    m, s, n, r = pair
    variance = alpha * r**2 + (1 - alpha) * s**2
    assert variance > 0
    peak = math.exp(-alpha * (1 - alpha) * (m - n) ** 2 / (2 * variance))
    return s ** (1 - alpha) * r**alpha / math.sqrt(variance) * peak


def kl(pair):
    m, s, n, r = pair
    return math.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5


def total_variation(pair):
    """Half of the difference in mass between where the densities cross."""
    m, s, n, r = pair
    a, b = 1 / r**2 - 1 / s**2, 2 * (m / s**2 - n / r**2)
    c = n**2 / r**2 - m**2 / s**2 + 2 * math.log(r / s)
    root = math.sqrt(b**2 - 4 * a * c)
    edges = [(-b - root) / (2 * a), (-b + root) / (2 * a)]
    mass = [abs(stats.norm.cdf(x, m, s) - stats.norm.cdf(x, n, r)) for x in edges]
    signs = [stats.norm.cdf(x, m, s) > stats.norm.cdf(x, n, r) for x in edges]
    return sum(mass) if signs[0] != signs[1] else abs(mass[0] - mass[1])


def mixed(pair, pi):
    """The divergences pi KL(p | mix) and (1 - pi) KL(q | mix) from the densities, in sum."""
    p, q = stats.norm(*pair[:2]), stats.norm(*pair[2:])

    def integrand(x):
        mix = math.log(pi * p.pdf(x) + (1 - pi) * q.pdf(x))
        return pi * p.pdf(x) * (p.logpdf(x) - mix) + (1 - pi) * q.pdf(x) * (q.logpdf(x) - mix)

    return integrate.quad(integrand, -20, 20, epsabs=1e-12, points=[0], limit=200)[0]


def truth(row, pair):
    """The divergence of two Gaussians by a formula that is not the table's."""
    m, s, n, r = pair
    return {
        "total_variation": lambda: total_variation(pair),
        "kl": lambda: kl(pair),
        "reverse_kl": lambda: kl((n, r, m, s)),
        "pearson_chi2": lambda: power_integral(2, pair) - 1,
        "neyman_chi2": lambda: power_integral(-1, pair) - 1,
        "squared_hellinger": lambda: 2 - 2 * power_integral(0.5, pair),
        "jeffrey": lambda: kl(pair) + kl((n, r, m, s)),
        "jensen_shannon": lambda: 2 * mixed(pair, 0.5),
        "jensen_shannon_weighted": lambda: mixed(pair, row.pi),
        "gan": lambda: 2 * mixed(pair, 0.5) - math.log(4),
        "alpha": lambda: (power_integral(row.alpha, pair) - 1) / (row.alpha * (row.alpha - 1)),
    }[row.name]()


def quadrature(pair, size=200_001, width=16.0):
    """Return points of the line, their weights under both laws and the log ratio there."""
    x = torch.linspace(-width, width, size, dtype=torch.double)
    m, s, n, r = torch.tensor(pair, dtype=torch.double)
    log_p, log_q = Normal(m, s).log_prob(x), Normal(n, r).log_prob(x)
    step = 2 * width / (size - 1)
    return log_p.exp() * step, log_q.exp() * step, log_p - log_q


@EACH
@pytest.mark.parametrize("pair", PAIRS)
def test_the_bound_is_tight_at_the_optimal_critic(row, pair):
    p, q, w = quadrature(pair)
    scores = row.optimal_score(w)
    bound = (p * row.activation(scores)).sum() - (q * row.fused_conjugate(scores)).sum()
    assert float(bound) == pytest.approx(truth(row, pair), abs=1e-8)
    direct = (q * row.f(w.exp())).sum()  # the definition
    assert float(direct) == pytest.approx(truth(row, pair), abs=1e-8)


@EACH
def test_any_other_critic_is_below_the_divergence(row):
    p, q, w = quadrature(PAIRS[0], size=20_001)
    for slope, shift in [(0.0, 0.0), (0.5, 0.0), (1.0, 0.3), (1.2, -0.5)]:
        scores = row.optimal_score(slope * w + shift)
        bound = (p * row.activation(scores)).sum() - (q * row.fused_conjugate(scores)).sum()
        assert float(bound) < truth(row, PAIRS[0]) + 1e-7
    # A critic that is blind says that the laws are equal.
    assert float(row.f(torch.ones(()))) == pytest.approx(-math.log(4) * (row.name == "gan"))
    zeros = row.optimal_score(torch.zeros(3, dtype=torch.double))
    assert float(row.estimate(zeros, zeros)) == pytest.approx(float(row.f(torch.ones(()))))


@EACH
def test_losses_are_means_of_the_functions(row):
    real, fake = torch.randn(4, 1).double(), torch.randn(7, 1).double()
    expected = row.activation(real).mean() - row.conjugate(row.activation(fake)).mean()
    torch.testing.assert_close(row.estimate(real, fake), expected)
    torch.testing.assert_close(row.critic_loss(real, fake), -expected)
    generator = row.generator_loss(None, fake)
    torch.testing.assert_close(generator, -row.conjugate(row.activation(fake)).mean())
    heuristic = FDivergence(row.name, row.alpha, row.pi, heuristic=True)
    torch.testing.assert_close(heuristic.critic_loss(real, fake), -expected)
    torch.testing.assert_close(heuristic.generator_loss(None, fake), -row.activation(fake).mean())


def test_known_thresholds():
    thresholds = {
        "kl": 1.0,
        "reverse_kl": -1.0,
        "gan": -math.log(2),
    }
    for row in ROWS:
        assert row.threshold == pytest.approx(thresholds.get(row.name, 0.0)), row
        score = row.optimal_score(torch.zeros((), dtype=torch.double))
        assert float(row.activation(score)) == pytest.approx(row.threshold), row


@EACH
def test_the_derivative_is_that_of_f(row):
    u = torch.logspace(-4, 4, 41).double().requires_grad_()
    u = u[u != 1]  # the kink of total variation
    (slope,) = torch.autograd.grad(row.f(u).sum(), u)
    torch.testing.assert_close(row.f_prime(u.detach()), slope, rtol=1e-6, atol=1e-9)


@EACH
def test_fenchel_equality(row):
    u = torch.logspace(-3, 3, 61).double()
    t = row.f_prime(u)
    torch.testing.assert_close(row.conjugate(t), u * t - row.f(u), rtol=1e-7, atol=1e-9)
    if row.name != "total_variation":
        # u is where the supremum is taken, so it is the derivative of the conjugate.
        t.requires_grad_()
        (slope,) = torch.autograd.grad(row.conjugate(t).sum(), t)
        torch.testing.assert_close(slope, u, rtol=1e-6, atol=1e-6)


@EACH
@settings(max_examples=50, deadline=None)
@given(
    log_u=st.floats(-20, 20),
    t=st.floats(-1e6, 1e6) | st.floats(-5, 5),
)
def test_fenchel_inequality(row, log_u, t):
    u, t = torch.tensor([log_u, t], dtype=torch.double)
    u = u.exp()
    gap = row.conjugate(t) - (u * t - row.f(u))
    assert float(gap) >= -1e-9 * (1 + abs(float(u * t)) + abs(float(row.f(u))))


@EACH
def test_the_conjugate_is_the_supremum(row):
    # On a grid of ratios, with 0 among them: below every slope of f, 0 is the best.
    u = torch.cat([torch.zeros(1), torch.logspace(-7, 7, 20_001)]).double()
    f = row.f(u)
    for t in (-30.0, -3.0, -1.0, -0.3, -0.01):
        t = torch.tensor(t, dtype=torch.double)
        best = float((u * t - f).max())
        assert float(row.conjugate(t)) == pytest.approx(best, rel=1e-4, abs=1e-5)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outside_of_the_domain(row, dtype):
    end = upper_end(row)
    if math.isfinite(end):
        t = torch.tensor([end + 1e-3, 1e9, math.inf], dtype=dtype, requires_grad=True)
        assert bool((row.conjugate(t) == math.inf).all())
        (gradient,) = torch.autograd.grad(row.conjugate(t).sum(), t)
        assert not bool(gradient.isnan().any())
    assert row.conjugate(torch.tensor(math.nan, dtype=dtype)).isnan()
    assert bool((row.f(torch.tensor([-1e-3, -9.0], dtype=dtype)) == math.inf).all())


# What critics give: scores near zero, far scores, and those of a critic that has run away.
SCORES = st.floats(-5, 5, width=32) | st.floats(-50, 50, width=32)
WILD = SCORES | st.floats(-(2.0**127), 2.0**127, width=32)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=50, deadline=None)
@given(v=st.lists(WILD, min_size=2, max_size=20))
def test_the_activation_stays_in_the_domain(row, dtype, v):
    v = torch.tensor(v, dtype=dtype).sort().values
    t = row.activation(v)
    assert t.dtype == dtype and not bool(t.isnan().any())
    assert bool((t <= torch.tensor(upper_end(row), dtype=dtype)).all())
    assert bool((t[1:] >= t[:-1]).all()), "a larger score is more real"
    fused = row.fused_conjugate(v)
    assert fused.dtype == dtype and not bool(fused.isnan().any())
    # Rounding may undo the order of neighbours by an ulp.
    slack = 4 * torch.finfo(dtype).eps * (1 + fused[:-1].abs().nan_to_num(posinf=0.0))
    assert bool((fused[1:] >= fused[:-1] - slack).all())


@EACH
@settings(max_examples=50, deadline=None)
@given(v=st.lists(SCORES, min_size=1, max_size=20))
def test_fused_scores_are_exact_and_have_gradients(row, v):
    # float64 is the truth of float32, where both can be represented.
    single = torch.tensor(v, dtype=torch.float32, requires_grad=True)
    double = single.detach().double().requires_grad_()
    for function in (row.fused_conjugate, row.activation):
        low, high = function(single), function(double)
        representable = high.abs() < torch.finfo(torch.float32).max
        assert bool(low[representable].isfinite().all())
        torch.testing.assert_close(
            low[representable].double(), high[representable], rtol=2e-4, atol=1e-6
        )
        (slope,) = torch.autograd.grad(low.sum(), single)
        (truth,) = torch.autograd.grad(high.sum(), double)
        # A step of the chain rule may overflow somewhat before its product.
        representable = truth.abs() < 1e-6 * torch.finfo(torch.float32).max
        torch.testing.assert_close(
            slope[representable].double(), truth[representable], rtol=1e-3, atol=1e-6
        )


@EACH
def test_fused_is_the_conjugate_at_the_activation(row):
    # Beyond 15, g(v) is within rounding of the end of the domain.
    v = torch.linspace(-15, 15, 301).double().requires_grad_()
    fused, plain = row.fused_conjugate(v), row.conjugate(row.activation(v))
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-9)
    if not (row.name == "alpha" and row.alpha > 0.8):  # its plain form loses more, to the power 9
        slopes = [torch.autograd.grad(values.sum(), v)[0] for values in (fused, plain)]
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-8)


@EACH
@pytest.mark.parametrize("function", ["fused_conjugate", "activation"])
def test_slopes_against_finite_differences(row, function):
    v = torch.tensor([-30.0, -18.0, -16.9, -3.0, 0.1, 2.0, 10.0, 16.9, 18.0]).double()
    v.requires_grad_()
    assert torch.autograd.gradcheck(getattr(row, function), v, rtol=1e-4, atol=1e-6)


def test_jeffrey_has_lambert_w():
    from scipy.special import lambertw

    t = torch.cat([torch.linspace(-300, 30, 1001), torch.tensor([-1e6, -1e-9, 0.0, 1e-9, 200.0])])
    t = t.double()
    row = FDivergence("jeffrey")
    w = lambertw((1 - t[:1001]).exp().numpy()).real
    expected = torch.from_numpy(w + 1 / w) + t[:1001] - 2
    torch.testing.assert_close(row.conjugate(t)[:1001], expected, rtol=1e-8, atol=1e-8)
    for dtype in (torch.float32, torch.float64):
        far = torch.tensor([-1e37, -1e10, -1e-30, 1e-30, 60.0, 1e10], dtype=dtype)
        value = row.conjugate(far.requires_grad_())
        (slope,) = torch.autograd.grad(value[:5].sum(), far)
        assert bool(value[:5].isfinite().all()) and value[5] == math.inf
        assert bool(slope[:5].isfinite().all())
        assert float(value[0].detach()) == pytest.approx(-math.log(1e37) - 1, rel=1e-5)


def test_pearson_is_flat_below_the_slope_at_zero():
    row = FDivergence("pearson_chi2")
    t = torch.tensor([-2.0, -3.0, -100.0])
    assert row.conjugate(t).tolist() == [-1.0] * 3  # not t^2 / 4 + t


@EACH
def test_a_copy_is_the_same(row):
    copy = pickle.loads(pickle.dumps(row))
    scores = torch.randn(5)
    assert copy.critic_loss(scores, scores) == row.critic_loss(scores, scores)
    assert repr(copy) == repr(row)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "js"}, r"`name` must be one of 'total_variation', 'kl', .*, 'alpha', was 'js'"),
        ({"name": "alpha"}, r"`alpha` must be given for 'alpha', was None"),
        ({"name": "alpha", "alpha": 1.0}, r"`alpha` must be finite and neither 0 nor 1.*was 1\.0"),
        ({"name": "alpha", "alpha": 0}, r"`alpha` must be finite and neither 0 nor 1.*was 0"),
        ({"name": "alpha", "alpha": math.nan}, r"`alpha` must be finite.*was nan"),
        (
            {"name": "alpha", "alpha": 2.0, "pi": 0.5},
            r"`pi` must be left out for 'alpha'.*was 0\.5",
        ),
        ({"name": "kl", "alpha": 2.0}, r"`alpha` must be left out for 'kl'.*was 2\.0"),
        ({"name": "jensen_shannon_weighted"}, r"`pi` must be given.*was None"),
        ({"name": "jensen_shannon_weighted", "pi": 1.0}, r"`pi` must be between 0 and 1, was 1\.0"),
        ({"name": "jensen_shannon_weighted", "pi": 0.0}, r"`pi` must be between 0 and 1, was 0\.0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        FDivergence(**arguments)


def test_names():
    assert FDivergence.names() == tuple(DIVERGENCES)
    assert len(FDivergence.names()) == 11
