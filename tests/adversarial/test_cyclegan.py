"""Translation without pairs: losses by hand, who gets which gradient, resuming, a known truth."""

import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_sig.adversarial import CycleGAN, linear_decay, objectives, penalties
from pyro_sig.infer import train
from pyro_sig.nn import MLP
from tests.adversarial.translators import (
    KINDS,
    SAME_NAME,
    Translator,
    batched,
    make_cyclegan,
    net,
    parameters,
)


def data(n=6, m=6, dtype=None):
    return torch.randn(n, 2, dtype=dtype) + 1, torch.randn(m, 2, dtype=dtype) - 1


def snapshot(gan):
    return [p.detach().clone() for p in [*gan._program.params.values(), *gan._critic._trained]]


# ------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("identity_weight", [0.0, 0.5])
def test_losses_are_those_computed_by_hand(identity_weight):
    x, y = data(6, 9)
    gan = make_cyclegan(cycle_weight=3.0, identity_weight=identity_weight, pool_size=0)
    f, b, critic_x, critic_y = gan.forward, gan.backward, gan.critic_x, gan.critic_y
    with torch.no_grad():
        fake_x, fake_y = b(y), f(x)
        critic = 0.25 * sum(
            (critic(real) - 1).square().mean() + critic(fake).square().mean()
            for critic, real, fake in ((critic_x, x, fake_x), (critic_y, y, fake_y))
        )
        adversarial = 0.5 * (
            (critic_x(fake_x) - 1).square().mean() + (critic_y(fake_y) - 1).square().mean()
        )
        cycle = (b(fake_y) - x).abs().mean() + (f(fake_x) - y).abs().mean()
        identity = (f(y) - y).abs().mean() + (b(x) - x).abs().mean()
    generator = adversarial + 3 * cycle + 3 * identity_weight * identity
    expected = [critic, generator, cycle, identity][: len(gan.loss_names)]
    assert gan.loss_names == ("critic", "generator", "cycle", "identity")[: len(expected)]
    found = gan.evaluate_loss(x, y)
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-5)
    # A step has the same ones but for the critics, which have moved before the translators do.
    stepped = gan.step(x, y)
    assert torch.allclose(torch.tensor(stepped)[[0, 2]], torch.tensor(found)[[0, 2]], rtol=1e-5)
    assert stepped[1] != found[1]


def test_a_step_is_that_done_by_hand():
    x, y = data(6, 9)
    gan = make_sgd((net(), net()), cycle_weight=2.0, pool_size=0)
    f, b, critic_x, critic_y = gan.forward, gan.backward, gan.critic_x, gan.critic_y
    translators = parameters(f, b)
    fake_x, fake_y = b(y), f(x)
    loss = 0.5 * sum(
        gan.objective.critic_loss(critic(real), critic(fake.detach()))
        for critic, real, fake in ((critic_x, x, fake_x), (critic_y, y, fake_y))
    )
    critics = gan._critic._trained
    moved = [p - 0.1 * g for p, g in zip(critics, torch.autograd.grad(loss, critics), strict=True)]
    half = len(moved) // 2
    scored = [
        torch.func.functional_call(
            critic,
            dict(zip([n for n, _ in critic.named_parameters()], own, strict=True)),
            (fake,),
        )
        for critic, own, fake in (
            (critic_x, moved[:half], fake_x),
            (critic_y, moved[half:], fake_y),
        )
    ]
    loss = sum(gan.objective.generator_loss(None, score) for score in scored)
    loss = loss + 2 * ((b(fake_y) - x).abs().mean() + (f(fake_x) - y).abs().mean())
    grads = torch.autograd.grad(loss, translators)
    expected = [p - 0.1 * g for p, g in zip(translators, grads, strict=True)] + moved
    gan.step(x, y)
    for new, target in zip([*translators, *critics], expected, strict=True):
        assert torch.allclose(new, target, atol=1e-6)


def make_sgd(translators, **settings):
    critics = [MLP(2, [8], 1) for _ in range(2)]
    optims = [
        torch.optim.SGD([p for m in players for p in m.parameters()], lr=0.1)
        for players in (translators, critics)
    ]
    return CycleGAN(*translators, *critics, *optims, **settings)


