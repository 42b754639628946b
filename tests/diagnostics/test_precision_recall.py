import importlib
import math

import pytest
import torch
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from pyro_sig.diagnostics import PrecisionRecall, precision_recall_density_coverage
from pyro_sig.diagnostics.precision_recall import _radii, _smallest


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def radii(points, k):
    neighbours = NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(points)
    return torch.from_numpy(neighbours.kneighbors(points)[0][:, -1])


def direct(real, fake, k):
    d = (real[:, None] - fake).norm(dim=-1)
    in_real, in_fake = d <= radii(real, k)[:, None], d <= radii(fake, k)
    return PrecisionRecall(
        precision=float(in_real.any(0).double().mean()),
        recall=float(in_fake.any(1).double().mean()),
        density=float(in_real.double().sum(0).mean() / k),
        coverage=float(in_real.any(1).double().mean()),
    )


@pytest.mark.parametrize("dim", [1, 2, 5, 60])
@pytest.mark.parametrize(("n", "m", "k"), [(30, 40, 1), (200, 150, 5), (10, 50, 9)])
def test_the_definition(n, m, k, dim):
    real, fake = normal(n, dim), 0.7 * normal(m, dim, seed=1) + 0.2
    result = precision_recall_density_coverage(real, fake, k)
    assert isinstance(result, PrecisionRecall)
    assert result == pytest.approx(direct(real, fake, k))


@pytest.mark.parametrize("count", [6, 1000, 2000, 4001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radii_are_exact(count, dtype):
    points = normal(count, 3).to(dtype)
    torch.testing.assert_close(_radii(points, 5), radii(points, 5).to(dtype))


def test_selection_in_groups():
    # Few values, so that most are tied, and the smallest of a row in one group.
    generator = torch.Generator().manual_seed(0)
    block = torch.randint(0, 20, (50, 3001), generator=generator).double()
    block[:10, 300:310] = -torch.arange(10.0).double()
    expected = block.sort().values[:, :7]
    assert torch.equal(_smallest(block, 7), expected)


def test_equal_laws():
    n, k = 30, 3
    results = torch.tensor(
        [
            precision_recall_density_coverage(normal(n, 2, seed=s), normal(n, 2, seed=s + 400), k)
            for s in range(400)
        ]
    )
    # Covered, unless the k nearest of the 2n - 1 other rows are all of the n - 1 real ones.
    missed = math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    # A fake row is in a ball with probability k / n: it is one of n rows that may be the nearest.
    for column, truth in ((2, 1.0), (3, 1 - missed)):
        values = results[:, column]
        # Each fails for one set of seeds in 10^6.
        error = stats.norm.isf(5e-7) * float(values.std()) / math.sqrt(len(values))
        assert float(values.mean()) == pytest.approx(truth, abs=error)


def modes(n, which, seed):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor(which)[torch.randint(len(which), (n, 1), generator=generator)]
    return 20.0 * centre + torch.randn(n, 2, generator=generator)


def test_bad_samples_are_told_apart():
    real = modes(1000, [0, 1], 0)
    good = precision_recall_density_coverage(real, modes(1000, [0, 1], 1))
    # One of two modes: real, but half of the variety. A binomial share of 1000 has a standard error
    # of 0.016, and the edges of a mode add less than that.
    missing = precision_recall_density_coverage(real, modes(1000, [0], 1))
    assert good.recall > 0.95 and good.coverage > 0.9
    assert missing.precision > 0.95
    assert missing.recall == pytest.approx(0.5, abs=0.1)
    assert missing.coverage == pytest.approx(0.5, abs=0.1)
    # A mode that the truth does not have: half of the rows are not real.
    invented = precision_recall_density_coverage(real, modes(1000, [0, 3], 1))
    assert invented.precision == pytest.approx(0.5, abs=0.1)
    # Far away: nothing.
    nothing = precision_recall_density_coverage(real, real + 1e3)
    assert nothing == (0.0, 0.0, 0.0, 0.0)
    # All alike: real without variety.
    alike = precision_recall_density_coverage(real, real[:1] + 1e-3 * normal(1000, 2).float())
    assert alike.precision == 1.0 and alike.recall < 0.01 and alike.coverage < 0.05


def test_the_sample_itself():
    real = normal(100, 3)
    # Each ball holds its centre and k more.
    assert precision_recall_density_coverage(real, real, 4) == (1.0, 1.0, 5 / 4, 1.0)


def test_rows_that_coincide():
    # All radii are zero: balls are closed.
    zeros = torch.zeros(10, 2)
    assert precision_recall_density_coverage(zeros, zeros, 2) == (1.0, 1.0, 5.0, 1.0)
    assert precision_recall_density_coverage(zeros, zeros + 1, 2) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dim", [2, 60])
def test_far_from_the_origin(dim):
    real, fake = normal(300, dim), normal(300, dim, seed=1)
    # 2^14 loses digits of the rows, the same ones of both.
    real, fake = (real * 2**10).round() / 2**10, (fake * 2**10).round() / 2**10
    near = precision_recall_density_coverage(real, fake)
    far = precision_recall_density_coverage((real + 2**12).float(), (fake + 2**12).float())
    assert far == pytest.approx(near, abs=0.01)


def test_samples_without_columns():
    real, fake = normal(50), normal(60, seed=1)
    columns = precision_recall_density_coverage(real[:, None], fake[:, None])
    assert precision_recall_density_coverage(real, fake) == columns


@pytest.mark.parametrize("elements", [700, 1])
def test_chunks(monkeypatch, elements):
    real, fake = normal(100, 3), normal(90, 3, seed=1)
    whole = precision_recall_density_coverage(real, fake)
    module = importlib.import_module("pyro_sig.diagnostics.precision_recall")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    assert precision_recall_density_coverage(real, fake) == whole


@pytest.mark.cuda
def test_device():
    real, fake = normal(100, 3), normal(90, 3, seed=1)
    whole = precision_recall_density_coverage(real, fake)
    assert precision_recall_density_coverage(real.cuda(), fake) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"real": [1.0]}, "`real` must be a tensor"),
        ({"fake": torch.zeros(9, 2, 2)}, r"`fake` must be .* was .*\(9, 2, 2\)"),
        ({"fake": torch.zeros(9, 3)}, "`fake` must have as many columns as `real`, 2, had 3"),
        ({"real": torch.full((9, 2), math.nan)}, "`real` must be finite"),
        ({"fake": torch.zeros(1, 2)}, "`fake` must have at least 2 rows, had 1"),
        ({"num_neighbors": 0}, "`num_neighbors` must be a positive integer, was 0"),
        ({"num_neighbors": 2.0}, r"`num_neighbors` must be a positive integer, was 2\.0"),
        ({"num_neighbors": 8}, "`num_neighbors` must be less .* `real`, 9, .* `fake`, 8, was 8"),
    ],
)
def test_bad_arguments(change, match):
    with pytest.raises(ValueError, match=match):
        precision_recall_density_coverage(
            **{"real": torch.zeros(9, 2), "fake": torch.zeros(8, 2), **change}
        )
