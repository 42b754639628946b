"""The contract of every adversarial trainer, over models, losses and optimisers."""

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from torch import nn

from pyro_sig.adversarial import objectives, penalties
from pyro_sig.infer import SIG_ELBO, train
from pyro_sig.nn import MLP
from tests.adversarial.programs import (
    Batched,
    LatentPsi,
    Location,
    PushForward,
    SemiImplicitModel,
    make_gan,
)


def schedule():
    return pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
    )


TRAINERS = {
    "default": lambda: make_gan(PushForward()),
    "torch optimiser": lambda: make_gan(PushForward(), "torch"),
    "clipped Adam": lambda: make_gan(PushForward(), pyro.optim.ClippedAdam({"lr": 0.05})),
    "schedule": lambda: make_gan(PushForward(), schedule()),
    "param store": lambda: make_gan(Location()),
    "batch statistics": lambda: make_gan(Batched(), "torch"),
    "average": lambda: make_gan(PushForward(), ema=0.9),
    "critic steps": lambda: make_gan(PushForward(), critic_steps=3),
    "unrolled": lambda: make_gan(PushForward(), unroll=2, objective=objectives.Minimax()),
    "unrolled, relativistic, R1": lambda: make_gan(
        PushForward(), unroll=1, objective=objectives.Relativistic(), penalties=penalties.R1(1.0)
    ),
    "Wasserstein": lambda: make_gan(
        PushForward(), objective=objectives.Wasserstein(), penalties=penalties.GradientPenalty()
    ),
    "clipping": lambda: make_gan(
        PushForward(), objective=objectives.Wasserstein(), penalties=[penalties.WeightClipping()]
    ),
    "spectral norm": lambda: make_gan(
        PushForward(),
        critic=penalties.spectral_norm(MLP(2, [8], 1)),
        objective=objectives.Hinge(),
    ),
    "relativistic": lambda: make_gan(
        PushForward(),
        objective=objectives.Relativistic(),
        penalties=[penalties.R1(1.0), penalties.R2(1.0)],
    ),
    "GAN-SI": lambda: make_gan(SemiImplicitModel(), elbo=Trace_ELBO(), elbo_weight=1.0),
    "GAN-SI, SIG_ELBO": lambda: make_gan(LatentPsi(), elbo=SIG_ELBO(16), elbo_weight="balance"),
    "GAN-SI, more steps": lambda: make_gan(
        SemiImplicitModel(),
        elbo=Trace_ELBO(),
        elbo_weight=lambda step: 1 / (1 + step),
        critic_steps=2,
        unroll=1,
    ),
    "pure SIG": lambda: make_gan(LatentPsi(), elbo=SIG_ELBO(16), elbo_weight=math.inf),
    "no differentiable loss": lambda: make_gan(
        Location(), elbo=TraceGraph_ELBO(), elbo_weight="balance"
    ),
    "Renyi": lambda: make_gan(
        Location(), elbo=RenyiELBO(num_particles=2, vectorize_particles=False), elbo_weight=0.5
    ),
}
TRAINERS |= {
    f"divergence {name}": lambda name=name: make_gan(
        PushForward(),
        objective=objectives.FDivergence(
            name,
            alpha=0.5 if name == "alpha" else None,
            pi=0.3 if name == "jensen_shannon_weighted" else None,
        ),
    )
    for name in objectives.FDivergence.names()
}
TRAINERS |= {
    f"objective {name}": lambda name=name: make_gan(
        PushForward(), objective=getattr(objectives, name)(), penalties=[penalties.WeightClipping()]
    )
    for name in objectives.__all__
    if name not in ("Objective", "FDivergence")
}
EACH = pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS)


@EACH
def test_a_step_returns_finite_floats_and_trains_everything(make):
    gan, x = make(), torch.randn(6, 2) + 1
    gan.step(x)  # the parameters of the store come into being
    programs = {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}
    critics = [p.detach().clone() for p in gan.critic.parameters()]
    losses = gan.step(x)
    assert type(losses) is tuple
    assert len(losses) == len(gan.loss_names)
    assert all(type(loss) is float and math.isfinite(loss) for loss in losses)
    for name, before in programs.items():
        assert not torch.equal(before, pyro.get_param_store()._params[name]), name
    # The additive constant of a paired or linear score has no gradient.
    moved = [not torch.equal(a, b) for a, b in zip(critics, gan.critic.parameters(), strict=True)]
    assert all(moved[:-1])