@pytest.mark.parametrize("per_row", [False, True])
def test_another_distance(per_row):
    def squared(a, b):
        value = (a - b).square().sum(-1)
        return value if per_row else value.mean()

    x, y = data(6, 9)
    gan = make_cyclegan(cycle_distance=squared)
    with torch.no_grad():
        f, b = gan.forward, gan.backward
        expected = squared(b(f(x)), x).mean() + squared(f(b(y)), y).mean()
    assert math.isclose(gan.evaluate_loss(x, y)[2], float(expected), rel_tol=1e-5)
    assert math.isclose(gan.step(x, y)[2], float(expected), rel_tol=1e-5)


def test_the_critics_see_earlier_fakes():
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(2, [8], 1)

        def forward(self, x):
            if x.grad_fn is None:
                seen.append(x.detach().clone())
            return self.net(x)

    critics = Recorder(), Recorder()
    f, b = net(), net()
    gan = CycleGAN(
        f,
        b,
        *critics,
        torch.optim.Adam(parameters(f, b), lr=0.1),
        torch.optim.Adam(parameters(*critics), lr=0.1),
        pool_size=4,
    )
    x, y = data(6, 6)
    fakes = []
    for _ in range(4):
        with torch.no_grad():
            fakes.append(f(x))
        seen.clear()
        gan.step(x, y)
    old, new = torch.cat(fakes[:-1]), fakes[-1]
    shown = seen[3]  # x, its fakes, y, its fakes
    is_old = (shown[:, None] == old).all(-1).any(-1)
    is_new = (shown == new).all(-1)
    assert bool(is_old.any())
    assert bool((is_old | is_new | (shown[:, None] == new).all(-1).any(-1)).all())


@pytest.mark.parametrize("name", [n for n in objectives.__all__ if n != "Objective"])
def test_every_objective(name):
    objective = objectives.FDivergence("pearson_chi2") if name == "FDivergence" else None
    objective = getattr(objectives, name)() if objective is None else objective
    terms = [penalties.WeightClipping(1.0)]
    x, y = data()
    gan = make_cyclegan(objective=objective, penalties=terms, critic_steps=2)
    gan.step(x, y)
    before = snapshot(gan)
    losses = gan.step(x, y)
    assert all(type(loss) is float and math.isfinite(loss) for loss in losses)
    moved = [not torch.equal(a, b) for a, b in zip(before, snapshot(gan), strict=True)]
    # The additive constant of a paired or linear score has no gradient.
    assert sum(not m for m in moved) <= 2
    critic, generator, _ = gan.evaluate_loss(x, y)
    with torch.no_grad():
        scores = [
            (c(real).flatten(), c(fake).flatten())
            for c, real, fake in (
                (gan.critic_x, x, gan.backward(y)),
                (gan.critic_y, y, gan.forward(x)),
            )
        ]
    expected = 0.5 * sum(float(objective.critic_loss(*s)) for s in scores)
    assert math.isclose(critic, expected, rel_tol=1e-5, abs_tol=1e-6)
    adversarial = sum(float(objective.generator_loss(*s)) for s in scores)
    cycle = gan.evaluate_loss(x, y)[2]
    assert math.isclose(generator - 10 * cycle, adversarial, rel_tol=1e-4, abs_tol=1e-5)


@pytest.mark.parametrize(
    "penalty", [penalties.R1(1.0), penalties.R2(1.0), penalties.GradientPenalty()], ids=repr
)
def test_penalties_enter_half_the_sum(penalty):
    x, y = data()
    gan = make_cyclegan(penalties=penalty, pool_size=0)
    expected = gan.evaluate_loss(x, y)[0]
    torch.manual_seed(1)
    with torch.no_grad():
        fakes = gan.backward(y), gan.forward(x)
    for critic, real, fake in ((gan.critic_x, x, fakes[0]), (gan.critic_y, y, fakes[1])):
        expected += 0.5 * float(penalty(critic, real, fake).detach())
    torch.manual_seed(1)
    assert math.isclose(gan.step(x, y)[0], expected, rel_tol=1e-5)


