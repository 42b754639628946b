"""The main paths on a CUDA device: same values as on the CPU, nothing left behind on it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam

from pyro_sig.adversarial import GAN, critic_features, objectives, penalties
from pyro_sig.diagnostics import evidence_bounds, k_hat, report, to_inference_data
from pyro_sig.distributions import Implicit, SemiImplicit, mixture_log_prob
from pyro_sig.infer import (
    AISIVI,
    DIVI,
    KSIVI,
    SIG_ELBO,
    SIVISM,
    UIVI,
    AutoSemiImplicit,
    PathGradient_ELBO,
    fit,
    no_guide,
    train,
)
from pyro_sig.nn import MLP, DCGANCritic, DCGANGenerator

pytestmark = pytest.mark.cuda


def gaussian(psi):
    return dist.Normal(psi, 0.5).to_event(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.5, 1e-3])
def test_mixture_agrees_with_the_cpu(dtype, scale):
    torch.manual_seed(0)
    psi, x = torch.randn(300, 5, dtype=dtype), torch.randn(40, 5, dtype=dtype)
    values, grads = [], []
    for device in ("cpu", "cuda"):
        loc = psi.to(device, copy=True).requires_grad_()
        value = mixture_log_prob(dist.Normal(loc, scale).to_event(1), x.to(device))
        value.sum().backward()
        values.append(value.detach().cpu())
        grads.append(loc.grad.cpu())
    assert torch.allclose(*values, rtol=1e-4)
    assert torch.allclose(*grads, rtol=1e-3, atol=1e-3 * grads[0].abs().max().item())


@pytest.mark.parametrize("chunk_size", [None, 100])
@pytest.mark.parametrize("way", ["semi_implicit", "sig_elbo"])
def test_training_steps(way, chunk_size):
    torch.manual_seed(0)
    net = MLP(2, [16], 3, device="cuda")
    noise = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    x = torch.randn(50, 3, device="cuda")

    def model(x):
        pyro.module("net", net)
        prior = Implicit(net, noise, 3)
        with pyro.plate("data", len(x), device="cuda"):
            if way == "semi_implicit":
                pyro.sample("x", SemiImplicit(prior, gaussian, 250, chunk_size=chunk_size), obs=x)
            else:
                psi = pyro.sample("psi", prior)
                pyro.sample("x", gaussian(psi), obs=x)

    elbo = Trace_ELBO() if way == "semi_implicit" else SIG_ELBO(250, chunk_size=chunk_size)
    history = train(SVI(model, no_guide, Adam({"lr": 0.01}), elbo), x, 100, progress=False)
    assert sum(history["loss"][-20:]) < sum(history["loss"][:20])


def test_guide_with_own_draws():
    net = MLP(2, [16], 3, device="cuda")
    noise = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    q = SemiImplicit(Implicit(net, noise, 3), gaussian, 20, share_draws=False).expand([7])
    z = q.rsample((4,))
    assert z.is_cuda and q.log_prob(z).shape == (4, 7)
    assert q.to_mixture(50).sample((3,)).is_cuda


def on_cuda(data):
    """A posterior on the device, with a known mean."""
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1))
    with pyro.plate("data", len(data), device="cuda"):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=data)


def test_fit():
    torch.manual_seed(0)
    data = torch.randn(20, 2, device="cuda") + 1.0
    result = fit(on_cuda, data, budget=300, progress=False)
    draws = result.guide.sample_posterior(5000)["loc"]
    assert draws.is_cuda
    # A tenth of the posterior's deviation, and 5 SE of 5,000 draws.
    tolerance = (0.1 + 5 / 5000**0.5) / 21**0.5
    assert (draws.mean(0) - data.sum(0) / 21).abs().max() < tolerance


@pytest.mark.parametrize("loss", [PathGradient_ELBO, UIVI, AISIVI, DIVI, KSIVI, SIVISM])
@pytest.mark.parametrize("covariance", ["full", "low_rank", "diagonal"])
def test_objectives(loss, covariance):
    data = torch.randn(20, 2, device="cuda")
    guide = AutoSemiImplicit(on_cuda, covariance=covariance)
    svi = SVI(on_cuda, guide, Adam({"lr": 1e-3}), loss(num_particles=8, max_plate_nesting=1))
    history = train(svi, data, 3, progress=False)
    assert all(torch.tensor(history["loss"]).isfinite())
    assert guide.sample_posterior(5)["loc"].is_cuda


@pytest.mark.parametrize("chunk_size", [None, 100])
def test_a_hierarchy_and_the_posterior_of_psi(chunk_size):
    net = MLP(2, [16], 1, device="cuda")
    noise = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    y = torch.randn(3, 20, device="cuda")

    def model(y):
        pyro.module("net", net)
        spread = pyro.sample("spread", dist.LogNormal(torch.zeros((), device="cuda"), 1.0))
        with pyro.plate("groups", 20, dim=-1, device="cuda"):
            effect = pyro.sample("effect", Implicit(lambda e: net(e).squeeze(-1), noise))
            with pyro.plate("data", 3, dim=-2, device="cuda"):
                pyro.sample("y", dist.Normal(effect, spread), obs=y)

    guide = AutoNormal(poutine.block(model, hide=["effect"]))
    elbo = SIG_ELBO(300, chunk_size, max_plate_nesting=2)
    train(SVI(model, guide, Adam({"lr": 1e-3}), elbo), y, 3, progress=False)
    posterior = elbo.psi_posterior(model, guide, y)["effect"]
    assert posterior.mean.is_cuda and posterior.effective_sample_size.min() > 1


def test_diagnostics():
    data = torch.randn(20, 2, device="cuda")
    guide = AutoMultivariateNormal(on_cuda)
    with torch.no_grad():
        guide(data)
    found = k_hat(on_cuda, guide, data, num_samples=50, num_repeats=1, progress=False)
    assert found.effective_share > 0
    draws = {"loc": torch.randn(5, 2, device="cuda")}
    bounds = evidence_bounds(on_cuda, guide, data, num_samples=2, posterior=draws)
    assert bounds.upper.isfinite().all()
    idata = to_inference_data(on_cuda, guide, data, num_samples=5)
    assert idata["log_likelihood"]["x"].sizes["data"] == 20
    assert report(on_cuda, guide, data, num_samples=60, quiet=True).k_hat is not None


ADVERSARIES = {
    "plain": {},
    "bfloat16": {"autocast": torch.bfloat16},
    "bfloat16, R1": {"autocast": torch.bfloat16, "penalties": penalties.R1(0.1)},
    "compiled": {"compile_networks": True},
    "unrolled": {"unroll": 2, "objective": objectives.Minimax()},
    "Wasserstein": {
        "objective": objectives.Wasserstein(),
        "penalties": penalties.GradientPenalty(),
        "critic_steps": 2,
        "ema": 0.9,
    },
    "relativistic": {"objective": objectives.Relativistic(), "penalties": [penalties.R2(1.0)]},
    "balance": {"elbo": Trace_ELBO(), "elbo_weight": "balance"},
}


@pytest.mark.parametrize("settings", ADVERSARIES.values(), ids=ADVERSARIES)
def test_adversarial_steps(settings):
    torch.manual_seed(0)
    net, critic = MLP(2, [16], 3, device="cuda"), MLP(3, [16], 1, device="cuda")
    noise = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    x = torch.randn(50, 3, device="cuda")

    def model(x):
        pyro.module("net", net)
        law = Implicit(net, noise, 3)
        with pyro.plate("data", len(x), device="cuda"):
            pyro.sample("x", SemiImplicit(law, gaussian, 64) if "elbo" in settings else law, obs=x)

    critic_optim = torch.optim.Adam(critic.parameters(), lr=0.01)
    gan = GAN(model, critic, Adam({"lr": 0.01}), critic_optim, **settings)
    history = train(gan, x, 5, progress=False)
    assert history.num_steps == 5
    assert critic_features(critic, x).device.type == "cuda"
    state = gan.state_dict()
    gan.load_state_dict(state)
    gan.step(x)


@pytest.mark.parametrize("settings", [{}, {"autocast": torch.bfloat16}, {"compile_networks": True}])
def test_image_networks(settings):
    torch.manual_seed(0)
    net = DCGANGenerator(10, 1, 28, width=8, device="cuda")
    critic = DCGANCritic(1, 28, width=8, norm=None, device="cuda")
    noise = dist.Normal(torch.zeros(10, device="cuda"), 1.0).to_event(1)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), device="cuda"):
            pyro.sample("x", Implicit(net, noise, (1, 28, 28)), obs=x)

    optim = torch.optim.Adam(net.parameters(), lr=1e-3)
    gan = GAN(model, critic, optim, torch.optim.Adam(critic.parameters(), lr=1e-3), **settings)
    train(gan, torch.rand(16, 1, 28, 28, device="cuda"), 3, progress=False)
