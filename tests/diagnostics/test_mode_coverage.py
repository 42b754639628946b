import importlib
import math

import pytest
import torch
from scipy import stats

from pyro_sig.diagnostics import ModeCoverage, mode_coverage

AXIS = torch.arange(-4.0, 5.0, 2.0)
GRID = torch.cartesian_prod(AXIS, AXIS)
STD = 0.05
# Share of a Gaussian in the plane that is farther than 3 standard deviations from its mean.
FAR = math.exp(-4.5)


def draw(num_samples, weights=None, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(25) if weights is None else weights
    mode = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
    noise = torch.randn(num_samples, 2, generator=generator, dtype=dtype)
    return GRID.to(dtype)[mode] + STD * noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("uneven", [False, True])
def test_a_perfect_sampler(dtype, uneven):
    # Columns 1, 3 and 5 of the uneven grid weigh twice as much as 2 and 4.
    weights = torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0]).repeat_interleave(5) if uneven else None
    n = 50_000
    result = mode_coverage(draw(n, weights, dtype=dtype), GRID.to(dtype), STD, weights=weights)
    assert isinstance(result, ModeCoverage)
    assert result.captured == 25 and result.min_count == 1000
    assert result.counts.shape == (25,) and result.counts.dtype == torch.long
    assert int(result.counts.sum()) == round(result.high_quality * n)
    # High quality is a binomial share, and 2 n KL a chi-square with 25 degrees of freedom in the
    # limit. Each of the two checks fails for one seed in 10^6.
    low, high = stats.binom(n, 1 - FAR).ppf([5e-7, 1 - 5e-7])
    assert low <= result.high_quality * n <= high
    low, high = stats.chi2(25).ppf([5e-7, 1 - 5e-7])
    assert low <= 2 * n * result.kl <= high


def test_the_cells_of_the_grid():
    # All samples in one cell leave the logarithm of that cell's share.
    one_mode = mode_coverage(GRID[:1].repeat(10, 1), GRID, STD)
    assert math.exp(-one_mode.kl) == pytest.approx(0.03956, abs=5e-6)
    far = mode_coverage(torch.full((10, 2), 100.0), GRID, STD)
    assert math.exp(-far.kl) == pytest.approx(0.0111, abs=5e-5)
    assert (far.captured, far.high_quality) == (0, 0.0)


@pytest.mark.parametrize("kept", [1, 4, 24, 25])
@pytest.mark.parametrize("num_low", [0, 1, 3])
def test_dropped_modes_in_closed_form(kept, num_low):
    # 10 samples on each kept centre and 10 * num_low at distance 5 std, seen from the first.
    low = (GRID[0] + torch.tensor([5 * STD, 0.0])).repeat(10 * num_low, 1)
    samples = torch.cat([GRID[:kept].repeat(10, 1), low])
    result = mode_coverage(samples, GRID, STD)
    share = num_low / (kept + num_low)
    expected = (1 - share) * math.log((1 - share) * 25 / (kept * (1 - FAR)))
    expected += share * math.log(share / FAR) if share else 0.0
    assert result.kl == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert result.high_quality == pytest.approx(1 - share)
    assert result.captured == kept
    assert result.counts.tolist() == [10] * kept + [0] * (25 - kept)


def test_weights_in_closed_form():
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    samples = modes[[0, 0, 0, 1]].repeat(5, 1)
    result = mode_coverage(samples, modes, 1.0, weights=torch.tensor([6.0, 2.0]))
    # The shares are the weights, so only the missing low-quality cell counts.
    assert result.kl == pytest.approx(-math.log(1 - FAR))


@pytest.mark.parametrize("dim", [1, 2, 3, 10])
def test_the_low_quality_cell_in_any_dimension(dim):
    modes = torch.zeros(1, dim)
    result = mode_coverage(torch.full((7, dim), 50.0), modes, 1.0, num_std=2.0)
    assert result.kl == pytest.approx(-stats.chi2(dim).logsf(4.0))


def test_captured_needs_more_than_min_count():
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    samples = modes[[0] * 3 + [1] * 4]
    assert mode_coverage(samples, modes, 1.0, min_count=3).captured == 1
    assert mode_coverage(samples, modes, 1.0, min_count=2).captured == 2
    assert mode_coverage(samples, modes, 1.0, min_count=4).captured == 0
    # With many modes 2 % is out of reach for any sampler: half an equal share instead.
    many = torch.arange(100.0).unsqueeze(-1) * 10
    result = mode_coverage(many.repeat(10, 1), many, 1.0)
    assert result.min_count == 5 and result.captured == 100


def test_quality_is_measured_at_the_nearest_centre():
    modes = torch.tensor([[0.0], [4.0]])
    samples = torch.tensor([[1.9], [2.1], [2.99], [7.01], [-2.99], [-3.01]])
    result = mode_coverage(samples, modes, 1.0, min_count=0)
    assert result.counts.tolist() == [2, 2]
    assert result.high_quality == pytest.approx(4 / 6)


def test_far_from_the_origin():
    shift = torch.tensor([1e5, -1e5])  # the spacing of float32 is 1/128 there
    result = mode_coverage(GRID.repeat(4, 1) + shift, GRID + shift, STD)
    assert result.high_quality == 1.0


def test_chunks_do_not_change_the_result(monkeypatch):
    samples = draw(1000)
    whole = mode_coverage(samples, GRID, STD)
    module = importlib.import_module("pyro_sig.diagnostics.mode_coverage")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 700)
    chunked = mode_coverage(samples, GRID, STD)
    assert torch.equal(whole.counts, chunked.counts) and whole.kl == chunked.kl


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees():
    samples = draw(1000)
    on_cpu, on_gpu = mode_coverage(samples, GRID, STD), mode_coverage(samples.cuda(), GRID, STD)
    assert torch.equal(on_cpu.counts, on_gpu.counts.cpu()) and on_cpu.kl == on_gpu.kl


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"samples": torch.zeros(5)},
            "`modes` must have as many columns as `samples`, 1, had 2",
        ),
        ({"samples": torch.zeros(0, 2)}, r"`samples`.*not empty.*\(0, 2\)"),
        (
            {"samples": [[0.0, 0.0]]},
            r"`samples` must be a tensor of shape .*, was \[\[0\.0, 0\.0\]\]",
        ),
        ({"samples": torch.full((5, 2), math.nan)}, r"`samples` must be finite"),
        ({"modes": torch.full((5, 2), math.inf)}, r"`modes` must be finite"),
        ({"samples": torch.zeros(5, 3)}, r"`modes` must have as many columns.*3.*had 2"),
        ({"std": 0.0}, r"`std` must be a finite number above 0, was 0\.0"),
        ({"num_std": math.nan}, "`num_std` must be a finite number above 0, was nan"),
        ({"min_count": -1}, "`min_count` must be a finite number of at least 0, was -1"),
        ({"weights": torch.ones(3)}, r"`weights` must be of shape \(25,\).*\(3,\)"),
        ({"weights": torch.zeros(25)}, r"`weights` must be positive"),
    ],
)
def test_bad_arguments(change, match):
    with pytest.raises(ValueError, match=match):
        mode_coverage(**{"samples": torch.zeros(5, 2), "modes": GRID, "std": STD, **change})
