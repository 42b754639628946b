"""Functions that a caller passes: what counts as one, what it takes, and the first call of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any, TypeGuard

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_sig._arguments import describe, refusal


def is_function(value: object) -> TypeGuard[Callable[..., Any]]:
    """Tells whether something can be called with arguments of the caller's.

    Classes, distributions and Pyro's optimisers can be called too, but with arguments of their own.

    :param value: what was passed.
    """
    return callable(value) and not isinstance(value, (type, Distribution, PyroOptim))


def check_callable(
    name: str,
    value: Any,
    must_be: str = "a function or a module",
    *,
    optional: bool = False,
    classes: bool = False,
    modules: bool = True,
) -> None:
    """Checks that something is a function or a module.

    :param str name: the argument's name.
    :param value: what was passed.
    :param str must_be: what it must be.
    :param optional: whether None will do.
    :param classes: whether a class will do that makes no module.
    :param modules: whether a module will do.
    :raises ValueError: if it is neither.
    """
    if optional and value is None:
        return
    if classes and isinstance(value, type):
        fits = not issubclass(value, nn.Module)
    else:
        fits = is_function(value) and (modules or not isinstance(value, nn.Module))
    if not fits:
        raise refusal(name, must_be + ", or None" * optional, value)


def check_takes(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
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
        given = ", ".join([*("a value" for _ in args), *(f"{key}=..." for key in kwargs)])
        raise ValueError(f"`{name}` must be callable with ({given}), but: {error}") from error


def call(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a user's function.

    :param str name: the argument's name.
    :param function: what was passed.
    :param args: what it is called with.
    :param kwargs: the same, by name.
    :return: what it returns.
    :raises ValueError: if it does not take such arguments; what it raises itself is left alone.
    """
    try:
        return function(*args, **kwargs)
    except TypeError:
        # Only now, since a look at the signature takes longer than many a function.
        check_takes(name, function, *args, **kwargs)
        raise


def first_call(name: str, function: Callable[..., Any], *args: Any) -> Any:
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
        given = ", ".join(map(describe, args))
        raise ValueError(f"`{name}` must take {given}, but raised: {error}") from error


def tensors_closed_over(function: object, depth: int = 1) -> list[Tensor]:
    """Finds the tensors that a Python function uses besides its arguments.

    They are in the cells of its closure, its defaults, the globals that its code names, and in the
    same places of the functions that it uses. Modules and other callables are not looked into.

    :param function: what was passed.
    :param int depth: how many functions further to look.
    """
    held: list[Any] = []
    if isinstance(function, partial):
        held += [*function.args, *function.keywords.values()]
        function = function.func
    function = getattr(function, "__func__", function)  # of a method
    if isinstance(function, FunctionType):
        for cell in function.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # nothing is assigned yet
                continue
        held += function.__defaults__ or ()
        held += (function.__kwdefaults__ or {}).values()
        space = function.__globals__
        held += [space[name] for name in _names(function.__code__) if name in space]
    tensors = []
    for value in held:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif depth and isinstance(value, FunctionType):
            tensors += tensors_closed_over(value, depth - 1)
    return tensors


@lru_cache(maxsize=256)
def _names(code: CodeType) -> frozenset[str]:
    """Names that code looks up, some of them attributes, with those of the functions inside."""
    inside = (_names(value) for value in code.co_consts if isinstance(value, CodeType))
    return frozenset(code.co_names).union(*inside)