@EACH
def test_no_gradient_is_left_on_the_other_player(make):
    gan, x = make(), torch.randn(6, 2)
    gan.step(x)
    left = [p for p in pyro.get_param_store()._params.values() if p.grad is not None]
    assert not left
    before = [p.grad.clone() for p in gan.critic.parameters()]
    draw = gan._draw((x,), {})
    gan._add_gradients(draw, gan._program_loss(gan.critic, draw, (x,), {}))
    after = [p.grad for p in gan.critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@EACH
def test_evaluation_changes_nothing(make):
    gan, x = make(), torch.randn(6, 2)
    gan.step(x)
    before = {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}
    critics = [p.detach().clone() for p in gan.critic.parameters()]
    losses = gan.evaluate_loss(x)
    assert type(losses) is tuple
    assert all(type(loss) is float and math.isfinite(loss) for loss in losses)
    assert len(losses) == len(gan.loss_names)
    store = pyro.get_param_store()._params
    assert all(torch.equal(before[n], store[n]) for n in before)
    assert all(torch.equal(a, b) for a, b in zip(critics, gan.critic.parameters(), strict=True))
    assert gan.num_steps == 1


@EACH
def test_train_runs_it_and_names_its_losses(make):
    history = train(make(), torch.randn(6, 2), 2, progress=False)
    assert list(history) in (["critic", "generator"], ["critic", "generator", "elbo"])


def continue_for(gan, x, num_steps):
    losses = []
    for _ in range(num_steps):
        losses.append(gan.step(x))
        if isinstance(gan.optim, pyro.optim.PyroLRScheduler):
            gan.optim.step()
    return losses


@EACH
def test_a_restored_trainer_goes_on_bit_for_bit(make):
    x = torch.randn(6, 2)
    gan = make()
    continue_for(gan, x, 3)
    file = io.BytesIO()
    torch.save(gan.state_dict(), file)
    random = torch.get_rng_state()
    expected = continue_for(gan, x, 3)

    pyro.clear_param_store()
    torch.manual_seed(123)  # other initial parameters
    fresh = make()
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.set_rng_state(random)
    assert continue_for(fresh, x, 3) == expected
    if gan._program.ema is not None:
        assert all(
            torch.equal(gan._program.average[n], value)
            for n, value in fresh._program.average.items()
        )


@EACH
def test_a_state_is_restored_in_place(make):
    x = torch.randn(6, 2)
    gan = make()
    continue_for(gan, x, 2)
    state, random = gan.state_dict(), torch.get_rng_state()
    kept = copy.deepcopy(state)
    expected = continue_for(gan, x, 2)
    gan.load_state_dict(state)
    torch.set_rng_state(random)
    assert continue_for(gan, x, 2) == expected
    assert str(kept) == str(state), "a state must not change with the trainer"


@EACH
def test_it_has_a_repr(make):
    assert repr(make()).startswith("GAN(")


def test_double_precision():
    x = torch.randn(6, 2, dtype=torch.float64)
    critic = MLP(2, [8], 1, dtype=torch.float64)
    for penalty in (penalties.GradientPenalty(), penalties.R1(1.0)):
        gan = make_gan(PushForward(torch.float64), critic=critic, penalties=penalty, ema=0.5)
        gan.step(x)
        real, fake = gan.values(x)
        assert real.dtype == fake.dtype == torch.float64
        pyro.clear_param_store()


def test_half_precision_inside_of_the_step():
    seen = []

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(2, [8], 1)

        def forward(self, x):
            scores = self.net(x)
            seen.append(scores.dtype)
            return scores

    x, losses = torch.randn(64, 2), []
    for autocast in (torch.bfloat16, None):
        pyro.clear_param_store()
        torch.manual_seed(0)
        settings = {"elbo": Trace_ELBO(), "elbo_weight": 1.0, "penalties": penalties.R1(1.0)}
        gan = make_gan(SemiImplicitModel(), critic=Critic(), autocast=autocast, **settings)
        losses.append(gan.step(x))
        assert set(seen) == {autocast or torch.float32}
        assert all(p.dtype == torch.float32 for p in gan.critic.parameters())
        seen.clear()
    # bfloat16 keeps 8 bits: a relative error of 2^-8 in each of a few layers.
    assert torch.allclose(*map(torch.tensor, losses), rtol=0.03)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by torch's own compiler
def test_compiled_networks_take_the_same_steps():
    x, losses = torch.randn(6, 2), []
    for compiled in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        gan = make_gan(PushForward(), "torch", compile_networks=compiled)
        losses.append([gan.step(x) for _ in range(3)])
        if compiled:
            assert gan.critic._compiled_call_impl is not None
            assert gan.model.net._compiled_call_impl is not None
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4)


def test_losses_of_a_divergence_are_logged_as_an_estimate():
    # Two unit Normals at distance 1: KL(data, model) = 1 / 2, and the critic is quadratic.
    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x):
            return self.linear(torch.cat([x, x.square()], -1))

    def model(x):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    objective = objectives.FDivergence("kl")
    gan = make_gan(
        model, pyro.optim.SGD({"lr": 0.0}), critic=Quadratic(), objective=objective, critic_lr=0.02
    )
    x = torch.randn(4000, 1) + 1
    for _ in range(400):
        gan.step(x)
    estimate = float(objective.estimate(*gan.scores(x)))
    # The sample's own error: the log ratio has variance 1 on either side, 5 SE.
    assert abs(estimate - 0.5) < 5 * math.sqrt((1 + math.e - 1) / 4000) + 0.02
