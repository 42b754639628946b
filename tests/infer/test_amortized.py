"""Amortised semi-implicit guides q(z | x) of local latents: posteriors, plates and gradients."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import train
from pyro_sig.nn import MLP, Encoder

SIGMAS = 5.0  # one failure in 1.7 million for each comparison


class NoisyEncoder(torch.nn.Module):
    """Noise and a datum to psi, which starts as wide as the prior."""

    def __init__(self, hidden=40, noise_dim=2):
        super().__init__()
        self.noise_dim = noise_dim
        self.net = MLP(noise_dim + 1, [hidden, hidden], 2)

    def forward(self, eps, x):
        out = self.net(torch.cat([eps, x], -1))
        return torch.stack([out[..., 0] + eps[..., 0], out[..., 1]], -1)

    def law(self, x, num_mixing, share_draws=True, normal=dist.Normal):
        noise = dist.Normal(torch.zeros(self.noise_dim), 1.0).to_event(1)
        mixing = Implicit(self, noise, event_shape=2, inputs=x)

        def conditional(psi):
            scale = torch.nn.functional.softplus(psi[..., 1:]) + 1e-3
            return normal(psi[..., :1], scale).to_event(1)

        return SemiImplicit(mixing, conditional, num_mixing, share_draws)


# --------------------------------------------------------------------- two modes, known posterior

NOISE = 0.5


def fold(z):
    """Forgets the sign of z, but for a slight shift that makes the modes unequal."""
    return (z**2 + 0.02).sqrt() + 0.05 * z


def folded_model(x, noise=NOISE):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(fold(z), noise).to_event(1), obs=x)


def exact_mass(x, low, high):
    """P(low < z < high | x) for one x, on a grid."""
    z = torch.linspace(-6, 6, 4001)
    log_mass = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(fold(z), NOISE).log_prob(
        torch.tensor(x)
    )
    return float(log_mass.softmax(0)[(z > low) & (z < high)].sum())


def log_weights(guide, x, num):
    """The draws [num, N] of z and log p(x, z) - log q(z | x), row by row."""

    def particles(program):
        def repeated():
            with pyro.plate("particles", num, dim=-2):
                program(x)

        return repeated

    with torch.no_grad():
        q = poutine.trace(particles(guide)).get_trace()
        p = poutine.trace(poutine.replay(particles(folded_model), trace=q)).get_trace()
        q.compute_log_prob()
        p.compute_log_prob()
        log_p = p.nodes["z"]["log_prob"] + p.nodes["x"]["log_prob"]
        return q.nodes["z"]["value"], log_p - q.nodes["z"]["log_prob"]


def test_semi_implicit_guide_finds_both_modes_and_a_higher_bound():
    x = fold(torch.randn(100, 1)) + NOISE * torch.randn(100, 1)
    encoder, noisy = Encoder(1, [40], 1), NoisyEncoder()

    def normal(x, *_):
        pyro.module("normal", encoder)
        loc, scale = encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def semi_implicit(x, *_, share_draws=True):
        pyro.module("semi-implicit", noisy)
        with pyro.plate("data", len(x)):
            pyro.sample("z", noisy.law(x, 40, share_draws))

    # The noise shrinks: with the small one from the start q leaves one mode at once, for good.
    num_steps = 800

    def batch(step):
        return x, max(NOISE, 1.5 * (NOISE / 1.5) ** (2 * step / num_steps))

    for guide in (normal, semi_implicit):
        schedule = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}}
        schedule["gamma"] = 0.1 ** (1 / num_steps)
        svi = SVI(folded_model, guide, pyro.optim.ExponentialLR(schedule), Trace_ELBO())
        train(svi, batch, num_steps, progress=False)

    def own_draws(x):
        semi_implicit(x, share_draws=False)

    gain = log_weights(own_draws, x, 200)[1].mean(0) - log_weights(normal, x, 200)[1].mean(0)
    assert gain.mean() > 2 * gain.std() / math.sqrt(len(gain))

    z = log_weights(own_draws, torch.tensor([[1.5]]), 2000)[0]
    for low, high in ((-2.5, -0.5), (0.5, 2.5)):
        assert exact_mass(1.5, low, high) > 0.4
        assert ((z > low) & (z < high)).float().mean() > 0.25


# ------------------------------------------------------------------------- plates and subsampling

NUM_DATA = 12
X = torch.linspace(-1.0, 2.0, NUM_DATA).unsqueeze(-1)


def latent_model(x, batch_size=None):
    loc = pyro.param("loc", torch.zeros(1))
    with pyro.plate("data", len(x), subsample_size=batch_size) as rows:
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc + fold(z), 0.5).to_event(1), obs=x[rows])


def latent_guide(encoder, share_draws=True, normal=dist.Normal):
    def guide(x, batch_size=None):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=batch_size) as rows:
            pyro.sample("z", encoder.law(x[rows], 3, share_draws, normal))

    return guide


def gradients(elbo, model, guide, repeats, *args):
    """Many gradients [repeats, P] of the parameters in the store."""
    store = pyro.get_param_store()
    found = []
    for _ in range(repeats):
        elbo.loss_and_grads(model, guide, *args)
        params = [store[name].unconstrained() for name in sorted(store.keys())]
        found.append(torch.cat([p.grad.flatten() for p in params]))
        for p in params:
            p.grad = None
    return torch.stack(found)


def projections(g, num=5):
    """A few fixed directions, so that the number of comparisons is small and stated."""
    generator = torch.Generator().manual_seed(1)
    return g @ torch.randn(g.shape[1], num, generator=generator)


def assert_same_mean(a, b):
    """Means of projected gradients within SIGMAS; five comparisons: 3 failures in a million."""
    a, b = projections(a), projections(b)
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= SIGMAS * error).all()
    # There is something to agree about.
    assert (b.mean(0).abs() > SIGMAS * error).any()


@pytest.mark.parametrize("share_draws", [True, False])
def test_subsampled_plate_has_the_gradient_of_all_data(share_draws):
    guide = latent_guide(NoisyEncoder(8), share_draws)
    full = gradients(Trace_ELBO(), latent_model, guide, 800, X)
    assert_same_mean(gradients(Trace_ELBO(), latent_model, guide, 1500, X, 3), full)


def test_a_row_has_noise_of_its_own():
    encoder = NoisyEncoder(8)
    q = encoder.law(X, 3)
    assert q.batch_shape == (NUM_DATA,)
    z = q.sample((2000,))
    correlation = torch.corrcoef(z[:, :2, 0].T)[0, 1]
    assert abs(correlation) < SIGMAS / math.sqrt(2000)


# ------------------------------------------------------------------------------ under every ELBO

ELBOS = {
    "Trace": (Trace_ELBO(), True),
    "Trace vectorised": (
        Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
        True,
    ),
    "TraceMeanField": (TraceMeanField_ELBO(), True),
    "TraceGraph": (TraceGraph_ELBO(), True),
    "Renyi": (RenyiELBO(alpha=0, num_particles=2), False),
}


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("name", ELBOS)
def test_all_parameters_get_gradients_and_step(name, batch_size):
    elbo, share_draws = ELBOS[name]
    guide = latent_guide(NoisyEncoder(8), share_draws)
    grad = gradients(elbo, latent_model, guide, 5, X, batch_size)
    assert grad.isfinite().all()
    store = pyro.get_param_store()
    before = {k: store[k].detach().clone() for k in sorted(store.keys())}
    assert len(before) == 1 + 6  # the model's, and the encoder's weights and biases
    # A hidden unit may be dead, a whole parameter not.
    sizes = [v.numel() for v in before.values()]
    for param_name, part in zip(before, grad.split(sizes, dim=1), strict=True):
        assert part.any(), param_name
    svi = SVI(latent_model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert all(math.isfinite(svi.step(X, batch_size)) for _ in range(3))
    assert all((store[k] != v).any() for k, v in before.items())


def test_several_semi_implicit_sites_in_one_guide():
    """A global site, and two local ones of which the second sees the first."""
    encoders = {name: NoisyEncoder(8) for name in ("global", "first", "second")}

    def model(x, batch_size=None):
        shift = pyro.sample("shift", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=batch_size) as rows:
            first = pyro.sample("first", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            second = pyro.sample("second", dist.Normal(first, 1.0).to_event(1))
            mean = shift + first + second
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x[rows])

    def guide(x, batch_size=None, share_draws=True):
        for name, encoder in encoders.items():
            pyro.module(name, encoder)
        pyro.sample("shift", encoders["global"].law(x.new_zeros(1), 5, share_draws))
        with pyro.plate("data", len(x), subsample_size=batch_size) as rows:
            first = pyro.sample("first", encoders["first"].law(x[rows], 5, share_draws))
            pyro.sample("second", encoders["second"].law(x[rows] - first, 5, share_draws))

    # second = first + noise: x has first twice, noise of variance 1 and of variance 0.25.
    own = 4.0 + 1.0 + 0.25
    covariance = 1.0 + own * torch.eye(NUM_DATA)
    evidence = dist.MultivariateNormal(torch.zeros(NUM_DATA), covariance).log_prob(X[:, 0])
    for batch_size in (None, 4):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        history = train(svi, (X, batch_size), 150, progress=False)
        assert sum(history["loss"][-30:]) < sum(history["loss"][:30])
    bounds = torch.tensor([-svi.evaluate_loss(X) for _ in range(200)])
    error = SIGMAS * bounds.std() / math.sqrt(200)
    assert bounds.mean() - error < evidence
    assert bounds.mean() > evidence - 6


# -------------------------------------------------------------------------------- score function


@pytest.mark.parametrize("share_draws", [True, False])
def test_score_function_has_the_reparameterised_gradient(share_draws):
    encoder = NoisyEncoder(8)
    score = latent_guide(encoder, share_draws, NonreparameterizedNormal)
    assert not encoder.law(X, 3, normal=NonreparameterizedNormal).has_rsample
    reference = gradients(Trace_ELBO(), latent_model, latent_guide(encoder), 500, X)
    assert_same_mean(gradients(Trace_ELBO(), latent_model, score, 2500, X), reference)


def test_score_function_under_trace_graph():
    encoder = NoisyEncoder(8)
    score = latent_guide(encoder, True, NonreparameterizedNormal)
    reference = gradients(Trace_ELBO(), latent_model, latent_guide(encoder), 500, X)
    assert_same_mean(gradients(TraceGraph_ELBO(), latent_model, score, 1000, X), reference)
