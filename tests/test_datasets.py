"""Toys against their own truth, readers against made and real files."""

import gzip
import math
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_sig import datasets

# Failure rate of each statistical test below, and its two-sided normal quantile.
RATE = 1e-5
Z = 4.417

COUNTS = [
    lambda **kw: datasets.negative_binomial(2.0, 0.8, **kw),
    lambda **kw: datasets.negative_binomial(0.7, 0.4, **kw),
    lambda **kw: datasets.poisson_negative_binomial(30.0, 2.0, 0.8, 0.3, **kw),
]
POINTS = [
    datasets.noisy_ring,
    datasets.ring_of_gaussians,
    datasets.grid_of_gaussians,
    datasets.uneven_grid_of_gaussians,
]
MIXTURES = POINTS[1:]


def chi2_p_value(observed, expected):
    """p-value of Pearson's test; cells must expect at least 5."""
    assert expected.min() >= 5
    statistic = ((observed - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(
        torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), statistic / 2
    ).item()


def integral_on_square(log_prob, half_width, points):
    """Trapezoidal rule: exponentially accurate where a smooth density vanishes at the edge."""
    line = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    density = log_prob(torch.cartesian_prod(line, line)).exp()
    return density.sum().item() * (line[1] - line[0]).item() ** 2


# Toys


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


@pytest.mark.parametrize("make", COUNTS)
def test_pmf_sums_to_one_and_moments_match(make):
    toy = make(dtype=torch.float64)
    k = torch.arange(400)
    pmf = toy.pmf(k)
    # What is left out beyond 400 is below 400 * 0.8**400 = 1e-36.
    assert abs(pmf.sum().item() - 1) < 1e-12
    mean = (pmf * k).sum()
    torch.testing.assert_close(toy.distribution.mean, mean)
    torch.testing.assert_close(toy.distribution.variance, (pmf * (k - mean) ** 2).sum())
    torch.testing.assert_close(toy.mixing.mean, mean)
    # Var x = E psi + Var psi for a mixed Poisson.
    torch.testing.assert_close(toy.mixing.variance + mean, toy.distribution.variance)


@pytest.mark.parametrize(("r", "p"), [(2.0, 0.8), (1.0, 0.5), (3.5, 0.4)])
def test_negative_binomial_is_a_gamma_mixture_of_poissons(r, p):
    toy = datasets.negative_binomial(r, p, dtype=torch.float64)
    k = torch.arange(30, dtype=torch.float64)
    # psi = u^2 removes the root singularities at 0; the tail beyond 900 is below e^-200.
    u = torch.linspace(0, 30, 20001, dtype=torch.float64)[1:]
    density = toy.mixing.log_prob(u**2) + (2 * u).log()
    integrand = (dist.Poisson((u**2).unsqueeze(-1)).log_prob(k) + density.unsqueeze(-1)).exp()
    by_quadrature = integrand.sum(0) * (u[1] - u[0])
    torch.testing.assert_close(by_quadrature, toy.pmf(k), rtol=1e-5, atol=1e-9)


def test_mixing_of_poisson_negative_binomial():
    toy = datasets.poisson_negative_binomial(5.0, 2.0, 0.5, 0.3, dtype=torch.float64)
    gamma = datasets.negative_binomial(2.0, 0.5, dtype=torch.float64).mixing
    x = torch.tensor([4.999, 5.0], dtype=torch.float64)
    jump = torch.tensor([0.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(toy.mixing.cdf(x), 0.7 * gamma.cdf(x) + jump)
    psi = toy.mixing.sample((20_000,))
    share = (psi == 5.0).double().mean().item()
    assert abs(share - 0.3) < Z * math.sqrt(0.3 * 0.7 / 20_000)
    with pytest.raises(NotImplementedError, match="no density"):
        toy.mixing.log_prob(psi)


def test_poisson_negative_binomial_mass():
    toy = datasets.poisson_negative_binomial(5.0, 2.0, 0.5, 0.3, dtype=torch.float64)
    expected = 0.3 * math.exp(-5.0) * 5.0**2 / 2 + 0.7 * 3 * 0.5**2 * 0.5**2
    assert toy.pmf(2).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", COUNTS)
@pytest.mark.parametrize("mixed", [False, True], ids=["direct", "poisson_of_mixing"])
def test_count_samples_match_pmf(make, mixed):
    n = 20_000
    toy = make(dtype=torch.float64)
    x = dist.Poisson(toy.mixing.sample((n,))).sample() if mixed else toy.sample(n)
    expected = n * toy.pmf(torch.arange(int(x.max()) + 1))
    observed = torch.bincount(x.long(), minlength=len(expected)).double()
    cut = expected.argmax() + int((expected[expected.argmax() :] >= 10).sum())
    keep = torch.arange(len(expected)) < cut
    keep &= expected >= 10
    rest = n - expected[keep].sum()
    observed = torch.cat([observed[keep], (n - observed[keep].sum()).unsqueeze(0)])
    assert chi2_p_value(observed, torch.cat([expected[keep], rest.unsqueeze(0)])) > RATE


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


def test_counts():
    assert (len(datasets.accident_counts()), len(datasets.mite_counts())) == (9461, 150)
    for make, frequencies in (
        (datasets.accident_counts, datasets.ACCIDENT_FREQUENCIES),
        (datasets.mite_counts, datasets.MITE_FREQUENCIES),
    ):
        counts = make(dtype=torch.int64)
        assert counts.dtype == torch.int64
        assert tuple(torch.bincount(counts).tolist()) == frequencies
        assert make().dtype == torch.get_default_dtype()
        assert dist.Poisson(1.0).log_prob(make()).isfinite().all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: datasets.noisy_ring(std=-1.0), r"`std` must be positive and finite, was -1\.0"),
        (lambda: datasets.noisy_ring(radius=math.inf), r"`radius` must be positive.* was inf"),
        (lambda: datasets.noisy_ring(std="a"), r"`std` must be positive and finite, was 'a'"),
        (lambda: datasets.noisy_ring(dtype=torch.int64), r"`dtype` must be a floating .*int64"),
        (lambda: datasets.ring_of_gaussians(0), r"`num_modes` must be an integer .* 1, was 0"),
        (lambda: datasets.ring_of_gaussians(8.0), r"`num_modes` must be an integer .*, was 8\.0"),
        (lambda: datasets.ring_of_gaussians(radius=0), r"`radius` must be positive .*, was 0"),
        (lambda: datasets.ring_of_gaussians(dtype=torch.int32), r"`dtype` must be a floating"),
        (lambda: datasets.ring_of_gaussians(std=math.nan), r"`std` must be positive .*, was nan"),
        (lambda: datasets.grid_of_gaussians(side=True), r"`side` must be an integer .*, was True"),
        (lambda: datasets.grid_of_gaussians(spacing=-2), r"`spacing` must be positive"),
        (lambda: datasets.grid_of_gaussians(weights=[1.0]), r"`weights` must have shape \[25\]"),
        (lambda: datasets.grid_of_gaussians(1, weights=[0.0]), r"`weights` must be positive"),
        (lambda: datasets.negative_binomial(0.0, 0.5), r"`total_count` must be positive"),
        (lambda: datasets.negative_binomial(1.0, 1.0), r"`probs` must lie strictly .*, was 1\.0"),
        (lambda: datasets.poisson_negative_binomial(rate=-1), r"`rate` must be positive"),
        (
            lambda: datasets.poisson_negative_binomial(weight=None),
            r"`weight` must lie .*, was None",
        ),
        (lambda: datasets.noisy_ring().sample(0), r"`n` must be an integer of at least 1, was 0"),
        (lambda: datasets.noisy_ring().pmf(1), r"`pmf` needs a toy of counts, was 'noisy_ring'"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_bad_mixture():
    one, two = dist.Poisson(torch.tensor(1.0)), dist.Poisson(torch.ones(2))
    support = constraints.nonnegative_integer
    with pytest.raises(ValueError, match="`components` must be scalar laws of one batch shape"):
        datasets.FiniteMixture(torch.ones(2), [one, two], support)
    with pytest.raises(ValueError, match="`components` must be scalar laws"):
        datasets.FiniteMixture(torch.ones(1), [two.to_event(1)], support)
    with pytest.raises(ValueError, match=r"`weights` must have shape \[1\].*had \[2\]"):
        datasets.FiniteMixture(torch.ones(2), [one], support)
    with pytest.raises(ValueError, match="`weights` must be positive"):
        datasets.FiniteMixture(torch.tensor([-1.0]), [one], support)


def test_mixture_with_a_batch():
    rates = torch.tensor([1.0, 20.0])
    law = datasets.FiniteMixture(
        torch.tensor([1.0, 3.0]),
        [dist.Poisson(rates), dist.Poisson(rates + 1)],
        constraints.nonnegative_integer,
    )
    assert law.batch_shape == law.mean.shape == law.variance.shape == (2,)
    assert law.sample((5,)).shape == law.log_prob(torch.ones(5, 2)).shape == (5, 2)
    torch.testing.assert_close(law.mean, rates + 0.75)
    torch.testing.assert_close(law.variance, rates + 0.75 + 0.25 * 0.75)


# Readers


def idx_bytes(array, code):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


IDX = [
    (0x08, np.uint8, torch.uint8),
    (0x09, np.int8, torch.int8),
    (0x0B, np.int16, torch.int16),
    (0x0C, np.int32, torch.int32),
    (0x0D, np.float32, torch.float32),
    (0x0E, np.float64, torch.float64),
]


@pytest.mark.parametrize(("code", "numpy_type", "torch_type"), IDX)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_read_idx(tmp_path, code, numpy_type, torch_type, compress):
    array = (np.arange(24).reshape(2, 3, 4) * 5).astype(numpy_type)
    data = idx_bytes(array, code)
    path = tmp_path / "array-idx3"
    path.write_bytes(gzip.compress(data) if compress else data)
    tensor = datasets.read_idx(str(path))
    assert tensor.dtype == torch_type
    assert tensor.tolist() == array.tolist()
    tensor += 1  # its memory is its own, and can be written


def test_read_idx_without_elements(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(idx_bytes(np.zeros((0, 28, 28), np.uint8), 0x08))
    assert datasets.read_idx(path).shape == (0, 28, 28)


GOOD = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3), 0x08)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x89PNG\r\n", r"`path` must be an idx file.*starts with 89 50 4e 47"),
        (b"\x00\x00\x07\x01\x00\x00\x00\x00", r"must be an idx file.*starts with 00 00 07 01"),
        (b"", r"truncated: expected 4 bytes, found 0"),
        (GOOD[:3], r"truncated: expected 4 bytes, found 3"),
        (GOOD[:9], r"truncated: expected 12 bytes, found 9"),
        (GOOD[:-1], r"truncated: expected 18 bytes, found 17"),
        (b"\x00\x00\x0e\x02" + b"\xff" * 8, r"truncated: expected \d{20,} bytes, found 12"),
        (gzip.compress(GOOD[:-2]), r"truncated: expected 18 bytes, found 16"),
        (GOOD + b"ab", r"trailing bytes: expected 18 bytes, found 20"),
        (gzip.compress(GOOD)[:-9], r"corrupt gzip"),
        (gzip.compress(GOOD)[:-8] + b"\x00" * 8, r"corrupt gzip"),
        (gzip.compress(GOOD) + b"junk", r"corrupt gzip"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 20, r"corrupt gzip"),
        (b"\x1f\x8b", r"corrupt gzip"),
    ],
)
def test_read_idx_refuses(tmp_path, data, match):
    path = tmp_path / "bad-idx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        datasets.read_idx(path)
    assert str(path) in str(caught.value)


