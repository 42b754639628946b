"""Programs with their observations released: draws of what was observed."""

from __future__ import annotations

from typing import Any

from pyro.poutine.uncondition_messenger import UnconditionMessenger

__all__ = ["Release"]


class Release(UnconditionMessenger):
    """Draws the observed sites anew.

    A deterministic site is one with its value observed; drawn anew inside of a plate, that value
    would be expanded to one copy for each row.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)
