"""A repr that a person can read: the class, and the settings that it was made with."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

__all__ = ["show_settings"]

_LONGEST = 200  # of one setting


def show_settings(self: Any) -> str:
    """Returns a class's name with the arguments of its constructor that are not the defaults.

    A class that has it as its ``__repr__`` keeps its arguments as attributes of the same names,
    with or without an underscore in front; what it does not keep, or is None or empty, is left
    out. The first argument goes without its name.
    """
    shown: list[str] = []
    for name, default in _parameters(type(self)).items():
        # Not through properties, which may compute or raise.
        value = vars(self).get(name, vars(self).get(f"_{name}"))
        needed = default is inspect.Parameter.empty
        if value is None or _is_empty(value) or (not needed and _same(value, default)):
            continue
        shown.append(_show(value) if needed and not shown else f"{name}={_show(value)}")
    return f"{type(self).__name__}({', '.join(shown)})"


def _parameters(kind: type) -> dict[str, Any]:
    """Defaults by name, those that ``**kwargs`` hands on to base classes included."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        for parameter in parameters:
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if not variadic and parameter.name != "validate_args":
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _is_empty(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict)) and not value


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return bool(value == default)


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        parts = ", ".join(map(_show, value))
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_show(item)}' for key, item in value.items())}}}"
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__name__
    text = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
    if " at 0x" in text or "\n" in text or len(text) > _LONGEST:
        return type(value).__name__
    return text