def test_read_idx_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere-idx1"):
        datasets.read_idx(tmp_path / "nowhere-idx1")


def write_mnist(root, images, labels, prefix="train", compress=False):
    for name, array in (
        (f"{prefix}-images-idx3-ubyte", images),
        (f"{prefix}-labels-idx1-ubyte", labels),
    ):
        data = idx_bytes(array, 0x08)
        if compress:
            name, data = name + ".gz", gzip.compress(data)
        (root / name).write_bytes(data)


def test_load_mnist(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, n, compress in (("train", 5, True), ("t10k", 3, False)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = np.arange(n, dtype=np.uint8)
        write_mnist(tmp_path, images, labels, prefix, compress)
        split = {"train": "train", "t10k": "test"}[prefix]
        loaded, targets = datasets.load_mnist(str(tmp_path), split)
        assert (loaded.dtype, targets.dtype) == (torch.uint8, torch.int64)
        assert loaded.tolist() == images.tolist()
        assert targets.tolist() == list(range(n))


def test_load_mnist_refuses(tmp_path):
    with pytest.raises(ValueError, match="`split` must be 'train' or 'test', was 'valid'"):
        datasets.load_mnist(tmp_path, "valid")
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte nor .*\.gz"):
        datasets.load_mnist(tmp_path)
    write_mnist(tmp_path, np.zeros((2, 28, 27), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match=r"`root` must hold uint8 images .*\[2, 28, 27\]"):
        datasets.load_mnist(tmp_path)
    write_mnist(tmp_path, np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"one uint8 label for each of 2 images.*\[3\]"):
        datasets.load_mnist(tmp_path)


@pytest.mark.skipif("PYRO_SIG_DATA" not in os.environ, reason="PYRO_SIG_DATA is not set")
@pytest.mark.parametrize(("split", "n"), [("train", 60_000), ("test", 10_000)])
def test_real_mnist(split, n):
    root = Path(os.environ["PYRO_SIG_DATA"]) / "mnist"
    if not root.is_dir():
        pytest.skip(f"no folder {root}")
    images, labels = datasets.load_mnist(root, split)
    assert images.shape == (n, 28, 28)
    assert images.min() == 0 and images.max() == 255
    assert torch.bincount(labels).shape == (10,)
    first = {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4]}
    assert labels[:5].tolist() == first[split]


def test_load_digits():
    pytest.importorskip("sklearn")
    images, labels = datasets.load_digits(dtype=torch.float64)
    assert images.shape == (1797, 8, 8) and images.dtype == torch.float64
    assert images.min() == 0 and images.max() == 1
    assert labels.dtype == torch.int64 and sorted(set(labels.tolist())) == list(range(10))
    with pytest.raises(ValueError, match="`dtype` must be a floating point type"):
        datasets.load_digits(dtype=torch.uint8)


def test_load_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install pyro-sig\[examples\]"):
        datasets.load_digits()
