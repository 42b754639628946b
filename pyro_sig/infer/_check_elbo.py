"""The options that every ELBO takes."""

from __future__ import annotations

import math
from typing import Any

from pyro_sig._arguments import check_flag, check_integer

__all__ = ["check_elbo"]


def check_elbo(
    num_particles: Any = 1,
    max_plate_nesting: Any = math.inf,
    vectorize_particles: Any = False,
    **others: Any,
) -> None:
    """Checks what every ELBO takes, of which Pyro's own do not look at all.

    :param num_particles: the number of draws.
    :param max_plate_nesting: dimensions of plates; infinite if it is to be found.
    :param vectorize_particles: whether the draws are made at once.
    :param others: what else an ELBO takes, not looked at.
    :raises ValueError: if one of them is something else.
    """
    check_integer("num_particles", num_particles, 1)
    if not (isinstance(max_plate_nesting, float) and max_plate_nesting == math.inf):
        check_integer("max_plate_nesting", max_plate_nesting)
    check_flag("vectorize_particles", vectorize_particles)
