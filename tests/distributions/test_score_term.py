"""The score-function gradient, against the gradient of an expectation that is summed exactly."""

import itertools

import pytest
import torch

from pyro_sig.distributions.score_term import leave_one_out_surrogate

CATEGORIES = 3


def scores_of(theta):
    """Log-densities of one datum under each of three psi; they depend on theta too."""
    return torch.stack([theta[0] * theta[1], theta[1].sin() - 2.0, -theta[0].square() + 1.5])


def all_draws(num_draws):
    return list(itertools.product(range(CATEGORIES), repeat=num_draws))


@pytest.fixture
def theta():
    return torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)


@pytest.fixture
def logits():
    return torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("spread", [1.0, 0.0, 40.0], ids=["usual", "tied", "one dominates"])
@pytest.mark.parametrize("num_draws", [1, 2, 3, 4])
def test_gradient_is_unbiased(num_draws, spread, theta, logits):
    """No Monte Carlo error: every draw is visited and weighted by its probability."""
    exact, estimate = 0.0, [torch.zeros_like(theta), torch.zeros_like(logits)]
    for draw in all_draws(num_draws):
        index = torch.tensor(draw)
        log_psi = logits.log_softmax(-1)[index]
        scores = spread * scores_of(theta)[index]
        probability = log_psi.sum().exp()
        exact = exact + probability * scores.logsumexp(-1)
        surrogate = leave_one_out_surrogate(scores, log_psi, -1)
        grads = torch.autograd.grad(surrogate, (theta, logits), retain_graph=True)
        for total, grad in zip(estimate, grads, strict=True):
            total += probability.detach() * grad
    for a, b in zip(estimate, torch.autograd.grad(exact, (theta, logits)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_baseline_reduces_variance(theta, logits):
    """Against the score function without a baseline, exactly, for four draws."""
    log_prob = logits.log_softmax(-1)
    moments = {"with": [0.0, 0.0], "without": [0.0, 0.0]}
    for draw in all_draws(4):
        index = torch.tensor(draw)
        scores, log_psi = scores_of(theta).detach()[index] - 20.0, log_prob[index]
        plain = scores.logsumexp(-1) * (log_psi - log_psi.detach()).sum()
        surrogate = leave_one_out_surrogate(scores, log_psi, -1)
        for name, loss in [("with", surrogate), ("without", plain)]:
            (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
            weight = log_psi.sum().exp().item()
            moments[name][0] += weight * grad
            moments[name][1] += weight * grad.square()
    variance = {name: (second - first.square()).sum() for name, (first, second) in moments.items()}
    torch.testing.assert_close(moments["with"][0], moments["without"][0])
    assert variance["with"] < 0.01 * variance["without"]


@pytest.mark.parametrize("dim", [-1, -2, -3])
def test_value_is_the_logsumexp(dim):
    scores = 30 * torch.randn(4, 5, 6, dtype=torch.float64)
    log_psi = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    value = leave_one_out_surrogate(scores, log_psi, dim)
    torch.testing.assert_close(value, scores.logsumexp(dim), rtol=1e-14, atol=0)


def test_shared_draws_broadcast_over_rows():
    scores = torch.randn(4, 3, dtype=torch.float64)
    log_psi = torch.randn(3, dtype=torch.float64, requires_grad=True)
    value = leave_one_out_surrogate(scores, log_psi, -1)
    (together,) = torch.autograd.grad(value.sum(), log_psi)
    by_row = [
        torch.autograd.grad(leave_one_out_surrogate(row, log_psi, -1), log_psi)[0] for row in scores
    ]
    torch.testing.assert_close(together, torch.stack(by_row).sum(0))


def test_one_draw_has_no_baseline():
    log_psi = torch.tensor([-0.5], requires_grad=True)
    value = leave_one_out_surrogate(torch.tensor([-3.0]), log_psi, -1)
    assert value == -3.0
    value.backward()
    assert log_psi.grad == -3.0  # the whole signal


def test_advantage_does_not_cancel():
    """One draw far above the others: its leave-one-out mean is summed again."""
    scores = torch.tensor([0.0, -60.0, -61.0])
    log_psi = torch.zeros(3, requires_grad=True)
    (grad,) = torch.autograd.grad(leave_one_out_surrogate(scores, log_psi, -1), log_psi)
    exact = torch.tensor([0.0, -60.0, -61.0], dtype=torch.float64)
    expected = torch.stack(
        [
            exact.exp().mean().log() - torch.cat([exact[:k], exact[k + 1 :]]).exp().mean().log()
            for k in range(3)
        ]
    )
    torch.testing.assert_close(grad, expected.float())


@pytest.mark.parametrize("scores", [[0.0, -torch.inf], [-torch.inf] * 3, [-torch.inf]])
def test_impossible_draws_leave_the_value_alone(scores):
    scores = torch.tensor(scores)
    log_psi = torch.zeros(len(scores), requires_grad=True)
    value = leave_one_out_surrogate(scores, log_psi, -1)
    torch.testing.assert_close(value, scores.logsumexp(-1))
    value.backward()
    assert log_psi.grad.isfinite().all()
