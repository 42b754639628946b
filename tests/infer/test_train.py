import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_sig.infer.train import History, NonFiniteLossError, StopTraining, train

DATA = torch.linspace(-1.0, 1.0, 6).reshape(3, 2)


@pytest.fixture(autouse=True)
def fresh_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


class Recorder:
    """Records its arguments; its loss is the step number unless given."""

    def __init__(self, losses=None):
        self.calls = []
        self.losses = losses

    def step(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return float(len(self.calls) - 1) if self.losses is None else self.losses.pop(0)


def no_guide(*args):
    pass


def svi_for(model, guide=no_guide, optim=None, loss=None):
    return SVI(model, guide, optim or pyro.optim.Adam({"lr": 0.01}), loss or Trace_ELBO())


def location_model(data):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("row", len(data)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=data)


# ---------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (DATA, ((DATA,), {})),
        ((DATA, 3), ((DATA, 3), {})),
        ((), ((), {})),
        ({"data": DATA}, ((), {"data": DATA})),
        (lambda step: (DATA, step * 0), ((DATA, 0), {})),
        (lambda step: DATA, ((DATA,), {})),
        ([DATA], ((DATA,), {})),
        ([[DATA, 1]], ((DATA, 1), {})),
        ([{"data": DATA}], ((), {"data": DATA})),
    ],
)
def test_batches_become_the_arguments_of_every_step(batches, expected):
    inference = Recorder()
    train(inference, batches, 3, progress=False)
    assert len(inference.calls) == 3
    for args, kwargs in inference.calls:
        assert len(args) == len(expected[0]) and kwargs.keys() == expected[1].keys()
        assert all(a is b for a, b in zip(args, expected[0], strict=True))
        assert all(kwargs[name] is expected[1][name] for name in kwargs)


def test_callable_batches_receive_the_step():
    inference = Recorder()
    train(inference, lambda step: (step,), 4, progress=False)
    assert [args for args, _ in inference.calls] == [(0,), (1,), (2,), (3,)]


def test_data_loader_begins_again_when_exhausted():
    loader = DataLoader(TensorDataset(torch.arange(5), torch.arange(5) + 10), batch_size=2)
    inference = Recorder()
    train(inference, loader, 7, progress=False)
    firsts = [args[0].tolist() for args, _ in inference.calls]
    assert firsts == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4], [0, 1]]
    assert all(torch.equal(args[1], args[0] + 10) for args, _ in inference.calls)


def test_exhausted_iterator_names_the_step():
    with pytest.raises(ValueError, match=r"`batches`.*exhausted at step 2"):
        train(Recorder(), iter([DATA, DATA]), 3, progress=False)
    train(Recorder(), iter([DATA, DATA]), 2, progress=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inference": object()}, r"`inference` must be an object with a method `step`"),
        (
            {"inference": torch.optim.SGD([torch.ones(1, requires_grad=True)])},
            r"`inference` must have a `step` that takes the batches.*an optimiser, SGD",
        ),
        ({"num_steps": -1}, r"`num_steps` must be an integer of at least 0, was -1"),
        ({"num_steps": 2.0}, r"`num_steps`.*2\.0"),
        ({"batches": 3}, r"`batches` must be a tensor.*, was 3"),
        ({"batches": []}, r"`batches` must yield a batch, was empty at step 0"),
        ({"callbacks": [1]}, r"`callbacks` must be an iterable of callables"),
        ({"callbacks": print}, r"`callbacks` must be an iterable of callables"),
        ({"callbacks": torch.zeros(())}, r"`callbacks` must be an iterable of callables"),
        ({"check_training": torch.ones(2)}, r"`check_training` must be True or False"),
        ({"checkpoint": 3}, r"`checkpoint` must be the path of a folder, was 3"),
        ({"checkpoint": ""}, r"`checkpoint` must be the path of a folder, was ''"),
        ({"inference": Recorder(["a"])}, r"`inference.step` must return a float.*'a' at step 0"),
        ({"inference": Recorder([DATA])}, r"`inference.step` must return a float"),
    ],
)
def test_bad_arguments(change, match):
    arguments = {"inference": Recorder(), "batches": DATA, "num_steps": 1, "progress": False}
    with pytest.raises(ValueError, match=match):
        train(**{**arguments, **change})


