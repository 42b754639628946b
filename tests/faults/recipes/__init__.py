"""Valid calls of every public name, which the fuzz test spoils.

A recipe is a function and the keyword arguments of a valid call, made anew for every try:

    "infer.SIG_ELBO": Recipe(SIG_ELBO, lambda: {"num_mixing": 8})

`then` goes on with the result (a step of a trainer, say), so that what a constructor lets through
is met there; `check` looks at the result of a call that went well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How to call a public name.

    :param function: what is called.
    :param arguments: makes the arguments of a valid call.
    :param then: called with the result and, by name, the arguments.
    :param check: called in the same way after `then`; raises AssertionError for a wrong result.
    :param keep: arguments that are left alone.
    """

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    then: Callable[..., Any] | None = None
    check: Callable[..., Any] | None = None
    keep: frozenset[str] = frozenset()


def all_recipes() -> dict[str, Recipe]:
    """Collects the recipes of all packages."""
    from tests.faults.recipes import (
        adversarial,
        checkpoint,
        datasets,
        diagnostics,
        distributed,
        distributions,
        infer,
        nn,
    )

    found: dict[str, Recipe] = {}
    for module in (
        distributions,
        infer,
        adversarial,
        diagnostics,
        datasets,
        nn,
        distributed,
        checkpoint,
    ):
        found |= module.RECIPES
    return found
