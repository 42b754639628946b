"""What every process of a test runs; see `ranks.py`."""

import math

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_sig.adversarial import GAN, LBT, BiGAN, CycleGAN, objectives, penalties
from pyro_sig.distributed import check_equal, data_parallel, seed_ranks
from pyro_sig.distributions import Implicit, ParticleMixing, SemiImplicit
from pyro_sig.infer import (
    DIVI,
    KSIVI,
    SIG_ELBO,
    UIVI,
    AutoSemiImplicit,
    NonFiniteLossError,
    StopTraining,
    train,
)
from pyro_sig.nn import MLP, Joint
from tests.adversarial.test_trainers import TRAINERS

DOUBLE = torch.float64
ROWS = 8  # of the whole batch


def rank():
    return torch.distributed.get_rank()


def size():
    return torch.distributed.get_world_size()


# -------------------------------------------------------- one step of all is one of the whole batch


def net(features, out):
    return MLP(features, [6], out, nn.Tanh, dtype=DOUBLE)


def sgd(module, lr=0.1):
    return torch.optim.SGD(module.parameters(), lr=lr)


def make_svi(optim=None):
    """A global latent with a point guide, and rows as a subsample of the whole data."""

    def model(x, index):
        scale = pyro.param("scale", torch.rand(2).to(DOUBLE) + 0.5, dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        with pyro.plate("data", ROWS, subsample=index):
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x, index):
        pyro.sample("z", dist.Delta(pyro.param("z_loc", torch.randn(2).to(DOUBLE)), event_dim=1))

    optim = pyro.optim.SGD({"lr": 0.01}) if optim is None else optim
    return SVI(model, guide, optim, Trace_ELBO()), lambda x, e: (x, e[:, 0].long())


def make_clipped_adam():
    return make_svi(pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 0.1}))


def make_clip_args():
    return make_svi(pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.1}))


def make_scheduled():
    return make_svi(
        pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
        )
    )


def make_sum():
    """A sum over the rows of one process, without a term that processes share."""

    def model(x, e):
        loc = pyro.param("loc", torch.randn(2).to(DOUBLE))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    svi = SVI(model, lambda x, e: None, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
    return svi, lambda x, e: (x, e)


def given_noise(generator, torch_optim=False, **settings):
    """A GAN of a program that gets its noise as data."""

    def model(x, e):
        pyro.module("net", generator)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Delta(generator(e), event_dim=1), obs=x)

    critic = net(2, 1)
    optim = sgd(generator) if torch_optim else pyro.optim.SGD({"lr": 0.1})
    return GAN(model, critic, optim, sgd(critic), **settings), lambda x, e: (x, e)


def make_gan():
    return given_noise(net(3, 2), penalties=[penalties.R1(1.0)], critic_steps=2, ema=0.5)


def make_relativistic():
    return given_noise(net(3, 2), True, objective=objectives.Relativistic())


def make_gan_si(weight=0.7):
    """The critic sees draws by given noise; the bound is a mixture over given particles."""
    generator = net(3, 2)
    particles = torch.linspace(-1.0, 1.0, 15, dtype=DOUBLE).reshape(5, 3)

    def model(x, e):
        pyro.module("net", generator)
        pyro.deterministic("real", x, event_dim=2)
        pyro.deterministic("fake", generator(e), event_dim=2)
        law = SemiImplicit(
            ParticleMixing(generator(particles)),
            lambda psi: dist.Normal(psi, 0.5).to_event(1),
            5,
        )
        with pyro.plate("data", ROWS, subsample=e[:, 0].long()):  # the bound is that of all rows
            pyro.sample("x", law, obs=x)

    def view(trace):
        return trace.nodes["real"]["value"], trace.nodes["fake"]["value"]

    critic = net(2, 1)
    gan = GAN(
        model,
        critic,
        pyro.optim.SGD({"lr": 0.1}),
        sgd(critic),
        penalties=penalties.R1(1.0),
        elbo=Trace_ELBO(),
        elbo_weight=weight,
        view=view,
    )
    return gan, lambda x, e: (x, e)


def make_bigan():
    decoder, encoder, critic = net(3, 2), net(2, 3), Joint(net(5, 1))

    def model(x, e):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Delta(e, event_dim=1))
            pyro.sample("x", dist.Delta(decoder(z), event_dim=1), obs=x)

    def guide(x, e):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(encoder(x), event_dim=1))

    bigan = BiGAN(model, guide, critic, pyro.optim.SGD({"lr": 0.1}), sgd(critic))
    return bigan, lambda x, e: (x, e)