# ----------------------------------------------------------------------------- losses and callbacks


def test_history_of_numbers_tuples_and_dicts():
    assert train(Recorder(), DATA, 3, progress=False)["loss"] == [0.0, 1.0, 2.0]
    history = train(Recorder([torch.tensor(4.0)]), DATA, 1, progress=False)
    assert history["loss"] == [4.0]
    history = train(Recorder([(1.0, 2.0), (3.0, 4.0)]), DATA, 2, progress=False)
    assert dict(history) == {"loss_0": [1.0, 3.0], "loss_1": [2.0, 4.0]}
    # A loss that is not reported at every step keeps its place.
    losses = [{"critic": 1.0}, {"critic": 2.0, "penalty": 3.0}, {"critic": 4.0}]
    history = train(Recorder(losses), DATA, 3, progress=False)
    assert history["critic"] == [1.0, 2.0, 4.0]
    assert history["penalty"][1] == 3.0
    assert math.isnan(history["penalty"][0]) and math.isnan(history["penalty"][2])
    assert isinstance(history, History) and history.num_steps == 3 and not history.stopped
    assert history.seconds > 0
    assert repr(history).startswith("History(num_steps=3, critic=4")


def test_no_steps():
    history = train(Recorder(), DATA, 0, progress=False)
    assert history.num_steps == 0 and len(history) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_stops_and_names_the_step(bad):
    inference = Recorder([1.0, bad, 2.0])
    with pytest.raises(NonFiniteLossError, match=rf"'loss' was {bad} at step 1") as caught:
        train(inference, DATA, 3, progress=False)
    assert len(inference.calls) == 2
    assert caught.value.step == 1 and caught.value.name == "loss"
    assert caught.value.history["loss"][0] == 1.0
    assert isinstance(caught.value, ValueError)


def test_non_finite_loss_of_a_dict_names_the_loss():
    with pytest.raises(ValueError, match=r"'critic' was nan at step 0"):
        train(Recorder([{"generator": 1.0, "critic": math.nan}]), DATA, 1, progress=False)


def test_callbacks_run_in_order_and_can_stop():
    seen = []

    def first(step, loss, inference):
        seen.append(("first", step, loss))
        return True  # what a callback returns is ignored

    def second(step, loss, inference):
        seen.append(("second", step, inference))
        if step == 1:
            raise StopTraining

    inference = Recorder()
    history = train(inference, DATA, 10, callbacks=[first, second], progress=False)
    assert seen == [
        ("first", 0, 0.0),
        ("second", 0, inference),
        ("first", 1, 1.0),
        ("second", 1, inference),
    ]
    assert history.stopped and history.num_steps == 2


def test_interrupt_carries_the_history():
    def interrupt(step, loss, inference):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        train(Recorder(), DATA, 10, callbacks=[interrupt], progress=False)
    assert caught.value.history["loss"] == [0.0, 1.0, 2.0]


def test_progress_bar_shows_loss_and_rate(capsys):
    train(svi_for(location_model, optim=pyro.optim.Adam({"lr": 0.025})), DATA, 3, progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "loss=" in shown and "lr=2.50e-02" in shown
    train(svi_for(location_model), DATA, 3, progress=False)
    assert capsys.readouterr().err == ""


# -------------------------------------------------------------------------------- schedules, losses


def test_schedule_of_svi_advances_at_every_step(capsys):
    optim = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, "gamma": 0.5}
    )
    train(svi_for(location_model, optim=optim), DATA, 3, progress=True)
    (scheduler,) = optim.optim_objs.values()
    assert scheduler.optimizer.param_groups[0]["lr"] == 0.125
    assert "lr=1.25e-01" in capsys.readouterr().err


def test_schedule_of_torch_among_the_callbacks_advances_at_every_step():
    class Trainer:
        loss_names = ("first", "second")

        def __init__(self):
            self.optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

        def step(self):
            self.optim.step()
            return 1.0, 2.0

    trainer = Trainer()
    schedule = torch.optim.lr_scheduler.ExponentialLR(trainer.optim, 0.5)
    history = train(trainer, (), 3, callbacks=[schedule], progress=False)
    assert trainer.optim.param_groups[0]["lr"] == 0.125
    assert dict(history) == {"first": [1.0] * 3, "second": [2.0] * 3}