# -------------------------------------------------------------------------------- who learns what


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optim", ["torch", "pyro", "schedule"])
def test_it_trains_everything(kind, optim):
    if (kind, optim) == ("parameters", "torch"):
        pytest.skip("no tensor exists before the first run")
    translators = KINDS[kind]()
    if kind in SAME_NAME:
        translators = (translators[0], net())
    gan, (x, y) = make_cyclegan(translators, optim), data(5, 7)
    history = train(gan, (x, y), 1, progress=False)
    assert list(history) == ["critic", "generator", "cycle"]
    assert len(gan._program.params) == (
        4 if kind == "parameters" else len(parameters(*translators))
    )
    before = snapshot(gan)
    train(gan, (x, y), 2, progress=False)
    after = snapshot(gan)
    assert len(before) == len(after)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_gradients_of_the_critics_do_not_reach_the_translators_and_conversely():
    x, y = data()
    for lr, critic_lr in ((0.1, 0.0), (0.0, 0.1)):
        f, b = net(), net()
        critics = MLP(2, [8], 1), MLP(2, [8], 1)
        gan = CycleGAN(
            f,
            b,
            *critics,
            torch.optim.SGD(parameters(f, b), lr=lr),
            torch.optim.SGD(parameters(*critics), lr=critic_lr),
            penalties=penalties.R2(1.0),
            identity_weight=0.5,
        )
        seen = []
        real_step = gan._critic.optim.step
        gan._critic.optim.step = lambda real_step=real_step, seen=seen, f=f, b=b: (
            seen.append([p.grad for p in parameters(f, b)]),
            real_step(),
        )
        gan.step(x, y)
        assert all(grad is None for grads in seen for grad in grads)
        # What is left on the critics is their own gradient.
        before = [p.grad.clone() for p in parameters(*critics)]
        fakes = gan._translate_both(x, y)
        loss, _, params = gan._translators_loss(x, y, fakes)
        loss.backward(inputs=list(params.values()) or parameters(f, b))
        after = [p.grad for p in parameters(*critics)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_evaluation_changes_nothing():
    gan, (x, y) = make_cyclegan((batched(), Translator("b", batched()))), data()
    gan.evaluate_loss(x, y)  # before any step too
    assert gan.num_steps == 0
    gan.step(x, y)
    state = gan.state_dict()
    losses = gan.evaluate_loss(x, y)
    assert all(type(loss) is float and math.isfinite(loss) for loss in losses)
    assert str(state) == str(gan.state_dict())


def test_the_first_step_leaves_the_random_state_to_the_program():
    draws = []
    for warm in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        gan, (x, y) = make_cyclegan(KINDS["stochastic"](), "pyro"), data()
        if warm:
            gan.prepare(x, y)
        draws.append(gan.step(x, y))
    assert draws[0] == draws[1]


def test_a_running_average():
    gan, (x, y) = make_cyclegan(ema=0.5), data()
    for _ in range(3):
        gan.step(x, y)
    last = [p.detach().clone() for p in parameters(gan.forward, gan.backward)]
    with gan.averaged():
        inside = [p.detach().clone() for p in parameters(gan.forward, gan.backward)]
    after = parameters(gan.forward, gan.backward)
    assert all(not torch.equal(a, b) for a, b in zip(last, inside, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(last, after, strict=True))
    with pytest.raises(ValueError, match="`ema` must be a decay"):
        make_cyclegan().averaged().__enter__()


def test_one_translator_may_go_both_ways():
    both = net()
    critics = MLP(2, [8], 1), MLP(2, [8], 1)
    optims = (torch.optim.Adam(m, lr=0.1) for m in (both.parameters(), parameters(*critics)))
    gan = CycleGAN(both, both, *critics, *optims)
    assert all(math.isfinite(loss) for loss in gan.step(*data()))


def test_double_and_half_precision():
    x, y = data(dtype=torch.float64)
    gan = make_cyclegan(dtype=torch.float64, penalties=penalties.R1(1.0), pool_size=4)
    for _ in range(3):
        gan.step(x, y)
    assert gan._pools.x.state_dict()["stored"].dtype == torch.float64

    x, y = x.float(), y.float()
    losses = []
    for autocast in (None, torch.bfloat16):
        torch.manual_seed(0)
        gan = make_cyclegan(autocast=autocast, cycle_weight=1.0)
        losses.append(gan.step(x, y))
        assert all(p.dtype == torch.float32 for p in snapshot(gan))
    # bfloat16 keeps 8 bits: a relative error of 2^-8 in each of a few layers.
    assert torch.allclose(*map(torch.tensor, losses), rtol=0.05)


# --------------------------------------------------------------------------------------- resuming


def continue_for(gan, num_steps, schedules=()):
    losses = []
    for _ in range(num_steps):
        losses.append(gan.step(*data(5, 7)))
        if isinstance(gan.optim, pyro.optim.PyroLRScheduler):
            gan.optim.step()
        for schedule in schedules:
            schedule.step()
    return losses


@pytest.mark.parametrize("optim", ["torch", "pyro", "schedule"])
@pytest.mark.parametrize("kind", ["modules", "stochastic", "mixed", "batch statistics"])
def test_a_restored_trainer_goes_on_bit_for_bit(kind, optim):
    def fresh():
        gan = make_cyclegan(
            KINDS[kind](), optim, ema=0.9, pool_size=6, identity_weight=0.5, critic_steps=2
        )
        players = [gan.critic_optim] + [gan.optim] * (optim == "torch")
        factor = linear_decay(8, 0.25)
        return gan, [torch.optim.lr_scheduler.LambdaLR(player, factor) for player in players]

    gan, schedules = fresh()
    continue_for(gan, 3, schedules)
    file = io.BytesIO()
    torch.save([gan.state_dict(), [s.state_dict() for s in schedules]], file)
    random = torch.get_rng_state()
    expected = continue_for(gan, 3, schedules)

    pyro.clear_param_store()
    torch.manual_seed(123)  # other initial parameters
    again, schedules = fresh()
    file.seek(0)
    state, states = torch.load(file, weights_only=True)
    again.load_state_dict(state)
    for schedule, own in zip(schedules, states, strict=True):
        schedule.load_state_dict(own)
    torch.set_rng_state(random)
    assert continue_for(again, 3, schedules) == expected
    assert str(gan.state_dict()["pools"]) == str(again.state_dict()["pools"])
    average = again._program.average
    assert all(torch.equal(v, average[n]) for n, v in gan._program.average.items())


def test_a_state_of_another_trainer():
    gan = make_cyclegan()
    gan.step(*data())
    with pytest.raises(ValueError, match="`state_dict` must hold"):
        gan.load_state_dict({"num_steps": 1})
    state = gan.state_dict()
    assert set(state) == {"num_steps", "program", "critic", "pools"}


# ------------------------------------------------------------------------------------- bad inputs


def test_bad_arguments():
    f, b = net(), net()
    critics = MLP(2, [8], 1), MLP(2, [8], 1)
    good = {
        "forward": f,
        "backward": b,
        "critic_x": critics[0],
        "critic_y": critics[1],
        "optim": torch.optim.Adam(parameters(f, b), lr=0.1),
        "critic_optim": torch.optim.Adam(parameters(*critics), lr=0.1),
    }
    CycleGAN(**good)
    tied = MLP(2, [8], 1)
    tied.head.weight = critics[0].head.weight
    bad = [
        ("forward", {"forward": 3}),
        ("backward", {"backward": None}),
        ("critic_x", {"critic_x": len}),
        ("critic_x", {"critic_x": PyroModule[nn.Linear](2, 1)}),
        ("critic_y", {"critic_y": nn.Identity()}),
        ("critic_y", {"critic_y": critics[0]}),
        ("critic_y", {"critic_y": tied}),
        ("optim", {"optim": "adam"}),
        ("critic_optim", {"critic_optim": torch.optim.Adam(critics[0].parameters())}),
        ("critic_optim", {"critic_optim": good["optim"]}),
        ("objective", {"objective": "hinge"}),
        ("penalties", {"penalties": [1.0]}),
        ("cycle_weight", {"cycle_weight": -1.0}),
        ("cycle_weight", {"cycle_weight": math.inf}),
        ("identity_weight", {"identity_weight": -1.0}),
        ("cycle_distance", {"cycle_distance": 1.0}),
        ("cycle_distance", {"cycle_distance": lambda x: x}),
        ("forward", {"forward": nn.Linear}),
        ("pool_size", {"pool_size": -1}),
        ("pool_size", {"pool_size": 2.0}),
        ("critic_steps", {"critic_steps": 0}),
        ("ema", {"ema": 1.0}),
        ("autocast", {"autocast": "bfloat16"}),
    ]
    for name, wrong in bad:
        with pytest.raises(ValueError, match=f"`{name}` must"):
            CycleGAN(**(good | wrong))


def test_bad_batches():
    x, y = data()
    for wrong, name in [
        ((x.long(), y), "x"),
        ((x, None), "y"),
        ((x[:0], y), "x"),
        ((x, torch.tensor(1.0)), "y"),
        ((x.to("meta"), y), "x"),
        ((x.double(), y), "x"),
    ]:
        with pytest.raises(ValueError, match=f"`{name}` must"):
            make_cyclegan().step(*wrong)
    with pytest.raises(ValueError, match="`identity_weight` must be 0"):
        make_cyclegan(identity_weight=0.5).step(x, torch.randn(6, 3))
    for settings in (
        {"objective": objectives.Relativistic()},
        {"penalties": penalties.GradientPenalty()},
    ):
        with pytest.raises(ValueError, match="`y` must have as many rows as `x`"):
            make_cyclegan(**settings).step(x, y[:4])


class Wrong(nn.Module):
    """A translator that spoils what a good one returns."""

    def __init__(self, spoil):
        super().__init__()
        self.net, self.spoil = net(), spoil

    def forward(self, rows):
        return self.spoil(self.net(rows))


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out, out), "return a floating point tensor, returned tuple"),
        (lambda out: out.long(), "return a floating point tensor, returned torch.int64"),
        (lambda out: out[:3], r"of shape \(6, 2\).* returned \(3, 2\)"),
        (lambda out: out[:, :1], r"of shape \(6, 2\).* returned \(6, 1\)"),
        (lambda out: out.sum(), r"of shape \(6, 2\).* returned \(\)"),
        (lambda out: out.detach(), "with a gradient"),
    ],
)
def test_bad_translations(name, spoil, message):
    pair = [Wrong(lambda out: out), Wrong(lambda out: out)]
    pair[name == "backward"] = Wrong(spoil)
    with pytest.raises(
        ValueError, match=f"`{name}` must return a.*{message}|`{name}` must {message}"
    ):
        make_cyclegan(pair).step(*data())


