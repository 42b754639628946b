"""Statements of the SIG paper, checked numerically: Lemma 1, Theorem 1, Corollary 1."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_sig.distributions import SemiImplicit, pairwise_log_prob


def cross_entropy(psi, data, std):
    """The paper's eq. 6 at a fixed set of psi."""
    scores = pairwise_log_prob(dist.Normal(psi, std).to_event(1), data)
    return -(scores.logsumexp(0) - math.log(len(psi))).mean()


def test_lemma_1_the_objective_falls_with_m_and_bounds_the_entropy():
    """Paired over nested sets of psi, so that each step is far beyond sampling error."""
    torch.manual_seed(0)
    std, data = 0.5, dist.Normal(0.0, math.hypot(1.0, 0.5)).sample((1000, 1))
    truth = -dist.Normal(0.0, math.hypot(1.0, 0.5)).log_prob(data).mean()
    sizes = (1, 2, 4, 16, 64)
    values = torch.stack(
        [
            torch.stack([cross_entropy(psi[:m], data, std) for m in sizes])
            for psi in torch.randn(100, 64, 1)
        ]
    )
    drop = values[:, :-1] - values[:, 1:]
    # 5 standard errors: one failure in 1.7 million runs.
    assert (drop.mean(0) > 5 * drop.std(0) / math.sqrt(100)).all()
    assert values[:, -1].mean() > truth
    last = cross_entropy(torch.randn(20_000, 1), data, std)
    assert abs(last - truth) < 0.02


def test_lemma_1_with_one_draw_psi_collapses_to_one_point():
    """M = 1: the best mixing law is a point at the maximum likelihood estimate of psi."""
    torch.manual_seed(0)
    data = 3.0 + torch.randn(500, 1)

    def fit(num_mixing):
        pyro.clear_param_store()

        def model(x):
            loc = pyro.param("loc", torch.zeros(1))
            std = pyro.param("std", torch.ones(1), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                mixing = dist.Normal(loc, std).to_event(1)
                likelihood = SemiImplicit(
                    mixing, lambda psi: dist.Normal(psi, 0.5).to_event(1), num_mixing
                )
                pyro.sample("x", likelihood, obs=x)

        svi = SVI(model, lambda x: None, Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(600):
            svi.step(data)
        return pyro.param("loc").item(), pyro.param("std").item()

    loc, std = fit(1)
    assert abs(loc - data.mean().item()) < 0.1 and std < 0.15
    _, std = fit(50)
    assert abs(std - math.sqrt(data.var().item() - 0.25)) < 0.2


# ------------------------------------------------------------------- Theorem 1: shares of the modes


def best_shares(shares, within, between):
    """Minimises -sum_k pi_k log(m_k v + (1 - m_k) u) over the simplex by exponentiated gradient."""
    shares = torch.as_tensor(shares, dtype=torch.float64)
    m = torch.full_like(shares, 1 / len(shares))
    for _ in range(20_000):
        gradient = shares * (within - between) / (m * within + (1 - m) * between)
        new = m * torch.exp(gradient - gradient.max())
        m = new / new.sum()
    return m


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4]])
def test_theorem_1_optimal_shares_of_psi(shares, ratio):
    """m_k / M = pi_k + u / (v - u) (K pi_k - 1), where that is positive for all modes."""
    within, between = 1.0, ratio
    pi = torch.tensor(shares, dtype=torch.float64)
    truth = pi + between / (within - between) * (len(pi) * pi - 1)
    if truth.min() > 0:
        assert torch.allclose(best_shares(pi, within, between), truth, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3])
def test_corollary_1_a_mode_vanishes_below_its_threshold(ratio):
    """m_k > 0 if and only if pi_k > u / (v + (K - 1) u)."""
    num_modes = 3
    threshold = ratio / (1 + (num_modes - 1) * ratio)
    for factor, kept in ((0.9, False), (1.1, True)):
        small = factor * threshold
        rest = (1 - small) / (num_modes - 1)
        m = best_shares([small] + [rest] * (num_modes - 1), 1.0, ratio)
        assert (m[0] > 1e-6) == kept


def test_corollary_1_shares_are_kept_by_the_gaussian_kernel():
    """Psi at two separated modes: the objective is least at the data's own shares."""
    torch.manual_seed(0)
    data = torch.cat([torch.randn(300, 1) * 0.3, 6 + torch.randn(700, 1) * 0.3])
    counts = range(0, 101, 5)
    values = []
    for m in counts:
        psi = torch.cat([torch.zeros(m, 1), torch.full((100 - m, 1), 6.0)])
        values.append(cross_entropy(psi, data, 0.3) if 0 < m < 100 else torch.tensor(torch.inf))
    assert list(counts)[int(torch.stack(values).argmin())] == 30
