import copy

import pyro
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import softplus
from torch.optim import SGD, Adam, AdamW, RMSprop

from pyro_sig.adversarial.penalties import R1, GradientPenalty, penalize, spectral_norm
from pyro_sig.adversarial.unrolling import FunctionalModule, unrolled
from pyro_sig.nn import MLP

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01, betas=(0.5, 0.999)),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.01),
}
EACH = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
STEPS = pytest.mark.parametrize("num_steps", [0, 1, 5])


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def small_critic():
    return MLP(2, [6], 1, nn.Tanh, dtype=torch.float64)


def critic_loss(real, fake):
    return lambda critic: softplus(-critic(real)).mean() + softplus(critic(fake)).mean()


def train(critic, optimizer, loss, num_steps):
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(critic).backward()
        optimizer.step()


def snapshot(critic, optimizer):
    return copy.deepcopy((critic.state_dict(), optimizer.state_dict()["state"]))


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, tuple):
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif torch.is_tensor(left):
        assert torch.equal(left, right)
    else:
        assert left == right


def pair(make, before, module=small_critic):
    """Return a critic with an optimiser that has made some steps, and a copy of both."""
    critic = module()
    optimizer = make(critic.parameters())
    train(critic, optimizer, critic_loss(normal(8, 2), normal(8, 2)), before)
    twin = copy.deepcopy(critic)
    second = make(twin.parameters())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return critic, optimizer, twin, second


@EACH
@STEPS
@pytest.mark.parametrize("before", [0, 2])
def test_the_parameters_are_those_after_real_steps(make, num_steps, before):
    critic, optimizer, twin, second = pair(make, before)
    real, fake = normal(8, 2), normal(8, 2).requires_grad_()
    loss = critic_loss(real, fake)
    held = snapshot(critic, optimizer)
    gradients = [p.grad for p in critic.parameters()]
    ahead = unrolled(critic, loss, optimizer, num_steps)
    assert_same(snapshot(critic, optimizer), held)
    assert all(p.grad is g for p, g in zip(critic.parameters(), gradients, strict=True))
    assert fake.grad is None
    train(twin, second, loss, num_steps)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(ahead.parameters[name], parameter, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ahead(real), twin(real), rtol=1e-10, atol=1e-12)


@STEPS
@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_the_gradient_of_a_generator(name, num_steps):
    # Against finite differences: the critic moves with the generator.
    critic, optimizer, _, _ = pair(OPTIMIZERS[name], 2)
    real, noise = normal(8, 2), normal(8, 2)

    def generator_loss(shift):
        fake = noise + shift
        ahead = unrolled(critic, critic_loss(real, fake), optimizer, num_steps)
        return -softplus(ahead(fake)).mean()

    shift = normal(2).requires_grad_()
    assert torch.autograd.gradcheck(generator_loss, shift)
    assert all(p.grad is None or p.grad.abs().sum() > 0 for p in critic.parameters())


def test_the_gradient_through_adam_takes_its_second_moment_for_constant():
    # One step from rest: m and v are bias-corrected to g and g^2, so that phi - lr g / |g|.
    critic = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    optimizer = Adam(critic.parameters(), lr=0.1, eps=1e-12)
    fake = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    ahead = unrolled(critic, lambda d: d(fake).sum(), optimizer, 1)
    (derivative,) = torch.autograd.grad(ahead.parameters["weight"].sum(), fake)
    torch.testing.assert_close(derivative, torch.full_like(fake, -0.1 / 2.0))
    torch.testing.assert_close(ahead.parameters["weight"], critic.weight - 0.1)


@EACH
def test_gradients_flow_to_the_generator_only(make):
    critic, optimizer, _, _ = pair(make, 1)
    critic.zero_grad()
    fake = normal(8, 2).requires_grad_()
    ahead = unrolled(critic, critic_loss(normal(8, 2), fake), optimizer, 3)
    ahead(normal(8, 2)).sum().backward()  # through the steps alone
    assert bool((fake.grad != 0).any()) and bool(torch.isfinite(fake.grad).all())
    assert all(p.grad is None for p in critic.parameters())


def test_no_steps():
    critic, optimizer, _, _ = pair(OPTIMIZERS["adam"], 1)
    x = normal(5, 2)

    def never(_):
        raise AssertionError("a loss without a step")

    ahead = unrolled(critic, never, optimizer, 0)
    assert torch.equal(ahead(x), critic(x))


