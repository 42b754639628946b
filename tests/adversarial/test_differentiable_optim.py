import copy
import math

import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from pyro_sig.adversarial.differentiable_optim import DifferentiableOptimizer, differentiable

OPTIMIZERS = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd-decay": (SGD, {"lr": 0.1, "weight_decay": 0.2, "maximize": True}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (Adam, {"lr": 0.1}),
    "adam-gan": (Adam, {"lr": 2e-4, "betas": (0.5, 0.999)}),
    "adam-decay": (Adam, {"lr": 0.1, "weight_decay": 0.2, "eps": 1e-3, "maximize": True}),
    "adam-no-momentum": (Adam, {"lr": 0.1, "betas": (0.0, 0.9)}),
    "amsgrad": (Adam, {"lr": 0.1, "betas": (0.5, 0.5), "amsgrad": True}),
    "adamw": (AdamW, {"lr": 0.1, "weight_decay": 0.2}),
    "adamw-amsgrad": (AdamW, {"lr": 0.1, "betas": (0.5, 0.5), "amsgrad": True}),
    "rmsprop": (RMSprop, {"lr": 0.1}),
    "rmsprop-decay": (RMSprop, {"lr": 0.1, "alpha": 0.9, "weight_decay": 0.2, "maximize": True}),
    "rmsprop-momentum": (RMSprop, {"lr": 0.1, "momentum": 0.9}),
    "rmsprop-centered": (RMSprop, {"lr": 0.1, "centered": True, "momentum": 0.5}),
}
EACH = pytest.mark.parametrize(("kind", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameters(dtype=torch.float64):
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(3, 2), (2,), ()]]


def gradients(params):
    """Give gradients that change with the parameters, of size one."""
    return [torch.cos(3 * p) + 0.5 * p for p in params]


def step(optimizer, params):
    for p, g in zip(params, gradients([p.detach() for p in params]), strict=True):
        p.grad = g
    optimizer.step()


def mirrored(optimizer, params, num_steps):
    mirror = differentiable(optimizer)
    state = mirror.init(params)
    current = list(params)
    for _ in range(num_steps):
        current, state = mirror.update(current, gradients(current), state)
    return current, state


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("before", [0, 3])
def test_steps_are_those_of_torch(kind, options, dtype, tolerance, before):
    params = parameters(dtype)
    optimizer = kind(params, **options)
    for _ in range(before):
        step(optimizer, params)
    predicted, _ = mirrored(optimizer, params, 6)
    start = [p.detach().clone() for p in params]
    for _ in range(6):
        step(optimizer, params)
    for p, q, initial in zip(params, predicted, start, strict=True):
        assert q.dtype == dtype and q.grad_fn is not None
        moved = float((p - initial).detach().abs().max())
        torch.testing.assert_close(q, p, rtol=0, atol=tolerance * max(moved, 1.0))