def make_cyclegan():
    forward, backward, critics = net(2, 3), net(3, 2), (net(2, 1), net(3, 1))
    both = nn.ModuleList([forward, backward])
    optim, critic_optim = sgd(both), sgd(nn.ModuleList(critics))
    gan = CycleGAN(forward, backward, *critics, optim, critic_optim, pool_size=0)
    return gan, lambda x, e: (x, e)


def make_lbt():
    """The student's steps; what the teacher learns goes through steps on the own draws."""
    teacher = net(3, 2)

    def model(x, e):
        pyro.module("teacher", teacher)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Delta(teacher(e), event_dim=1), obs=x)

    def student(x, e):
        loc = pyro.param("loc", torch.randn(2).to(DOUBLE))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    optims = pyro.optim.SGD({"lr": 0.1}), pyro.optim.SGD({"lr": 0.1})
    return LBT(model, student, *optims, weight=0.0), lambda x, e: (x, e)


MEANS = {
    "SVI": make_svi,
    "SVI, ClippedAdam": make_clipped_adam,
    "SVI, clip_args": make_clip_args,
    "SVI, schedule": make_scheduled,
    "GAN, R1": make_gan,
    "GAN, relativistic, torch": make_relativistic,
    "GAN-SI": make_gan_si,
    "BiGAN": make_bigan,
    "CycleGAN": make_cyclegan,
    "LBT": make_lbt,
}


def learned(inference):
    """What was learned, by name."""
    store = pyro.get_param_store()._params
    found = {name: param.detach().clone() for name, param in store.items()}
    critic = getattr(inference, "critic", None) or getattr(inference, "critic_x", None)
    if critic is not None:
        found |= {f"critic {n}": p.detach().clone() for n, p in critic.named_parameters()}
    if isinstance(inference, CycleGAN):
        translators = [*inference.forward.parameters(), *inference.backward.parameters()]
        found |= {f"translator {i}": p.detach().clone() for i, p in enumerate(translators)}
    average = inference._program.average if hasattr(inference, "_program") else {}
    found |= {f"average {n}": p.clone() for n, p in average.items()}
    return found


def whole_batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, 2, generator=generator, dtype=DOUBLE) + 1
    e = torch.randn(ROWS, 3, generator=generator, dtype=DOUBLE)
    e[:, 0] = torch.arange(ROWS)
    return x, e


def differences_from_one_process(make, reduction, num_steps):
    """Largest differences of what was learned and of the losses, and how far it moved."""
    pyro.set_rng_seed(100)  # as rank 0 has it
    alone, arguments = make()
    first = None
    expected_losses = []
    for step in range(num_steps):
        expected_losses.append(alone.step(*arguments(*whole_batch(step))))
        first = learned(alone) if first is None else first
    expected = learned(alone)

    pyro.clear_param_store()
    pyro.set_rng_seed(100 + rank())  # other initial values, which have to become rank 0's
    together, arguments = make()
    data_parallel(together, reduction=reduction)
    losses = []
    for step in range(num_steps):
        own = [part.chunk(size())[rank()] for part in whole_batch(step)]
        losses.append(together.step(*arguments(*own)))
    check_equal(together)
    found = learned(together)
    assert set(found) == set(expected)
    error = max(float((found[n] - expected[n]).abs().max()) for n in expected)
    moved = max(float((first[n] - expected[n]).abs().max()) for n in expected)
    a, b = torch.tensor(losses).nan_to_num(), torch.tensor(expected_losses).nan_to_num()
    return error, float((a - b).abs().max()), moved


def one_process_means(name):
    return differences_from_one_process(MEANS[name], "mean", 3)


def one_process_sum():
    return differences_from_one_process(make_sum, "sum", 3)


# -------------------------------------------------------------------------------- all stay together


def trainer_stays_equal(name, num_steps):
    case = TRAINERS[name]
    trainer = data_parallel(case.make())
    for _ in range(num_steps):
        losses = trainer.step(*case.batch())
    check_equal(trainer)
    return losses


def sig_program():
    generator = MLP(3, [8], 2)
    noise = dist.Normal(torch.zeros(3), 1.0).to_event(1)

    def model(x):
        pyro.module("net", generator)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(generator, noise, event_shape=2))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    return SVI(model, lambda x: None, pyro.optim.ClippedAdam({"lr": 0.02}), SIG_ELBO(32))


def guided(loss, make_optim=lambda: pyro.optim.Adam({"lr": 0.02})):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 64, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return SVI(model, AutoSemiImplicit(model), make_optim(), loss)


SVIS = {
    "SIG_ELBO": sig_program,
    "Trace_ELBO": lambda: guided(Trace_ELBO()),
    "KSIVI": lambda: guided(KSIVI(num_particles=10)),
    "DIVI": lambda: guided(DIVI(num_particles=10, inner_steps=2)),
    "UIVI": lambda: guided(UIVI(num_particles=10)),
    "Trace_ELBO, clipped": lambda: guided(
        Trace_ELBO(), lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.1})
    ),
}


