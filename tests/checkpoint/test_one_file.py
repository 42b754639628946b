"""Whatever trains is saved to one file and restored in place."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_sig.checkpoint import CheckpointError, load, save
from pyro_sig.infer import DIVI, AutoSemiImplicit
from tests.adversarial.programs import PushForward, make_gan

DATA = torch.linspace(-1.0, 1.0, 10)


def model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def svi(loss=None):
    return SVI(model, AutoNormal(model), pyro.optim.ClippedAdam({"lr": 0.1}), loss or Trace_ELBO())


def fresh(seed=0):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)


def test_svi_goes_on_in_a_new_process(tmp_path):
    fresh()
    one = svi()
    for _ in range(5):
        one.step(DATA)
    save(tmp_path / "a", one, DATA)
    after = [one.step(DATA) for _ in range(5)]
    fresh(9)
    other = svi()
    load(tmp_path / "a", other, DATA)
    assert [other.step(DATA) for _ in range(5)] == after


def test_saving_changes_nothing(tmp_path):
    def losses(every):
        fresh()
        guide = AutoSemiImplicit(model, hidden_dims=[4], num_mixing=5, find_scale=False)
        one = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), DIVI(hidden_dims=[4]))
        found = []
        for _ in range(6):
            found.append(one.step(DATA))
            if every:
                save(tmp_path / "a", one, DATA)
        return found

    assert losses(True) == losses(False)


def test_svi_is_restored_in_place(tmp_path):
    fresh()
    one = svi()
    one.step(DATA)
    save(tmp_path / "a", one, DATA)
    held = dict(pyro.get_param_store()._params.items())
    before = {name: p.detach().clone() for name, p in held.items()}
    one.step(DATA)
    load(tmp_path / "a", one, DATA)
    for name, param in pyro.get_param_store()._params.items():
        assert param is held[name]
        assert torch.equal(param, before[name])


def test_svi_needs_the_arguments_of_its_programs(tmp_path):
    fresh()
    one = svi()
    one.step(DATA)
    with pytest.raises(ValueError, match="`args` must be the arguments of a step of the SVI"):
        save(tmp_path / "a", one)


def test_a_trainer(tmp_path):
    def make():
        return make_gan(PushForward(), "torch")

    x = DATA.unsqueeze(-1).repeat(1, 2)
    fresh()
    one = make()
    one.step(x)
    save(tmp_path / "a", one)
    after = one.step(x)
    fresh(9)
    other = make()
    with pytest.raises(ValueError, match="`args` must be the arguments of a step of the trainer"):
        load(tmp_path / "a", other)
    load(tmp_path / "a", other, x)
    assert other.step(x) == after


def test_several_things_at_once(tmp_path):
    net = torch.nn.Linear(2, 1)
    optim = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optim, 1, gamma=0.5)
    generator = torch.Generator().manual_seed(3)
    everything = {"net": net, "others": [optim, schedule], "generator": generator}
    net(torch.ones(1, 2)).sum().backward()
    optim.step()
    schedule.step()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    save(tmp_path / "a", everything)
    weight = net.weight.detach().clone()
    drawn = torch.rand(2, generator=generator), torch.rand(2), np.random.rand(), random.random()
    torch.nn.init.zeros_(net.weight)
    schedule.step()
    load(tmp_path / "a", everything)
    assert torch.equal(net.weight, weight)
    assert optim.param_groups[0]["lr"] == 0.25
    again = torch.rand(2, generator=generator), torch.rand(2), np.random.rand(), random.random()
    assert str(drawn) == str(again)


def test_an_optimiser_of_pyro(tmp_path):
    fresh()
    one = svi()
    one.step(DATA)
    save(tmp_path / "a", one.optim)
    other = pyro.optim.ClippedAdam({"lr": 0.1})
    load(tmp_path / "a", other)
    assert set(other._state_waiting_to_be_consumed) == set(one.optim.get_state())


def test_what_has_no_state(tmp_path):
    with pytest.raises(ValueError, match=r"`inference\['b'\]\[0\]` must be SVI.*, was object"):
        save(tmp_path / "a", {"a": torch.nn.Linear(1, 1), "b": [object()]})


def test_another_object(tmp_path):
    save(tmp_path / "a", {"net": torch.nn.Linear(2, 1)})
    for other, message in (
        ({"net": torch.nn.Linear(3, 1)}, r"`inference\['net'\]` must be built as the Linear that"),
        ({"net": torch.nn.Bilinear(2, 1, 1)}, "kind of object that was saved, Linear, but was Bil"),
        ({"critic": torch.nn.Linear(2, 1)}, r"must hold \['net'\] as what was saved, but held"),
        ([torch.nn.Linear(2, 1)], "must be the kind of object that was saved, dict, but was list"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "a", other)


def part(width=2, params=2, kind=torch.optim.Adam):
    first, last = torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(width)
    optim = kind([torch.nn.Parameter(torch.ones(())) for _ in range(params)], lr=0.1)
    return {"first": first, "rest": [{"optim": optim}, last]}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"width": 3},
            r"`inference\['rest'\]\[1\]` .* saved: 'weight' was \(2,\), is \(3,\); 'bia",
        ),
        ({"params": 3}, r"`inference\['rest'\]\[0\]\['optim'\]` .* 'group 0' was 2, is 3"),
        ({"kind": torch.optim.SGD}, "kind of object that was saved, Adam, but was SGD"),
    ],
)
def test_a_refusal_changes_no_part(options, problem, tmp_path):
    save(tmp_path / "a", part())
    other = part(**options)
    before = other["first"].weight.clone()
    with pytest.raises(ValueError, match=problem):
        load(tmp_path / "a", other)
    assert torch.equal(other["first"].weight, before)


def test_a_network_that_loads_in_its_own_way(tmp_path):
    class Lenient(torch.nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            state_dict[prefix + "weight"] = state_dict[prefix + "weight"][:, : self.in_features]
            super()._load_from_state_dict(state_dict, prefix, *args)

    saved, net = Lenient(3, 1), Lenient(2, 1)
    save(tmp_path / "a", saved)
    load(tmp_path / "a", net)
    assert torch.equal(net.weight, saved.weight[:, :2])


def test_the_random_state_is_left_alone_if_asked(tmp_path):
    fresh()
    one = svi()
    one.step(DATA)
    save(tmp_path / "a", one, DATA)
    drawn = torch.rand(1), np.random.rand(), random.random()
    for kept, same in ((True, True), (False, False)):
        fresh(7)
        load(tmp_path / "a", svi(), DATA, random_state=kept)
        assert ((torch.rand(1), np.random.rand(), random.random()) == drawn) is same
    fresh(7)
    other = torch.rand(1), np.random.rand(), random.random()
    fresh(7)
    load(tmp_path / "a", svi(), DATA, random_state=False)
    assert (torch.rand(1), np.random.rand(), random.random()) == other
    with pytest.raises(ValueError, match="`random_state` must be True or False, was 1"):
        load(tmp_path / "a", svi(), DATA, random_state=1)


def test_other_files(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(CheckpointError):
        load(tmp_path / "a", torch.nn.Linear(1, 1))
    with pytest.raises(OSError, match="No such file"):
        load(tmp_path / "b", torch.nn.Linear(1, 1))
