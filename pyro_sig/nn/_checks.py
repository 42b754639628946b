"""Checks of sizes, types and inputs, each naming the argument in its error."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Dtype = torch.dtype | None
Device = torch.device | str | None


def check_event(name: str, value: Tensor, event_shape: tuple[int, ...], param: Tensor) -> None:
    """Checks that an input suits a network.

    :param str name: the argument's name.
    :param torch.Tensor value: the input.
    :param tuple event_shape: what its shape ends in.
    :param torch.Tensor param: a parameter, of whose type and device it must be.
    :raises ValueError: if not.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        was = value.layout if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`{name}` must be a dense tensor, was {was}")
    if value.shape[-len(event_shape) :] != event_shape:
        raise ValueError(f"`{name}` must have shape {['*', *event_shape]}, was {list(value.shape)}")
    if value.device != param.device:
        raise ValueError(
            f"`{name}` must be on the device of the network, {param.device}, was on {value.device}"
        )
    if value.dtype != param.dtype and not (
        value.is_floating_point() and torch.is_autocast_enabled(value.device.type)
    ):
        raise ValueError(f"`{name}` must be of the network's {param.dtype}, was {value.dtype}")


def positive_integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, was {value!r}")
    return value


def check_parameters(device: Device, dtype: Dtype) -> None:
    """Checks that parameters can be made.

    :param device: where.
    :param dtype: of which type.
    :raises ValueError: for no floating point type, or a device that is not here.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"`dtype` must be a floating point type, was {dtype!r}")
    try:
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError) as error:  # the last without CUDA
        raise ValueError(f"`device` must be a device at hand, was {device!r}: {error}") from error


def make_module(name: str, make: Callable[..., nn.Module], *sizes: int) -> nn.Module:
    """Calls what makes a module.

    :param str name: the argument's name.
    :param callable make: what was passed, such as a class of modules.
    :param sizes: what it is called with.
    :return: the module.
    :raises ValueError: if it does not make one.
    """
    if isinstance(make, nn.Module) or not callable(make):
        was = f"the module {type(make).__name__} itself" if isinstance(make, nn.Module) else make
        raise ValueError(f"`{name}` must be a callable that makes a module, was {was!r}")
    try:
        made: Any = make(*sizes)
    except TypeError as error:
        raise ValueError(
            f"`{name}` must make a module when it is called with {sizes}, but {make!r} raised "
            f"TypeError: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"`{name}` must make a module, but made {type(made).__name__}")
    return made