def test_buffers_stay():
    def module():
        layers = [nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)]
        return spectral_norm(nn.Sequential(*layers).double())

    critic, optimizer, twin, second = pair(OPTIMIZERS["adam"], 2, module)
    loss = critic_loss(normal(8, 2), normal(8, 2))
    held = snapshot(critic, optimizer)
    ahead = unrolled(critic, loss, optimizer, 4)
    ahead(normal(8, 2))
    assert_same(snapshot(critic, optimizer), held)
    # Its own buffers follow as they would have.
    ahead = unrolled(critic, loss, optimizer, 4)
    train(twin, second, loss, 4)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(ahead.buffers[name], buffer, rtol=1e-8, atol=1e-10)
    critic.eval(), twin.eval()
    x = normal(5, 2)
    torch.testing.assert_close(ahead(x), twin(x), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("penalty", [GradientPenalty(1.0), R1(1.0)], ids=str)
def test_third_derivatives(penalty):
    # A penalty's gradient inside of the loss whose gradient is the step.
    critic, optimizer, twin, second = pair(OPTIMIZERS["sgd"], 0)
    real, noise = normal(4, 2), normal(4, 2)

    def loss(real, fake):
        def value(d):
            torch.manual_seed(0)
            return critic_loss(real, fake)(d) + penalize(d, [penalty], real, fake)

        return value

    def generator_loss(scale):
        # Penalties detach the values: the data carry none of the generator's gradient.
        ahead = unrolled(critic, loss(real, scale * noise), optimizer, 2)
        return -ahead(scale * noise).mean()

    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator_loss(scale), scale)
    assert bool(torch.isfinite(gradient))
    if penalty.where == "real":  # interpolates move with the generator, without a gradient
        assert torch.autograd.gradcheck(generator_loss, scale)
    ahead = unrolled(critic, loss(real, noise), optimizer, 2)
    train(twin, second, loss(real, noise), 2)
    torch.testing.assert_close(ahead(real), twin(real), rtol=1e-10, atol=1e-12)


def test_the_loss_is_evaluated_in_each_step():
    critic, optimizer, twin, second = pair(OPTIMIZERS["sgd"], 0)
    kept = []

    def loss(d):
        kept.append(normal(8, 2))
        return d(kept[-1]).mean()

    ahead = unrolled(critic, loss, optimizer, 3)
    assert len(kept) == 3
    for batch in kept:
        train(twin, second, lambda d, batch=batch: d(batch).mean(), 1)
    torch.testing.assert_close(ahead(kept[0]), twin(kept[0]))


def test_what_the_optimizer_does_not_train_stays():
    critic = small_critic()
    critic.head.bias.requires_grad_(False)
    optimizer = SGD([critic.head.weight, critic.head.bias], lr=0.1)
    loss = critic_loss(normal(8, 2), normal(8, 2))
    ahead = unrolled(critic, loss, optimizer, 2)
    moved = {
        name for name, p in critic.named_parameters() if not torch.equal(p, ahead.parameters[name])
    }
    assert moved == {"head.weight"}
    assert ahead.parameters.keys() == dict(critic.named_parameters()).keys()


def test_a_parameter_that_the_loss_leaves_out_stays():
    critic = small_critic()
    optimizer = SGD(critic.parameters(), lr=0.1, weight_decay=0.5)  # which torch skips too
    x = normal(8, 2)
    ahead = unrolled(critic, lambda d: d(x)[0, 0] - d(x)[1, 0], optimizer, 1)
    assert not torch.equal(ahead.parameters["head.weight"], critic.head.weight)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = small_critic(), small_critic()

        def forward(self, x):
            return self.used(x)

    two = Two()
    optimizer = SGD(two.parameters(), lr=0.1, weight_decay=0.5)
    ahead = unrolled(two, lambda d: d(x).mean(), optimizer, 1)
    assert torch.equal(ahead.parameters["unused.head.weight"], two.unused.head.weight)


def test_shared_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Linear(2, 2, dtype=torch.float64) for _ in range(2))
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).tanh()).sum(-1)

    critic, optimizer, twin, second = pair(OPTIMIZERS["momentum"], 1, Tied)
    x = normal(8, 2)
    ahead = unrolled(critic, lambda d: d(x).mean(), optimizer, 3)
    train(twin, second, lambda d: d(x).mean(), 3)
    torch.testing.assert_close(ahead(x), twin(x))


