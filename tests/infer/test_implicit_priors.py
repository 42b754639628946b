"""Implicit and semi-implicit priors at every level, beside ordinary latents, by every route.

The programs have closed forms: where the network is the identity, the prior it makes is normal.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, fit, no_guide
from pyro_sig.nn import MLP

DOUBLE = {"dtype": torch.float64}
ZERO = torch.zeros((), dtype=torch.float64)


def unit_noise():
    return dist.Normal(ZERO, 1.0)


def normal_prior(loc, inner, outer, num_mixing):
    """A semi-implicit law that is Normal(loc, hypot(inner, outer))."""
    mixing = Implicit(lambda e: loc + outer * e, unit_noise())
    return SemiImplicit(mixing, lambda psi: dist.Normal(psi, inner), num_mixing)


# ---------------------------------------------------------------- levels, and ordinary latents


class Levels(PyroModule):
    """Implicit effects of groups and of data, a global one, and an ordinary mean and scale."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels
        self.nets = torch.nn.ModuleDict({name: MLP(2, [4], 1) for name in levels})
        self.spread = PyroParam(torch.tensor(1.0), constraints.positive)
        self.double()

    def effect(self, name):
        if name not in self.levels:
            return 0.0
        noise = dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1)
        net = self.nets[name]
        return pyro.sample(name, Implicit(lambda e: net(e).squeeze(-1), noise))

    def forward(self, x):  # x: [datum, group]
        mu = pyro.sample("mu", dist.Normal(ZERO, 3.0))
        top = self.effect("top")
        with pyro.plate("groups", x.shape[1], dim=-1):
            group = self.effect("group")
            with pyro.plate("data", x.shape[0], dim=-2):
                datum = self.effect("datum")
                loc = mu + top + group + datum
                pyro.sample("x", dist.Normal(loc, self.spread), obs=x)


