"""SemiImplicit at the sites of Pyro programs: observed, in guides, in plates, under every ELBO."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.optim import Adam

from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import no_guide
from pyro_sig.nn import MLP

SIGMAS = 5.0  # one failure in 1.7 million


def noise():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def gaussian(psi):
    return dist.Normal(psi, 0.5).to_event(1)


def observed_program():
    """A generator at an observed site, and data for it."""
    net = MLP(2, [5], 3)
    x = torch.randn(7, 3)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", SemiImplicit(Implicit(net, noise(), 3), gaussian, 10), obs=x)

    return model, x


ELBOS = {
    "Trace": Trace_ELBO(),
    "Trace vectorised": Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "TraceGraph": TraceGraph_ELBO(),
    "TraceMeanField": TraceMeanField_ELBO(),
    "Renyi": RenyiELBO(alpha=0.5, num_particles=3),
    "Renyi vectorised": RenyiELBO(
        alpha=0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
}


@pytest.mark.parametrize("name", ELBOS)
def test_observed_site_trains_under_every_elbo(name):
    torch.manual_seed(0)
    model, x = observed_program()
    svi = SVI(model, no_guide, Adam({"lr": 0.01}), ELBOS[name])
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_observed_loss_equals_a_direct_sum_and_particles_share_nothing_wrong():
    net = MLP(2, [5], 3)
    x = torch.randn(7, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", SemiImplicit(Implicit(net, noise(), 3), gaussian, 10), obs=x)

    torch.manual_seed(1)
    loss = Trace_ELBO(max_plate_nesting=1).loss(model, no_guide, x)
    torch.manual_seed(1)
    psi = net(noise().sample((10,)))
    direct = gaussian(psi.unsqueeze(1)).log_prob(x).logsumexp(0) - math.log(10)
    assert math.isclose(loss, -direct.sum().item(), rel_tol=1e-5)


def semi_implicit_guide(net, share_draws=True):
    def guide(*args):
        pyro.module("net", net)
        pyro.sample("z", SemiImplicit(Implicit(net, noise(), 2), gaussian, 20, share_draws))

    return guide


@pytest.mark.parametrize("name", ELBOS)
def test_guide_bound_stays_below_the_evidence(name):
    """z ~ N(0, I), x | z ~ N(z, I): log p(x) is known; the bound holds at any K."""
    torch.manual_seed(0)
    net = MLP(2, [5], 2)
    x = torch.tensor([0.5, -1.0])

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    evidence = dist.Normal(torch.zeros(2), math.sqrt(2)).to_event(1).log_prob(x).item()
    guide = semi_implicit_guide(net, share_draws="Renyi" not in name)
    svi = SVI(model, guide, Adam({"lr": 0.02}), ELBOS[name])
    for _ in range(300):
        svi.step(x)
    bounds = torch.tensor([-svi.evaluate_loss(x) for _ in range(300)])
    error = SIGMAS * bounds.std() / math.sqrt(300)
    assert bounds.mean() - error < evidence
    assert bounds.mean() > evidence - 0.4


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("share_draws", [True, False])
def test_wake_sleep_is_refused_and_says_why(share_draws, validate):
    """Its weights need psi_0, its update of the guide must not count it: one log_prob is both."""
    net = MLP(2, [5], 2)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    elbo = ReweightedWakeSleep(num_particles=3, vectorize_particles=False, max_plate_nesting=0)
    svi = SVI(model, semi_implicit_guide(net, share_draws), Adam({"lr": 0.01}), elbo)
    with (
        pyro.validation_enabled(validate),
        pytest.raises(ValueError, match="ReweightedWakeSleep detaches .* Use Trace_ELBO"),
    ):
        svi.step()


def test_guide_and_prior_in_one_plate_read_the_same_object_differently():
    p = SemiImplicit(dist.Normal(torch.tensor(0.0), 100.0), lambda psi: dist.Normal(psi, 0.1), 1)

    def program():
        with pyro.plate("data", 3):
            return pyro.sample("z", p)

    guide_trace = poutine.trace(program).get_trace()
    model_trace = poutine.trace(poutine.replay(program, trace=guide_trace)).get_trace()
    guide_trace.compute_score_parts()
    model_trace.compute_log_prob()
    assert (guide_trace.nodes["z"]["log_prob"] > -10).all()
    assert (model_trace.nodes["z"]["log_prob"] < -20).any()


def test_one_object_as_guide_and_prior_outside_a_plate_raises():
    p = SemiImplicit(dist.Normal(torch.tensor(0.0), 1.0), lambda psi: dist.Normal(psi, 0.1), 5)

    def program():
        return pyro.sample("z", p)

    with pytest.raises(ValueError, match="must not be both guide and prior"):
        Trace_ELBO().loss(program, program)
    Trace_ELBO().loss(lambda: pyro.sample("z", p.expand(p.batch_shape)), program)


def test_subsampled_plate_scales_the_observed_site():
    net = MLP(2, [5], 3)
    x = torch.randn(10, 3)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("x", SemiImplicit(Implicit(net, noise(), 3), gaussian, 10), obs=x[rows])

    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    site = trace.nodes["x"]
    assert site["log_prob"].shape == (4,)
    assert torch.allclose(site["log_prob"], 2.5 * site["unscaled_log_prob"])


def test_amortised_guide_of_local_latents_in_a_subsampled_plate():
    torch.manual_seed(0)
    encoder, decoder = MLP(2 + 3, [16], 2), MLP(2, [16], 3)
    x = torch.randn(20, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x[rows])

    def guide(x):
        pyro.module("encoder", encoder)

        def transform(eps, x):
            return encoder(torch.cat([eps, x], -1))

        with pyro.plate("data", len(x), subsample_size=5) as rows:
            mixing = Implicit(transform, noise(), 2, inputs=x[rows])
            pyro.sample("z", SemiImplicit(mixing, gaussian, 10))

    for elbo in (
        Trace_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ):
        svi = SVI(model, guide, Adam({"lr": 0.01}), elbo)
        losses = [svi.step(x) for _ in range(100)]
        assert sum(losses[-20:]) < sum(losses[:20])


def test_discrete_conditional_in_a_guide_has_the_right_score_gradient():
    """q(z) = int Bernoulli(z | sigmoid(psi)) q(psi): gradient of E_q[f] against the exact one."""
    torch.manual_seed(0)
    loc = torch.tensor(0.3, requires_grad=True)
    f = torch.tensor([0.7, -1.1])

    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.factor("f", f[z.long()])

    def guide():
        m = pyro.param("loc", loc)
        mixing = dist.Normal(m, 1.0)
        q = SemiImplicit(mixing, lambda psi: dist.Bernoulli(logits=psi), 3)
        pyro.sample("z", q)

    def grad_once():
        pyro.clear_param_store()
        value = Trace_ELBO().differentiable_loss(model, guide)
        return torch.autograd.grad(value, pyro.param("loc").unconstrained())[0]

    grads = torch.stack([grad_once() for _ in range(3000)])
    # The bound's expectation by quadrature over the K + 1 psi, common random numbers.
    torch.manual_seed(1)
    eps = torch.randn(200_000, 4, dtype=torch.float64)

    def expected_loss(m):
        probs = torch.sigmoid(m + eps).mean(-1)  # mixture over psi_0..psi_3
        total = 0.0
        for z, q in ((1, probs), (0, 1 - probs)):
            total = total + (q * (math.log(0.5) + f[z].double() - q.log())).mean()
        return -total

    truth = (expected_loss(0.3 + 1e-3) - expected_loss(0.3 - 1e-3)) / 2e-3
    error = grads.std() / math.sqrt(len(grads))
    assert abs(grads.mean() - truth) <= SIGMAS * error + 1e-4
    assert abs(truth) > 3 * error


def test_jit_elbo_runs():
    model, x = observed_program()
    elbo = JitTrace_ELBO(ignore_jit_warnings=True, max_plate_nesting=1)
    svi = SVI(model, no_guide, Adam({"lr": 0.01}), elbo)
    assert math.isfinite(svi.step(x)) and math.isfinite(svi.step(x))


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel):
    net = MLP(2, [5], 3)

    def model(n):
        with pyro.plate("data", n):
            return pyro.sample("x", SemiImplicit(Implicit(net, noise(), 3), gaussian, 10))

    draws = Predictive(model, {}, num_samples=4, parallel=parallel, return_sites=["x"])(5)
    assert draws["x"].shape == (4, 5, 3)