def svi_stays_equal(name, num_steps):
    svi = data_parallel(SVIS[name]())
    losses = [svi.step(torch.randn(6, 2) + 1) for _ in range(num_steps)]
    check_equal(svi)
    assert len(svi.optim.optim_objs) > 1
    return losses


def any_order():
    """Pyro's optimiser called with parameters in an order that differs, as that of a set does."""

    class Loop:
        def __init__(self):
            self.optim = pyro.optim.Adam({"lr": 0.1})

        def step(self):
            values = [pyro.param(f"p{i}", torch.ones(2, 3) + i) for i in range(8)]
            sum((i + rank()) * value.sum() for i, value in enumerate(values)).backward()
            order = torch.randperm(8).tolist()
            self.optim([values[i] for i in order])
            pyro.infer.util.zero_grads(values)
            return order

    loop = data_parallel(Loop())
    loop.step()
    check_equal(loop)
    return [pyro.param(f"p{i}").grad is not None for i in range(8)]


def stops():
    """Rank 1 has a NaN at step 2; all raise there. A callback that looks at the loss agrees."""
    seen = []

    def stop(step, loss, inference):
        seen.append(loss)
        if loss < seen[0] - 1e-3:
            raise StopTraining

    svi = data_parallel(sig_program())
    history = train(svi, torch.randn(6, 2) + rank(), 200, callbacks=[stop], progress=False)
    assert history.stopped

    def batch(step):
        return torch.randn(6, 2) * (math.nan if step == 2 and rank() == 1 else 1.0)

    with pyro.validation_enabled(False):
        try:
            train(svi, batch, 5, progress=False)
        except NonFiniteLossError as error:
            return history["loss"], error.step
    return history["loss"], None


def check_finds(what):
    """A process that has gone its own way is found, by all of them."""
    case = TRAINERS["batch statistics" if what == "buffer" else "default"]
    trainer = data_parallel(case.make())
    trainer.step(*case.batch())
    check_equal(trainer)
    if rank() == size() - 1:
        if what == "parameter":
            next(trainer.critic.parameters()).data[0] += 1e-6
        elif what == "state":
            next(iter(trainer.critic_optim.state.values()))["exp_avg"][0] += 1.0
        else:
            next(b for b in trainer.model.net.buffers() if b.is_floating_point())[0] += 1.0
    check_equal(trainer)


def learned_apart(name):
    """Without it processes differ, or the tests above would say nothing."""
    case = TRAINERS[name]
    trainer = case.make()
    trainer.step(*case.batch())
    return [float(p.sum()) for p in trainer.critic.parameters()]


# ---------------------------------------------------------------------------------- what may differ


def some_gradients_missing():
    """Rank 0 reads "a" and "b", the others "b" in every step and "a" in the first only."""

    def model(step):
        b = pyro.param("b", torch.ones(2, dtype=DOUBLE))
        value = b.sum()
        if rank() == 0 or step == 0:
            value = value + pyro.param("a", torch.ones(2, dtype=DOUBLE)).sum()
        pyro.factor("value", value)

    optim = pyro.optim.SGD({"lr": 1.0})
    svi = data_parallel(SVI(model, lambda step: None, optim, Trace_ELBO()))
    for step in range(3):
        svi.step(step)
    check_equal(svi)
    return pyro.param("a")[0].item(), pyro.param("b")[0].item()


def torch_gradients_missing():
    """A torch optimiser; the second parameter has a gradient on rank 0 only, the third nowhere."""

    class Loop:
        def __init__(self):
            self.params = [torch.ones(2, requires_grad=True) for _ in range(3)]
            self.params.append(torch.ones(2, dtype=DOUBLE, requires_grad=True))
            self.optim = torch.optim.SGD(self.params, lr=1.0)

        def step(self):
            self.optim.zero_grad()
            loss = self.params[0].sum() + self.params[3].sum()
            if rank() == 0:
                loss = loss + self.params[1].sum()
            loss.backward()
            self.optim.step()
            return {"loss": loss.item(), "rank": rank()}

    loop = data_parallel(Loop())
    losses = loop.step()
    check_equal(loop)
    return [p[0].item() for p in loop.params], losses


def late_parameter(everywhere):
    """A parameter that appears in the second step."""

    def model(step):
        value = pyro.param("b", torch.ones(2)).sum()
        if step > 0 and (everywhere or rank() == 0):
            value = value + pyro.param("a", torch.randn(2)).sum()
        pyro.factor("value", value)

    svi = SVI(model, lambda step: None, pyro.optim.SGD({"lr": 1.0}), Trace_ELBO())
    data_parallel(svi)
    for step in range(3):
        svi.step(step)
    check_equal(svi)


