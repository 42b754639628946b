import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal

from pyro_sig.diagnostics import draws_from
from pyro_sig.distributions import SemiImplicit

DATA = torch.zeros(4, 3)


def model(data):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(data)):
        z = pyro.sample("z", dist.Normal(loc, scale).expand([3]).to_event(1))
        pyro.deterministic("twice", 2 * z, event_dim=1)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)
    pyro.factor("bonus", -loc.square())


def test_moments_and_shapes():
    def guide(data):
        loc = pyro.sample("loc", dist.Normal(2.0, 0.5))
        with pyro.plate("row", len(data)):
            pyro.sample("z", dist.Normal(loc, 1.0).expand([3]).to_event(1))

    draws = draws_from(guide, DATA, num_samples=500)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "loc": (500,),
        "z": (500, 4, 3),
    }
    # 5 standard errors: one failure in two million seeds.
    assert abs(float(draws["loc"].mean()) - 2) < 5 * 0.5 / math.sqrt(500)
    residuals = draws["z"] - draws["loc"][:, None, None]
    assert abs(float(residuals.mean())) < 5 / math.sqrt(500 * 12)


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal, AutoMultivariateNormal])
def test_automatic_guides(kind):
    guide = kind(model)
    draws = draws_from(guide, DATA, num_samples=3)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "loc": (3,),
        "scale": (3,),
        "z": (3, 4, 3),
    }
    assert not any(value.requires_grad for value in draws.values())


def test_a_list_of_guides():
    guide = AutoGuideList(model)
    guide.append(AutoDelta(pyro.poutine.block(model, expose=["loc"])))
    guide.append(AutoNormal(pyro.poutine.block(model, hide=["loc", "x"])))
    assert set(draws_from(guide, DATA, num_samples=2)) == {"loc", "scale", "z"}


def test_what_is_no_latent_is_left_out():
    draws = draws_from(model, DATA, num_samples=2)
    assert set(draws) == {"loc", "scale", "z"}

    def subsampled():
        with pyro.plate("row", 10, subsample_size=3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert set(draws_from(subsampled, num_samples=2)) == {"z"}


def test_semi_implicit():
    def guide():
        mixing = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", SemiImplicit(mixing, lambda p: dist.Normal(p, 1.0).to_event(1), 5))

    assert draws_from(guide, num_samples=7)["z"].shape == (7, 2)


def test_an_enclosing_trace_sees_nothing():
    with pyro.poutine.trace() as recorded:
        draws_from(model, DATA, num_samples=2)
    assert not [name for name in recorded.trace.nodes if not name.startswith("_")]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`num_samples` must be a positive integer, was 0"):
        draws_from(model, DATA, num_samples=0)
    with pytest.raises(ValueError, match="`guide` must draw at least one site, drew none"):
        draws_from(lambda: None, num_samples=2)
    sizes = iter((2, 3))

    def changing():
        pyro.sample("z", dist.Normal(torch.zeros(next(sizes)), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"`guide` must draw the same sites.*\(2,\).*\(3,\)"):
        draws_from(changing, num_samples=2)