@EACH
def test_nothing_of_the_optimizer_changes(kind, options):
    params = parameters()
    optimizer = kind(params, **options)
    step(optimizer, params)
    values, state = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict())
    mirror = differentiable(optimizer)
    first = mirror.init(params)
    held = copy.deepcopy({k: slot.buffers for k, slot in first.items()})
    once, _ = mirror.update(params, gradients(params), first)
    again, _ = mirror.update(params, gradients(params), first)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b), "a state has changed"
    for key, slot in first.items():
        for name, value in held[key].items():
            assert torch.equal(slot.buffers[name], value)
    assert all(torch.equal(a, b) for a, b in zip(params, values, strict=True))
    for a, b in zip(state["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        for name, value in a.items():
            assert value == b[name] if not torch.is_tensor(value) else torch.equal(value, b[name])


def test_groups_keep_their_options():
    params = parameters()
    groups = [
        {"params": params[:1], "lr": 0.3, "betas": (0.3, 0.7)},
        {"params": params[1:], "weight_decay": 0.5},
    ]
    optimizer = Adam(groups, lr=0.01)
    predicted, _ = mirrored(optimizer, params, 4)
    for _ in range(4):
        step(optimizer, params)
    for p, q in zip(params, predicted, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-12)


def test_options_are_read_when_a_state_is_made():
    params = parameters()
    optimizer = SGD(params, lr=0.1)
    mirror = differentiable(optimizer)
    early = mirror.init(params)
    optimizer.param_groups[0]["lr"] = 0.2  # as a schedule does
    grads = gradients(params)
    for state, rate in [(early, 0.1), (mirror.init(params), 0.2)]:
        new, _ = mirror.update(params, grads, state)
        torch.testing.assert_close(new[0], params[0] - rate * grads[0])


def test_parameters_without_gradients_stay():
    params = parameters()
    optimizer = Adam(params, lr=0.1)
    step(optimizer, params)
    mirror = differentiable(optimizer)
    state = mirror.init(params)
    grads = [None, *gradients(params)[1:]]
    new, after = mirror.update(params, grads, state)
    assert new[0] is params[0] and after[0] is state[0]
    assert after[1].step == state[1].step + 1 == 2
    params[0].grad = None
    for p, g in zip(params[1:], grads[1:], strict=True):
        p.grad = g.detach()
    optimizer.step()
    for p, q in zip(params, new, strict=True):
        torch.testing.assert_close(q, p)


def test_mappings():
    layer = nn.Linear(2, 1)
    params = dict(layer.named_parameters())
    mirror = differentiable(SGD(layer.parameters(), lr=1.0))
    grads = {name: torch.ones_like(p) for name, p in params.items()}
    new, state = mirror.update(params, grads, mirror.init(params))
    assert list(new) == list(state) == ["weight", "bias"]
    assert torch.equal(new["bias"], layer.bias - 1)


# ---------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}],
    ids=["plain", "momentum", "nesterov"],
)
def test_derivatives_of_sgd(options):
    (param,) = [nn.Parameter(torch.randn(3, dtype=torch.float64))]
    optimizer = SGD([param], lr=0.1, **options)
    param.grad = torch.randn(3, dtype=torch.float64)
    optimizer.step()
    mirror = differentiable(optimizer)
    state = mirror.init([param])

    def end(start, target):
        params, s = [start], state
        for _ in range(4):
            loss = ((params[0] - target).cos() * target).sum()
            grads = torch.autograd.grad(loss, params, create_graph=True)
            params, s = mirror.update(params, grads, s)
        return params[0]

    target = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (param.detach().requires_grad_(), target))


@pytest.mark.parametrize("steps", [1, 3])
def test_derivative_of_adam_by_hand(steps):
    # With gradients g_k = c_k t the first moment is linear in t and the second counts as constant.
    beta1, beta2, rate, eps = 0.5, 0.9, 0.1, 1e-8
    c = [0.7, -1.3, 0.4][:steps]
    t = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    param = nn.Parameter(torch.zeros((), dtype=torch.float64))
    mirror = differentiable(Adam([param], lr=rate, betas=(beta1, beta2), eps=eps))
    params, state = [param.detach()], mirror.init([param])
    for factor in c:
        params, state = mirror.update(params, [factor * t], state)
    derivative = m = v = 0.0
    for k, factor in enumerate(c, 1):
        m = beta1 * m + (1 - beta1) * factor
        v = beta2 * v + (1 - beta2) * (factor * 1.5) ** 2
        root = math.sqrt(v / (1 - beta2**k)) + eps
        derivative -= rate * m / (1 - beta1**k) / root
    (found,) = torch.autograd.grad(params[0], t)
    assert float(found) == pytest.approx(derivative, rel=1e-12)


@pytest.mark.parametrize("kind", [Adam, AdamW, RMSprop])
def test_dead_units_have_finite_derivatives(kind):
    param = nn.Parameter(torch.ones(2))
    mirror = differentiable(kind([param], lr=0.1))
    t = torch.zeros(2, requires_grad=True)
    params, state = [param], mirror.init([param])
    for _ in range(2):
        params, state = mirror.update(params, [t * params[0]], state)
    gradient = torch.autograd.grad(params[0].sum(), t)[0]
    assert bool(torch.isfinite(gradient).all())


# --------------------------------------------------------------------------------------- errors


class Slower(Adam):
    pass


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.Adagrad(p), "Adagrad"),
        (lambda p: ClippedAdam(p), "ClippedAdam"),
        (lambda p: Slower(p), "Slower"),
        (lambda p: None, "NoneType"),
    ],
)
def test_other_optimizers(make, name):
    optimizer = make(parameters())
    for function in (differentiable, DifferentiableOptimizer):
        with pytest.raises(ValueError, match=f"`optimizer` must be .*Adam, AdamW, SGD.*{name}"):
            function(optimizer)


def test_other_parameters():
    params = parameters()
    mirror = differentiable(SGD(params, lr=0.1))
    with pytest.raises(ValueError, match=r"`params` must be parameters of the .* 'w', .*\[3, 2\]"):
        mirror.init({"w": params[0].detach()})
    state = mirror.init(params[:2])
    for changed in [(params, params, state), (params[:2], params[:1], state)]:
        with pytest.raises(ValueError, match=r"must have the same keys, was without [12]"):
            mirror.update(*changed)
