import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_sig.diagnostics import EcdfBands, UniformityTest, ecdf_bands, uniformity_test
from pyro_sig.diagnostics.uniformity import _cuts, _null_law


def uniform_ranks(*shape, num_draws, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_draws + 1, shape, generator=generator)


def direct(ranks, num_draws, cuts):
    n = len(ranks)
    tails = []
    for cut in cuts:
        law, count = stats.binom(n, (cut + 1) / (num_draws + 1)), int((ranks <= cut).sum())
        tails.append(min(1.0, 2 * min(law.cdf(count), law.sf(count - 1))))
    return min(tails)


@pytest.mark.parametrize(("count", "num_draws"), [(1, 1), (20, 9), (300, 19), (50, 999)])
def test_the_statistic_agrees_with_the_definition(count, num_draws):
    ranks = uniform_ranks(count, num_draws=num_draws) // 2
    result = uniformity_test(ranks, num_draws, num_points=30, num_simulations=19)
    assert isinstance(result, UniformityTest)
    expected = direct(ranks, num_draws, _cuts(num_draws, 30))
    assert float(result.statistic) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("num_draws", "num_points"), [(1, 100), (99, 100), (100, 100), (999, 7)])
def test_the_evaluated_ranks_are_distinct_and_spread(num_draws, num_points):
    cuts = _cuts(num_draws, num_points)
    assert len(set(cuts.tolist())) == len(cuts) == min(num_draws, num_points)
    assert cuts[0] >= 0 and cuts[-1] < num_draws
    gaps = np.diff(cuts, prepend=-1, append=num_draws)
    assert gaps.max() - gaps.min() <= 1


def test_the_p_value_in_closed_form():
    # Ranks 0 and 1 are a coin: all of 10 on one side has a two-sided tail of 2 / 2^10.
    result = uniformity_test(torch.zeros(10, dtype=torch.long), 1, num_simulations=199_999)
    assert float(result.statistic) == pytest.approx(2 / 2**10)
    # 5 standard errors of the simulated null law: one failure in two million seeds.
    error = 5 * math.sqrt(2 / 2**10 / 200_000)
    assert float(result.p_value) == pytest.approx(2 / 2**10, abs=error)


@pytest.mark.parametrize(("count", "num_draws"), [(20, 9), (100, 99), (250, 999)])
def test_the_level(count, num_draws):
    num_problems = 4000
    p_values = uniformity_test(
        uniform_ranks(num_problems, count, num_draws=num_draws).mT, num_draws
    ).p_value
    assert p_values.shape == (num_problems,)
    # P(p <= alpha) <= alpha, and is close to it: the statistic has many values. The simulated null
    # law adds variance num_problems / 10^4. Each of the ten checks fails for one seed in 10^6,
    # the test for one in 10^5.
    for level in (0.01, 0.05, 0.1, 0.25, 0.5):
        spread = math.sqrt(num_problems * level * (1 - level) * (1 + num_problems / 10_000))
        spread *= stats.norm.isf(1e-6)
        rejected = int((p_values <= level).sum())
        assert rejected <= num_problems * level + spread
        if count > 20:
            assert rejected >= 0.8 * num_problems * level - spread


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99999])
def test_bands_hold_all_points_exactly_if_p_is_large(level):
    ranks = uniform_ranks(100, 500, num_draws=49)
    ranks[:, 400:] = ranks[:, 400:] // torch.arange(1, 101).clamp(max=3)
    bands = ecdf_bands(100, 49, level)
    assert isinstance(bands, EcdfBands)
    torch.testing.assert_close(bands.points, (bands.ranks + 1).double() / 50)
    ecdf = (ranks.unsqueeze(-1) <= bands.ranks).double().mean(0)
    outside = ((ecdf < bands.lower - 1e-9) | (ecdf > bands.upper + 1e-9)).any(-1)
    assert torch.equal(outside, uniformity_test(ranks, 49).p_value <= 1 - level)
    assert bool(outside.any()) and not bool(outside.all())


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_bands_cover_simultaneously(level):
    num_problems = 4000
    ranks = uniform_ranks(num_problems, 150, num_draws=99, seed=1)
    bands = ecdf_bands(150, 99, level)
    counts = torch.searchsorted(
        ranks.sort().values, bands.ranks.expand(num_problems, -1).contiguous(), right=True
    )
    ecdf = counts.double() / 150
    covered = ((bands.lower <= ecdf) & (ecdf <= bands.upper)).all(-1).sum()
    # At least the level; the null law is simulated, see above. Fails for one seed in 10^5.
    spread = math.sqrt(num_problems * level * (1 - level) * (1 + num_problems / 10_000))
    assert int(covered) >= num_problems * level - stats.norm.isf(1e-5) * spread
    pointwise = ((bands.lower <= ecdf) & (ecdf <= bands.upper)).double().mean(0)
    assert float(pointwise.min()) > level


