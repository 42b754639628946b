"""AutoLocalSemiImplicit: rows in plates, subsamples, encoders, and in a list of guides."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import Adam

from pyro_sig.infer import UIVI, AutoLocalSemiImplicit, AutoSemiImplicit, PathGradient_ELBO, train
from pyro_sig.nn import MLP

NUM_DATA, BATCH = 12, 4
X = torch.linspace(0.5, 2.0, NUM_DATA)


def model(x, batch=BATCH):
    """A scale for all, and for each datum a scalar and a positive vector."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(x), subsample_size=batch) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.LogNormal(torch.zeros(2), 0.1).to_event(1))
        pyro.sample("x", dist.Normal(z.abs() * w.mean(-1), scale), obs=x[index])


def encode(x, batch=BATCH):
    return torch.stack([x, x.square()], -1)


@pytest.mark.parametrize("encoder", [None, encode], ids=["parameters", "encoder"])
@pytest.mark.parametrize("particles", [1, 3])
def test_steps_and_shapes(encoder, particles):
    guide = AutoLocalSemiImplicit(model, encoder, num_mixing=5, hidden_dims=[8])
    elbo = Trace_ELBO(
        num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
    )
    history = train(SVI(model, guide, Adam({"lr": 1e-2}), elbo), X, 3, progress=False)
    assert all(math.isfinite(loss) for loss in history["loss"])
    draw = guide(X)
    assert draw["scale"].shape == ()
    assert draw["z"].shape == (BATCH,)
    assert draw["w"].shape == (BATCH, 2)
    assert (draw["w"] > 0).all()
    quantiles = guide.quantiles([0.1, 0.9], X)
    assert quantiles["z"].shape == (2, BATCH)
    assert (quantiles["z"][0] < quantiles["z"][1]).all()
    assert guide.median(X)["w"].shape == (BATCH, 2)


def test_every_row_has_parameters_of_its_own():
    guide = AutoLocalSemiImplicit(model)
    guide(X)
    assert guide.locs.z.shape == (NUM_DATA,)
    assert guide.contexts.w.shape == (NUM_DATA, 8)


def test_encoder_trains_with_the_guide():
    encoder = MLP(1, [8], 3)
    guide = AutoLocalSemiImplicit(model, lambda x: encoder(x.unsqueeze(-1)))
    with pytest.raises(ValueError, match="never train"):  # the guide cannot know of it
        train(SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO()), X, 1, progress=False)

    pyro.clear_param_store()
    module = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), encoder)
    guide = AutoLocalSemiImplicit(model, module)
    before = encoder.head.weight.detach().clone()
    train(SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO()), X, 2, progress=False)
    assert not torch.equal(encoder.head.weight, before)


@pytest.mark.parametrize("loss", [PathGradient_ELBO, UIVI])
def test_other_objectives(loss):
    guide = AutoLocalSemiImplicit(model, encode, num_mixing=5, hidden_dims=[8])
    svi = SVI(model, guide, Adam({"lr": 1e-3}), loss(num_particles=2, max_plate_nesting=1))
    assert math.isfinite(svi.step(X))


def test_beside_a_guide_of_the_globals():
    guide = AutoGuideList(model)
    guide.append(AutoSemiImplicit(poutine.block(model, expose=["scale"]), find_scale=False))
    guide.append(AutoLocalSemiImplicit(poutine.block(model, hide=["scale"]), encode))
    history = train(SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO()), X, 3, progress=False)
    assert math.isfinite(history["loss"][-1])
    assert set(guide(X)) == {"scale", "z", "w"}


def test_predictive():
    guide = AutoLocalSemiImplicit(model, encode, num_mixing=5)
    guide(X)
    draws = Predictive(model, guide=guide, num_samples=7)(X)
    assert draws["z"].shape == (7, BATCH)


def test_finds_both_modes_of_each_row():
    """x = |z| + noise: the posterior of z is symmetric; a share of 0.2 is far from one mode's 0."""

    def symmetric(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.5))
            pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=x)

    x = torch.tensor([1.0, 1.5, 2.0])
    guide = AutoLocalSemiImplicit(
        symmetric, lambda x: x.unsqueeze(-1), init_scale=1.5, init_loc_fn=_at_zero, num_mixing=50
    )
    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    train(SVI(symmetric, guide, Adam({"lr": 1e-2}), elbo), x, 400, progress=False)
    with torch.no_grad(), pyro.plate("draws", 1000, dim=-2):
        z = guide(x)["z"]
    assert ((z > 0).float().mean(0) - 0.5).abs().max() < 0.3
    # The modes, a little inside of +-x for the prior's sake, and hardly anything between them.
    assert (z.abs().mean(0) - x).abs().max() < 0.3
    assert (z.abs() < 0.2).float().mean() < 0.1


def _at_zero(site):
    return torch.zeros(site["fn"].shape())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_mixing": 0}, "`num_mixing` must be a positive integer, was 0"),
        ({"hidden_dims": [0]}, "`hidden_dims` must be a positive integer, was 0"),
        ({"init_scale": 0.0}, "`init_scale` must be a finite number above 0, was 0.0"),
        ({"encoder": 3}, "`encoder` must be a function or a module, or None, was 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoLocalSemiImplicit(model, **arguments)


def test_bad_encoder_and_discrete_latents():
    with pytest.raises(ValueError, match="`encoder` must return features"):
        AutoLocalSemiImplicit(model, lambda x: torch.tensor(1.0))(X)

    def discrete():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="continuous latents, was discrete at site 'k'"):
        AutoLocalSemiImplicit(discrete)()
