"""What to cite for a method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["cite"]

# A paragraph of a docstring: "Source: ...", "**Source:** ..." or "References: ...".
_PARAGRAPH = re.compile(r"^\**(?:Sources?|References?):\**\s+(.+?)(?=\n\s*\n|\Z)", re.S | re.M)

# Attributes of SVI and of trainers that are methods of their own.
_PARTS = ("objective", "penalties", "elbo", "loss", "loss_and_grads", "guide", "score")


def cite(value: Any) -> None:
    """Prints the papers behind an object: those of its class and of what it is made of.

    :param value: a class, function or object of this library, or :class:`pyro.infer.SVI`, whose
        loss and guide are looked at.
    :raises ValueError: if nothing is known of it.

    Example::

        >>> from pyro_sig.infer import KSIVI
        >>> cite(KSIVI)
        Z. Cheng, L. Yu, T. Xie, S. Zhang and C. Zhang (2024), "Kernel semi-implicit variational
        inference", eq. 10 and 13.
    """
    found = list(dict.fromkeys(_references(value, depth=2)))
    if not found:
        name = getattr(value, "__name__", type(value).__name__)
        raise ValueError(
            f"`value` must be a method of this library with a published source, was {name}"
        )
    print("\n".join(found))


def _references(value: Any, depth: int) -> Iterator[str]:
    value = getattr(value, "__self__", value)  # SVI keeps methods of its loss
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _references(item, depth)
        return
    described = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    if not str(getattr(described, "__module__", "")).startswith(("pyro_sig", "pyro.infer.svi")):
        return
    for cls in inspect.getmro(described) if inspect.isclass(described) else (described,):
        text = inspect.cleandoc(vars(cls).get("__doc__") or "") if inspect.isclass(cls) else ""
        text = text or inspect.cleandoc(getattr(cls, "__doc__", None) or "")
        if references := _PARAGRAPH.findall(text):
            yield from references
            break  # of the nearest class that has one
    if depth > 0 and described is not value:
        for name in _PARTS:
            yield from _references(getattr(value, name, None), depth - 1)
