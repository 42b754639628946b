"""Valid calls of `pyro_sig.distributions`."""

from tests.faults.recipes import Recipe

RECIPES: dict[str, Recipe] = {}
