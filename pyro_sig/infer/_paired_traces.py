"""A run of a guide, and of its model at what the guide drew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace

__all__ = ["paired_traces", "runs_model"]


def runs_model(guide: Callable[..., Any]) -> bool:
    """Tells a guide that runs the model itself, as one program with it."""
    return isinstance(poutine.unwrap(guide), Messenger)


def paired_traces(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Trace, Trace]:
    """Returns the traces of the model and of the guide.

    :param callable model: the model.
    :param callable guide: its guide.
    :param tuple args: arguments of both.
    :param dict kwargs: keyword arguments of both.
    """
    if runs_model(guide):
        guide(*args, **kwargs)
        unwrapped: Any = poutine.unwrap(guide)
        return unwrapped.get_traces()
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    return poutine.trace(replayed).get_trace(*args, **kwargs), guide_trace
