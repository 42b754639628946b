"""Valid calls of `pyro_sig.diagnostics`."""

from tests.faults.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