def test_plateau_schedule_of_torch_is_told_the_loss_by_a_callback():
    optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optim, factor=0.5, patience=0)
    inference = Recorder()
    with pytest.raises(ValueError, match=r"`callbacks` must have no ReduceLROnPlateau.*lambda"):
        train(inference, (), 3, callbacks=[plateau], progress=False)
    assert not inference.calls
    # What the message says: of the losses 2, 1, 1, 1 the last two do not improve.
    inference = Recorder([2.0, 1.0, 1.0, 1.0])
    tell = [lambda step, loss, inference: plateau.step(loss)]
    train(inference, (), 4, callbacks=tell, progress=False)
    assert optim.param_groups[0]["lr"] == 0.25


def test_plateau_schedule_sees_the_loss():
    optim = pyro.optim.ReduceLROnPlateau(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-9}, "factor": 0.1, "patience": 0}
    )
    # Nothing improves, so every step but the first is a plateau.
    train(svi_for(location_model, optim=optim), DATA, 2, progress=False)
    (scheduler,) = optim.optim_objs.values()
    assert scheduler.num_bad_epochs == 0 and scheduler.last_epoch == 2


def test_tuple_losses_of_reweighted_wake_sleep():
    def model(data):
        z = pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
        with pyro.plate("row", 3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[:, 0])

    def guide(data):
        pyro.sample("z", dist.Normal(pyro.param("q", torch.tensor(0.0)), 1.0))

    svi = svi_for(model, guide, loss=ReweightedWakeSleep(num_particles=3))
    assert set(train(svi, DATA, 2, progress=False)) == {"loss_0", "loss_1"}


# -------------------------------------------------------------------------------- what never trains


def planted_closure():
    net = nn.Linear(2, 2)

    def model(data):
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(net(data), 1.0).to_event(1), obs=data)

    return svi_for(model)


def planted_closure_beside_a_trained_parameter():
    net = nn.Linear(2, 2)

    def model(data):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(net(data), scale).to_event(1), obs=data)

    return svi_for(model)


class Late(dist.TorchDistribution):
    """Touches its network and its parameters in log_prob only."""

    support = dist.constraints.real_vector
    arg_constraints = {}

    def __init__(self, net, batch_shape):
        self.net = net
        super().__init__(batch_shape, torch.Size([2]))

    def expand(self, batch_shape, _instance=None):
        return Late(self.net, torch.Size(batch_shape))

    def sample(self, sample_shape=()):
        return torch.zeros(torch.Size(sample_shape) + self.batch_shape + (2,))

    def log_prob(self, value):
        return -(value - self.net(value)).square().sum(-1)


def planted_log_prob():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)
            self.loc = PyroParam(torch.zeros(2))

        def forward(self, data):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1), obs=torch.zeros(2))
            with pyro.plate("row", len(data)):
                pyro.sample("x", Late(lambda v: self.net(v), torch.Size([])), obs=data)

    return svi_for(Model())


def late_param_model(data):
    with pyro.plate("row", len(data)):
        pyro.sample("x", Late(lambda v: pyro.param("late", torch.zeros(2)), ()), obs=data)


def planted_late_param_alone():
    # SVI captures it, but Trace_ELBO finds no parameter in its traces and does not go backward.
    return svi_for(late_param_model)


def planted_blocked_param():
    # Hidden from SVI, as a parameter is that another trace captures first.
    return svi_for(pyro.poutine.block(location_model, hide=["loc"]))


def planted_pyro_module_attribute_in_log_prob():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.zeros(2))
            self.late = nn.Parameter(torch.zeros(2))

        def forward(self, data):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1), obs=torch.zeros(2))
            with pyro.plate("row", len(data)):
                pyro.sample("x", Late(lambda v: self.late, ()), obs=data)

    return svi_for(Model())


def planted_param_outside():
    outside = pyro.param("outside", torch.zeros(2))

    def model(data):
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(outside, scale).to_event(1), obs=data)

    return svi_for(model)


