"""Valid calls of `pyro_sig.distributed`."""

from tests.faults.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
