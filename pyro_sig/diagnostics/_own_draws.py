"""Joint weights of several rows need psi of their own: sites that share them, and a remedy."""

from __future__ import annotations

import copy
from typing import Any

from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger

from pyro_sig.distributions import SemiImplicit


class OwnDraws(Messenger):
    """Gives every row at every semi-implicit site psi of its own, K of them.

    :param int num_mixing: the number K.
    :ivar bool found: whether there was a semi-implicit site.
    """

    def __init__(self, num_mixing: int) -> None:
        super().__init__()
        self.num_mixing = num_mixing
        self.found = False

    def _pyro_sample(self, msg: Any) -> None:
        if semi_implicit_of(msg["fn"]) is not None:
            self.found = True
            msg["fn"] = self._with_own_draws(msg["fn"])

    def _with_own_draws(self, fn: Any) -> Any:
        if isinstance(fn, SemiImplicit):
            return fn.with_draws(self.num_mixing, share_draws=False)
        new = copy.copy(fn)
        new.base_dist = self._with_own_draws(fn.base_dist)
        return new


def semi_implicit_of(fn: Any) -> SemiImplicit | None:
    """Finds the semi-implicit law of a site, under whatever wraps it."""
    while not isinstance(fn, SemiImplicit) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn if isinstance(fn, SemiImplicit) else None


def refuse_shared_draws(trace: Trace) -> None:
    """Checks that no site biases the joint weight of its rows.

    :param trace: a model's or a guide's.
    :raises ValueError: if rows share their fresh psi.
    """
    for name, site in trace.nodes.items():
        fn = semi_implicit_of(site["fn"]) if site["type"] == "sample" else None
        if fn is not None and fn.share_draws and fn.batch_shape.numel() > 1:
            raise ValueError(
                f"`share_draws` must be False at site '{name}': fresh psi shared by its "
                f"{fn.batch_shape.numel()} rows bias their joint weight; was True. Or pass "
                "`num_mixing` to k_hat, evidence_bounds or log_importance_weights, which then give "
                "every row its own"
            )
