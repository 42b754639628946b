"""A run that was killed ends as one that was not."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from pyro.nn import PyroModule
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_sig.adversarial import GAN, PsiView, penalties
from pyro_sig.checkpoint import CheckpointError, CheckpointWarning
from pyro_sig.distributions import Implicit
from pyro_sig.infer import (
    AISIVI,
    DIVI,
    KSIVI,
    SIG_ELBO,
    SIVISM,
    UIVI,
    AutoSemiImplicit,
    NonFiniteLossError,
    StopTraining,
    train,
)
from pyro_sig.nn import MLP

NUM_STEPS = 12
DATA = torch.linspace(-1.0, 2.0, 40).reshape(20, 2)


def noise(size=2):
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


class Normalised(torch.nn.Module):
    """Has buffers that every step changes."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        )

    def forward(self, x):
        return self.layers(x)


def sig(optim=None):
    net = Normalised()

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise(), event_shape=2))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    optim = optim or pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99})
    return SVI(model, lambda x: None, optim, SIG_ELBO(16)), [net]


def scheduled():
    options = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8}
    return sig(pyro.optim.ExponentialLR(options, clip_args={"clip_norm": 1.0}))


def regression(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * w).sum(-1), scale), obs=x.sum(-1))


def posterior(loss):
    def make():
        guide = AutoSemiImplicit(regression, num_mixing=8, hidden_dims=[8], find_scale=False)
        return SVI(regression, guide, pyro.optim.Adam({"lr": 1e-2}), loss()), [guide]

    return make


def low_rank():
    guide = AutoLowRankMultivariateNormal(regression, rank=1)
    return SVI(regression, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()), [guide]


class Baseline(PyroModule):
    """Predicts the cost of each row."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def forward(self, x):
        return self.net(x).squeeze(-1)


def baseline(network):
    """Discrete sites with a baseline that Pyro keeps: a network, or an average in the store."""

    def make():
        net = Baseline()

        def model(x):
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Bernoulli(0.4))
                law = dist.Normal(k.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1)
                pyro.sample("x", law, obs=x)

        def guide(x):
            options = {"use_decaying_avg_baseline": True}
            if network:
                pyro.module("baseline", net)
                options = {"nn_baseline": net, "nn_baseline_input": x}
            logits = pyro.param("logits", torch.zeros(20))
            with pyro.plate("data", len(x)):
                pyro.sample("k", dist.Bernoulli(logits=logits), infer={"baseline": options})

        loss = TraceGraph_ELBO(max_plate_nesting=1)
        return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss), [net] if network else []

    return make


def gan_si():
    net, critic = MLP(2, [8], 2), MLP(2, [8], 1)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise(), event_shape=2))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    optims = [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (net, critic)]
    options = {"elbo": SIG_ELBO(16), "elbo_weight": "balance", "ema": 0.9}
    view = PsiView("psi")
    return GAN(model, critic, *optims, penalties=penalties.R1(1.0), view=view, **options), [
        net,
        critic,
    ]


KINDS = {
    "sig with batch normalisation": sig,
    "a Pyro schedule and clipping": scheduled,
    "low-rank Normal guide": low_rank,
    "network baseline": baseline(network=True),
    "decaying baseline": baseline(network=False),
    "GAN-SI": gan_si,
    "SIVI": posterior(lambda: Trace_ELBO(num_particles=4, vectorize_particles=True)),
    "KSIVI": posterior(KSIVI),
    "SIVISM": posterior(lambda: SIVISM(hidden_dims=[8])),
    "UIVI": posterior(lambda: UIVI(num_particles=4, num_burn=1, num_samples=1)),
    "DIVI": posterior(lambda: DIVI(hidden_dims=[8])),
    "AISIVI": posterior(lambda: AISIVI(hidden_dims=[8])),
}


class Killed(BaseException):
    """Stands for a signal."""


def run(make, folder=None, killed_at=None, batches=None, seed=3, every=4, **options):
    """Builds everything anew, as a new process does; returns the final tensors and the history."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    inference, networks = make()

    def kill(step, loss, inference):
        if step == killed_at:
            raise Killed

    history = train(
        inference,
        DATA if batches is None else batches(),
        NUM_STEPS,
        callbacks=[kill],
        progress=False,
        checkpoint=folder,
        every=every,
        **options,
    )
    store = pyro.get_param_store()
    tensors = {name: p.detach().clone() for name, p in sorted(store._params.items())}
    for i, network in enumerate(networks):
        tensors |= {f"{i}.{n}": t.clone() for n, t in network.state_dict().items()}
    draws = torch.rand(3), np.random.rand(), random.random()
    return tensors, dict(history), draws


