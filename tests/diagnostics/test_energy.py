import importlib
import math

import pytest
import torch
from scipy import stats

from pyro_sig.diagnostics import energy_distance, energy_test, mmd, sliced_wasserstein


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


def test_energy_distance_agrees_with_scipy():
    # SciPy's has the square root of it, from the distribution functions.
    x, y = normal(40), 0.5 + 2 * normal(70, seed=1)
    expected = stats.energy_distance(x.numpy(), y.numpy()) ** 2
    assert float(energy_distance(x, y)) == pytest.approx(expected)


def test_energy_distance_of_samples_without_columns():
    x, y = normal(5), normal(6, seed=1)
    assert energy_distance(x, y) == energy_distance(x[:, None], y[:, None])
    counts = torch.tensor([0, 1, 2])
    assert energy_distance(counts, counts + 1) == energy_distance(counts.float(), counts + 1.0)


@pytest.mark.parametrize("elements", [150, 1])
def test_energy_distance_in_chunks(monkeypatch, elements):
    x, y = normal(50, 3).requires_grad_(), normal(40, 3, seed=1)
    whole = energy_distance(x, y)
    (gradient,) = torch.autograd.grad(whole, x)
    module = importlib.import_module("pyro_sig.diagnostics._samples")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    chunked = energy_distance(x, y)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, x)[0], gradient)


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
    # A row that both samples have: the distance has a kink, and the gradient is finite.
    (gradient,) = torch.autograd.grad(energy_distance(x, x.detach()), x)
    assert bool(torch.isfinite(gradient).all())


def test_float32_has_its_digits():
    # Near-equal laws: a small difference of three means near 1.8.
    x, y = normal(3000, 2, dtype=torch.float32), normal(3000, 2, seed=1, dtype=torch.float32)
    single = energy_distance(x, y)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(energy_distance(x.double(), y.double())), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tested_statistic_is_the_energy_distance(dtype):
    x, y = 100 + normal(30, 2, dtype=dtype), 101 + normal(20, 2, seed=1, dtype=dtype)
    result = energy_test(x, y, num_permutations=9)
    # Both see the same rounded distances, near 1; their sums are rounded differently.
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    assert result.statistic == pytest.approx(float(energy_distance(x, y)), rel=tolerance)


@pytest.mark.cuda
def test_device():
    x, y = normal(50, 3), normal(40, 3, seed=1)
    distance = energy_distance(x.cuda(), y)
    assert distance.is_cuda
    torch.testing.assert_close(distance.cpu(), energy_distance(x, y))


@pytest.mark.parametrize("function", [energy_distance, energy_test])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.zeros(3, 2, 2)}, r"`x` must be a tensor of shape.*\(3, 2, 2\)"),
        ({"y": torch.zeros(0, 2)}, r"`y`.*not empty.*\(0, 2\)"),
        ({"x": [1.0]}, r"`x` must be a tensor of shape \[count, D\] or .*, was \[1\.0\]"),
        ({"x": torch.zeros(4, 2, dtype=torch.cfloat)}, r"`x` must be .*of real numbers.*complex64"),
        ({"y": torch.full((5, 2), math.nan)}, r"`y` must be finite"),
        ({"y": torch.zeros(5, 3)}, "`y` must have as many columns as `x`, 2, had 3"),
    ],
)
def test_bad_samples(function, change, match):
    with pytest.raises(ValueError, match=match):
        function(**{"x": torch.zeros(4, 2), "y": torch.zeros(5, 2), **change})


def test_bad_options():
    with pytest.raises(ValueError, match="`unbiased` must be True or False, was 'no'"):
        energy_distance(normal(4), normal(4), unbiased="no")
    with pytest.raises(ValueError, match=r"`unbiased` needs at least 2 rows.*1 and 2"):
        energy_distance(torch.zeros(1), torch.zeros(2), unbiased=True)


@pytest.mark.parametrize("statistic", [energy_distance, mmd, sliced_wasserstein])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(statistic, dtype):
    x = normal(20, 3).to(dtype)
    y = normal(15, 3, seed=1).to(dtype)
    assert torch.equal(statistic(x, y), statistic(x.float(), y.float()))


@pytest.mark.parametrize("name", ["x", "y"])
def test_images_are_told_to_be_flattened(name):
    samples = {"x": normal(4, 8), "y": normal(4, 8), name: normal(4, 2, 2, 2)}
    with pytest.raises(ValueError, match=rf"`{name}` must be .*{name}\.flatten\(1\), or features"):
        energy_distance(**samples)
    samples[name] = samples[name].flatten(1)
    assert energy_distance(**samples) >= 0