@pytest.mark.parametrize(
    "levels",
    [("datum",), ("group",), ("top",), ("group", "datum"), ("top", "group"), ("top", "datum")],
    ids="+".join,
)
def test_every_level_trains_beside_an_ordinary_latent(levels):
    """Every parameter of the program and of the guide moves; the loss is finite."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, **DOUBLE)
    model = Levels(levels)
    guide = AutoNormal(poutine.block(model, hide=list(levels)))
    elbo = SIG_ELBO(num_mixing=8, max_plate_nesting=2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    svi.step(x)
    before = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}
    assert len(before) == len(list(model.parameters())) + len(list(guide.parameters()))
    for _ in range(3):
        assert math.isfinite(svi.step(x))
    for name, p in pyro.get_param_store().named_parameters():
        # A bias of the output is the only parameter of one level that can stay: none here.
        assert not torch.equal(p, before[name]), name


def test_a_scale_for_each_group_may_be_implicit_too():
    """Two implicit sites in one plate, location and log-scale of a group: equals a direct sum."""
    net = MLP(2, [5], 2).double()
    x = torch.randn(6, 4, **DOUBLE)

    def model(x):
        pyro.module("net", net)
        noise = dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1)
        with pyro.plate("groups", 4, dim=-1):
            both = pyro.sample("both", Implicit(net, noise, 2))
            with pyro.plate("data", 6, dim=-2):
                pyro.sample("x", dist.Normal(both[..., 0], both[..., 1].exp()), obs=x)

    torch.manual_seed(1)
    loss = SIG_ELBO(16, max_plate_nesting=2).loss(model, no_guide, x)
    torch.manual_seed(1)
    both = net(torch.randn(16, 2, **DOUBLE))
    scores = dist.Normal(both[:, None, None, 0], both[:, None, None, 1].exp()).log_prob(x).sum(1)
    assert math.isclose(loss, -(scores.logsumexp(0) - math.log(16)).sum().item(), rel_tol=1e-9)


# ---------------------------------------------------------------------- evidence of a hierarchy


def hierarchy(num_mixing):
    """Groups of data with a semi-implicit prior of the group effects; evidence in closed form."""

    def model(x):  # x: [datum, group]
        with pyro.plate("groups", x.shape[1], dim=-1):
            effect = pyro.sample("effect", normal_prior(0.5, 0.6, 0.8, num_mixing))
            with pyro.plate("data", x.shape[0], dim=-2):
                pyro.sample("x", dist.Normal(effect, 1.0), obs=x)

    return model


def evidence_and_posterior(x):
    """Of Normal(0.5, 1) effects and unit noise."""
    n = x.shape[0]
    covariance = torch.eye(n, **DOUBLE) + 1.0
    evidence = dist.MultivariateNormal(torch.full((n,), 0.5, **DOUBLE), covariance).log_prob(x.T)
    return evidence.sum().item(), (0.5 + x.sum(0)) / (n + 1), (n + 1) ** -0.5


def mean_and_error(values):
    values = torch.tensor(values)
    return values.mean().item(), 5 * values.std().item() / math.sqrt(len(values))


def test_a_semi_implicit_prior_with_the_exact_guide_bounds_the_evidence():
    """Trace_ELBO stays below the evidence and comes within 0.1 of it at K = 500 (5 errors)."""
    x = torch.randn(3, 4, **DOUBLE)
    evidence, loc, scale = evidence_and_posterior(x)

    def guide(x):
        with pyro.plate("groups", x.shape[1], dim=-1):
            pyro.sample("effect", dist.Normal(loc, scale))

    bounds = {}
    for num_mixing in (5, 500):
        model = hierarchy(num_mixing)
        losses = [-Trace_ELBO().loss(model, guide, x) for _ in range(500)]
        bounds[num_mixing], error = mean_and_error(losses)
        assert bounds[num_mixing] - error < evidence
    assert bounds[5] < bounds[500] and bounds[500] > evidence - 0.1 - error


def test_doubly_semi_implicit_inference_bounds_the_evidence():
    """Prior and guide both semi-implicit, the guide the exact posterior: below, and within 0.1."""
    x = torch.randn(3, 4, **DOUBLE)
    evidence, loc, scale = evidence_and_posterior(x)

    def guide(x):
        with pyro.plate("groups", x.shape[1], dim=-1):
            mixing = dist.Normal(loc, 0.8 * scale)
            law = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.6 * scale), 500)
            pyro.sample("effect", law)

    losses = [-Trace_ELBO().loss(hierarchy(500), guide, x) for _ in range(500)]
    bound, error = mean_and_error(losses)
    assert evidence - 0.1 - error < bound < evidence + error


@pytest.mark.slow
def test_doubly_semi_implicit_inference_by_the_automatic_guide():
    """The posterior of every effect, from an untrained start, within 0.1 of its sd."""
    x = torch.randn(3, 4, **DOUBLE)
    _, loc, scale = evidence_and_posterior(x)
    found = fit(hierarchy(200), x, budget=1000, progress=False)
    draws = found.guide.sample_posterior(4000)["effect"].squeeze()
    assert ((draws.mean(0) - loc).abs() < 0.1 * scale + 5 * scale / math.sqrt(4000)).all()
    # The spread: the relative error of a standard deviation is 1 / sqrt(2 n).
    assert ((draws.std(0) / scale - 1).abs() < 0.1 + 5 / math.sqrt(8000)).all()


@pytest.mark.slow
def test_the_prior_is_learnt_under_a_guide_of_the_effects():
    """Trace_ELBO trains a semi-implicit prior and its guide together: mean and sd of the prior."""
    torch.manual_seed(3)
    truth = 2.0 + 1.5 * torch.randn(400, **DOUBLE)
    x = truth + 0.5 * torch.randn(5, 400, **DOUBLE)
    net = MLP(2, [16], 1).double()

    def model(x):
        pyro.module("net", net)
        noise = dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1)
        mixing = Implicit(lambda e: net(e).squeeze(-1), noise)
        prior = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.3), 500)
        with pyro.plate("groups", x.shape[1], dim=-1):
            effect = pyro.sample("effect", prior)
            with pyro.plate("data", x.shape[0], dim=-2):
                pyro.sample("x", dist.Normal(effect, 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", x.mean(0))
        scale = pyro.param("scale", torch.full((400,), 0.3, **DOUBLE), constraints.positive)
        with pyro.plate("groups", x.shape[1], dim=-1):
            pyro.sample("effect", dist.Normal(loc, scale))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(1500):
        svi.step(x)
    with torch.no_grad():
        prior = net(torch.randn(100_000, 2, **DOUBLE)).squeeze(-1)
    sd = math.hypot(prior.std().item(), 0.3)
    # The 400 groups tell the mean and the sd of their law to 1.6 / sqrt(400) and 1.6 / sqrt(800).
    assert abs(prior.mean().item() - truth.mean().item()) < 5 * 1.6 / math.sqrt(400)
    assert abs(sd - truth.std().item()) < 5 * 1.6 / math.sqrt(800)


# ---------------------------------------------------------------------------- a frozen prior, NUTS


def test_a_frozen_prior_in_a_hierarchy_under_nuts():
    """Effects of groups under NUTS: mean and sd against the conjugate posterior of the mixture."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, **DOUBLE)
    frozen = normal_prior(0.5, 0.6, 0.8, 10).to_mixture(400)

    def model(x):
        with pyro.plate("groups", x.shape[1], dim=-1):
            effect = pyro.sample("effect", frozen)
            with pyro.plate("data", x.shape[0], dim=-2):
                pyro.sample("x", dist.Normal(effect, 1.0), obs=x)

    mcmc = MCMC(NUTS(model), num_samples=800, warmup_steps=200, disable_progbar=True)
    mcmc.run(x)
    draws = mcmc.get_samples()["effect"]
    # Given the atom, the effect is normal: precision 1 / 0.36 + 3; atoms weigh by their evidence.
    marginal = torch.eye(3, **DOUBLE) + 0.36
    atoms = frozen.psi
    means = atoms[:, None, None].expand(-1, 4, 3)
    weights = dist.MultivariateNormal(means, marginal).log_prob(x.T).softmax(0)
    within = (atoms[:, None] / 0.36 + x.sum(0)) / (1 / 0.36 + 3)
    mean = (weights * within).sum(0)
    variance = (weights * (within - mean) ** 2).sum(0) + 1 / (1 / 0.36 + 3)
    # At least 200 effective draws: NUTS on a nearly normal posterior gives more.
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 200).sqrt()).all()
    assert ((draws.std(0) / variance.sqrt() - 1).abs() < 5 / math.sqrt(400)).all()


def test_full_covariance_guide_over_a_semi_implicit_prior():
    """Any automatic guide of Pyro takes a semi-implicit prior: support and shapes are known."""
    x = torch.randn(3, 4, **DOUBLE)
    for guide_type in (AutoNormal, AutoMultivariateNormal):
        pyro.clear_param_store()
        model = hierarchy(20)
        guide = guide_type(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        assert math.isfinite(svi.step(x))
