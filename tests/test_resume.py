"""Long examples go on where they were killed, to the same end."""

import importlib.util
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sig.adversarial import GAN, PsiView, penalties
from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO
from pyro_sig.nn import MLP

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def resume():
    spec = importlib.util.spec_from_file_location("_resume", FOLDER / "_resume.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["_resume"] = module
    spec.loader.exec_module(module)
    return module


def noise():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def gan_si(_):
    net, critic = MLP(2, [8], 2), MLP(2, [8], 1)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise(), event_shape=2))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    optims = [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (net, critic)]
    options = {"elbo": SIG_ELBO(16, max_plate_nesting=1), "elbo_weight": "balance", "ema": 0.9}
    trainer = GAN(
        model, critic, *optims, penalties=penalties.R1(1.0), view=PsiView("psi"), **options
    )
    return trainer, net, optims


def sig(module):
    net = MLP(2, [8], 2)

    def model(x):
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise(), event_shape=2))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    elbo = SIG_ELBO(16, max_plate_nesting=1)
    optim = torch.optim.Adam(net.parameters(), lr=1e-2)
    steps = module.GradientSteps(
        lambda x: elbo.differentiable_loss(model, lambda x: None, x), {"net": net}, optim
    )
    return steps, net, [optim]


class Killed(Exception):
    """Stands for a signal."""


@pytest.mark.parametrize("make", [gan_si, sig])
def test_a_killed_run_ends_as_an_uninterrupted_one(make, resume, tmp_path):
    def run(path, killed_at=None):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        inference, net, optims = make(resume)
        schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in optims]
        seen = []

        def batch(step):
            if step == killed_at:
                raise Killed
            seen.append(step)
            return torch.randn(8, 2)

        taken, seconds = resume.train_resumable(
            path, {"a": 1}, inference, batch, 25, schedules=schedules, every=10, progress=False
        )
        assert taken == 25
        assert seconds > 0
        return [p.detach().clone() for p in net.parameters()], seen

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", killed_at=17)
    again, seen = run(tmp_path / "killed")
    assert seen == list(range(10, 25))  # from the last save on
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_other_settings_begin_anew(resume, tmp_path):
    for settings in ({"a": 1}, {"a": 2}):
        inference, _, _ = sig(resume)
        seen = []

        def batch(step, seen=seen):
            seen.append(step)
            return torch.randn(8, 2)

        resume.train_resumable(tmp_path / "x", settings, inference, batch, 3, progress=False)
        assert seen == [0, 1, 2]


def test_time_ends_a_run_and_is_counted_over_its_parts(resume, tmp_path):
    done = []
    for _ in range(2):
        inference, _, _ = sig(resume)
        taken, seconds = resume.train_resumable(
            tmp_path / "x",
            {},
            inference,
            lambda step: torch.randn(8, 2),
            10**6,
            seconds=0.3,
            on_progress=done.append,
            progress=False,
        )
        assert 0 < taken < 10**6
        assert seconds >= 0.3
    assert max(done) == 1.0
    assert done == sorted(done)