def test_a_discrete_site_has_no_gradient():
    class Discrete(Translator):
        def __call__(self, rows):
            pyro.module(self.name, self.net)
            with pyro.plate("rows", len(rows)):
                return pyro.sample("out", dist.Bernoulli(logits=self.net(rows)).to_event(1))

    with pytest.raises(ValueError, match="`backward` must return a tensor with a gradient"):
        make_cyclegan((net(), Discrete("b", net()))).step(*data())


def test_a_network_that_is_not_registered():
    hidden = net()
    forward = Translator("f", net())
    optim = torch.optim.Adam(parameters(forward, hidden), lr=0.1)
    with pytest.raises(ValueError, match="`backward` must have parameters that train"):
        make_cyclegan((forward, lambda rows: hidden(rows)), optim).step(*data())


def test_an_optimiser_that_lacks_a_parameter():
    f, b = net(), net()
    with pytest.raises(ValueError, match=r"`optim` must hold every parameter.*backward\."):
        make_cyclegan((f, b), torch.optim.Adam(f.parameters(), lr=0.1)).step(*data())


def test_a_plain_module_whose_name_is_taken():
    pyro.module("forward", net())
    with pytest.raises(ValueError, match="`forward` must be alone under this name"):
        make_cyclegan(optim="pyro").step(*data())


