"""find_scale: Gaussians recovered, funnels survived, modes pooled; purity and bad input."""

import math

import pyro
import pytest
import torch

from pyro_sig.infer import find_scale

DOUBLE = {"dtype": torch.float64}


def gaussian(loc, cov):
    """Unnormalised log-density, in the given precision."""
    tril = torch.linalg.cholesky(cov.double())

    def log_density(z):
        centred = (z.double() - loc.double()).mT
        half = torch.linalg.solve_triangular(tril, centred, upper=False)
        return (-0.5 * half.square().sum(0)).to(z.dtype)

    return log_density


def relative_errors(loc, tril, true_loc, true_cov):
    """Distance of the locations and of the covariances in the true coordinates."""
    half = torch.linalg.cholesky(true_cov.double())
    shift = torch.linalg.solve_triangular(
        half, (loc.double() - true_loc.double()).unsqueeze(-1), upper=False
    )
    white = torch.linalg.solve_triangular(half, tril.double(), upper=False)
    return shift.norm(), (white @ white.mT - torch.eye(len(loc), **DOUBLE)).abs().max()


def wide(dim=5):
    """Deviations from 1e-3 to 1e3, locations as far out as they are wide, correlations of 0.99."""
    std = torch.logspace(-3, 3, dim, **DOUBLE)
    corr = 0.99 * torch.ones(dim, dim, **DOUBLE) + 0.01 * torch.eye(dim, **DOUBLE)
    return 2 * std * (-1.0) ** torch.arange(dim), corr * torch.outer(std, std)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recovers_scales_over_six_decades_and_correlations(dtype):
    """The score of a Gaussian is linear: the answer is exact but for rounding and 100 steps."""
    true_loc, true_cov = wide()
    loc, tril, report = find_scale(gaussian(true_loc, true_cov), torch.zeros(5, dtype=dtype))
    assert loc.dtype == tril.dtype == dtype
    tolerance = 0.01 if dtype == torch.float64 else 0.2
    shift, spread = relative_errors(loc, tril, true_loc, true_cov)
    assert shift < tolerance and spread < tolerance
    assert torch.equal(tril, tril.tril()) and (tril.diagonal() > 0).all()
    assert report.method in ("L-BFGS path", "score matching") and report.num_modes == 1


def test_the_bound_is_the_evidence_where_a_gaussian_fits():
    true_loc, true_cov = wide(3)
    loc, tril, report = find_scale(gaussian(true_loc, true_cov), torch.zeros(3, **DOUBLE))
    evidence = 0.5 * torch.logdet(2 * math.pi * true_cov).item()
    # 64 antithetic pairs: each term of the bound is then exact but for the squares.
    assert abs(report.elbo - evidence) < 5 * math.sqrt(3 / 2 / 64)
    assert report.initial_elbo < report.elbo
    assert report.num_evaluations > report.path_length >= 0 < report.num_updates <= 100


@pytest.mark.parametrize("size", [1, 2])
def test_few_coordinates(size):
    loc, tril, _ = find_scale(
        gaussian(torch.full((size,), 30.0), 4.0 * torch.eye(size)), torch.zeros(size)
    )
    assert loc.shape == (size,) and tril.shape == (size, size)
    shift, spread = relative_errors(loc, tril, torch.full((size,), 30.0), 4.0 * torch.eye(size))
    assert shift < 0.05 and spread < 0.1


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_many_coordinates_take_the_diagonal_path(spread):
    dim = 1100
    std = torch.logspace(-0.5, 0.5, dim) ** math.log10(spread)

    def log_density(z):
        return -0.5 * ((z - 1.0) / std).square().sum(-1)

    loc, tril, report = find_scale(log_density, torch.zeros(dim), num_iterations=60)
    assert torch.equal(tril, torch.diag(tril.diagonal())) and report.num_updates == 0
    assert ((loc - 1.0) / std).abs().max() < 0.2
    assert report.elbo > report.initial_elbo
    if spread == 1:  # one curvature: what the updates see of it is the truth
        assert (tril.diagonal() / std).log().abs().max() < 0.1