def other_programs(what):
    """Programs that differ between processes."""

    def model():
        name = f"loc{rank()}" if what == "name" else "loc"
        length = rank() + 1 if what == "shape" else 2
        if what == "raises" and rank() == size() - 1:
            raise RuntimeError("out of rows")
        loc = pyro.param(name, torch.zeros(length))
        if what == "number" and rank() > 0:
            pyro.param("more", torch.zeros(1))
        pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=torch.tensor(0.0))

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    data_parallel(svi).step()


def loaded_on_one_rank():
    case = TRAINERS["torch optimiser"]
    trainer = case.make()
    trainer.step(*case.batch())
    state = trainer.state_dict()
    pyro.clear_param_store()
    fresh = case.make()
    if rank() == 0:
        fresh.load_state_dict(state)
    data_parallel(fresh).step(*case.batch())


def loaded_everywhere():
    """Goes on from a state that every process has."""
    case = TRAINERS["average"]
    trainer = data_parallel(case.make())
    trainer.step(*case.batch())
    states = [trainer.state_dict()]
    torch.distributed.broadcast_object_list(states, 0)
    pyro.clear_param_store()
    fresh = case.make()
    fresh.load_state_dict(states[0])
    data_parallel(fresh)
    fresh.step(*case.batch())
    check_equal(fresh)
    return fresh.num_steps


def two_inferences_with_one_optimiser():
    case = TRAINERS["default"]
    gan = case.make()
    svi = SVI(
        lambda x: pyro.factor("f", pyro.param("w", torch.randn(3)).sum()),
        lambda x: None,
        gan.optim,
        Trace_ELBO(),
    )
    data_parallel(gan)
    data_parallel(svi)
    for _ in range(2):
        gan.step(*case.batch())
        svi.step(None)
    check_equal(gan)
    check_equal(svi)


def with_closure():
    class Loop:
        def __init__(self):
            self.param = torch.ones(2, requires_grad=True)
            self.optim = torch.optim.LBFGS([self.param])

        def step(self):
            self.optim.step(lambda: self.param.sum())

    data_parallel(Loop()).step()


def seeds():
    values = []
    for seed in (0, 1):
        seed_ranks(seed)
        values.append(torch.rand(()).item())
    return values


def killed_and_resumed(folder, name):
    """Compares a run that goes on from checkpoints, of which one process lacks the last."""

    class Killed(BaseException):
        pass

    def run(seed, path=None, killed_at=None):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        trainer = TRAINERS[name].make() if name in TRAINERS else make_sig()
        seed_ranks(seed)
        data_parallel(trainer)

        def kill(step, loss, inference):
            if step == killed_at:
                raise Killed

        options = {"progress": False, "checkpoint": path, "every": 2, "callbacks": [kill]}
        history = train(trainer, lambda step: torch.randn(6, 2) + 1.0, 10, **options)
        check_equal(trainer)
        store = pyro.get_param_store()._params
        return dict(history), {n: p.detach().clone() for n, p in sorted(store.items())}

    whole = run(1)
    try:
        run(1, folder, killed_at=7)
    except Killed:
        pass
    torch.distributed.barrier()
    files = sorted(path.name for path in (folder / f"rank-{rank()}-of-{size()}").glob("step-*"))
    assert files == [f"step-{n:09d}.ckpt" for n in (2, 4, 6)]
    if rank() == 0:
        (folder / f"rank-0-of-{size()}" / files[-1]).unlink()
    torch.distributed.barrier()
    again = run(2, folder)
    assert again[0] == whole[0]
    assert all(torch.equal(again[1][n], whole[1][n]) for n in whole[1])


def complete_run_read(folder, name, differs):
    """Reads a complete run, and compares what the processes have read."""
    path = folder / name

    def run(seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        trainer = data_parallel(TRAINERS[name].make() if name in TRAINERS else make_sig())
        seed_ranks(seed)
        batch = torch.randn(6, 2)
        options = {"progress": False, "checkpoint": path}
        return trainer, train(trainer, lambda step: batch, 3, **options)

    trainer, history = run(1)
    check_equal(trainer)
    trainer, again = run(2)
    assert dict(again) == dict(history)
    if differs and rank() == 1:
        with torch.no_grad():
            next(iter(pyro.get_param_store()._params.values())).add_(1.0)
    check_equal(trainer)


def make_sig():
    network = MLP(2, [6], 2)

    def model(x):
        pyro.module("net", network)
        noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(network, noise, event_shape=2))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    return SVI(model, lambda x: None, pyro.optim.ClippedAdam({"lr": 0.01}), SIG_ELBO(8))
