"""Valid calls of `pyro_sig.adversarial`."""

from tests.faults.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
