"""A random log-density must not be asked by a Markov chain, and a frozen one may."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, Predictive
from pyro.infer.mcmc.util import initialize_model

from pyro_sig.distributions import FixedMixture, Implicit, ParticleMixing, SemiImplicit


def prior(num_mixing=50):
    noise = dist.Normal(torch.zeros(()), 1.0)
    return SemiImplicit(Implicit(lambda e: e, noise), lambda psi: dist.Normal(psi, 1.0), num_mixing)


def latent(law):
    def model():
        z = pyro.sample("z", law())
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    return model


def observed():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    law = SemiImplicit(dist.Normal(loc, 1.0), lambda psi: dist.Normal(psi, 1.0), 50)
    pyro.sample("x", law, obs=torch.tensor(1.0))


def in_a_plate():
    with pyro.plate("rows", 3):
        z = pyro.sample("z", prior().to_event(0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))


@pytest.mark.parametrize("kernel", [NUTS, HMC])
@pytest.mark.parametrize("model", [latent(prior), observed, in_a_plate])
def test_a_random_log_prob_under_mcmc_raises(kernel, model):
    mcmc = MCMC(kernel(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    with pytest.raises(ValueError, match=r"to_mixture\(num_mixing\)"):
        mcmc.run()


def test_the_potential_alone_raises():
    with pytest.raises(ValueError, match="must not be scored by MCMC"):
        initialize_model(latent(prior))


def test_what_is_deterministic_passes():
    particles = ParticleMixing(torch.tensor([-1.0, 1.0]))
    frozen = prior().to_mixture(100)
    assert isinstance(frozen, FixedMixture)
    for law in (lambda: frozen, lambda: SemiImplicit(particles, lambda p: dist.Normal(p, 1.0), 2)):
        kernel = NUTS(latent(law))
        mcmc = MCMC(kernel, num_samples=50, warmup_steps=100, disable_progbar=True)
        mcmc.run()
        assert mcmc.get_samples()["z"].std() > 0


def test_after_the_chain_the_random_one_may_be_drawn_from():
    draws = {"z": torch.zeros(5)}
    found = Predictive(in_a_plate, {"z": torch.zeros(5, 3)}, return_sites=["x"])()
    assert found["x"].shape[0] == 5
    assert Predictive(latent(prior), draws)()["x"].shape[0] == 5
