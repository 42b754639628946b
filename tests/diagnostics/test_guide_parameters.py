"""Two guides of one class, trained one after the other: none is read for the other silently."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_sig.diagnostics import (
    draws_from,
    evidence_bounds,
    k_hat,
    log_importance_weights,
    to_inference_data,
)


def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    pyro.sample("x", dist.Normal(z, 0.1), obs=x)


def trained(x):
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(100):
        svi.step(x)
    return guide


@pytest.fixture
def two_guides():
    first = trained(torch.tensor(-5.0))
    pyro.clear_param_store()
    return first, trained(torch.tensor(5.0))


USES = [
    lambda guide: draws_from(guide, torch.tensor(0.0), num_samples=5),
    lambda guide: to_inference_data(model, guide, torch.tensor(0.0), num_samples=5),
    lambda guide: log_importance_weights(model, guide, torch.tensor(0.0), num_samples=5),
    lambda guide: k_hat(model, guide, torch.tensor(0.0), num_samples=50, progress=False),
    lambda guide: evidence_bounds(model, guide, torch.tensor(0.0), num_samples=2),
]


@pytest.mark.parametrize("use", USES)
def test_a_guide_whose_names_hold_other_parameters_is_refused(two_guides, use):
    first, second = two_guides
    with pytest.raises(ValueError, match=r"'AutoNormal.locs.z' differs, as after another training"):
        use(first)
    use(second)


def test_the_remedies_of_the_message_work(two_guides):
    first, second = two_guides
    pyro.clear_param_store()
    draws = draws_from(first, torch.tensor(0.0), num_samples=20)["z"]
    assert (draws < 0).all()
    with pytest.raises(ValueError, match="differs"):
        draws_from(second, torch.tensor(0.0), num_samples=20)
    second(torch.tensor(0.0))  # Pyro gives it what the store holds
    assert (draws_from(second, torch.tensor(0.0), num_samples=20)["z"] < 0).all()


def test_a_new_guide_takes_the_stored_parameters():
    trained(torch.tensor(-5.0))
    guide = AutoNormal(model)
    assert (draws_from(guide, torch.tensor(0.0), num_samples=20)["z"] < 0).all()


def test_a_guide_is_a_callable():
    with pytest.raises(ValueError, match="`guide` must be a function or a module, was 3"):
        draws_from(3)
