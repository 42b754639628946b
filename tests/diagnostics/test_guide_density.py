"""The density of a guide at values that it did not draw."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_sig.diagnostics import guide_log_prob
from pyro_sig.distributions import SemiImplicit
from pyro_sig.infer import AutoLocalSemiImplicit, AutoSemiImplicit


def model():
    pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", 4):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


EXACT = [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoIAFNormal]


@pytest.mark.parametrize("automatic", EXACT)
def test_equals_the_density_of_the_draw(automatic):
    """A draw that is scored again has the log-density that its own trace gave it."""
    guide = automatic(model)
    guide()
    trace = poutine.trace(guide).get_trace()
    values = {name: trace.nodes[name]["value"] for name in ("rate", "share", "z")}
    expected = trace.log_prob_sum()
    torch.testing.assert_close(guide_log_prob(guide, values), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("automatic", [AutoSemiImplicit, AutoLocalSemiImplicit])
def test_semi_implicit_guides_meet_fresh_psi(automatic):
    guide = automatic(model)
    guide()
    values = {name: value.detach() for name, value in guide().items()}
    scores = torch.stack([guide_log_prob(guide, values).detach() for _ in range(3)])
    assert scores.isfinite().all() and scores.std() > 0


def test_a_list_of_guides():
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["rate"])))
    guide.append(AutoMultivariateNormal(poutine.block(model, hide=["rate"])))
    guide()
    trace = poutine.trace(guide).get_trace()
    values = {name: trace.nodes[name]["value"] for name in ("rate", "share", "z")}
    expected = trace.log_prob_sum()
    torch.testing.assert_close(guide_log_prob(guide, values), expected, rtol=1e-4, atol=1e-3)


def test_written_guides():
    def guide(loc):
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(loc, 1.0))

    z, loc = torch.randn(3), torch.randn(3)
    expected = dist.Normal(loc, 1.0).log_prob(z).sum()
    torch.testing.assert_close(guide_log_prob(guide, {"z": z}, loc), expected)

    def mixed():
        law = SemiImplicit(dist.Normal(0.0, 1.0), lambda psi: dist.Normal(psi, 1.0), 20_000)
        pyro.sample("z", law)

    found = guide_log_prob(mixed, {"z": torch.tensor(1.0)})
    # The estimate has a relative error of 0.005: 6 of them.
    assert abs(found - dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0))) < 0.03


def test_gradients_reach_the_values():
    def guide():
        pyro.sample("z", dist.Normal(1.0, 1.0))

    z = torch.tensor(3.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(guide_log_prob(guide, {"z": z}), z)
    torch.testing.assert_close(gradient, torch.tensor(-2.0))


@pytest.mark.parametrize(
    ("guide", "values", "problem"),
    [
        (
            dist.Normal(0.0, 1.0),
            {"z": torch.zeros(2)},
            "`guide` must be a function or a module, was Normal",
        ),
        (
            AutoNormal,
            {"z": torch.zeros(2)},
            "`guide` must be a function or a module, was the class AutoNormal",
        ),
        (None, torch.zeros(2), "`values` must be a dict of tensors by name"),
        (
            None,
            {"z": [0.0, 0.0]},
            r"`values` must hold tensors .* but 'z' was \[0",
        ),
        (None, {"z": torch.full((2,), torch.nan)}, "`values` must be finite, but 'z'"),
        # Broadcast, its rows would all be scored.
        (None, {"z": torch.zeros(3, 2)}, r"`values` must hold 'z' in its shape \(2,\).*\(3, 2\)"),
        (None, {"z": -torch.ones(2)}, "`values` must lie in the support"),
        (lambda: None, {"z": torch.ones(2)}, r"`guide` must draw one of \['z'\] at least"),
    ],
)
def test_bad_values_raise(guide, values, problem):
    def exponential():
        pyro.sample("z", dist.Exponential(torch.ones(2)).to_event(1))

    with pyro.validation_enabled(), pytest.raises(ValueError, match=problem):
        guide_log_prob(guide or exponential, values)


def test_what_is_missing_raises():
    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="held none of 'y'"):
        guide_log_prob(guide, {"z": torch.zeros(())})
    automatic = AutoNormal(model)
    with pytest.raises(ValueError, match="held none of 'share'"):
        guide_log_prob(automatic, {"rate": torch.tensor(1.0)})
    values = {"rate": torch.tensor(1.0), "share": torch.ones(3) / 3, "z": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match=r"`values` must hold 'z' in its shape \(4, 2\)"):
        guide_log_prob(automatic, values)
