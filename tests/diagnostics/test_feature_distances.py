import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.metrics.pairwise import polynomial_kernel
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pyro_sig.diagnostics import KernelDistance, frechet_distance, kernel_distance


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Features(torch.nn.Module):
    """Hands features through, in the place of a network on images."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, images):
        return images.flatten(1)


def images(features):
    return features[:, :, None, None]


# --- Fréchet


@pytest.mark.parametrize(("n", "m", "dim"), [(50, 60, 1), (100, 80, 5), (300, 300, 40)])
def test_frechet_agrees_with_torchmetrics(n, m, dim):
    real, fake = 3 + normal(n, dim), 3.5 + normal(m, dim, seed=1) @ normal(dim, dim, seed=2)
    metric = FrechetInceptionDistance(Features(dim), normalize=False, input_img_size=(dim, 1, 1))
    metric.set_dtype(torch.float64)
    metric.update(images(real), real=True)
    metric.update(images(fake), real=False)
    expected = float(metric.compute())
    assert float(frechet_distance(real, fake)) == pytest.approx(expected, rel=1e-8)


def test_frechet_agrees_with_the_matrix_root_of_scipy():
    real, fake = normal(60, 6), normal(70, 6, seed=1) @ normal(6, 6, seed=2) + 1
    covariances = [np.cov(sample.numpy(), rowvar=False) for sample in (real, fake)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = float((real.mean(0) - fake.mean(0)).square().sum())
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert float(frechet_distance(real, fake)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_laws_in_closed_form():
    # Standardised samples have these moments exactly.
    z = normal(500, 3)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.mT.cov())).mT
    a, b = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([3.0, 0.5, 4.0]).double()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    # Covariances that commute: the squares of the differences of the roots.
    expected = float((a - b).square().sum() + shift.square().sum())
    assert float(frechet_distance(a * z, b * z + shift)) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m"), [(10, 12), (2, 2), (10, 200), (200, 10), (65, 64)])
def test_frechet_of_fewer_rows_than_columns(n, m):
    dim = 64
    real, fake = normal(n, dim), 2 * normal(m, dim, seed=1)
    value = float(frechet_distance(real, fake))
    # The same rows in the coordinates of their span, n + m columns, where nothing is lost.
    span = torch.linalg.qr(torch.cat([real, fake]).mT).Q
    x, y = real @ span, fake @ span
    roots = [(s - s.mean(0)) / math.sqrt(len(s) - 1) for s in (x, y)]
    cross = float(torch.linalg.matrix_norm(roots[0] @ roots[1].mT, ord="nuc"))
    expected = float((x.mean(0) - y.mean(0)).square().sum() + sum(r.square().sum() for r in roots))
    assert value == pytest.approx(expected - 2 * cross, rel=1e-6)
    # Of a sample to itself: zero, and a shift is seen exactly.
    assert float(frechet_distance(real, real)) == pytest.approx(0, abs=1e-6)
    assert float(frechet_distance(real, real + 1)) == pytest.approx(dim, rel=1e-6)


def test_frechet_of_singular_covariances():
    # Constant and repeated columns; a sample that is one point.
    real = torch.cat([normal(50, 2), torch.ones(50, 1).double(), normal(50, 1)], -1)
    real = torch.cat([real, real], -1)
    assert float(frechet_distance(real, real)) == pytest.approx(0, abs=1e-6)
    point = torch.zeros(50, 8).double()
    expected = float(real.square().sum(-1).mean())
    spread = float(frechet_distance(real, point))
    mean, variance = real.mean(0), real.var(0)
    assert spread == pytest.approx(float(mean.square().sum() + variance.sum()))
    assert spread == pytest.approx(expected, rel=0.05)
    assert float(frechet_distance(point, point)) == 0.0


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_frechet_in_other_units(scale):
    real, fake = normal(50, 4), 1 + normal(50, 4, seed=1)
    expected = float(frechet_distance(real, fake))
    assert float(frechet_distance(scale * real, scale * fake)) == pytest.approx(expected * scale**2)


def test_frechet_in_float32_and_far_from_the_origin():
    real, fake = normal(500, 8), 0.1 + normal(500, 8, seed=1)
    single = frechet_distance(real.float(), fake.float())
    assert single.dtype == torch.float32
    expected = float(frechet_distance(real, fake))
    assert float(single) == pytest.approx(expected, rel=1e-4)
    assert float(frechet_distance(real + 1e6, fake + 1e6)) == pytest.approx(expected, rel=1e-6)


def test_frechet_in_chunks(monkeypatch):
    real, fake = normal(50, 4), 1 + normal(70, 4, seed=1)
    whole = frechet_distance(real, fake)
    module = importlib.import_module("pyro_sig.diagnostics.feature_distances")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 30)
    torch.testing.assert_close(frechet_distance(real, fake), whole)


def with_correlation(n, rho, seed):
    z = normal(n, 2, seed=seed)
    return torch.stack([z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]], -1)


@pytest.mark.parametrize(
    ("bad", "frechet"),
    [
        (with_correlation(5000, 0.0, 1) + 1, 2.0),
        # Eigenvalues 1.9 and 0.1 in place of 1 and 1.
        (with_correlation(5000, 0.9, 1), (1.9**0.5 - 1) ** 2 + (0.1**0.5 - 1) ** 2),
        (3 * with_correlation(5000, 0.0, 1), 8.0),
    ],
    ids=["shift", "correlation", "scale"],
)
def test_good_and_bad(bad, frechet):
    real, good = with_correlation(5000, 0.0, 2), with_correlation(5000, 0.0, 3)
    assert float(frechet_distance(real, bad)) == pytest.approx(frechet, rel=0.2)
    assert float(frechet_distance(real, good)) < 0.01 * frechet
    generator = torch.Generator().manual_seed(0)
    options = {"subset_size": 500, "num_subsets": 20, "generator": generator}
    mean, error, _ = kernel_distance(real, good, **options)
    # Fails for less than one seed in 10^6: the error is on the large side here.
    assert abs(mean) < 5 * error
    mean, error, _ = kernel_distance(real, bad, **options)
    assert mean > 10 * error


# --- kernel


def test_one_subset_agrees_with_scikit_learn():
    # All subsets of n - 1 rows, with the choice taken from the same stream.
    real, fake = normal(20, 3), 1 + normal(25, 3, seed=1)
    generator = torch.Generator().manual_seed(5)
    expected = []
    for _ in range(4):
        x = real[torch.randperm(20, generator=generator)[:8]].numpy()
        y = fake[torch.randperm(25, generator=generator)[:8]].numpy()
        xx, yy, xy = (
            polynomial_kernel(a, b, degree=3, gamma=1 / 3, coef0=1)
            for a, b in ((x, x), (y, y), (x, y))
        )
        off = ~np.eye(8, dtype=bool)
        expected.append(xx[off].mean() + yy[off].mean() - 2 * xy.mean())
    result = kernel_distance(real, fake, 4, 8, torch.Generator().manual_seed(5))
    assert isinstance(result, KernelDistance)
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.std == pytest.approx(np.std(expected, ddof=1))
    assert result.standard_error == pytest.approx(result.std * math.sqrt(8 / 12 + 1 / 4))


def test_the_kernel_distance_agrees_with_torchmetrics():
    # Other subsets: the means agree within their standard errors.
    real, fake = normal(400, 5), 0.5 + normal(400, 5, seed=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(Features(5), subsets=200, subset_size=100, normalize=False)
    metric.set_dtype(torch.float64)
    metric.update(images(real), real=True)
    metric.update(images(fake), real=False)
    mean, std = (float(value) for value in metric.compute())
    ours = kernel_distance(real, fake, 200, 100)
    # Fails for one seed in 10^6.
    assert ours.mean == pytest.approx(mean, abs=4.9 * math.sqrt((std**2 + ours.std**2) / 200))
    assert ours.std == pytest.approx(std, rel=0.3)


def test_the_kernel_distance_is_unbiased_and_its_error_honest():
    # In one dimension: E k(x, y) = sum of binomials times products of moments up to the third.
    shift, count, num_problems = 1.0, 60, 300
    moments = ([1.0, 0.0, 1.0, 0.0], [1.0, shift, shift**2 + 1, shift**3 + 3 * shift])

    def expectation(a, b):
        return sum(math.comb(3, i) * a[i] * b[i] for i in range(4))

    x, y = moments
    truth = expectation(x, x) + expectation(y, y) - 2 * expectation(x, y)
    results = torch.tensor(
        [
            kernel_distance(normal(count, seed=2 * s), shift + normal(count, seed=2 * s + 1), 40)
            for s in range(num_problems)
        ]
    )
    spread = float(results[:, 0].std())
    # Fails for one set of seeds in 10^6.
    error = 4.9 * spread / math.sqrt(num_problems)
    assert float(results[:, 0].mean()) == pytest.approx(truth, abs=error)
    # The jackknife's mean square is that of the estimates, up to terms of higher order in 1/count;
    # the error of both is a few percent.
    reported = float(results[:, 1].square().mean().sqrt())
    assert reported == pytest.approx(spread, rel=0.35)


def test_the_default_size_of_subsets():
    real, fake = normal(30, 2), normal(50, 2, seed=1)
    results = [
        kernel_distance(real, fake, 10, size, torch.Generator().manual_seed(0))
        for size in (None, 15)
    ]
    assert results[0] == results[1]


def test_the_generator_alone_decides():
    real, fake = normal(30, 2), normal(50, 2, seed=1)
    state = torch.get_rng_state()
    first, second = (
        kernel_distance(real, fake, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert first == second
    frechet_distance(real, fake)
    assert torch.equal(state, torch.get_rng_state())
    single = kernel_distance(real.float(), fake.float(), generator=torch.Generator().manual_seed(0))
    assert single == pytest.approx(first, rel=1e-4)


@pytest.mark.cuda
def test_device():
    real, fake = normal(30, 2), normal(50, 2, seed=1)
    distance = frechet_distance(real.cuda(), fake)
    assert distance.is_cuda
    torch.testing.assert_close(distance.cpu(), frechet_distance(real, fake))
    on_cpu, on_gpu = (
        kernel_distance(r, fake, generator=torch.Generator().manual_seed(0))
        for r in (real, real.cuda())
    )
    assert on_gpu == pytest.approx(on_cpu)


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"real": [1.0]}, "`real` must be a tensor"),
        ({"fake": torch.zeros(9, 2, 2)}, r"`fake` must be .* was .*\(9, 2, 2\)"),
        ({"fake": torch.zeros(9, 3)}, "`fake` must have as many columns as `real`, 2, had 3"),
        ({"real": torch.full((9, 2), math.nan)}, "`real` must be finite"),
        ({"fake": torch.zeros(1, 2)}, "`fake` must have at least .* rows, had 1"),
    ],
)
def test_bad_samples(function, change, match):
    with pytest.raises(ValueError, match=match):
        function(**{"real": torch.zeros(9, 2), "fake": torch.zeros(8, 2), **change})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_subsets": 1}, "`num_subsets` must be an integer of at least 2, was 1"),
        ({"subset_size": 1}, "`subset_size` must be an integer of at least 2, was 1"),
        ({"subset_size": 8}, "`subset_size` must be less than .* smaller sample, 8, was 8"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        kernel_distance(torch.zeros(9, 2), torch.zeros(8, 2), **options)
