"""Modules made by what a caller passes, such as a class of activations."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pyro_sig._arguments import describe, refusal


def make_module(name: str, make: Callable[..., nn.Module], *sizes: int) -> nn.Module:
    """Calls what makes a module.

    :param str name: the argument's name.
    :param callable make: what was passed, such as a class of modules.
    :param sizes: what it is called with.
    :return: the module.
    :raises ValueError: if it does not make one.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise refusal(name, "a callable that makes a module, not one itself", make)
    try:
        made: Any = make(*sizes)
    except TypeError as error:
        raise ValueError(
            f"`{name}` must make a module when it is called with {sizes}, but raised: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"`{name}` must make a module, made {describe(made)}")
    return made
