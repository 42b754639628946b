import importlib
import math

import pytest
import torch

from pyro_sig.diagnostics import TARP, tarp, uniformity_test

SIZE, DRAWS, DIM = 400, 100, 3


def problem(seed=0, dtype=torch.float64):
    """z ~ N(0, 1), x | z ~ N(z, 1), so z | x ~ N(x / 2, 1 / 2), in columns of other units."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2 + DRAWS, SIZE, DIM, generator=generator, dtype=dtype)
    units = torch.tensor([1.0, 1000.0, 0.01], dtype=dtype)
    data = noise[0] + noise[1]
    means, errors = data / 2, math.sqrt(0.5) * noise[2:].transpose(0, 1)
    return noise[0] * units, means * units, errors * units, data


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exact_posterior_passes(dtype):
    truths, means, errors, _ = problem(dtype=dtype)
    result = tarp(truths, means.unsqueeze(1) + errors)
    assert isinstance(result, TARP)
    assert result.ranks.shape == (SIZE,) and result.num_draws == DRAWS
    # Fails for one seed in 10^5.
    assert result.p_value > 1e-5
    assert result.coverage.shape == result.levels.shape == (DRAWS,)
    torch.testing.assert_close(result.levels[-1].item(), DRAWS / (DRAWS + 1))
    # 5 standard errors of a share, and one rank of slack.
    error = 5 * (result.levels * (1 - result.levels) / SIZE).sqrt() + 1 / DRAWS
    assert bool(((result.coverage - result.levels).abs() < error).all())
    assert repr(result).startswith("TARP(400 truths, 100 draws each, p = ")


@pytest.mark.parametrize("change", ["overconfident", "underconfident", "biased"])
def test_wrong_posteriors_are_rejected(change):
    truths, means, errors, _ = problem()
    if change == "biased":
        means = means + 2 * errors.std((0, 1))
    else:
        errors = errors * (0.5 if change == "overconfident" else 2.0)
    result = tarp(truths, means.unsqueeze(1) + errors)
    assert result.p_value < 1e-6
    low, high = result.coverage[DRAWS // 10] - 0.1, result.coverage[-DRAWS // 10] - 0.9
    if change == "overconfident":
        assert low > 0 > high


def test_the_prior_passes_unless_references_look_at_the_data():
    truths, _, errors, data = problem()
    prior = errors * math.sqrt(2)
    # Fails for one seed in 10^5.
    assert tarp(truths, prior).p_value > 1e-5
    units = truths.std(0)
    assert tarp(truths, prior, references=data * units).p_value < 1e-6
    _, means, errors, _ = problem()
    exact = means.unsqueeze(1) + errors
    assert tarp(truths, exact, references=data * units).p_value > 1e-5


def test_p_is_exact_with_the_default_references():
    # Few draws, and a box that hangs on its outermost points: heavy tails.
    num_problems = 300
    ranks = []
    for seed in range(num_problems):
        generator = torch.Generator().manual_seed(seed)
        everything = torch.randn(4, 5, 1, generator=generator).pow(5)
        ranks.append(tarp(everything[:, 0], everything[:, 1:], seed=seed).ranks)
    # Fails for one set of seeds in 10^5.
    assert uniformity_test(torch.cat(ranks), 4).p_value > 1e-5


def test_references_do_not_repeat_the_stream_of_the_truths():
    # Truths and references of one stream are correlated, and the exact posterior would fail.
    for seed in range(5):
        truths, means, errors, _ = problem(seed)
        # Fails for one set of seeds in 10^5.
        assert tarp(truths, means.unsqueeze(1) + errors, seed=seed).p_value > 2e-6


def test_without_columns_and_with_integers():
    truths, means, errors, _ = problem()
    draws = means.unsqueeze(1) + errors
    flat = tarp(truths[:, 0], draws[..., 0])
    assert torch.equal(flat.ranks, tarp(truths[:, :1], draws[..., :1]).ranks)
    counts = torch.randint(3, (SIZE, 11, 2), generator=torch.Generator().manual_seed(0))
    # Ties are broken at random; fails for one seed in 10^5.
    assert tarp(counts[:, 0], counts[:, 1:], torch.ones(SIZE, 2)).p_value > 1e-5
    # A constant column counts nothing.
    constant = torch.cat([truths.new_zeros(SIZE, DRAWS, 1), draws], -1)
    with_constant = torch.cat([truths.new_zeros(SIZE, 1), truths], -1)
    zeros = truths.new_zeros(SIZE, 1)
    assert torch.equal(
        tarp(with_constant, constant, torch.cat([zeros, truths.new_zeros(SIZE, DIM)], -1)).ranks,
        tarp(truths, draws, truths.new_zeros(SIZE, DIM)).ranks,
    )


def test_chunks_and_seeds(monkeypatch):
    truths, means, errors, _ = problem()
    draws = means.unsqueeze(1) + errors
    state = torch.get_rng_state()
    whole = tarp(truths, draws, seed=3)
    module = importlib.import_module("pyro_sig.diagnostics.tarp")
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 7000)
    assert torch.equal(tarp(truths, draws, seed=3).ranks, whole.ranks)
    assert not torch.equal(tarp(truths, draws, seed=4).ranks, whole.ranks)
    assert torch.equal(state, torch.get_rng_state())


def test_plot():
    from matplotlib import pyplot

    truths, means, errors, _ = problem()
    figure = tarp(truths, means.unsqueeze(1) + 0.7 * errors).plot()
    assert len(figure.axes) == 1
    assert "p = " in figure.axes[0].get_title()
    figure.canvas.draw()
    pyplot.close(figure)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees():
    truths, means, errors, _ = problem()
    draws = means.unsqueeze(1) + errors
    on_gpu = tarp(truths.cuda(), draws.cuda())
    assert on_gpu.ranks.is_cuda
    assert torch.equal(on_gpu.ranks.cpu(), tarp(truths, draws).ranks)
    assert on_gpu.coverage.is_cuda and on_gpu.levels.is_cuda


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"truths": [1.0]}, r"`truths` must be a tensor of real numbers, was \[1\.0\]"),
        ({"truths": torch.zeros(5, 2, 2)}, r"`truths` must be of shape.*\(5, 2, 2\)"),
        ({"truths": torch.full((5, 2), math.nan)}, r"`truths` must be finite"),
        ({"draws": torch.full((5, 9, 2), math.inf)}, r"`draws` must be finite"),
        ({"draws": torch.zeros(5, 2)}, r"`draws` must be of shape \[N, S, D\].*\(5, 2\) and"),
        ({"draws": torch.zeros(4, 9, 2)}, r"`draws` must be of shape.*\(4, 9, 2\) and \(5, 2\)"),
        ({"draws": torch.zeros(5, 0, 2)}, r"`draws` must be of shape.*\(5, 0, 2\)"),
        ({"references": torch.zeros(5, 3)}, r"`references` must be.*\(5, 2\), was .*\(5, 3\)"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, was -1"),
        ({"draws": torch.zeros(5, 3, 2) * 1j}, "`draws` must be a tensor of real numbers.*complex"),
        ({"references": 1.0}, r"`references` must be a tensor.* was 1"),
        ({"references": torch.full((5, 2), math.nan)}, r"`references` must be finite"),
    ],
)
def test_bad_arguments(change, match):
    with pytest.raises(ValueError, match=match):
        tarp(**{"truths": torch.zeros(5, 2), "draws": torch.zeros(5, 9, 2), **change})


def test_bad_results():
    with pytest.raises(ValueError, match=r"`ranks` must be of shape \[N\], was .*\(2, 2\)"):
        TARP(torch.zeros(2, 2, dtype=torch.long), 9)
    with pytest.raises(ValueError, match=r"`level` must be a number above 0 and below 1, was 2"):
        TARP(torch.zeros(2, dtype=torch.long), 9).plot(level=2)