def test_players_that_share_a_tensor():
    f, b = net(), net()
    critics = MLP(2, [8], 1), MLP(2, [8], 1)
    critics[1].hidden[0].weight = f.hidden[0].weight
    optims = (torch.optim.Adam(p, lr=0.1) for p in (parameters(f, b), parameters(*critics)))
    with pytest.raises(ValueError, match="`critic_y` must share no tensor with the translators"):
        CycleGAN(f, b, *critics, *optims).step(*data())


def test_bad_scores_and_distances():
    x, y = data()
    critics = nn.Linear(2, 2), MLP(2, [8], 1)
    f, b = net(), net()
    optims = [torch.optim.Adam(parameters(*pair), lr=0.1) for pair in ((f, b), critics)]
    with pytest.raises(ValueError, match="`critic_x` must return scores"):
        CycleGAN(f, b, *critics, *optims).step(x, y)
    for distance in (lambda a, b: 1.0, lambda a, b: a - b):
        with pytest.raises(ValueError, match="`cycle_distance` must return"):
            make_cyclegan(cycle_distance=distance).step(x, y)


@pytest.mark.parametrize("name", ["critic_x", "critic_y"])
def test_a_critic_of_the_wrong_size_is_named(name):
    critics = {"critic_x": nn.Linear(2, 1), "critic_y": nn.Linear(2, 1)} | {name: nn.Linear(3, 1)}
    forward, backward = net(), net()
    params = [p for critic in critics.values() for p in critic.parameters()]
    optims = torch.optim.Adam(parameters(forward, backward)), torch.optim.Adam(params)
    gan = CycleGAN(forward, backward, *critics.values(), *optims)
    with pytest.raises(ValueError, match=f"`{name}` must take 1 values of shape"):
        gan.step(*data())


