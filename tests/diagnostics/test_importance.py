"""Joint importance weights: unbiased with own draws, refused with shared ones."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sig.diagnostics import log_importance_weights
from pyro_sig.distributions import SemiImplicit

ROWS = 20
X = torch.linspace(-1, 1, ROWS)


def model(share_draws):
    with pyro.plate("data", ROWS):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def guide(share_draws):
    with pyro.plate("data", ROWS):
        mixing = dist.Normal(X / 2, 0.5)  # N(x / 2, 1 / 2) is the posterior
        pyro.sample("z", SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.5), 20, share_draws))


def test_mean_joint_weight_of_twenty_rows_is_the_evidence():
    log_weights = log_importance_weights(model, guide, False, num_samples=2000)
    evidence = dist.Normal(0.0, math.sqrt(2)).log_prob(X).sum()
    weights = (log_weights - evidence).exp()
    # 5 standard errors: one failure in 1.7 million runs.
    assert abs(weights.mean() - 1) <= 5 * weights.std() / math.sqrt(len(weights))
    assert weights.std() < 5


def test_shared_draws_of_several_rows_raise():
    with pytest.raises(ValueError, match="`share_draws` must be False at site 'z'.* 20 rows"):
        log_importance_weights(model, guide, True, num_samples=1)


def test_shared_draws_of_one_row_are_fine():
    def one_row_guide():
        mixing = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", SemiImplicit(mixing, lambda p: dist.Normal(p, 1.0).to_event(1), 5))

    def one_row_model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    weights = log_importance_weights(one_row_model, one_row_guide, num_samples=2000).exp()
    assert abs(weights.mean() - 1) <= 5 * weights.std() / math.sqrt(len(weights))


def test_a_guide_of_other_sites_raises():
    """Its density would be taken off that of latents that the model draws by itself."""

    def misspelled(share_draws):
        pyro.sample("zz", dist.Normal(X / 2, 0.5).to_event(1))

    with pytest.raises(ValueError, match="`guide` must draw latents of `model`.*'zz'"):
        log_importance_weights(model, misspelled, True, num_samples=2)
    with pytest.raises(ValueError, match="`model` must have a latent or an observed site"):
        log_importance_weights(lambda: None, lambda: None, num_samples=2)
    with pytest.raises(ValueError, match="`guide` must be a function or a module, was None"):
        log_importance_weights(model, None, True, num_samples=2)


def test_num_samples_must_be_positive():
    with pytest.raises(ValueError, match="`num_samples` must be a positive integer, was 0"):
        log_importance_weights(model, guide, False, num_samples=0)