def assert_same(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert torch.equal(one[2][0], other[2][0])
    assert one[2][1:] == other[2][1:]


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_run_ends_as_an_uninterrupted_one(name, tmp_path):
    make = KINDS[name]
    whole = run(make)
    for killed_at in (2, 6, 11):  # before the first checkpoint, between two, after the last
        folder = tmp_path / str(killed_at)
        with pytest.raises(Killed):
            run(make, folder, killed_at)
        # The new process has drawn other numbers, and has other initial values.
        assert_same(run(make, folder, seed=5 if killed_at > 4 else 3), whole)
        assert_same(run(make, folder, seed=7), whole)  # nothing is left to do


def test_a_checkpoint_changes_nothing_of_the_run(tmp_path):
    assert_same(run(sig, tmp_path), run(sig))


class Stateful:
    """Batches that depend on what was drawn before, and can say where they are."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, step):
        return torch.randn(20, 2, generator=self.generator)

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


def loader(**options):
    return DataLoader(TensorDataset(torch.arange(26.0).reshape(13, 2)), shuffle=True, **options)


def rows_of(step):
    with torch.random.fork_rng():
        torch.manual_seed(step)
        return torch.randn(20, 2)


@pytest.mark.parametrize(
    "batches",
    [
        lambda: rows_of,
        lambda: lambda step: torch.randn(20, 2),
        Stateful,
        lambda: [DATA, 2 * DATA, 3 * DATA],
        lambda: loader(batch_size=4, drop_last=True),
        lambda: loader(batch_size=4, generator=torch.Generator().manual_seed(2)),
        lambda: iter([k * DATA for k in range(NUM_STEPS)]),
    ],
    ids=["of the step", "random", "stateful", "list", "loader", "own generator", "iterator"],
)
@pytest.mark.parametrize("killed_at", [6, 9])
def test_the_order_of_the_data_goes_on(batches, killed_at, tmp_path):
    whole = run(gan_si, batches=batches)
    with pytest.raises(Killed):
        run(gan_si, tmp_path, killed_at, batches)
    assert_same(run(gan_si, tmp_path, None, batches, seed=5), whole)


@pytest.mark.parametrize("killed_at", [5, 7, 8, 9, 10])  # passes of 4 batches, saved every 4 steps
@pytest.mark.parametrize("every", [3, 4])
def test_the_epoch_of_a_sampler_goes_on(killed_at, every, tmp_path):
    """The order of a DistributedSampler is that of its epoch, which a callback sets."""

    def run(folder, killed_at):
        pyro.clear_param_store()
        torch.manual_seed(0)
        sampler = DistributedSampler(DATA, num_replicas=1, rank=0)
        loader = DataLoader(DATA, batch_size=5, sampler=sampler)
        seen = []

        def shuffle(step, loss, inference):
            sampler.set_epoch((step + 1) // len(loader))
            if step == killed_at:
                raise Killed

        def model(x):
            seen.append(x.clone())
            law = dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0)
            pyro.sample("x", law.expand(x.shape).to_event(2), obs=x)

        svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        options = {"progress": False, "checkpoint": folder, "every": every, "check_training": False}
        try:
            train(svi, loader, 16, callbacks=[shuffle], **options)
        except Killed:
            pass
        return seen, pyro.param("loc").detach().clone()

    whole, loc = run(None, None)
    run(tmp_path, killed_at)
    rest, again = run(tmp_path, None)
    last = 16 - killed_at // every * every
    assert all(torch.equal(a, b) for a, b in zip(whole[-last:], rest[-last:], strict=True))
    assert torch.equal(loc, again)


def test_schedules_of_torch_go_on(tmp_path):
    def go(folder, stop_after):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        gan, _ = gan_si()
        schedule = torch.optim.lr_scheduler.MultiStepLR(gan.critic_optim, [2, 5, 9], gamma=0.5)

        def stop(step, loss, inference):
            if step == stop_after:
                raise StopTraining

        train(gan, DATA, NUM_STEPS, callbacks=[schedule, stop], progress=False, checkpoint=folder)
        return schedule.get_last_lr()

    assert go(tmp_path / "a", None) == [1e-2 * 0.5**3]
    go(tmp_path / "b", 6)
    assert go(tmp_path / "b", None) == [1e-2 * 0.5**3]


def test_a_stopped_run_is_saved_where_it_stopped(tmp_path):
    def stop(step, loss, inference):
        raise StopTraining

    inference, _ = sig()
    history = train(inference, DATA, 5, callbacks=[stop], progress=False, checkpoint=tmp_path)
    assert (history.num_steps, history.stopped) == (1, True)
    pyro.clear_param_store()
    inference, _ = sig()
    history = train(inference, DATA, 5, progress=False, checkpoint=tmp_path)
    assert (history.num_steps, len(history["loss"]), history.stopped) == (5, 5, False)


def test_seconds_are_those_of_all_parts(tmp_path):
    inference, _ = sig()
    first = train(inference, DATA, 4, progress=False, checkpoint=tmp_path)
    pyro.clear_param_store()
    inference, _ = sig()
    assert train(inference, DATA, 8, progress=False, checkpoint=tmp_path).seconds > first.seconds


def test_the_last_files_are_kept(tmp_path):
    train(sig()[0], DATA, 10, progress=False, checkpoint=tmp_path, every=2, keep=2)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-000000008.ckpt", "step-000000010.ckpt"]


def test_a_damaged_file_is_passed_over(tmp_path):
    whole = run(sig)
    with pytest.raises(Killed):
        run(sig, tmp_path, 9)
    newest = tmp_path / "step-000000008.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(CheckpointWarning, match=r"step 8 is passed over.*cut off"):
        again = run(sig, tmp_path, seed=5)
    assert_same(again, whole)
    assert (tmp_path / "step-000000008.unreadable").exists()


def test_only_damaged_files_are_an_error(tmp_path):
    train(sig()[0], DATA, 4, progress=False, checkpoint=tmp_path)
    (tmp_path / "step-000000004.ckpt").write_bytes(b"pyro_sig checkpoint 99 0\n")
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="newer pyro_sig"):
        train(sig()[0], DATA, 4, progress=False, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be a positive integer, was 0"),
        ({"keep": 0}, "`keep` must be a positive integer, was 0"),
        ({"resume": "yes"}, "`resume` must be True, False or 'auto', was 'yes'"),
        ({"resume": True}, "`checkpoint` must hold a checkpoint where `resume` is True"),
    ],
)
def test_arguments(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(sig()[0], DATA, 1, progress=False, checkpoint=tmp_path, **options)


def test_a_folder_of_another_run(tmp_path):
    train(sig()[0], DATA, 4, progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"where `resume` is False, but .* has those of steps \[4"):
        train(sig()[0], DATA, 4, progress=False, checkpoint=tmp_path, resume=False)
    with pytest.raises(ValueError, match="must be the kind of object that was saved, SVI, but"):
        train(gan_si()[0], DATA, 5, progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="one of step 4, more than `num_steps`, 3"):
        train(sig()[0], DATA, 3, progress=False, checkpoint=tmp_path)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match="must hold the params"):
        train(low_rank()[0], DATA, 5, progress=False, checkpoint=tmp_path)
    schedule = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 0.1), 1)
    with pytest.raises(ValueError, match="`callbacks` must have the 0 with a state"):
        train(sig()[0], DATA, 5, callbacks=[schedule], progress=False, checkpoint=tmp_path)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: {"x": x},
        lambda x: x.numpy(),
        lambda x: [x, x],
        lambda x: DataLoader(TensorDataset(x), batch_size=20),
    ],
)
def test_other_data_are_another_run(wrap, finished, tmp_path):
    def run(x, num_steps):
        pyro.clear_param_store()
        net = torch.nn.Linear(2, 2)
        optim = torch.optim.SGD(net.parameters(), 0.1)

        class Fits:
            def step(self, x):
                optim.zero_grad()
                loss = net(torch.as_tensor(x)).square().mean()
                loss.backward()
                optim.step()
                return loss.item()

            def state_dict(self):
                return net.state_dict()

            def load_state_dict(self, state):
                net.load_state_dict(state)

        train(Fits(), wrap(x), num_steps, checkpoint=tmp_path, progress=False)
        return net.weight.detach().clone()

    found = run(DATA, 3)
    more = 3 if finished else 4
    other = DATA.clone()
    other[-1, -1] += 1e-3
    for data in (other, DATA[:-1], DATA.double()):
        with pytest.raises(ValueError, match="`batches` must be the data of the run"):
            run(data, more)
    assert torch.equal(run(DATA.clone(), 3), found)


def test_what_has_no_state_is_refused(tmp_path):
    class Step:
        def step(self):
            return 0.0

    with pytest.raises(ValueError, match="must be SVI, .*, was Step"):
        train(Step(), (), 1, progress=False, checkpoint=tmp_path)


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    def another(step, loss, inference):
        with pytest.raises(ValueError, match="no other process uses, but .* is in use"):
            train(sig()[0], DATA, 1, progress=False, checkpoint=tmp_path)

    train(sig()[0], DATA, 1, callbacks=[another], progress=False, checkpoint=tmp_path)
    train(sig()[0], DATA, 1, progress=False, checkpoint=tmp_path)


class Diverging(torch.nn.Linear):
    """Has a loss that is not finite from some step on."""

    num_steps = 0

    def step(self):
        self.num_steps += 1
        return 1.0 if self.num_steps < 6 else float("nan")


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path):
    options = {"progress": False, "check_training": False}
    with pytest.raises(NonFiniteLossError, match="data outside of the support.$"):
        train(Diverging(1, 1), (), 8, **options)
    with pytest.raises(NonFiniteLossError, match=r"last checkpoint is .*step-000000004\.ckpt") as e:
        train(Diverging(1, 1), (), 8, checkpoint=tmp_path, every=2, **options)
    assert e.value.checkpoint == tmp_path / "step-000000004.ckpt"
