"""Which site of a program has a value or a density that is not finite."""

from __future__ import annotations

from typing import Any

import pyro
import torch
import torch.distributed as dist
from pyro import poutine
from pyro.poutine.trace_struct import Trace

from pyro_sig._random_state import preserved_random_state

__all__ = ["describe_bad_site", "find_bad_site"]


@torch.no_grad()
def find_bad_site(inference: Any, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """Runs the programs of an inference object once more, and describes the first such site.

    :param inference: an object whose attributes ``guide`` and ``model`` are its programs.
    :param args: arguments of the step.
    :param kwargs: its keyword arguments.
    :return: None if there is none, or if the programs cannot be run by themselves.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return None  # a site may wait for the other processes
    guide, model = (getattr(inference, name, None) for name in ("guide", "model"))
    with preserved_random_state(), pyro.validation_enabled(False):
        try:
            drawn = None
            for name, program in (("guide", guide), ("model", model)):
                if not callable(program):
                    continue
                run = program if drawn is None else poutine.replay(program, trace=drawn)
                trace = poutine.trace(run).get_trace(*args, **kwargs)
                if found := describe_bad_site(trace, name):
                    return found
                drawn = trace
        except Exception:  # a diagnosis must not hide what it diagnoses
            return None
    return None


def describe_bad_site(trace: Trace, program: str) -> str | None:
    """Describes the first such site of a trace.

    :param Trace trace: of a program.
    :param str program: which one it is.
    :return: None if there is none.
    """
    for name, site in trace.nodes.items():
        if site["type"] == "param" and not _finite(site["value"]):
            return f"the parameter {name!r} of the {program} is not finite"
        if site["type"] != "sample":
            continue
        what = "datum" if site["is_observed"] else "value"
        if not _finite(site["value"]):
            return f"a {what} of site {name!r} of the {program} is not finite"
        try:
            law: Any = site["fn"]
            log_prob = law.log_prob(site["value"], *site["args"], **site["kwargs"])
        except NotImplementedError:  # a law that can be sampled but not scored
            continue
        if not _finite(log_prob):
            return f"the log-density of site {name!r} of the {program} is not finite"
    return None


def _finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or bool(value.isfinite().all())
