"""Whose parameters a guide reads: its own, or what Pyro's store holds under their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule


@contextmanager
def own_parameters(guide: Callable[..., Any]) -> Iterator[None]:
    """Lets a module read its own parameters, whatever the store holds under their names.

    Pyro's modules are named after their class: the guides of two trainings share all names, and
    a call of the first would overwrite its parameters by those of the second.
    """
    if not isinstance(guide, PyroModule):
        yield
        return
    store, named = pyro.get_param_store(), list(guide.named_parameters())
    prefix = f"{guide._pyro_name}." if guide._pyro_name else ""
    own = {prefix + n.split(".")[0].removesuffix("_unconstrained") for n, _ in named}
    inside = tuple(name + separator for name in own for separator in (".", "$$$"))
    state: Any = store.get_state()
    others = {
        part: {n: x for n, x in values.items() if n not in own and not n.startswith(inside)}
        for part, values in state.items()
    }
    with store.scope(others):  # type: ignore[arg-type]
        yield


def refuse_foreign_parameters(guide: Callable[..., Any]) -> None:
    """Checks that the store does not hold another training's parameters under a guide's names.

    :param guide: a program that is about to be called.
    :raises ValueError: if a call would overwrite its parameters.
    """
    if not isinstance(guide, PyroModule):
        return
    stored: Any = pyro.get_param_store()._params
    prefix = f"{guide._pyro_name}." if guide._pyro_name else ""
    for name, own in guide.named_parameters():
        full = prefix + name.removesuffix("_unconstrained")
        other = stored.get(full)
        if other is not None and (own.shape != other.shape or not torch.equal(own, other)):
            raise ValueError(
                f"`guide` must have the parameters that the param store holds under its names, or "
                f"Pyro overwrites them; {full!r} differs, as after another training or after "
                "loading a store. To draw from the guide as it is, call pyro.clear_param_store() "
                "first; to give it the stored parameters, call it once"
            )


@contextmanager
def parameters_of(guides: list[Callable[..., Any]], index: int) -> Iterator[None]:
    # A single guide reads the store, as everywhere in Pyro.
    with own_parameters(guides[index]) if len(guides) > 1 else nullcontext():
        yield