# --------------------------------------------------------------------------------- hard geometries

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(z):
    """Centred: log tau, mu, eight theta; the density has a spike at tau = 0."""
    log_tau, mu, theta = z[:, 0], z[:, 1], z[:, 2:]
    normal = torch.distributions.Normal
    tau = log_tau.exp()
    log_p = torch.distributions.HalfCauchy(5.0).log_prob(tau) + log_tau
    log_p = log_p + normal(0.0, 5.0).log_prob(mu)
    log_p = log_p + normal(mu.unsqueeze(-1), tau.unsqueeze(-1)).log_prob(theta).sum(-1)
    return log_p + normal(theta, ERRORS).log_prob(EFFECTS).sum(-1)


@pytest.mark.parametrize("start", ["zero", "near the spike"])
def test_eight_schools_does_not_end_in_the_spike(start):
    begin = torch.zeros(10)
    begin[0] = -2.0 if start == "near the spike" else 0.0
    with pyro.validation_enabled(False):  # a line search may try tau = 0
        loc, tril, report = find_scale(eight_schools, begin)
    assert loc.isfinite().all() and tril.isfinite().all()
    assert loc[0].exp() > 0.05  # the posterior's median is near 3
    assert report.elbo > report.initial_elbo
    assert tril[0, 0] > 0.1


def funnel(z):
    log_scale, x = z[:, 0], z[:, 1:]
    normal = torch.distributions.Normal
    return normal(0.0, 3.0).log_prob(log_scale) + (
        -0.5 * (x * (-log_scale / 2).exp().unsqueeze(-1)).square().sum(-1)
        - 0.5 * log_scale * x.shape[1]
    )


def test_funnel():
    """From one start a path may end far down the neck, where the density grows; the best of
    several, as the guide tries them, is within a deviation (3) of the centre."""
    starts = torch.cat([torch.ones(1, 10), 4 * torch.rand(6, 10) - 2])
    with pyro.validation_enabled(False):  # a line search may go to infinity
        _, _, alone = find_scale(funnel, starts[0])
        loc, tril, report = find_scale(funnel, starts)
    assert loc.isfinite().all() and tril.isfinite().all()
    assert report.elbo > report.initial_elbo
    assert report.elbo > alone.elbo - 0.5  # several starts are no worse
    assert loc[0].abs() < 3.0
    # A Gaussian's bound; the evidence is 9 / 2 log(2 pi).
    assert report.elbo < 4.5 * math.log(2 * math.pi)


def two_modes(gap=10.0, weight=0.5):
    def log_density(z):
        at = -0.5 * (z - gap).square().sum(-1) + math.log(weight)
        other = -0.5 * (z + gap).square().sum(-1) + math.log(1 - weight)
        return torch.logaddexp(at, other)

    return log_density


def test_separate_modes_are_pooled():
    starts = torch.tensor([[8.0, 8.0], [-8.0, -9.0], [9.0, 7.0]], **DOUBLE)
    loc, tril, report = find_scale(two_modes(weight=0.75), starts)
    assert report.method == "several modes" and report.num_modes == 2
    # The weights are those of two estimated bounds, each with the error of 64 squares in 2-d.
    error = 5 * math.sqrt(1 / 64)
    weight = (loc.mean().item() / 10 + 1) / 2
    assert abs(math.log(weight / (1 - weight)) - math.log(3)) < math.sqrt(2) * error
    cov = torch.eye(2, **DOUBLE) + 400 * weight * (1 - weight)
    assert torch.allclose(tril @ tril.mT, cov, rtol=0.05)
    assert abs(report.elbo - math.log(2 * math.pi)) < error  # of the mixture
    one = find_scale(two_modes(weight=0.75), starts[0])[2]
    assert one.num_modes == 1


def test_a_mode_of_negligible_weight_is_left_out():
    starts = torch.tensor([[8.0, 8.0], [-8.0, -9.0]], **DOUBLE)
    loc, _, report = find_scale(two_modes(weight=1 - 1e-4), starts)
    assert report.num_modes == 1 and torch.allclose(loc, torch.full((2,), 10.0, **DOUBLE), atol=0.1)


