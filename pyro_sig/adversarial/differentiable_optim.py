"""The next steps of a torch optimiser, as functions that gradients pass through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_sig._show_settings import show_settings

__all__ = ["DifferentiableOptimizer", "differentiable"]

Buffers = dict[str, Tensor]
Options = Mapping[str, Any]
Rule = Callable[[Tensor, Tensor, Options, Buffers, int], tuple[Tensor, Buffers]]
Tensors = TypeVar("Tensors", bound=Mapping[str, Tensor] | Sequence[Tensor])


class _Slot(NamedTuple):
    """What an optimiser knows about one parameter."""

    options: Options
    buffers: Buffers
    step: int


State = dict[Any, _Slot]


class DifferentiableOptimizer:
    r"""Makes the steps that a torch optimiser would make, without changing anything.

    .. math::

        \phi_{k+1} = \phi_k + u(g_k, s_k), \qquad s_{k+1} = v(g_k, s_k)

    with the gradient :math:`g_k`, and the optimiser's averages :math:`s_k`, which
    :meth:`init` copies together with its hyperparameters, group by group. Parameters, numbers of
    steps and averages follow those of the optimiser to rounding.

    Derivatives pass through parameters, gradients, momentum and first moments. A second moment
    :math:`v`, by whose root Adam and RMSprop divide, counts as a constant: the root has no
    derivative at zero, where it starts for a unit that is dead.

    :param torch.optim.Optimizer optimizer: an instance of Adam, AdamW, SGD or RMSprop, with any of
        their options.
    :raises ValueError: if the optimiser is of another class; a subclass may step otherwise.

    Source: D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015,
    https://arxiv.org/abs/1412.6980, algorithm 1; I. Loshchilov and F. Hutter, "Decoupled Weight
    Decay Regularization", 2019, https://arxiv.org/abs/1711.05101, algorithms 1 and 2.

    Example::

        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = DifferentiableOptimizer(torch.optim.SGD([weight], lr=0.1))
        >>> target = torch.zeros(2, requires_grad=True)
        >>> state = optimizer.init([weight])
        >>> params = [weight]
        >>> for _ in range(2):
        ...     loss = 0.5 * (params[0] - target).square().sum()
        ...     grads = torch.autograd.grad(loss, params, create_graph=True)
        ...     params, state = optimizer.update(params, grads, state)
        >>> params[0].detach(), weight.detach()
        (tensor([0.8100, 0.8100]), tensor([1., 1.]))
        >>> torch.autograd.grad(params[0].sum(), target)
        (tensor([0.1900, 0.1900]),)
    """

    __repr__ = show_settings

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        kind = type(optimizer)
        if kind not in _RULES:
            raise ValueError(
                "`optimizer` must be a torch.optim "
                + ", ".join(rule.__name__ for rule in _RULES)
                + f", was {kind.__module__}.{kind.__qualname__}"
            )
        self.optimizer = optimizer
        self._rule = _RULES[kind]

    def init(self, params: Mapping[str, Tensor] | Sequence[Tensor]) -> State:
        """Copy what the optimiser holds at this moment.

        :param params: parameters of the optimiser, the objects themselves, in a mapping or a
            sequence.
        :return: the state for :meth:`update`, where tensors come in the same order or with the
            same keys.
        :raises ValueError: if the optimiser does not have one of them.
        """
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        state: State = {}
        for key, param in _items(params):
            if id(param) not in groups:
                raise ValueError(
                    f"`params` must be parameters of the optimiser, but {key!r}, of shape "
                    f"{list(param.shape)}, is not among these"
                )
            options = {k: v for k, v in groups[id(param)].items() if k != "params"}
            # From torch 2.7 on a group says so itself.
            options.setdefault(
                "decoupled_weight_decay", isinstance(self.optimizer, torch.optim.AdamW)
            )
            held = self.optimizer.state.get(param, {})
            buffers = {
                name: value.detach().clone()
                for name, value in held.items()
                if isinstance(value, Tensor) and name != "step"
            }
            state[key] = _Slot(options, buffers, int(held.get("step", 0)))
        return state

    def update(
        self, params: Tensors, grads: Mapping[str, Any] | Sequence[Any], state: State
    ) -> tuple[Tensors, State]:
        """Make one step.

        :param params: tensors in the place of the parameters of :meth:`init`.
        :param grads: the gradient with respect to each; None leaves that tensor and its averages
            as they are, as the optimiser does.
        :param state: from :meth:`init`, or from the step before.
        :return: the new tensors, in a list or a dictionary, and the new state.
        :raises ValueError: if the three do not have the same keys.
        """
        gradients = dict(_items(grads))
        updated: dict[Any, Tensor] = {}
        after: State = {}
        for key, param in _items(params):
            updated[key] = param
            if key not in state or key not in gradients:
                raise ValueError(
                    f"`params`, `grads` and `state` must have the same keys, was without {key!r}"
                )
            after[key] = options, buffers, step = state[key]
            if (grad := gradients[key]) is not None:
                grad = -grad if options["maximize"] else grad
                updated[key], buffers = self._rule(param, grad, options, buffers, step + 1)
                after[key] = _Slot(options, buffers, step + 1)
        new: Any = updated if isinstance(params, Mapping) else list(updated.values())
        return new, after


def differentiable(optimizer: torch.optim.Optimizer) -> DifferentiableOptimizer:
    r"""Mirrors a torch optimiser by one that gradients pass through.

    :param torch.optim.Optimizer optimizer: an instance of Adam, AdamW, SGD or RMSprop.
    :return: ``DifferentiableOptimizer(optimizer)``.
    :raises ValueError: as :class:`DifferentiableOptimizer`.

    Example::

        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> mirror = differentiable(torch.optim.Adam(layer.parameters()))
        >>> params = dict(layer.named_parameters())
        >>> state = mirror.init(params)
        >>> grads = {name: torch.ones_like(p) for name, p in params.items()}
        >>> params, state = mirror.update(params, grads, state)
        >>> torch.allclose(params["bias"], layer.bias - 1e-3)
        True
    """
    return DifferentiableOptimizer(optimizer)


def _items(tensors: Mapping[Any, Any] | Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return iter(tensors.items()) if isinstance(tensors, Mapping) else enumerate(tensors)


def _with_decay(param: Tensor, grad: Tensor, options: Options) -> Tensor:
    decay = options["weight_decay"]
    return grad + decay * param if decay else grad


def _sgd(
    param: Tensor, grad: Tensor, options: Options, buffers: Buffers, step: int
) -> tuple[Tensor, Buffers]:
    grad = _with_decay(param, grad, options)
    if momentum := options["momentum"]:
        average = grad
        if "momentum_buffer" in buffers:
            average = momentum * buffers["momentum_buffer"] + (1 - options["dampening"]) * grad
        buffers = {"momentum_buffer": average}
        grad = grad + momentum * average if options["nesterov"] else average
    return param - options["lr"] * grad, buffers


def _adam(
    param: Tensor, grad: Tensor, options: Options, buffers: Buffers, step: int
) -> tuple[Tensor, Buffers]:
    rate, (beta1, beta2) = options["lr"], options["betas"]
    if options["decoupled_weight_decay"]:
        param = param * (1 - rate * options["weight_decay"])
    else:
        grad = _with_decay(param, grad, options)
    fixed, zero = grad.detach(), torch.zeros_like(param)
    first = torch.lerp(buffers.get("exp_avg", zero), grad, 1 - beta1)
    second = beta2 * buffers.get("exp_avg_sq", zero) + (1 - beta2) * fixed.square()
    after = {"exp_avg": first, "exp_avg_sq": second}
    if options["amsgrad"]:
        second = torch.maximum(buffers.get("max_exp_avg_sq", zero), second)
        after["max_exp_avg_sq"] = second
    root = (second / (1 - beta2**step)).sqrt() + options["eps"]
    return param - rate / (1 - beta1**step) * first / root, after


def _rmsprop(
    param: Tensor, grad: Tensor, options: Options, buffers: Buffers, step: int
) -> tuple[Tensor, Buffers]:
    grad = _with_decay(param, grad, options)
    alpha = options["alpha"]
    fixed, zero = grad.detach(), torch.zeros_like(param)
    second = alpha * buffers.get("square_avg", zero) + (1 - alpha) * fixed.square()
    after = {"square_avg": second}
    if options["centered"]:
        mean = torch.lerp(buffers.get("grad_avg", zero), fixed, 1 - alpha)
        after["grad_avg"] = mean
        second = second - mean.square()
    move = grad / (second.sqrt() + options["eps"])
    if options["momentum"]:
        move = options["momentum"] * buffers.get("momentum_buffer", zero) + move
        after["momentum_buffer"] = move
    return param - options["lr"] * move, after


_RULES: dict[type, Rule] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.SGD: _sgd,
    torch.optim.RMSprop: _rmsprop,
}
