import importlib
import math

import pytest
import torch
from scipy import stats

from pyro_sig.diagnostics import TwoSampleTest, energy_distance, energy_test


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(x, y, unbiased):
    def mean(a, b, leave_out=0):
        return sum(float((p - q).norm()) for p in a for q in b) / (len(a) * (len(b) - leave_out))

    leave_out = int(unbiased)
    return 2 * mean(x, y) - mean(x, x, leave_out) - mean(y, y, leave_out)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("n", "m", "dim"), [(5, 7, 1), (8, 3, 4), (30, 30, 2)])
def test_energy_distance_agrees_with_the_definition(n, m, dim, unbiased):
    x, y = normal(n, dim), 0.5 + normal(m, dim, seed=1)
    assert float(energy_distance(x, y, unbiased)) == pytest.approx(direct(x, y, unbiased))


def test_energy_distance_of_samples_without_columns():
    x, y = normal(5), normal(6, seed=1)
    assert energy_distance(x, y) == energy_distance(x[:, None], y[:, None])
    counts = torch.tensor([0, 1, 2])
    assert energy_distance(counts, counts + 1) == energy_distance(counts.float(), counts + 1.0)


def test_energy_distance_in_chunks(monkeypatch):
    x, y = normal(50, 3), normal(40, 3, seed=1)
    whole = energy_distance(x, y)
    module = importlib.import_module("pyro_sig.diagnostics.two_sample")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 150)
    torch.testing.assert_close(energy_distance(x, y), whole)


def test_the_u_statistic_is_unbiased():
    # Between N(0, 1) and N(d, 1): E|X - Y| of a normal with mean d and variance 2.
    d = 1.0
    distance = 2 / math.sqrt(math.pi) * math.exp(-(d**2) / 4) + d * math.erf(d / 2)
    truth = 2 * distance - 4 / math.sqrt(math.pi)
    values = torch.stack(
        [energy_distance(normal(10, seed=2 * s), d + normal(8, seed=2 * s + 1), True)
         for s in range(500)]
    )  # fmt: skip
    # Fails for one set of seeds in 10^6.
    error = stats.norm.isf(5e-7) * float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - truth) < error


def test_energy_distance_has_a_gradient():
    x, y = normal(4, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(energy_distance, (x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tested_statistic_is_the_energy_distance(dtype):
    x, y = 100 + normal(30, 2, dtype=dtype), 101 + normal(20, 2, seed=1, dtype=dtype)
    result = energy_test(x, y, num_permutations=9)
    assert isinstance(result, TwoSampleTest)
    # Both see the same rounded distances, near 1; their sums are rounded differently.
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    assert result.statistic == pytest.approx(float(energy_distance(x, y)), rel=tolerance)


def test_p_is_uniform_under_the_null():
    num_problems = 200
    p_values = []
    for seed in range(num_problems):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(12, 2, generator=generator), torch.randn(17, 2, generator=generator)
        p_values.append(energy_test(x, y, num_permutations=39, generator=generator).p_value)
    p_values = torch.tensor(p_values)
    # p is uniform on 1/40, ..., 1, so rejections at 0.1, 0.25 and 0.5 are binomial. Each of the
    # three checks fails for one set of seeds in 10^6.
    for level in (0.1, 0.25, 0.5):
        low, high = stats.binom(num_problems, level).ppf([5e-7, 1 - 5e-7])
        assert low <= int((p_values <= level + 1e-6).sum()) <= high


def test_p_is_valid_for_data_with_ties():
    num_problems, rejected = 200, 0
    for seed in range(num_problems):
        generator = torch.Generator().manual_seed(seed)
        x = torch.poisson(torch.full((10,), 0.5), generator=generator)
        y = torch.poisson(torch.full((10,), 0.5), generator=generator)
        rejected += energy_test(x, y, num_permutations=39, generator=generator).p_value <= 0.1
    # At most 10 %: fails for one set of seeds in 10^6.
    assert rejected <= stats.binom(num_problems, 0.1).isf(1e-6)


def test_relabellings_that_tie_count():
    # Of the 20 ways to choose 3 of 6, the given one and its mirror image are the worst.
    x, y = torch.tensor([0.1, 1.2, 2.3]), torch.tensor([10.1, 11.2, 12.4])
    count = 3000
    generator = torch.Generator().manual_seed(0)
    p_value = energy_test(x, y, num_permutations=count, generator=generator).p_value
    # Fails for one seed in 10^6.
    low, high = stats.binom(count, 0.1).ppf([5e-7, 1 - 5e-7])
    assert low + 1 <= p_value * (count + 1) <= high + 1
    # All rows equal: every relabelling ties.
    assert energy_test(torch.ones(4), torch.ones(6), num_permutations=19).p_value == 1.0


@pytest.mark.parametrize("change", ["shift", "scale"])
def test_power(change):
    x, y = normal(100, 2), normal(80, 2, seed=1)
    y = y + 1 if change == "shift" else 3 * y
    # Over 100 seeds no statistic fell below three times the largest of 300 under the null.
    generator = torch.Generator().manual_seed(0)
    assert energy_test(x, y, num_permutations=199, generator=generator).p_value == 1 / 200


def test_the_generator_alone_decides():
    x, y = normal(20, 2), normal(20, 2, seed=1)
    state = torch.get_rng_state()
    first, second = (
        energy_test(x, y, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first == second
    assert torch.equal(state, torch.get_rng_state())


def test_permutations_in_chunks(monkeypatch):
    x, y = normal(20, 2), normal(25, 2, seed=1)
    whole = energy_test(x, y, 99, torch.Generator().manual_seed(0))
    module = importlib.import_module("pyro_sig.diagnostics.two_sample")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 45 * 10)
    assert energy_test(x, y, 99, torch.Generator().manual_seed(0)) == whole


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees():
    x, y = normal(50, 2), 0.3 + normal(60, 2, seed=1)
    on_cpu = energy_test(x, y, generator=torch.Generator().manual_seed(0))
    on_gpu = energy_test(x.cuda(), y.cuda(), generator=torch.Generator().manual_seed(0))
    assert on_gpu.statistic == pytest.approx(on_cpu.statistic)
    assert on_gpu.p_value == on_cpu.p_value
    assert energy_test(x.cuda(), y.cuda(), generator=torch.Generator("cuda")).p_value <= 1


@pytest.mark.parametrize("function", [energy_distance, energy_test])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.zeros(3, 2, 2)}, r"`x` must be a tensor of shape.*\(3, 2, 2\)"),
        ({"y": torch.zeros(0, 2)}, r"`y`.*not empty.*\(0, 2\)"),
        ({"x": [1.0]}, r"`x` must be a tensor.*list"),
        ({"y": torch.full((5, 2), math.nan)}, r"`y` must be finite"),
        ({"y": torch.zeros(5, 3)}, r"`y` must have as many columns as `x`, 2, but had 3"),
    ],
)
def test_bad_samples(function, change, match):
    with pytest.raises(ValueError, match=match):
        function(**{"x": torch.zeros(4, 2), "y": torch.zeros(5, 2), **change})


def test_bad_options():
    with pytest.raises(ValueError, match=r"`unbiased` needs at least 2 rows.*1 and 2"):
        energy_distance(torch.zeros(1), torch.zeros(2), unbiased=True)
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match=r"`num_permutations` must be an integer"):
            energy_test(torch.zeros(2), torch.zeros(2), num_permutations=bad)
