import importlib
import math

import pytest
import torch
from pyro.contrib.gp.kernels import RBF
from scipy import stats
from sklearn.metrics.pairwise import rbf_kernel

from pyro_sig.diagnostics import mmd, mmd_test
from pyro_sig.diagnostics._samples import median_distance


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def from_matrices(xx, yy, xy, unbiased):
    if unbiased:
        xx, yy = (k[~torch.eye(len(k), dtype=torch.bool)] for k in (xx, yy))
    return float(xx.mean() + yy.mean() - 2 * xy.mean())


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("n", "m", "dim"), [(5, 7, 1), (8, 3, 4), (30, 30, 2)])
def test_rbf_agrees_with_scikit_learn(n, m, dim, unbiased):
    x, y = normal(n, dim), 0.5 + normal(m, dim, seed=1)
    bandwidths = [0.3, 1.0, 2.5]

    def kernel(a, b):
        return torch.from_numpy(sum(rbf_kernel(a, b, gamma=0.5 / h**2) for h in bandwidths))

    expected = from_matrices(kernel(x, x), kernel(y, y), kernel(x, y), unbiased)
    assert float(mmd(x, y, unbiased, bandwidth=bandwidths)) == pytest.approx(expected)


def test_rbf_agrees_with_the_kernel_of_pyro():
    # The kernel that Pyro's Trace_MMD takes.
    x, y = normal(20, 3), normal(10, 3, seed=1)
    kernel = RBF(3, lengthscale=torch.tensor(0.7, dtype=torch.double))
    with torch.no_grad():
        expected = from_matrices(kernel(x), kernel(y), kernel(x, y), False)
    assert float(mmd(x, y, bandwidth=0.7)) == pytest.approx(expected)


@pytest.mark.parametrize("unbiased", [False, True])
def test_imq_agrees_with_the_definition(unbiased):
    x, y = normal(9, 3), 0.5 + normal(6, 3, seed=1)

    def kernel(a, b):
        squares = (a[:, None] - b).square().sum(-1)
        return sum((1 + squares / h**2) ** -0.5 for h in (0.5, 2.0))

    expected = from_matrices(kernel(x, x), kernel(y, y), kernel(x, y), unbiased)
    value = mmd(x, y, unbiased, kernel="imq", bandwidth=[0.5, 2.0])
    assert float(value) == pytest.approx(expected)


def test_the_u_statistic_is_unbiased():
    # E k(X, Y) of X - Y normal with mean d and variance 2, for a bandwidth of 1.
    d = 1.0
    truth = 2 / math.sqrt(3) * (1 - math.exp(-(d**2) / 6))
    values = torch.stack(
        [mmd(normal(10, seed=2 * s), d + normal(8, seed=2 * s + 1), True, bandwidth=1.0)
         for s in range(500)]
    )  # fmt: skip
    # Fails for one set of seeds in 10^6.
    error = stats.norm.isf(5e-7) * float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - truth) < error


def test_bandwidths():
    x, y = normal(20, 2), 1 + normal(30, 2, seed=1)
    median = float(torch.pdist(torch.cat([x, y])).median())
    assert median_distance(x, y) == pytest.approx(median)
    explicit = mmd(x, y, bandwidth=[f * median for f in (0.25, 0.5, 1, 2, 4)])
    torch.testing.assert_close(mmd(x, y), explicit)
    torch.testing.assert_close(mmd(7 * x, 7 * y), explicit)
    one = mmd(x, y, bandwidth=torch.tensor(1.5))
    assert one == mmd(x, y, bandwidth=1.5) == mmd(x, y, bandwidth=(1.5,))


def test_the_median_of_a_large_sample_does_not_depend_on_the_labels():
    pooled = normal(3000, 3)
    median = median_distance(pooled[:1000], pooled[1000:])
    shuffled = pooled[torch.randperm(3000)]
    assert median_distance(shuffled[:500], shuffled[500:]) == median
    # Of 499,500 dependent distances; 1000 rows fix the median to well below 5 %.
    assert median == pytest.approx(float(torch.pdist(pooled).median()), rel=0.05)


