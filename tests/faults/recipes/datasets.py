"""Valid calls of `pyro_sig.datasets`."""

from tests.faults.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