def test_a_critic_that_needs_a_bounded_slope():
    with pytest.warns(UserWarning, match="needs a critic with a bounded slope"):
        make_cyclegan(objective=objectives.Wasserstein())


@pytest.mark.parametrize("name", ["critic_x", "critic_y"])
def test_a_critic_that_ends_in_a_sigmoid(name):
    critics = {"critic_x": nn.Linear(2, 1), "critic_y": nn.Linear(3, 1)}
    critics[name] = nn.Sequential(critics[name], nn.Sigmoid())
    params = [p for critic in critics.values() for p in critic.parameters()]
    forward, backward = nn.Linear(2, 3), nn.Linear(3, 2)
    optims = torch.optim.Adam(parameters(forward, backward)), torch.optim.Adam(params)
    with pytest.warns(UserWarning, match="nn.Sigmoid"):
        CycleGAN(forward, backward, *critics.values(), *optims, objectives.NonSaturating())


def test_it_has_a_repr():
    gan = make_cyclegan(penalties=penalties.R1(0.1), cycle_weight=1.0, pool_size=0)
    assert repr(gan) == "CycleGAN(LeastSquares(), R1(gamma=0.1), cycle_weight=1.0, pool_size=0)"


@pytest.mark.cuda
def test_a_step_on_a_cuda_device():
    x, y = (batch.cuda() for batch in data(5, 7))
    translators = net(device="cuda"), net(device="cuda")
    critics = [MLP(2, [8], 1, device="cuda") for _ in range(2)]
    optims = [torch.optim.Adam(parameters(*pair), lr=0.1) for pair in (translators, critics)]
    gan = CycleGAN(*translators, *critics, *optims, penalties=penalties.R1(1.0), pool_size=4)
    for _ in range(3):
        assert all(math.isfinite(loss) for loss in gan.step(x, y))
    assert gan._pools.y.state_dict()["stored"].is_cuda


# ------------------------------------------------------------------------------------ known truth


def test_linear_translators_between_two_gaussians():
    # N(0, S) to N(m, T): every linear F with F S F' = T and shift m pushes the one law to the
    # other; the cycles make B its inverse. Critics that are quadratic see means and covariances.
    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 1)

        def forward(self, v):
            products = v[:, :1] * v
            return self.linear(torch.cat([v, products, v[:, 1:].square()], -1))

    n, steps = 4000, 600
    root = torch.tensor([[1.5, 0.0], [0.6, 0.7]])
    shift = torch.tensor([1.0, -0.5])
    x, y = torch.randn(n, 2), torch.randn(n, 2) @ root.T + shift
    f, b = nn.Linear(2, 2), nn.Linear(2, 2)
    for module in (f, b):
        nn.init.eye_(module.weight)
        nn.init.zeros_(module.bias)
    critics = Quadratic(), Quadratic()
    optims = [
        torch.optim.Adam(parameters(*pair), lr=0.02, betas=(0.5, 0.9)) for pair in ((f, b), critics)
    ]
    gan = CycleGAN(
        f, b, *critics, *optims, objectives.NonSaturating(), penalties.R1(0.1), cycle_weight=1.0
    )
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, linear_decay(steps, 0.25)) for o in optims]

    def batch(step):
        rows = torch.randint(n, (2, 256))
        return x[rows[0]], y[rows[1]]

    train(gan, batch, steps, callbacks=schedules, progress=False)
    with torch.no_grad():
        pushed = f(x)
        assert float((b(pushed) - x).norm(dim=-1).mean()) < 0.01
        # Means and covariances of n draws differ by the errors below: five of them, sqrt(2) for
        # two samples, fail at a rate of 6e-7 each. To this comes what the game leaves, 0.05.
        error = 5 * math.sqrt(2 / n)
        scale = float(y.std(0).max())
        assert float((pushed.mean(0) - y.mean(0)).abs().max()) < scale * error + 0.05
        gap = (pushed.T.cov() - y.T.cov()).abs().max()
        assert float(gap) < math.sqrt(2) * scale**2 * error + 0.05
