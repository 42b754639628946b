import importlib
import math

import ot
import pytest
import torch
from scipy import stats

from pyro_sig.diagnostics import sliced_wasserstein, sliced_wasserstein_test
from pyro_sig.diagnostics.sliced_wasserstein import _directions


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(x, y):
    """The distance on the line, by copying points until the sizes are equal."""
    x, y = x.repeat_interleave(len(y)).sort().values, y.repeat_interleave(len(x)).sort().values
    return float((x - y).square().mean().sqrt())


@pytest.mark.parametrize(("n", "m", "dim"), [(20, 20, 2), (30, 17, 5), (8, 100, 3)])
def test_it_agrees_with_pot_in_the_same_directions(n, m, dim):
    x, y = normal(n, dim), 0.5 + 2 * normal(m, dim, seed=1)
    directions = _directions(50, dim, seed=3).mT.numpy()
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions, p=2)
    assert float(sliced_wasserstein(x, y, 50, seed=3)) == pytest.approx(float(expected))


@pytest.mark.parametrize("dim", [2, 5, 30])
def test_shifted_copy(dim):
    # Along a direction theta the squared distance is (theta' shift)^2, so that the mean is
    # |shift|^2 / D. A squared cosine is Beta(1/2, (D - 1)/2).
    shift, num_projections = normal(dim, seed=1), 2000
    x = normal(50, dim)
    relative = float(sliced_wasserstein(x, x + shift, num_projections) / shift.norm()) ** 2
    cosine = stats.beta(0.5, (dim - 1) / 2)
    # Fails for one seed in 10^6.
    error = stats.norm.isf(5e-7) * cosine.std() / math.sqrt(num_projections)
    assert relative == pytest.approx(1 / dim, abs=error)


def test_scaled_copy():
    # In one dimension: the scale changes each quantile q by (c - 1) q.
    x = normal(200)
    expected = float(2 * x.square().mean().sqrt())
    assert float(sliced_wasserstein(x, 3 * x)) == pytest.approx(expected)


def test_gaussians_with_one_covariance():
    # Normal(0, S) and Normal(d, S): |d|^2 / D again. The squared distance of two samples adds
    # noise of order 1/N, far below the tolerance of the directions.
    dim, num_projections = 3, 2000
    factor = normal(dim, dim, seed=2)
    shift = torch.full((dim,), 20.0, dtype=torch.float64)
    x = normal(20_000, dim, seed=3) @ factor.mT
    y = normal(20_000, dim, seed=4) @ factor.mT + shift
    relative = float(sliced_wasserstein(x, y, num_projections) / shift.norm()) ** 2
    spread = stats.beta(0.5, (dim - 1) / 2).std() / math.sqrt(num_projections)
    # The error of the means moves the squared distance by 2 shift' error / D, relatively
    # 2 |error| / (D |shift|) at most.
    spread += 2 * float(factor.norm()) * math.sqrt(2 / 20_000) / (dim * float(shift.norm()))
    assert relative == pytest.approx(1 / dim, abs=stats.norm.isf(5e-7) * spread)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (5, 8), (6, 9), (40, 1), (3, 100)])
def test_sizes_on_the_line(n, m):
    x, y = normal(n), 0.5 + 2 * normal(m, seed=1)
    assert float(sliced_wasserstein(x, y, 3)) == pytest.approx(direct(x, y))
    columns = sliced_wasserstein(x[:, None], y[:, None], 3)
    torch.testing.assert_close(columns, sliced_wasserstein(x, y, 3))


def test_sizes_in_the_plane():
    # The formula for unequal sizes agrees with that for equal ones on repeated points.
    x, y = normal(6, 2), normal(4, 2, seed=1)
    repeated = sliced_wasserstein(x.repeat(2, 1), y.repeat(3, 1))
    torch.testing.assert_close(sliced_wasserstein(x, y), repeated)


def test_invariances():
    x, y = normal(20, 3), normal(30, 3, seed=1) + 1
    distance = sliced_wasserstein(x, y)
    assert sliced_wasserstein(x, x) == 0
    torch.testing.assert_close(sliced_wasserstein(y, x), distance)
    torch.testing.assert_close(sliced_wasserstein(x + 7, y + 7), distance)
    torch.testing.assert_close(sliced_wasserstein(-3 * x, -3 * y), 3 * distance)
    torch.testing.assert_close(sliced_wasserstein(x.flip(0), y.flip(0)), distance)


