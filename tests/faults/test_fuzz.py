"""Every wrong call ends in a result or in an error that says what is wrong."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.counts import COUNTS
from tests.faults.fuzz import SPOILERS, Outcome, spoil, variants
from tests.faults.recipes import all_recipes
from tests.test_public_api import OBJECTS, is_exception, is_record

pytestmark = pytest.mark.faults

RECIPES = all_recipes()
PAIRS = int(os.environ.get("PYRO_SIG_FUZZ", "30"))  # cases with two arguments, for each name

# Not called by users to make something: protocols, aliases and base classes.
NOT_CALLED: set[str] = set()


def test_every_public_name_has_a_recipe():
    names = {
        name.removeprefix("pyro_sig.")
        for name, value in OBJECTS
        if name.count(".") == 2 and not is_exception(value) and not is_record(value)
    }
    recipes = {name.partition(",")[0] for name in RECIPES}
    assert names - recipes - NOT_CALLED == set()
    assert recipes - names == set()


@pytest.mark.parametrize("name", RECIPES)
def test_the_valid_call(name):
    outcome = Outcome()
    spoil(name, RECIPES[name], {}, outcome)
    assert outcome["results"] == 1, outcome.bad


@pytest.mark.parametrize("name", RECIPES)
def test_spoiled_calls(name):
    recipe, outcome = RECIPES[name], Outcome()
    arguments = variants(recipe)
    for argument in arguments:
        for value in SPOILERS:
            spoil(name, recipe, {argument: value}, outcome)

    if len(arguments) > 1:
        pairs = st.dictionaries(
            st.sampled_from(arguments), st.sampled_from(list(SPOILERS)), min_size=2, max_size=3
        )

        @settings(
            max_examples=PAIRS,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(pairs)
        def several(spoiled):
            spoil(name, recipe, spoiled, outcome)

        several()

    for kind, number in outcome.items():
        total = COUNTS.get(f"fuzz: {kind}", "0")
        COUNTS[f"fuzz: {kind}"] = str(int(total) + number)
    assert not outcome.bad, "\n".join(f"{case}: {what}" for case, what in outcome.bad.items())