def planted_methods_of_a_pyro_module():
    class VAE(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(2, 2)

        def model(self, data):  # not through __call__, so nothing is registered
            with pyro.plate("row", len(data)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=data)

    def guide(data):
        loc = pyro.param("q", torch.zeros(2))
        with pyro.plate("row", len(data)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return svi_for(VAE().model, guide)


def planted_name_in_use():
    pyro.module("net", nn.Linear(2, 2))
    net = nn.Linear(2, 2)

    def model(data):
        pyro.module("net", net)
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(net(data), 1.0).to_event(1), obs=data)

    return svi_for(model)


class HandWritten:
    """Two networks; the optimiser of the second may be missing."""

    def __init__(self, forgotten):
        self.generator, self.critic = nn.Linear(2, 2), nn.Linear(2, 1)
        optims = [torch.optim.SGD(self.generator.parameters(), lr=0.1)]
        if not forgotten:
            optims.append(torch.optim.Adam(self.critic.parameters(), lr=0.1))
        self.optims = {"all": optims}

    def step(self, data):
        loss = self.critic(self.generator(data)).square().mean()
        params = [
            p for optim in self.optims["all"] for g in optim.param_groups for p in g["params"]
        ]
        loss.backward(inputs=params)
        for optim in self.optims["all"]:
            optim.step()
            optim.zero_grad()
        return loss.item()


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (planted_closure, r"`weight` \(2, 2\) of a `Linear`\n.*`bias` \(2,\) of a `Linear`"),
        (planted_closure_beside_a_trained_parameter, r"`weight` \(2, 2\) of a `Linear`"),
        (planted_log_prob, r"`weight` \(2, 2\) of a `Linear`"),
        (planted_blocked_param, r"the Pyro parameter 'loc' \(2,\)"),
        (planted_pyro_module_attribute_in_log_prob, r"`late` \(2,\) of a `Model`"),
        (planted_param_outside, r"the Pyro parameter 'outside' \(2,\)"),
        (planted_methods_of_a_pyro_module, r"`weight` \(2, 2\) of a `Linear`"),
        (planted_name_in_use, r"`weight` \(2, 2\) of a `Linear`"),
        (lambda: HandWritten(forgotten=True), r"`weight` \(1, 2\) of a `Linear`"),
    ],
)
def test_what_never_trains_raises(build, match):
    with pytest.raises(ValueError, match=match) as caught:
        train(build(), DATA, 2, progress=False)
    message = str(caught.value)
    assert "pyro.module(name, network)" in message and "check_training=False" in message
    assert caught.value.history.num_steps == 1  # at once, not at the end


def test_captured_parameters_without_any_gradient_raise():
    with pytest.raises(ValueError, match=r"no parameter had one: late\."):
        train(planted_late_param_alone(), DATA, 2, progress=False)


def test_a_late_param_trains_beside_another_parameter():
    def model(data):
        location_model(data)
        late_param_model_named_y(data)

    def late_param_model_named_y(data):
        pyro.sample("y", Late(lambda v: pyro.param("late", torch.ones(2)), ()), obs=data.sum(0))

    train(svi_for(model), DATA, 2, progress=False)
    assert not torch.equal(pyro.param("late").detach(), torch.ones(2))


def test_only_the_missing_parameters_are_named():
    with pytest.raises(ValueError) as caught:
        train(HandWritten(forgotten=True), DATA, 2, progress=False)
    assert str(caught.value).count("`Linear`") == 2


def test_long_lists_are_cut():
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(10)])

    def model(data):
        pyro.sample("x", dist.Normal(net(data), 1.0).to_event(2), obs=data)

    with pytest.raises(ValueError, match=r"and 12 more"):
        train(svi_for(model), DATA, 1, progress=False)


def test_the_check_can_be_switched_off():
    history = train(planted_closure(), DATA, 2, progress=False, check_training=False)
    assert history.num_steps == 2


def test_the_hook_is_removed_also_after_an_error():
    hooks = nn.modules.module._global_forward_hooks
    before = len(hooks)

    class Failing:
        def step(self):
            assert len(hooks) == before + 1
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        train(Failing(), (), 1, progress=False)
    assert len(hooks) == before


# ---------------------------------------------------------------------------------- what does train