def test_offsets_cost_no_digits():
    x = normal(100, 3)
    y = normal(100, 3, seed=1)
    far = sliced_wasserstein((x + 1e6).float(), (y + 1e6).float())
    near = sliced_wasserstein((x + 1e6).float().double() - 1e6, (y + 1e6).float().double() - 1e6)
    assert float(far) == pytest.approx(float(near), rel=1e-4)


def test_chunks(monkeypatch):
    x, y = normal(50, 3), normal(40, 3, seed=1)
    whole = sliced_wasserstein(x, y)
    module = importlib.import_module("pyro_sig.diagnostics.sliced_wasserstein")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 300)
    torch.testing.assert_close(sliced_wasserstein(x, y), whole)


def test_seed_and_dtype():
    x, y = normal(50, 3), normal(40, 3, seed=1) + 1
    state = torch.random.get_rng_state()
    distance = sliced_wasserstein(x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sliced_wasserstein(x, y, seed=0) == distance
    assert sliced_wasserstein(x, y, seed=1) != distance
    single = sliced_wasserstein(x.float(), y.float())
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(distance), rel=1e-5)


@pytest.mark.parametrize(("n", "m", "dim"), [(20, 20, 2), (30, 17, 5), (8, 100, 1)])
def test_the_tested_statistic_is_the_distance(n, m, dim):
    x, y = normal(n, dim), 0.5 + 2 * normal(m, dim, seed=1)
    result = sliced_wasserstein_test(x, y, 9, num_projections=30, seed=3)
    expected = float(sliced_wasserstein(x, y, 30, seed=3))
    assert result.statistic == pytest.approx(expected)


def test_relabelled_statistics_are_distances():
    # Of two against one there are three labellings: p counts those at least as far.
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([1.5])
    distances = [
        float(sliced_wasserstein(torch.tensor(a), torch.tensor(b), 1))
        for a, b in (([0.0, 1.0], [1.5]), ([0.0, 1.5], [1.0]), ([1.0, 1.5], [0.0]))
    ]
    share = sum(d >= distances[0] - 1e-6 for d in distances) / 3
    count = 3000
    result = sliced_wasserstein_test(x, y, count, torch.Generator().manual_seed(0))
    # Fails for one seed in 10^6.
    low, high = stats.binom(count, share).ppf([5e-7, 1 - 5e-7])
    assert low + 1 <= result.p_value * (count + 1) <= high + 1


def test_bad_options_of_the_test():
    with pytest.raises(ValueError, match="`num_projections` must be a positive integer, was 0"):
        sliced_wasserstein_test(torch.ones(2), torch.ones(2), num_projections=0)
    with pytest.raises(ValueError, match="`y` must have as many columns as `x`, 1, had 2"):
        sliced_wasserstein_test(torch.ones(2), torch.ones(2, 2))


@pytest.mark.cuda
def test_device():
    x, y = normal(50, 3), normal(40, 3, seed=1)
    distance = sliced_wasserstein(x.cuda(), y)
    assert distance.is_cuda
    torch.testing.assert_close(distance.cpu(), sliced_wasserstein(x, y))


@pytest.mark.parametrize(
    ("x", "y", "num_projections", "message"),
    [
        ([1.0], torch.ones(2), 1, "`x` must be a tensor"),
        (torch.ones(2, 2, 2), torch.ones(2), 1, r"`x` must .* was .*\(2, 2, 2\)"),
        (torch.ones(2), torch.ones(0), 1, r"`y` must .* was .*\(0,\)"),
        (torch.ones(2, 3), torch.ones(2, 2), 1, "`y` must have as many columns as `x`, 3"),
        (torch.ones(2), torch.tensor([math.nan]), 1, "`y` must be finite"),
        (torch.ones(2), torch.ones(2), 0, "`num_projections` must .* was 0"),
        (torch.ones(2), torch.ones(2), 2.0, "`num_projections` must .* was 2.0"),
    ],
)
def test_bad_input(x, y, num_projections, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(x, y, num_projections)
