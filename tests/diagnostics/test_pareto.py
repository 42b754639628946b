"""The Pareto tail index: known tails, weights without a tail, scale, bad input."""

import math

import pytest
import torch

from pyro_sig.diagnostics import pareto_k_hat


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8, 1.2])
@pytest.mark.parametrize("size", [4000, 40_000])
def test_known_tails(shape, size):
    """w = u^(-k) is Pareto of shape k; sd of the fit (1 + k) / sqrt(tail), shrunk towards 1/2."""
    log_weights = -shape * torch.rand(size, dtype=torch.float64).log()
    tail = min(0.2 * size, 3 * math.sqrt(size))
    shrinkage = 10 * abs(shape - 0.5) / (tail + 10)
    tolerance = 5 * (1 + shape) / math.sqrt(tail) + shrinkage
    assert abs(pareto_k_hat(log_weights) - shape) < tolerance


def test_the_tail_is_the_largest_three_roots():
    """Of 10,000 weights the largest 300: a Pareto tail above a body without one."""
    levels = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    body = torch.linspace(0.01, 1.0, 9700, dtype=torch.float64)
    assert abs(pareto_k_hat(torch.cat([body, levels**-0.7]).log()) - 0.7) < 0.05


def test_a_light_tail_is_told_from_a_heavy_one():
    """Normal proposals: narrower than the target has no finite variance, wider is bounded."""

    def k_hat(std):
        z = std * torch.randn(10_000, dtype=torch.float64)
        return pareto_k_hat(-0.5 * z**2 + 0.5 * (z / std) ** 2)

    # w = exp(z^2 (1 / s^2 - 1) / 2): the tail's index tends to 1 - s^2, slowly.
    assert k_hat(1.5) < 0.3 < 0.5 < k_hat(0.5)


def test_the_constant_of_the_weights_does_not_matter():
    log_weights = torch.randn(1000, dtype=torch.float64)
    k = pareto_k_hat(log_weights)
    for constant in (-1e4, 1e4):
        assert math.isclose(pareto_k_hat(log_weights + constant), k, rel_tol=1e-6)
    assert math.isclose(pareto_k_hat(log_weights[torch.randperm(1000)]), k, rel_tol=1e-12)
    assert math.isclose(pareto_k_hat(log_weights.float()), k, abs_tol=1e-3)


def test_weights_without_a_tail():
    assert pareto_k_hat(torch.zeros(100)) == -math.inf
    assert pareto_k_hat(torch.full((100,), -1e5)) == -math.inf
    few = torch.zeros(1000)
    few[:3] = 500.0
    assert pareto_k_hat(few) == math.inf
    masked = torch.randn(1000)
    masked[:200] = -math.inf  # draws outside of the support
    assert math.isfinite(pareto_k_hat(masked))


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.zeros(49), "at least 50 draws"),
        (torch.zeros(50, 2), "at least 50 draws"),
        (torch.full((100,), math.nan), "must not be NaN or plus infinity"),
        (torch.full((100,), math.inf), "must not be NaN or plus infinity"),
    ],
)
def test_bad_input(log_weights, message):
    with pytest.raises(ValueError, match=message):
        pareto_k_hat(log_weights)


def test_all_weights_zero():
    with pytest.raises(ValueError, match="must not all be minus infinity"):
        pareto_k_hat(torch.full((100,), -math.inf))
