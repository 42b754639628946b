"""What can be run as a program, and what a run touches: parameters and networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = [
    "ParamTap",
    "check_program",
    "check_takes",
    "first_call",
    "is_function",
    "modules_run",
]


def is_function(value: Any) -> bool:  # noqa: ANN401 - whatever a caller passed
    """Tells whether something can be called with arguments of the caller's.

    Classes, distributions and Pyro's optimisers can be called too, but with arguments of their own.

    :param value: what was passed.
    """
    return callable(value) and not isinstance(value, (type, Distribution, PyroOptim))


def check_program(name: str, value: Any, optional: bool = False) -> None:  # noqa: ANN401
    """Checks that something can be run as a program, or is None where this will do.

    :param str name: the argument's name.
    :param value: what was passed.
    :param bool optional: whether None will do.
    :raises ValueError: if it is neither.
    """
    if not is_function(value) and not (optional and value is None):
        was = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ValueError(f"`{name}` must be a program, a function or a module, was {was}")


def check_takes(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
    """Checks by its signature, where it has one, that a function takes some arguments.

    :param str name: the argument's name.
    :param function: what was passed.
    :param args: what it is to be called with.
    :param kwargs: the same, by name.
    :raises ValueError: if it does not take them.
    """
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"`{name}` must take {len(args) + len(kwargs)} arguments, but: {error}"
        ) from error


def first_call(name: str, function: Callable[..., Any], *args: Any) -> Any:  # noqa: ANN401
    """Calls a function for the first time, which tells whether it takes its arguments.

    :param str name: the argument's name.
    :param function: what was passed.
    :param args: what it is called with.
    :return: what it returns.
    :raises ValueError: if it does not take them.
    """
    try:
        return function(*args)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        given = ", ".join(_kind(arg) for arg in args)
        raise ValueError(f"`{name}` must take {given}, but raised: {error}") from error


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"a {type(value).__name__}"


class ParamTap(Messenger):
    """Notes the parameters that programs read, unconstrained, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["value"] is not None:
            self.params[msg["name"]] = msg["value"].unconstrained()


@contextmanager
def modules_run(restore: bool = True) -> Iterator[list[nn.Module]]:
    """Lists the outermost modules that run, in order.

    :param restore: put their buffers back afterwards.
    """
    outermost: list[nn.Module] = []
    seen: set[int] = set()
    kept: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, _: Any) -> None:
        if id(module) in seen:
            return
        seen.update(id(m) for m in module.modules())
        outermost.append(module)
        if restore:
            kept.extend((buffer, buffer.clone()) for buffer in module.buffers())

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield outermost
    finally:
        handle.remove()
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
