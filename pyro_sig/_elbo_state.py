"""What an ELBO keeps between steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["elbo_state", "load_elbo_state"]


def elbo_state(elbo: Any) -> dict[str, Any]:
    """Returns the state of an ELBO: that of networks inside of it, and the nesting of plates.

    :param elbo: an ELBO of Pyro or this library, or any other object.
    """
    state: dict[str, Any] = {}
    # To guess it anew would draw random numbers.
    nesting = getattr(elbo, "max_plate_nesting", math.inf)
    if nesting < math.inf:
        state["max_plate_nesting"] = nesting
    if callable(getattr(elbo, "state_dict", None)):
        state["elbo"] = elbo.state_dict()
    return state


def load_elbo_state(elbo: Any, state: Mapping[str, Any]) -> None:
    """Restores what :func:`elbo_state` returned.

    :param elbo: the ELBO.
    :param state: the state.
    """
    if "max_plate_nesting" in state:
        elbo.max_plate_nesting = state["max_plate_nesting"]
    if "elbo" in state:
        elbo.load_state_dict(state["elbo"])
