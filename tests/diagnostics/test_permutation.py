import importlib
from functools import partial

import pytest
import torch
from scipy import stats

from pyro_sig.diagnostics import (
    TwoSampleTest,
    energy_test,
    mmd_test,
    sliced_wasserstein_test,
)

EACH = pytest.mark.parametrize(
    "test", [energy_test, mmd_test, sliced_wasserstein_test], ids=lambda test: test.__name__
)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def of_grid(p_values, num_permutations):
    """Failure probability of the hypothesis that p is uniform on 1/(1 + B), ..., 1."""
    # Spread each p over its cell: uniform on [0, 1] exactly if p is uniform on the grid.
    p_values = torch.tensor(p_values, dtype=torch.double)
    spread = torch.rand(len(p_values), generator=torch.Generator().manual_seed(1))
    return stats.kstest((p_values - spread / (1 + num_permutations)).numpy(), "uniform").pvalue


@EACH
@pytest.mark.parametrize(("n", "m"), [(12, 17), (20, 20)])
def test_p_is_uniform_under_the_null(test, n, m):
    num_problems, num_permutations = 500, 39
    if test is sliced_wasserstein_test:  # the level does not depend on the number of directions
        num_problems, test = 200, partial(test, num_projections=20)
    p_values = []
    for seed in range(num_problems):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(n, 2, generator=generator), torch.randn(m, 2, generator=generator)
        p_values.append(test(x, y, num_permutations, generator).p_value)
    # Fails for one set of seeds in 10^5.
    assert of_grid(p_values, num_permutations) > 1e-5
    # Rejections at 5 %, two of the forty values, are binomial: one set of seeds in 10^5.
    low, high = stats.binom(num_problems, 0.05).ppf([5e-6, 1 - 5e-6])
    assert low <= sum(p <= 0.05 + 1e-9 for p in p_values) <= high


@EACH
def test_p_is_valid_for_data_with_ties(test):
    num_problems, rejected = 200, 0
    for seed in range(num_problems):
        generator = torch.Generator().manual_seed(seed)
        x = torch.poisson(torch.full((10,), 0.5), generator=generator)
        y = torch.poisson(torch.full((10,), 0.5), generator=generator)
        rejected += test(x, y, num_permutations=39, generator=generator).p_value <= 0.1
    # At most 10 %: fails for one set of seeds in 10^6.
    assert rejected <= stats.binom(num_problems, 0.1).isf(1e-6)


@EACH
def test_relabellings_that_tie_count(test):
    # Of the 20 ways to choose 3 of 6, the given one and its mirror image are the worst.
    x, y = torch.tensor([0.1, 1.2, 2.3]), torch.tensor([10.1, 11.2, 12.4])
    count = 3000
    generator = torch.Generator().manual_seed(0)
    p_value = test(x, y, num_permutations=count, generator=generator).p_value
    # Fails for one seed in 10^6.
    low, high = stats.binom(count, 0.1).ppf([5e-7, 1 - 5e-7])
    assert low + 1 <= p_value * (count + 1) <= high + 1
    # All rows equal: every relabelling ties.
    assert test(torch.ones(4), torch.ones(6), num_permutations=19).p_value == 1.0


@EACH
@pytest.mark.parametrize("factor", [1e-3, 1e6])
def test_ties_far_from_the_origin_and_in_other_units(test, factor):
    x, y = 1e3 + normal(15, 2), 1e3 + normal(15, 2, seed=1)
    generators = (torch.Generator().manual_seed(0) for _ in range(2))
    first, second = (
        test(f * x, f * y, 99, g) for f, g in zip((1, factor), generators, strict=True)
    )
    assert first.p_value == second.p_value


def correlated(n, rho, seed):
    z = normal(n, 2, seed=seed)
    return torch.stack([z[:, 0], rho * z[:, 0] + (1 - rho**2) ** 0.5 * z[:, 1]], -1)


