"""Valid calls of `pyro_sig.checkpoint`."""

from tests.faults.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
