"""Valid calls of `pyro_sig.infer`."""

from tests.faults.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
