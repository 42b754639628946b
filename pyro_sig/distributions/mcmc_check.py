"""Tells a random log-density that a Markov chain is asking."""

from __future__ import annotations

import sys

__all__ = ["refuse_mcmc"]


def refuse_mcmc(name: str, remedy: str) -> None:
    """Checks that no sampler of :mod:`pyro.infer.mcmc` is among the callers.

    A distribution is scored after its program has ended, outside of any handler: only the call
    stack knows who asks. A chain whose log-density differs from call to call sticks without an
    error.

    :param str name: what is being scored.
    :param str remedy: what to use instead.
    :raises ValueError: under MCMC.

    Example::

        >>> refuse_mcmc("SemiImplicit", "use to_mixture")
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("pyro.infer.mcmc"):
            raise ValueError(
                f"{name} must not be scored by MCMC: its log_prob is drawn anew at every call, and "
                f"the chain would stick; {remedy}"
            )
        frame = frame.f_back  # type: ignore[assignment]