# ------------------------------------------------------------------------------------------ starts


def test_the_best_of_several_starts_and_those_without_a_density():
    def log_density(z):
        log_p = -0.5 * (z - 5.0).square().sum(-1)
        return log_p.masked_fill(z[:, 0] < 0, -math.inf)

    starts = torch.tensor([[-3.0, 0.0], [1.0, 1.0]])
    loc, _, report = find_scale(log_density, starts)
    assert (loc - 5.0).abs().max() < 0.1
    with pytest.raises(ValueError, match="must be finite at `init_loc`"):
        find_scale(log_density, starts[0])
    with pytest.raises(ValueError, match="must be finite at `init_loc`"):
        find_scale(lambda z: z.sum(-1) * math.nan, torch.zeros(2))


def test_an_edge_of_the_support_is_a_wall():
    """Half of the line has no density: draws there do not count against the answer."""

    def log_density(z):
        return torch.where(z[:, 0] > 0, -0.5 * (z[:, 0] - 6.0).square(), -math.inf)

    loc, tril, _ = find_scale(log_density, torch.tensor([1.0]))
    assert abs(loc.item() - 6.0) < 0.1 and abs(tril.item() - 1.0) < 0.1


def test_without_either_stage():
    target = gaussian(torch.ones(2), torch.eye(2))
    loc, tril, report = find_scale(
        target, torch.zeros(2), init_scale=0.3, num_iterations=0, num_updates=0
    )
    assert torch.equal(loc, torch.zeros(2)) and torch.equal(tril, 0.3 * torch.eye(2))
    assert report.method == "initial point" and report.path_length == report.num_updates == 0
    loc, _, report = find_scale(target, torch.zeros(2), num_iterations=0)
    assert (loc - 1).abs().max() < 0.1 and report.method == "score matching"
    loc, _, report = find_scale(target, torch.zeros(2), num_updates=0)
    assert (loc - 1).abs().max() < 0.1 and report.method == "L-BFGS path"


def test_pure():
    """Same answer whatever was drawn before; no trace of the call but its answer."""
    pyro.param("kept", torch.tensor(1.0))
    start = torch.tensor([3.0, -1.0], requires_grad=True)
    target = gaussian(torch.ones(2), torch.eye(2))
    state = torch.get_rng_state()
    first = find_scale(target, start)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["kept"]
    assert torch.equal(start, torch.tensor([3.0, -1.0])) and start.grad is None
    assert not first[0].requires_grad and not first[1].requires_grad
    torch.manual_seed(123)
    with torch.no_grad():  # gradients are its own affair
        second = find_scale(target, start)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[2] == second[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_loc": torch.zeros(())}, "`init_loc` must be of shape"),
        ({"init_loc": torch.zeros(0)}, "`init_loc` must be of shape"),
        ({"init_loc": torch.zeros(2, 2, 2)}, "`init_loc` must be of shape"),
        ({"init_scale": 0.0}, "`init_scale` must be a finite number above 0"),
        ({"num_iterations": -1}, "`num_iterations` must be an integer of at least 0"),
        ({"num_updates": -1}, "`num_updates` must be an integer of at least 0"),
        ({"num_draws": 1}, "`num_draws` must be an integer of at least 2"),
        ({"log_density": lambda z: z}, r"`log_density` must map \[B, D\] to \[B\]"),
        ({"log_density": lambda z: None}, r"`log_density` must map .*to NoneType"),
        ({"log_density": lambda z: z.detach().sum(-1)}, "`log_density` must be differentiable"),
        (
            {"log_density": torch.nn.Linear(3, 1)},
            r"must take .*\(1, 2\).* raised: mat1",
        ),
        ({"init_loc": torch.arange(2)}, "`init_loc` must be a dense floating point tensor, was a"),
        ({"num_iterations": 0.5}, "`num_iterations` must be an integer"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"log_density": lambda z: -z.square().sum(-1), "init_loc": torch.zeros(2), **arguments}
    with pytest.raises(ValueError, match=message):
        find_scale(given.pop("log_density"), given.pop("init_loc"), **given)
