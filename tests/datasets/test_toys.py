"""Toys against their own truth: the contract of all of them, then the laws in the plane."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sig import datasets
from tests.datasets.chi_square import RATE, Z, chi2_p_value
from tests.datasets.laws import COUNTS, MIXTURES, POINTS


def integral_on_square(log_prob, half_width, points):
    """Trapezoidal rule: exponentially accurate where a smooth density vanishes at the edge."""
    line = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    density = log_prob(torch.cartesian_prod(line, line)).exp()
    return density.sum().item() * (line[1] - line[0]).item() ** 2


@pytest.mark.parametrize("make", COUNTS + POINTS)
def test_shapes_and_dtype(make):
    for dtype in (None, torch.float64):
        toy = make(dtype=dtype)
        x = toy.sample(7)
        assert x.dtype == (dtype or torch.get_default_dtype())
        assert x.shape == (7,) + toy.distribution.event_shape
        assert toy.log_prob(x).shape == (7,)
        assert toy.log_prob(x).isfinite().all()
        assert toy.distribution.support.check(x).all()
        expanded = toy.distribution.expand([3, 1]).expand([3, 4])
        assert expanded.sample().shape == (3, 4) + toy.distribution.event_shape
        torch.testing.assert_close(expanded.log_prob(x[0])[2, 3], toy.log_prob(x[0]))


@pytest.mark.parametrize("make", COUNTS + POINTS)
def test_default_dtype_is_followed(make):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert make().sample(2).dtype == torch.float64
    finally:
        torch.set_default_dtype(default)


@pytest.mark.cuda
@pytest.mark.parametrize("make", COUNTS + POINTS)
def test_device(make):
    toy = make(device="cuda")
    x = toy.sample(5)
    assert x.device.type == "cuda"
    assert toy.log_prob(x).isfinite().all()
    if toy.mixing is not None:
        assert toy.mixing.sample((5,)).device.type == "cuda"
        assert toy.pmf([0, 3]).device.type == "cuda"


@pytest.mark.parametrize("make", COUNTS + POINTS)
def test_toy_is_a_pyro_distribution(make):
    toy = make()
    with pyro.plate("data", 6):
        x = pyro.sample("x", toy.distribution)
    trace = pyro.poutine.trace(lambda: pyro.sample("x", toy.distribution, obs=x[0])).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), toy.log_prob(x[0]))


@pytest.mark.parametrize(("radius", "std"), [(2.0, 0.2), (1.0, 1.0), (0.1, 0.5)])
def test_ring_density(radius, std):
    toy = datasets.noisy_ring(radius, std, dtype=torch.float64)
    half_width = radius + 9 * std
    assert abs(integral_on_square(toy.log_prob, half_width, 401) - 1) < 1e-10
    # The definition itself: an average of Gaussians over the angle, by the periodic rule.
    x = torch.tensor([[0.0, 0.0], [0.3, -0.4], [radius, 0.1]], dtype=torch.float64)
    angle = torch.arange(2000, dtype=torch.float64) * (2 * math.pi / 2000)
    centres = radius * torch.stack([angle.cos(), angle.sin()], -1)
    normal = dist.Normal(centres, torch.full_like(centres, std)).to_event(1)
    by_average = normal.log_prob(x.unsqueeze(1)).logsumexp(1) - math.log(2000)
    torch.testing.assert_close(toy.log_prob(x), by_average)


def test_ring_samples_match_density():
    n, radius, std = 20_000, 1.0, 0.5
    toy = datasets.noisy_ring(radius, std, dtype=torch.float64)
    x = toy.sample(n)
    # Law of the radius from the density, integrated over shells; the angle is uniform in octants.
    edges = torch.tensor([0.0, 0.4, 0.7, 1.0, 1.3, 1.6, 8.0], dtype=torch.float64)
    fine = torch.linspace(0, 8, 80_001, dtype=torch.float64)
    points = torch.stack([fine, torch.zeros_like(fine)], -1)
    shell = 2 * math.pi * fine * toy.log_prob(points).exp() * (fine[1] - fine[0])
    shares = torch.stack(
        [
            shell[(fine >= low) & (fine < high)].sum()
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]
    )
    r = torch.linalg.vector_norm(x, dim=-1)
    octant = ((torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).floor().long() + 4).clamp(0, 7)
    cell = (torch.bucketize(r, edges[1:-1], right=True)) * 8 + octant
    observed = torch.bincount(cell, minlength=48).double()
    expected = (n * shares / shares.sum() / 8).repeat_interleave(8)
    assert abs(shares.sum().item() - 1) < 1e-6
    assert chi2_p_value(observed, expected) > RATE
    sd = x.var(0).sqrt()
    assert (x.mean(0).abs() < Z * sd / math.sqrt(n)).all()
    torch.testing.assert_close(
        toy.distribution.variance, torch.full((2,), 0.75, dtype=torch.float64)
    )


def test_ring_is_stable_and_differentiable():
    thin = datasets.noisy_ring(2.0, 1e-3)
    exact = datasets.noisy_ring(2.0, 1e-3, dtype=torch.float64)
    x = torch.tensor([[2.0, 0.0], [0.0, 2.001], [0.0, 0.0]])
    assert thin.log_prob(x).isfinite().all()
    torch.testing.assert_close(
        thin.log_prob(x).double(), exact.log_prob(x.double()), rtol=1e-3, atol=1e-3
    )
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    exact.log_prob(x).backward()
    assert x.grad.isfinite().all()
    radius, std = (
        torch.tensor(2.0, requires_grad=True),
        torch.tensor([0.1, 0.2], requires_grad=True),
    )
    law = datasets.NoisyRing(radius, std)
    assert law.batch_shape == (2,) and law.mean.shape == law.variance.shape == (2, 2)
    law.rsample((3,)).sum().backward()
    assert radius.grad.abs() > 0 and (std.grad != 0).all()
    assert torch.autograd.gradcheck(
        lambda r, s, v: datasets.NoisyRing(r, s).log_prob(v),
        [
            torch.tensor(v, dtype=torch.float64, requires_grad=True)
            for v in (1.0, 0.5, [[0.3, 0.4], [1.0, -0.2]])
        ],
    )


@pytest.mark.parametrize("make", MIXTURES)
def test_gaussians_match_their_modes(make):
    n = 20_000
    toy = make(dtype=torch.float64)
    num_modes = len(toy.modes)
    assert toy.mode_weights.shape == (num_modes,)
    assert toy.mode_weights.sum().item() == pytest.approx(1.0)
    assert torch.pdist(toy.modes).min() > 10 * toy.mode_std
    distance, nearest = torch.cdist(toy.sample(n), toy.modes).min(-1)
    observed = torch.bincount(nearest, minlength=num_modes).double()
    assert chi2_p_value(observed, n * toy.mode_weights) > RATE
    # Two coordinates: within 3 std lies 1 - exp(-9/2) = 0.98889, the high-quality share of Table 1.
    share, ceiling = (distance < 3 * toy.mode_std).double().mean().item(), 1 - math.exp(-4.5)
    assert abs(share - ceiling) < Z * math.sqrt(ceiling * (1 - ceiling) / n)
    at_modes = toy.mode_weights / (2 * math.pi * toy.mode_std**2)
    torch.testing.assert_close(toy.log_prob(toy.modes).exp(), at_modes)


def test_gaussian_density_integrates_to_one():
    ring = datasets.ring_of_gaussians(5, 1.0, 0.3, dtype=torch.float64)
    grid = datasets.grid_of_gaussians(2, 1.0, 0.3, [1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for toy in (ring, grid):
        assert abs(integral_on_square(toy.log_prob, 4.0, 301) - 1) < 1e-10


@pytest.mark.parametrize("num_modes", [1, 2, 7, 8])
def test_ring_has_distinct_equally_spaced_modes(num_modes):
    toy = datasets.ring_of_gaussians(num_modes, radius=2.0, dtype=torch.float64)
    assert toy.modes.shape == (num_modes, 2)
    torch.testing.assert_close(
        torch.linalg.vector_norm(toy.modes, dim=-1), torch.full((num_modes,), 2.0).double()
    )
    if num_modes > 1:
        gaps = torch.linalg.vector_norm(toy.modes - toy.modes.roll(1, 0), dim=-1)
        torch.testing.assert_close(gaps, torch.full_like(gaps, 4 * math.sin(math.pi / num_modes)))


def test_grid_layout():
    toy = datasets.grid_of_gaussians()
    assert toy.mode_std == 0.05
    assert {tuple(m) for m in toy.modes.tolist()} == {
        (float(i), float(j)) for i in range(-4, 5, 2) for j in range(-4, 5, 2)
    }
    uneven = datasets.uneven_grid_of_gaussians(dtype=torch.float64)
    assert uneven.name == "uneven_grid_of_gaussians"
    for column, share in zip(range(-4, 5, 2), (0.25, 0.125, 0.25, 0.125, 0.25), strict=True):
        inside = uneven.mode_weights[uneven.modes[:, 0] == column]
        torch.testing.assert_close(inside, torch.full((5,), share / 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: datasets.noisy_ring(std=-1.0),
            r"`std` must be a finite number above 0, was -1\.0",
        ),
        (
            lambda: datasets.noisy_ring(radius=math.inf),
            "`radius` must be a finite number above 0, was inf",
        ),
        (lambda: datasets.noisy_ring(std="a"), "`std` must be a finite number above 0, was 'a'"),
        (lambda: datasets.noisy_ring(dtype=torch.int64), r"`dtype` must be a floating .*int64"),
        (lambda: datasets.ring_of_gaussians(0), "`num_modes` must be a positive integer, was 0"),
        (
            lambda: datasets.ring_of_gaussians(8.0),
            r"`num_modes` must be a positive integer, was 8\.0",
        ),
        (
            lambda: datasets.ring_of_gaussians(radius=0),
            "`radius` must be a finite number above 0, was 0",
        ),
        (lambda: datasets.ring_of_gaussians(dtype=torch.int32), r"`dtype` must be a floating"),
        (
            lambda: datasets.ring_of_gaussians(std=math.nan),
            "`std` must be a finite number above 0, was nan",
        ),
        (
            lambda: datasets.grid_of_gaussians(side=True),
            "`side` must be a positive integer, was True",
        ),
        (
            lambda: datasets.grid_of_gaussians(spacing=-2),
            "`spacing` must be a finite number above 0, was -2",
        ),
        (lambda: datasets.grid_of_gaussians(weights=[1.0]), r"`weights` must have shape \[25\]"),
        (lambda: datasets.grid_of_gaussians(1, weights=[0.0]), r"`weights` must be positive"),
        (lambda: datasets.noisy_ring().sample(0), "`n` must be a positive integer, was 0"),
        (lambda: datasets.noisy_ring(dtype="half"), r"`dtype` must be a floating .*'half'"),
        (lambda: datasets.noisy_ring(device="nowhere"), r"`device` must be a device at hand"),
        (
            lambda: datasets.noisy_ring().log_prob([0.0]),
            r"`value` must be a dense tensor of numbers, was \[0\.0\]",
        ),
        (lambda: datasets.noisy_ring().log_prob(torch.zeros(0, 2)), r"`value` must not be empty"),
        (lambda: datasets.noisy_ring().distribution.sample(3), r"`sample_shape` must be a seq"),
        (lambda: datasets.negative_binomial().pmf("many"), r"`k` must be numbers, was 'many'"),
        (lambda: datasets.grid_of_gaussians(weights="all"), r"`weights` must be numbers"),
        (lambda: datasets.noisy_ring().pmf(1), r"`pmf` needs a toy of counts, was 'noisy_ring'"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
