"""A module as it will be after some steps of its optimiser, with gradients through these steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from pyro_sig._arguments import check_instance, check_integer
from pyro_sig._functions import check_callable
from pyro_sig._show_settings import show_settings
from pyro_sig.adversarial.differentiable_optim import differentiable

__all__ = ["FunctionalModule", "unrolled"]


class FunctionalModule:
    r"""Calls a module with other parameters than its own.

    .. math::

        x \mapsto f(x; \phi)

    :param torch.nn.Module module: the module; it is not changed.
    :param parameters: tensors in place of its parameters, by name.
    :param buffers: tensors in place of its buffers, by name. Calls that update buffers do so in
        these tensors.

    Example::

        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> double = {name: 2 * value for name, value in layer.named_parameters()}
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(FunctionalModule(layer, double, {})(x), 2 * layer(x))
        True
    """

    __repr__ = show_settings

    def __init__(
        self, module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> None:
        self.module, self.parameters, self.buffers = module, parameters, buffers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        with _without_stored(self.module):
            return functional_call(self.module, {**self.parameters, **self.buffers}, args, kwargs)


@contextmanager
def _without_stored(module: nn.Module) -> Iterator[None]:
    """Hide a module's own entries of the parameter store, which a PyroModule reads instead."""
    names = {
        part._pyro_get_fullname(name)
        for part in module.modules()
        if isinstance(part, PyroModule)
        for name in part._pyro_params
    }
    if not names:
        yield
        return
    store = pyro.get_param_store()
    others: Any = {
        kind: {name: value for name, value in entries.items() if name not in names}
        for kind, entries in cast(dict[str, Any], store.get_state()).items()
    }
    with store.scope(others):
        yield


def unrolled(
    module: nn.Module,
    loss: Callable[[FunctionalModule], Tensor],
    optimizer: torch.optim.Optimizer,
    num_steps: int,
) -> FunctionalModule:
    r"""Predicts a module after some steps of its optimiser, as a function of what the loss uses.

    .. math::

        \phi_{k+1} = \phi_k + u\big(\nabla_\phi L(\phi_k; \theta), s_k\big), \qquad
        k = 0, \dots, K - 1

    The result calls the module with :math:`\phi_K`, which depends on the :math:`\theta` in the
    loss: a generator that takes its loss from the unrolled critic sees how the critic would
    answer. The optimiser's state and hyperparameters are where the steps start, as
    :class:`~pyro_sig.adversarial.differentiable_optim.DifferentiableOptimizer` says, and
    :math:`\phi_0` is a constant. Nothing changes in the module, its buffers, its gradients
    and the optimiser. Where gradients are disabled the result has none.

    :param torch.nn.Module module: the module, such as a critic.
    :param loss: maps a callable, to be called as the module is, to its loss, a scalar tensor. It
        is evaluated in each step anew.
    :param torch.optim.Optimizer optimizer: the module's Adam, AdamW, SGD or RMSprop. Parameters
        that it does not have, or that require no gradients, stay as they are.
    :param int num_steps: :math:`K`, 5 in the paper; 0 for the module as it is.
    :return: the module with :math:`\phi_K`, and with buffers of its own.
    :raises ValueError: if `num_steps` is not an integer from 0 on, the optimiser is of another
        class or has no trainable parameter of the module, or the loss is not a scalar or does not
        depend on any.

    Source: L. Metz, B. Poole, D. Pfau and J. Sohl-Dickstein, "Unrolled Generative Adversarial
    Networks", 2017, https://arxiv.org/abs/1611.02163, section 2.2.

    Example::

        >>> import torch
        >>> critic = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
        >>> fake = torch.ones(1, 1, requires_grad=True)
        >>> ahead = unrolled(critic, lambda d: d(fake).mean(), optimizer, num_steps=5)
        >>> moved = ahead.parameters["weight"] - critic.weight  # each step by -0.1 * fake
        >>> moved.detach(), torch.autograd.grad(moved, fake)[0]
        (tensor([[-0.5000]]), tensor([[-0.5000]]))
    """
    check_integer("num_steps", num_steps, 0, int)
    check_instance("module", module, nn.Module)
    check_callable("loss", loss, "a function of the module", modules=False)
    mirror = differentiable(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = dict(module.named_parameters())
    trained = {name: p for name, p in own.items() if p.requires_grad and id(p) in held}
    if num_steps and not trained:
        raise ValueError(
            "`optimizer` must have a parameter of the module that requires gradients, but has none"
        )
    state = mirror.init(trained)
    create_graph = torch.is_grad_enabled()
    fixed = {name: p.detach() for name, p in own.items() if name not in trained}
    params = {name: p.detach().requires_grad_() for name, p in trained.items()}
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    for _ in range(num_steps):
        with torch.enable_grad():
            value = loss(FunctionalModule(module, {**fixed, **params}, buffers))
            grads = _gradients(value, params, create_graph)
            params, state = mirror.update(params, grads, state)
        if not create_graph:
            params = {name: p.detach().requires_grad_() for name, p in params.items()}
    return FunctionalModule(module, {**fixed, **params}, buffers)


def _gradients(
    value: Tensor, params: dict[str, Tensor], create_graph: bool
) -> dict[str, Tensor | None]:
    if not isinstance(value, Tensor) or value.numel() != 1:
        was = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`loss` must return a scalar tensor, was {was}")
    grads: tuple[Tensor | None, ...] = (None,)
    if value.requires_grad:
        grads = torch.autograd.grad(
            value, list(params.values()), create_graph=create_graph, allow_unused=True
        )
    if all(grad is None for grad in grads):
        raise ValueError(
            "`loss` must depend on the parameters of the callable that it is given, but does not: "
            "does it call the module itself?"
        )
    return dict(zip(params, grads, strict=True))
