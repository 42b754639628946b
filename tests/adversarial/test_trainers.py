"""The contract of every adversarial trainer, over models, losses and optimisers."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from torch import nn

from pyro_sig import checkpoint
from pyro_sig.adversarial import AVB, VEEGAN, BiGAN, objectives, penalties
from pyro_sig.adversarial._game import Game
from pyro_sig.infer import SIG_ELBO, train
from pyro_sig.nn import MLP
from tests.adversarial.programs import (
    Batched,
    LatentPsi,
    Location,
    Pair,
    PushForward,
    SemiImplicitModel,
    Shared,
    make_gan,
    make_joint,
)
from tests.adversarial.states import assert_equal, copies
from tests.adversarial.students import STUDENTS, KernelDensity, Moments, make_lbt, vae
from tests.adversarial.translators import KINDS, SAME_NAME, make_cyclegan


class Case(NamedTuple):
    """A trainer, and the arguments of its steps."""

    make: Callable
    batch: Callable = lambda: (torch.randn(6, 2) + 1,)


def schedule():
    return pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
    )


def divergence_gan(name):
    alpha = 0.5 if name == "alpha" else None
    pi = 0.3 if name == "jensen_shannon_weighted" else None
    return make_gan(PushForward(), objective=objectives.FDivergence(name, alpha=alpha, pi=pi))


def objective_gan(name):
    objective = getattr(objectives, name)()
    return make_gan(PushForward(), objective=objective, penalties=[penalties.WeightClipping()])


GANS: dict[str, Callable] = {
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
GANS |= {
    f"divergence {name}": partial(divergence_gan, name) for name in objectives.FDivergence.names()
}
GANS |= {
    f"objective {name}": partial(objective_gan, name)
    for name in objectives.__all__
    if name not in ("Objective", "FDivergence")
}
# With a pair of a model and a guide: the guide's kind, and what else is asked of the trainer.
JOINT = {
    "BiGAN": (BiGAN, "computed", {}),
    "BiGAN, torch optimiser": (BiGAN, "computed", {"optim": "torch"}),
    "BiGAN, average, critic steps": (BiGAN, "computed", {"ema": 0.9, "critic_steps": 2}),
    "BiGAN, Wasserstein": (
        BiGAN,
        "computed",
        {"objective": objectives.Wasserstein(), "penalties": penalties.GradientPenalty()},
    ),
    "BiGAN, unrolled": (BiGAN, "computed", {"objective": objectives.Minimax(), "unroll": 2}),
    "BiGAN, relativistic": (
        BiGAN,
        "computed",
        {"objective": objectives.Relativistic(), "penalties": [penalties.R1(1.0)]},
    ),
    "ALI": (BiGAN, "drawn", {}),
    "ALI without a density": (BiGAN, "implicit", {"optim": schedule}),
    "VEEGAN": (VEEGAN, "computed", {}),
    "VEEGAN, drawn": (VEEGAN, "drawn", {"weight": 0.5, "ema": 0.9}),
    "VEEGAN, distance": (
        VEEGAN,
        "implicit",
        {"distance": lambda z, code: (z - code).square(), "critic_steps": 2},
    ),
    "VEEGAN, unrolled": (VEEGAN, "computed", {"unroll": 1, "objective": objectives.Minimax()}),
    "AVB": (AVB, "implicit", {}),
    "AVB, torch optimiser": (AVB, "implicit", {"optim": "torch", "critic_steps": 2}),
    "AVB, contrast": (AVB, "implicit", {"contrast": True, "ema": 0.9}),
    "AVB, particles": (AVB, "implicit", {"contrast": True, "num_particles": 3}),
    "AVB, no gradient of the reals": (
        AVB,
        "drawn",
        {"objective": objectives.Relativistic(), "penalties": penalties.R2(1.0)},
    ),
}


def make_pair(cls, kind, optim=None, contrast=False, **settings):
    pair = Pair(kind)
    if contrast:
        settings["contrast"] = pair.contrast
    return make_joint(cls, pair, optim() if callable(optim) else optim, **settings)


def two_batches():
    return torch.randn(6, 2) + 1, torch.randn(5, 2) - 1


# To add a trainer is one line: its factory, and a function that makes its batch unless one tensor
# of shape [6, 2] will do, as in "mine": Case(make_mine, lambda: (torch.randn(6, 2), 3)).
TRAINERS = {
    **{name: Case(make) for name, make in GANS.items()},
    **{
        name: Case(lambda cls=cls, kind=kind, options=options: make_pair(cls, kind, **options))
        for name, (cls, kind, options) in JOINT.items()
    },
    "AVB, one latent of all data": Case(lambda: make_joint(AVB, Shared(), num_particles=8)),
    **{
        f"CycleGAN, {kind}": Case(lambda make=make: make_cyclegan(make(), "pyro"), two_batches)
        for kind, make in KINDS.items()
        if kind not in SAME_NAME
    },
    "CycleGAN, pool, average, identity": Case(
        lambda: make_cyclegan(optim="schedule", pool_size=8, ema=0.9, identity_weight=0.5),
        two_batches,
    ),
    "CycleGAN, relativistic": Case(
        lambda: make_cyclegan(optim="pyro", objective=objectives.Relativistic()),
        lambda: (torch.randn(6, 2) + 1, torch.randn(6, 2) - 1),
    ),
    **{f"LBT, {name}": Case(lambda make=make: make_lbt(make())) for name, make in STUDENTS.items()},
    "LBT, a fit": Case(lambda: make_lbt(Moments())),
    "LBT, average, clipped": Case(lambda: make_lbt(ema=0.9, clip_norm=1.0, commits=2)),
    "LBT-GAN": Case(lambda: make_lbt(vae(), gan={})),
    "LBT-GAN, unrolled, average": Case(lambda: make_lbt(gan={"unroll": 1, "ema": 0.9})),
    "LBT-GAN, a fit": Case(lambda: make_lbt(KernelDensity(), gan={"critic_steps": 2})),
}
EACH = pytest.mark.parametrize(("make", "batch"), TRAINERS.values(), ids=TRAINERS)


def critics(trainer):
    """The critics: one, several in a list, or none."""
    critic = getattr(trainer, "critic", None)
    if critic is None:
        return []
    return list(critic) if isinstance(critic, nn.ModuleList) else [critic]


def parameters(trainer):
    """What the programs of a trainer learn, and its critics, in copies."""
    store = pyro.get_param_store()._params
    programs = {name: param.detach().clone() for name, param in store.items()}
    return programs, [copies(critic.parameters()) for critic in critics(trainer)]


def check_losses(trainer, losses):
    assert type(losses) is tuple
    assert len(losses) == len(trainer.loss_names)
    assert all(type(loss) is float and math.isfinite(loss) for loss in losses)


@EACH
def test_a_step_returns_finite_floats_and_trains_everything(make, batch):
    trainer, args = make(), batch()
    trainer.step(*args)  # the parameters of the store come into being
    programs, critic_params = parameters(trainer)
    check_losses(trainer, trainer.step(*args))
    after, critic_params_after = parameters(trainer)
    for name, before in programs.items():
        assert not torch.equal(before, after[name]), name
    for old, new in zip(critic_params, critic_params_after, strict=True):
        # The additive constant of a paired or linear score has no gradient.
        moved = [not torch.equal(a, b) for a, b in zip(old, new, strict=True)]
        assert all(moved[:-1])


@EACH
def test_no_gradient_is_left_on_the_other_player(make, batch):
    trainer, args = make(), batch()
    trainer.step(*args)
    left = [p for p in pyro.get_param_store()._params.values() if p.grad is not None]
    assert not left
    if not isinstance(trainer, Game):
        return
    before = [p.grad.clone() for p in trainer.critic.parameters()]
    draw = trainer._draw(args, {})
    trainer._add_gradients(draw, trainer._program_loss(trainer.critic, draw, args, {}))
    after = [p.grad for p in trainer.critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@EACH
def test_evaluation_changes_nothing(make, batch):
    trainer, args = make(), batch()
    trainer.step(*args)
    before = parameters(trainer)
    state = trainer.state_dict()
    check_losses(trainer, trainer.evaluate_loss(*args))
    assert_equal(before, parameters(trainer))
    assert_equal(state, trainer.state_dict())
    assert trainer.num_steps == 1


@EACH
def test_train_runs_it_and_names_its_losses(make, batch):
    trainer = make()
    history = train(trainer, batch(), 2, progress=False)
    assert list(history) == list(trainer.loss_names)
    assert history.num_steps == trainer.num_steps == 2


def continue_for(trainer, args, num_steps):
    losses = []
    for _ in range(num_steps):
        losses.append(trainer.step(*args))
        if isinstance(trainer.optim, pyro.optim.PyroLRScheduler):
            trainer.optim.step()
    return losses


@EACH
def test_a_restored_trainer_goes_on_bit_for_bit(make, batch):
    args = batch()
    trainer = make()
    continue_for(trainer, args, 3)
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    random = torch.get_rng_state()
    expected = continue_for(trainer, args, 3)
    last = trainer.state_dict()

    pyro.clear_param_store()
    torch.manual_seed(123)  # other initial parameters
    fresh = make()
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.set_rng_state(random)
    assert continue_for(fresh, args, 3) == expected
    assert_equal(last, fresh.state_dict())


@EACH
def test_a_state_is_restored_in_place(make, batch):
    args = batch()
    trainer = make()
    continue_for(trainer, args, 2)
    state, random = trainer.state_dict(), torch.get_rng_state()
    kept = copy.deepcopy(state)
    expected = continue_for(trainer, args, 2)
    trainer.load_state_dict(state)
    torch.set_rng_state(random)
    assert continue_for(trainer, args, 2) == expected
    assert_equal(kept, state)  # a state must not change with the trainer


@EACH
def test_a_loaded_file_can_be_drawn_from_at_once(make, batch, tmp_path):
    args = batch()
    trainer = make()
    continue_for(trainer, args, 2)
    checkpoint.save(tmp_path / "a", trainer)
    expected = trainer.state_dict(), trainer.evaluate_loss(*args)

    pyro.clear_param_store()
    torch.manual_seed(123)
    fresh = make()
    checkpoint.load(tmp_path / "a", fresh, *args)
    assert_equal(expected, (fresh.state_dict(), fresh.evaluate_loss(*args)))


@EACH
def test_preparing_leaves_the_random_state_and_the_losses(make, batch):
    args = batch()
    torch.manual_seed(5)
    losses = make().step(*args)
    pyro.clear_param_store()
    torch.manual_seed(5)
    trainer = make()
    trainer.prepare(*args)
    trainer.prepare()  # nothing is left to do
    assert trainer.step(*args) == losses


@EACH
def test_a_copy_is_refused(make, batch):
    trainer = make()
    for copier in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled.*load_state_dict"):
            copier(trainer)


@EACH
def test_it_has_a_repr(make, batch):
    trainer = make()
    assert repr(trainer).startswith(f"{type(trainer).__name__}(")


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


@pytest.mark.parametrize("name", ["ALI", "VEEGAN", "VEEGAN, drawn", "AVB, contrast"])
def test_half_precision_of_pairs(name):
    cls, kind, settings = JOINT[name]
    x, losses = torch.randn(256, 2), []
    for autocast in (torch.bfloat16, None):
        pyro.clear_param_store()
        torch.manual_seed(0)
        trainer = make_pair(cls, kind, **settings, autocast=autocast)
        losses.append(trainer.step(x))
        assert all(p.dtype == torch.float32 for p in pyro.get_param_store()._params.values())
    # As above; a loss is a sum of terms of order 1, of either sign.
    assert torch.allclose(*map(torch.tensor, losses), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", JOINT)
def test_evaluation_may_come_first(name):
    cls, kind, settings = JOINT[name]
    trainer, x = make_pair(cls, kind, **settings), torch.randn(6, 2)
    check_losses(trainer, trainer.evaluate_loss(x))
    check_losses(trainer, trainer.step(x))


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