class Decoder(PyroModule):
    """A PyroModule with a plain network, a constrained parameter, and one that nothing reads."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)
        self.unread = nn.Parameter(torch.zeros(3))

    def forward(self, data):
        with pyro.plate("row", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1), obs=data)


def amortised_guide():
    encoder = nn.Linear(2, 2)

    def guide(data):
        pyro.module("encoder", encoder)
        with pyro.plate("row", len(data)):
            pyro.sample("z", dist.Normal(encoder(data), 1.0).to_event(1))

    return guide


def clean_pyro_module():
    return svi_for(Decoder(), amortised_guide())


def clean_clipped_adam():
    optim = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99, "clip_norm": 1.0})
    return svi_for(Decoder(), amortised_guide(), optim)


def clean_vectorized():
    loss = Trace_ELBO(num_particles=2, vectorize_particles=True)
    return svi_for(Decoder(), amortised_guide(), loss=loss)


def clean_jit():
    return svi_for(Decoder(), amortised_guide(), loss=JitTrace_ELBO())


def clean_auto_guide(guide=AutoNormal):
    decoder = Decoder()
    return svi_for(decoder, guide(decoder))


def clean_param():
    return svi_for(location_model)


def clean_second_run():
    # What an earlier run left in the store, gradients included, is not this run's business.
    def other(data):
        pyro.sample("y", dist.Normal(pyro.param("other", torch.tensor(0.0)), 1.0), obs=data.sum())

    train(svi_for(other), DATA, 2, progress=False)
    return svi_for(location_model)


def clean_enumerated():
    @config_enumerate
    def model(data):
        net = pyro.module("net", pyro_net)
        with pyro.plate("row", len(data)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            loc = net(nn.functional.one_hot(k, 3).to(data.dtype))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=data)

    pyro_net = nn.Linear(3, 2)
    return svi_for(model, loss=TraceEnum_ELBO())


def clean_schedule():
    optim = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.99}
    )
    return svi_for(Decoder(), amortised_guide(), optim)


def clean_frozen():
    net = nn.Linear(2, 2).requires_grad_(False)

    def model(data):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(loc + net(data), 1.0).to_event(1), obs=data)

    return svi_for(model)


def clean_no_grad():
    net = nn.Linear(2, 2)

    def model(data):
        loc = pyro.param("loc", torch.zeros(2))
        with torch.no_grad():
            features = net(data)
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(loc + features, 1.0).to_event(1), obs=data)

    return svi_for(model)


class ModuleStepper:
    """A torch optimiser over an ELBO module, made at the first step."""

    def __init__(self):
        self.elbo = Trace_ELBO()(Decoder(), amortised_guide())
        self.optim = None

    def step(self, data):
        loss = self.elbo(data)
        if self.optim is None:
            self.optim = torch.optim.Adam(self.elbo.parameters())
            # What functional programs read is in the param store only.
            store = pyro.get_param_store()
            extra = [store._params[n] for n in store.keys() if n.startswith("encoder")]
            self.optim.add_param_group({"params": extra})
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return loss.item()


class Wrapped:
    """Another object's step under one of its own."""

    def __init__(self):
        self.svi = clean_pyro_module()

    def step(self, data):
        return {"elbo": self.svi.step(data)}


class Functional(HandWritten):
    """Runs its critic with computed parameters, as an unrolled optimiser does."""

    def __init__(self):
        super().__init__(forgotten=True)

    def step(self, data):
        params = {n: p * self.generator.bias.sum() for n, p in self.critic.named_parameters()}
        fake = self.generator(data)
        loss = torch.func.functional_call(self.critic, params, (fake,)).square().mean()
        loss.backward(inputs=list(self.generator.parameters()))
        return loss.item()


@pytest.mark.parametrize(
    "build",
    [
        clean_pyro_module,
        clean_clipped_adam,
        clean_vectorized,
        clean_jit,
        clean_auto_guide,
        lambda: clean_auto_guide(AutoMultivariateNormal),
        clean_param,
        clean_second_run,
        clean_enumerated,
        clean_schedule,
        clean_frozen,
        clean_no_grad,
        lambda: HandWritten(forgotten=False),
        ModuleStepper,
        Wrapped,
        Functional,
        Recorder,
    ],
)
@pytest.mark.filterwarnings("ignore:.*not registered in the param store")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_trains_passes(build):
    history = train(build(), DATA, 2, progress=False)
    assert history.num_steps == 2


def test_training_reaches_the_optimum():
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    train(svi_for(location_model, optim=pyro.optim.Adam({"lr": 0.05})), data, 300, progress=False)
    torch.testing.assert_close(pyro.param("loc").detach(), data.mean(0), atol=1e-2, rtol=0)