def bimodal(n, share, seed):
    generator = torch.Generator().manual_seed(seed)
    side = (torch.rand(n, 1, generator=generator) < share).double()
    return torch.randn(n, 2, generator=generator, dtype=torch.float64) * 0.3 + 4 * side


# In each pair one law differs from the other by a shift, by its correlation with equal marginals,
# by a missing mode, by its scale.
DIFFERENT = {
    "shift": (lambda: normal(100, 2), lambda: normal(80, 2, seed=1) + 1),
    "correlation": (lambda: correlated(300, 0.9, 0), lambda: correlated(300, -0.9, 1)),
    "missing mode": (lambda: bimodal(100, 0.5, 0), lambda: bimodal(80, 0.0, 1)),
    "scale": (lambda: normal(100, 2), lambda: 3 * normal(80, 2, seed=1)),
}


@EACH
@pytest.mark.parametrize("change", DIFFERENT)
def test_power(test, change):
    draw_x, draw_y = DIFFERENT[change]
    x, y = draw_x(), draw_y()
    generator = torch.Generator().manual_seed(0)
    bad = test(x, y, num_permutations=199, generator=generator)
    assert bad.p_value == 1 / 200
    # Shuffled together, the same rows have one law: the statistic falls far below.
    pooled = torch.cat([x, y])[torch.randperm(len(x) + len(y), generator=generator)]
    good = test(*pooled.split([len(x), len(y)]), num_permutations=199, generator=generator)
    # p is 1/200 for one seed in 200, so that only the statistics are compared.
    assert good.statistic < bad.statistic / 2


@EACH
def test_the_generator_alone_decides(test):
    x, y = normal(20, 2), normal(20, 2, seed=1)
    state = torch.get_rng_state()
    first, second = (test(x, y, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert isinstance(first, TwoSampleTest)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    # The samples' own order decides nothing but rounding.
    again = test(x.flip(0), y.flip(0), generator=torch.Generator().manual_seed(3))
    assert again.statistic == pytest.approx(first.statistic)


@EACH
@pytest.mark.parametrize("elements", [45 * 10, 45 * 7, 1])
def test_chunks(monkeypatch, test, elements):
    x, y = normal(20, 2), normal(25, 2, seed=1)
    whole = test(x, y, 99, torch.Generator().manual_seed(0))
    for name in ("permutation", "sliced_wasserstein"):
        module = importlib.import_module(f"pyro_sig.diagnostics.{name}")
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    chunked = test(x, y, 99, torch.Generator().manual_seed(0))
    assert chunked.statistic == pytest.approx(whole.statistic, rel=1e-12)
    assert chunked.p_value == whole.p_value


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_dtypes(test, dtype):
    x, y = (10 * normal(30, 2)).to(dtype), (10 * normal(20, 2, seed=1)).to(dtype)
    first, second = (
        test(a, b, 99, torch.Generator().manual_seed(0))
        for a, b in ((x, y), (x.double(), y.double()))
    )
    assert first.statistic == pytest.approx(second.statistic, rel=1e-4)
    assert first.p_value == pytest.approx(second.p_value, abs=0.011)


@pytest.mark.cuda
@EACH
def test_cuda_agrees(test):
    x, y = normal(50, 2), 0.3 + normal(60, 2, seed=1)
    on_cpu = test(x, y, generator=torch.Generator().manual_seed(0))
    on_gpu = test(x.cuda(), y.cuda(), generator=torch.Generator().manual_seed(0))
    assert on_gpu.statistic == pytest.approx(on_cpu.statistic)
    assert on_gpu.p_value == on_cpu.p_value
    assert test(x.cuda(), y.cuda(), generator=torch.Generator("cuda")).p_value <= 1


@EACH
@pytest.mark.parametrize("bad", [0, 2.5, True])
def test_bad_number_of_permutations(test, bad):
    with pytest.raises(
        ValueError, match=rf"`num_permutations` must be a positive integer, was {bad}"
    ):
        test(torch.zeros(2), torch.zeros(2), num_permutations=bad)