def test_below_the_simulations_p_is_a_union_bound():
    ranks = torch.zeros(200, 2, dtype=torch.long)
    ranks[:, 1] = torch.arange(200) % 2  # two lowest ranks of 20
    result = uniformity_test(ranks, 19)
    least = float(_null_law(200, 19, 100, 9999)[0])
    assert bool((result.statistic < least).all())
    torch.testing.assert_close(result.p_value, 19 * result.statistic)
    assert bool((result.p_value < 1e-100).all())
    # The bands at a level beyond the simulations are wider than any simulated.
    wide, wider = (ecdf_bands(200, 19, 1 - level) for level in (1e-4, 1e-8))
    assert bool((wider.upper >= wide.upper).all() & (wider.lower <= wide.lower).all())
    assert bool((wider.upper > wide.upper).any())


@pytest.mark.parametrize("shape", [(200,), (200, 3), (200, 2, 4)])
def test_shapes_and_repetition(shape):
    ranks = uniform_ranks(*shape, num_draws=9)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = uniformity_test(ranks, 9), uniformity_test(ranks.int(), 9)
    assert first.p_value.shape == first.statistic.shape == shape[1:]
    assert torch.equal(first.p_value, second.p_value)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_the_null_law_is_kept():
    ranks = uniform_ranks(77, num_draws=9)
    uniformity_test(ranks, 9)
    null_law = uniformity_test.__globals__["_null_law"]  # doctest runs import modules twice
    hits = null_law.cache_info().hits
    uniformity_test(ranks, 9)
    assert null_law.cache_info().hits == hits + 1


@pytest.mark.parametrize(
    ("ranks", "options", "match"),
    [
        ([1], {}, r"`ranks` must be a dense tensor of integers, of shape .*, was \[1\]"),
        (torch.zeros(0, dtype=torch.long), {}, r"`ranks`.*not empty.*\(0,\)"),
        (torch.tensor(1), {}, r"`ranks` must be .* of shape \[N, \*\].* of shape \(\)"),
        (torch.zeros(3), {}, "`ranks` must be a dense tensor of .*, was a torch.float32 tensor"),
        (torch.tensor([0, 10]), {}, r"`ranks` must be from 0 to `num_draws`, 9, .* from 0 to 10"),
        (torch.tensor([-1, 3]), {}, r"`ranks` must be from 0.* from -1 to 3"),
        (torch.tensor([1]), {"num_draws": 0}, r"`num_draws` must be a positive integer, was 0"),
        (torch.tensor([1]), {"num_points": 1.5}, r"`num_points` must be a positive integer"),
        (torch.tensor([1]), {"num_simulations": 0}, r"`num_simulations` must be a positive"),
    ],
)
def test_bad_ranks(ranks, options, match):
    with pytest.raises(ValueError, match=match):
        uniformity_test(ranks, **{"num_draws": 9, **options})


def test_bad_bands():
    with pytest.raises(ValueError, match=r"`num_ranks` must be a positive integer, was 0"):
        ecdf_bands(0, 9)
    with pytest.raises(ValueError, match="`level` must be a number above 0 and below 1, was 1"):
        ecdf_bands(10, 9, 1)