@pytest.mark.parametrize("local", [False, True])
def test_pyro_modules(local):
    # They read constrained parameters from the store.
    class Student(PyroModule):
        def __init__(self):
            super().__init__()
            start = torch.tensor(2.0, dtype=torch.float64)
            self.scale = PyroParam(start, constraints.positive)
            self.net = PyroModule[MLP](2, [4], 1, dtype=torch.float64)

        def forward(self, x):
            other = pyro.param("elsewhere", lambda: torch.tensor(0.5)) if not local else 0.5
            return self.scale * self.net(x) + other * self.scale.log()

    with pyro.settings.context(module_local_params=local):
        student, x = Student(), normal(8, 2)
        student(x)
        stored = {name: id(p) for name, p in pyro.get_param_store().named_parameters()}
        assert local or len(stored) >= 2
        optimizer = SGD(student.parameters(), lr=0.1)
        ahead = unrolled(student, lambda f: f(x).square().mean(), optimizer, 3)
        assert stored == {name: id(p) for name, p in pyro.get_param_store().named_parameters()}
        assert float(student.scale.detach()) == pytest.approx(2.0)
        train(student, optimizer, lambda f: f(x).square().mean(), 3)
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(ahead.parameters[name], parameter)
        torch.testing.assert_close(ahead(x), student(x))


def test_where_gradients_are_disabled():
    critic, optimizer, twin, second = pair(OPTIMIZERS["adam"], 1)
    fake = normal(8, 2).requires_grad_()
    loss = critic_loss(normal(8, 2), fake)
    with torch.no_grad():
        ahead = unrolled(critic, loss, optimizer, 3)
        assert not ahead(fake).requires_grad
    assert all(p.is_leaf for p in ahead.parameters.values())
    train(twin, second, loss, 3)
    torch.testing.assert_close(ahead(fake), twin(fake))


def test_float32():
    critic = MLP(2, [6], 1)
    optimizer = Adam(critic.parameters())
    fake = torch.randn(8, 2, requires_grad=True)
    ahead = unrolled(critic, critic_loss(torch.randn(8, 2), fake), optimizer, 2)
    assert all(p.dtype == torch.float32 for p in ahead.parameters.values())
    ahead(fake).mean().backward()
    assert bool(torch.isfinite(fake.grad).all())


@pytest.mark.cuda
def test_device():
    critic = MLP(2, [6], 1, device="cuda")
    for make in OPTIMIZERS.values():
        fake = torch.randn(8, 2, device="cuda", requires_grad=True)
        loss = critic_loss(torch.randn(8, 2, device="cuda"), fake)
        optimizer = make(critic.parameters())
        train(critic, optimizer, loss, 1)
        fake.grad = None
        unrolled(critic, loss, optimizer, 2)(fake).mean().backward()
        assert fake.grad.is_cuda


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("number", [-1, 1.0, True, None, "5"])
def test_bad_number_of_steps(number):
    critic = small_critic()
    with pytest.raises(
        ValueError, match=f"`num_steps` must be an integer of at least 0, was {number!r}"
    ):
        unrolled(critic, lambda d: d(normal(2, 2)).mean(), SGD(critic.parameters(), 0.1), number)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda d: d(torch.zeros(3, 2).double()), r"`loss` must return a scalar.*\[3, 1\]"),
        (lambda d: 1.0, r"`loss` must return a scalar tensor, was float"),
        (lambda d: torch.zeros(()), r"`loss` must depend on the parameters"),
        (lambda d: torch.zeros((), requires_grad=True), r"`loss` must depend on the parameters"),
    ],
)
def test_bad_losses(loss, match):
    critic = small_critic()
    with pytest.raises(ValueError, match=match):
        unrolled(critic, loss, SGD(critic.parameters(), lr=0.1), 1)


def test_a_loss_of_the_module_itself():
    critic = small_critic()
    with pytest.raises(ValueError, match=r"`loss` must depend .* call the module itself\?"):
        unrolled(critic, lambda d: critic(normal(3, 2)).mean(), SGD(critic.parameters(), 0.1), 1)


def test_bad_optimizers():
    critic = small_critic()
    other = SGD(small_critic().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"`optimizer` must have a parameter of the module"):
        unrolled(critic, lambda d: d(normal(3, 2)).mean(), other, 1)
    frozen = SGD(critic.parameters(), lr=0.1)
    critic.requires_grad_(False)
    with pytest.raises(ValueError, match=r"`optimizer` must have .* that requires gradients"):
        unrolled(critic, lambda d: d(normal(3, 2)).mean(), frozen, 1)
    with pytest.raises(ValueError, match=r"`optimizer` must be .*Adagrad"):
        unrolled(critic, lambda d: d, torch.optim.Adagrad(critic.parameters()), 0)


def test_functional_modules_take_keywords():
    layer = nn.Linear(2, 1)
    x = torch.randn(3, 2)
    same = FunctionalModule(layer, dict(layer.named_parameters()), {})
    assert torch.equal(same(input=x), layer(x))