def test_the_median_of_samples_that_coincide():
    zeros = torch.zeros(20)
    assert median_distance(zeros.unsqueeze(-1), zeros.unsqueeze(-1)) == 1.0
    assert mmd(zeros, zeros) == 0.0
    # Most pairs coincide; the others are 3 apart.
    column = zeros.unsqueeze(-1)
    assert median_distance(column, torch.tensor([[3.0]])) == 3.0
    assert float(mmd(zeros, torch.tensor([3.0]))) > 1


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_good_and_bad(kernel):
    x = normal(200, 2)
    good = mmd(x, normal(200, 2, seed=1), kernel=kernel)
    assert mmd(x, x, kernel=kernel).abs() < 1e-12
    flipped = x * torch.tensor([1.0, -1.0]).double()
    stretched = torch.stack([x[:, 0], 0.9 * x[:, 0] + 0.19**0.5 * x[:, 1]], -1)
    for bad in (x + 1, 3 * x, stretched, x[x[:, 0] > 0]):
        assert mmd(x, bad, kernel=kernel) > 3 * good
    # A reflection of a round law is no change of it.
    assert mmd(x, flipped, kernel=kernel) < 3 * good


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradient(kernel, unbiased):
    x, y = normal(4, 2).requires_grad_(), normal(5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: mmd(a, b, unbiased, kernel=kernel, bandwidth=[0.5, 2.0]), (x, y)
    )
    (gradient,) = torch.autograd.grad(mmd(x, y, kernel=kernel), x)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())


@pytest.mark.parametrize("elements", [150, 1])
def test_chunks(monkeypatch, elements):
    x, y = normal(50, 3).requires_grad_(), normal(40, 3, seed=1)
    whole = mmd(x, y)
    (gradient,) = torch.autograd.grad(whole, x)
    module = importlib.import_module("pyro_sig.diagnostics._samples")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    chunked = mmd(x, y)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, x)[0], gradient)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_float32(kernel):
    x, y = normal(1000, 2), 0.1 + normal(1000, 2, seed=1)
    single = mmd(x.float(), y.float(), kernel=kernel)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(mmd(x, y, kernel=kernel)), rel=1e-3)
    # Rows a hundred bandwidths apart: nothing underflows to NaN.
    assert float(mmd(x.float(), x.float() + 1e4, bandwidth=1.0)) > 0


def test_the_tested_statistic_is_the_mmd():
    x, y = normal(30, 2), 1 + normal(20, 2, seed=1)
    for options in ({}, {"kernel": "imq"}, {"bandwidth": 0.3}):
        result = mmd_test(x, y, num_permutations=9, **options)
        assert result.statistic == pytest.approx(float(mmd(x, y, **options)))


def test_no_global_random_numbers():
    state = torch.get_rng_state()
    mmd(normal(1500), normal(20, seed=1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.cuda
def test_device():
    x, y = normal(900, 3), normal(400, 3, seed=1)
    distance = mmd(x.cuda(), y)
    assert distance.is_cuda
    torch.testing.assert_close(distance.cpu(), mmd(x, y))


@pytest.mark.parametrize("function", [mmd, mmd_test])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.zeros(3, 2, 2)}, r"`x` must be a tensor of shape.*\(3, 2, 2\)"),
        ({"y": torch.full((5, 2), math.nan)}, r"`y` must be finite"),
        ({"y": torch.zeros(5, 3)}, "`y` must have as many columns as `x`, 2, had 3"),
        ({"kernel": "linear"}, "`kernel` must be one of 'rbf', 'imq', was 'linear'"),
        ({"bandwidth": 0.0}, r"`bandwidth` must be a positive number.*was 0\.0"),
        ({"bandwidth": []}, r"`bandwidth` must be .* sequence of them, was \[\]"),
        ({"bandwidth": [1.0, math.nan]}, r"`bandwidth` must be .*nan"),
        ({"bandwidth": "median"}, r"`bandwidth` must be .*'median'"),
    ],
)
def test_bad_arguments(function, change, match):
    with pytest.raises(ValueError, match=match):
        function(**{"x": torch.zeros(4, 2), "y": torch.zeros(5, 2), **change})


def test_bad_options():
    with pytest.raises(ValueError, match=r"`unbiased` needs at least 2 rows.*1 and 2"):
        mmd(torch.zeros(1), torch.zeros(2), unbiased=True)
