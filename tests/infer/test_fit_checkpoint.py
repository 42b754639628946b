"""A fit that was killed ends as one that was not."""

import itertools
import random
import sys
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_sig.infer import KSIVI, AutoSemiImplicit, NonFiniteGradientError, fit

Y = torch.tensor([0.3, -1.2, 2.0, 0.7])
BUDGET = 60


def model(y, scale=0.5):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), scale), obs=y)


class Killed(BaseException):
    """Stands for a signal."""


def own_loss(model, guide, *args, **kwargs):
    return Trace_ELBO().differentiable_loss(model, guide, *args, **kwargs)


KINDS = {
    "by default": lambda: {},
    "annealed": lambda: {"annealing": 0.8},
    "KSIVI": lambda: {
        "guide": AutoSemiImplicit(model, hidden_dims=[8], num_mixing=8),
        "loss": KSIVI(),
    },
    "another guide": lambda: {"guide": AutoNormal(model)},
    "a function": lambda: {"guide": AutoNormal(model), "loss": own_loss},
}


def run(kind, folder=None, killed_at=None, seed=3, **options):
    """Fits as a new process does; returns all that the fit found, and the next draws."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    found = {"budget": BUDGET, "progress": False, "every": 7, "checkpoint": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[fit.__module__], "_WEIGHT_MIXING", 50)  # a k-hat in no time
        if killed_at is not None:
            advance = "pyro_sig.infer._fit_schedule.Schedule.advance"
            patch.setattr(advance, dying(killed_at))
        result = fit(model, Y, scale=0.7, **(found | KINDS[kind]() | options))
    store = pyro.get_param_store()
    tensors = {name: p.detach().clone() for name, p in sorted(store._params.items())}
    tensors |= {name: buffer.clone() for name, buffer in result.guide.named_buffers()}
    draws = torch.rand(3), np.random.rand(), random.random()
    return tensors, result, draws


def dying(killed_at):
    from pyro_sig.infer._fit_schedule import Schedule

    advance = Schedule.advance

    def advance_or_die(self, loss):
        if self.step == killed_at:
            raise Killed
        advance(self, loss)

    return advance_or_die


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    (first, second) = one[1], other[1]
    assert dict(first.history) == dict(second.history)
    assert first.history.stopped == second.history.stopped
    assert repr(first[2:]) == repr(second[2:])  # by their words: a k-hat may be NaN
    assert torch.equal(one[2][0], other[2][0])
    assert one[2][1:] == other[2][1:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_fit_ends_as_an_uninterrupted_one(kind, tmp_path):
    whole = run(kind)
    # Before the first checkpoint, while the rate is constant, in the average.
    for killed_at in (3, 20, 52):
        folder = tmp_path / str(killed_at)
        with pytest.raises(Killed):
            run(kind, folder, killed_at)
        # The new process has drawn other numbers, and finds another scale.
        assert_same(run(kind, folder, seed=5 if killed_at > 7 else 3), whole)
        assert_same(run(kind, folder, seed=7), whole)  # nothing is left to do


def test_a_fit_that_is_level_early_takes_no_step_more(tmp_path):
    options = {"budget": 1200, "every": 500}
    whole = run("another guide", **options)
    assert whole[1].converged and whole[1].history.num_steps < 1200
    assert_same(run("another guide", tmp_path, **options), whole)
    again = run("another guide", tmp_path, seed=5, **options)
    assert_same(again, whole)
    assert again[1].history.seconds > 0


def test_the_clock_goes_on(tmp_path, monkeypatch):
    ticks = itertools.count()  # a hundredth of a second at every look
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 100)
    for module in (fit.__module__, "pyro_sig.infer._fit_schedule"):
        monkeypatch.setattr(sys.modules[module], "time", clock)
    options = {"budget": None, "max_seconds": 1.0}
    with pytest.raises(Killed):
        run("another guide", tmp_path, killed_at=20, **options)
    first = run("another guide", tmp_path, **options)[1]
    assert 80 < first.history.num_steps < 110  # of which a checkpoint takes some
    again = run("another guide", tmp_path, seed=5, **options)[1]
    assert dict(again.history) == dict(first.history)


@pytest.mark.parametrize(
    ("name", "value"), [("annealing", 0.5), ("max_seconds", 9.0), ("budget", 80)]
)
def test_other_settings_are_another_fit(name, value, tmp_path):
    run("another guide", tmp_path, budget=20)
    with pytest.raises(ValueError, match=f"`{name}` must be that of the run.*another folder"):
        run("another guide", tmp_path, **({"budget": 20} | {name: value}))


def test_resume_insists(tmp_path):
    with pytest.raises(ValueError, match="`checkpoint` must hold a checkpoint where `resume`"):
        run("another guide", tmp_path, resume=True, budget=10)
    run("another guide", tmp_path, budget=10, keep=1)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-000000010.ckpt"]
    with pytest.raises(ValueError, match="without checkpoints where `resume` is False"):
        run("another guide", tmp_path, resume=False, budget=10)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_an_error_names_the_last_checkpoint(tmp_path):
    def loss(model, guide, *args, **kwargs):
        loss.calls += 1
        value = own_loss(model, guide, *args, **kwargs)
        return value * torch.nan if loss.calls > 10 else value

    loss.calls = 0
    with pytest.raises(NonFiniteGradientError, match="step-000000007.ckpt"):
        run("a function", tmp_path, loss=loss)
