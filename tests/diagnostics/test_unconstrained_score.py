"""Scores of programs against closed forms, and the Stein test of a guide by its model alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sig.diagnostics import kernel_stein_test, unconstrained_score
from pyro_sig.distributions import SemiImplicit

DOUBLE = {"dtype": torch.float64}


def model(x):
    """Gamma rate, normal rows: u = (log rate, z)."""
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0, **DOUBLE), 2.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.sample("y", dist.Poisson(rate), obs=torch.tensor(4.0, **DOUBLE))


def test_closed_form():
    x = torch.tensor([0.5, -1.0], **DOUBLE)
    draws = {"z": torch.randn(7, 2, **DOUBLE), "rate": torch.rand(7, **DOUBLE) + 0.1}
    state = torch.get_rng_state()
    u, score = unconstrained_score(model, draws, x)
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.cat([draws["rate"].log().unsqueeze(-1), draws["z"]], -1)
    torch.testing.assert_close(u, expected)
    # The posterior of the rate is Gamma(7, 3); with the volume, 7 - 3 rate in its logarithm.
    of_rate = 7 - 3 * draws["rate"].unsqueeze(-1)
    torch.testing.assert_close(score, torch.cat([of_rate, x - 2 * draws["z"]], -1))


def test_stein_test_of_a_guide_by_its_model():
    x = torch.tensor([0.5, -1.0], **DOUBLE)

    def draws(scale):
        z = x / 2 + scale * 0.5**0.5 * torch.randn(400, 2, **DOUBLE)
        return {"rate": dist.Gamma(torch.tensor(7.0, **DOUBLE), 3.0).sample((400,)), "z": z}

    exact, narrow = (
        kernel_stein_test(u, score=score)
        for u, score in (unconstrained_score(model, draws(scale), x) for scale in (1.0, 0.5))
    )
    # The statistic of exact draws has mean zero; that of the narrow ones is many times larger.
    assert abs(exact.statistic) < 0.2 * narrow.statistic
    assert narrow.p_value < 0.01


def test_what_does_not_fit_raises():
    x = torch.zeros(2, **DOUBLE)
    with pytest.raises(ValueError, match=r"must hold every continuous latent.*\['rate', 'z'\]"):
        unconstrained_score(model, {"rate": torch.ones(3)}, x)
    with pytest.raises(ValueError, match="equally many draws"):
        unconstrained_score(model, {"rate": torch.ones(3), "z": torch.zeros(4, 2)}, x)
    with pytest.raises(ValueError, match=r"must hold 'z' in shape \[S, 2\], was \(3, 4\)"):
        unconstrained_score(model, {"rate": torch.ones(3), "z": torch.zeros(3, 4)}, x)

    with pytest.raises(ValueError, match="`draws` must be finite, but 'z'"):
        unconstrained_score(model, {"rate": torch.ones(3), "z": torch.full((3, 2), torch.nan)}, x)

    def estimated():
        law = SemiImplicit(dist.Normal(0.0, 1.0), lambda psi: dist.Normal(psi, 1.0), 5)
        pyro.sample("z", law)

    with pytest.raises(ValueError, match="to_mixture"):
        unconstrained_score(estimated, {"z": torch.zeros(3)})
