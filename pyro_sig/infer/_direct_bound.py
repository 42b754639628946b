"""The SIG bound of a program with one implicit and one observed site: no enumeration, in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_sig.infer._marginalize import (
    MarginalizeImplicit,
    NeedsIndexError,
    PairwiseEmission,
    check_scales,
    refuse_guided_sites,
)

__all__ = ["direct_bound"]


def direct_bound(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    messenger: MarginalizeImplicit,
    chunk_size: int | None,
) -> Tensor | str:
    """Runs the program once for each chunk of psi, and again in the backward pass.

    :param callable model: a Pyro program.
    :param callable guide: its guide, which has nothing to sample.
    :param tuple args: arguments of both.
    :param dict kwargs: keyword arguments of both.
    :param MarginalizeImplicit messenger: with ``max_plate_nesting`` known.
    :param int chunk_size: psi for each run, by default all at once.
    :return: the bound, a scalar; or a string that says why the program needs enumeration.
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)

    def run(size: float, replayed: Trace) -> Trace:
        messenger.largest_draw = size
        program = poutine.replay(messenger(model), trace=replayed)
        return poutine.trace(program).get_trace(*args, **kwargs)

    try:
        trace = run(chunk_size or math.inf, guide_trace)
    except NeedsIndexError:
        return f"several implicit sites, {list(messenger.implicit_sites)} first"
    refuse_guided_sites(messenger, guide_trace)
    found = _find_sites(trace, guide_trace, messenger)
    if isinstance(found, str):
        return found
    psi_name, emission_name = found
    num_mixing = messenger.requested[psi_name]
    nesting = int(messenger.max_plate_nesting)
    first = _log_sum(trace, psi_name, emission_name, nesting)
    subsample = trace.copy()
    subsample.remove_node(psi_name)

    def part(size: int, _: Tensor) -> Tensor:
        with poutine.block():
            return _log_sum(run(size, subsample), psi_name, emission_name, nesting)

    parts = [first]
    if chunk_size is not None:
        for start in range(chunk_size, num_mixing, chunk_size):
            size = min(chunk_size, num_mixing - start)
            # `first` tells the checkpoint which device's random state to keep.
            parts.append(checkpoint(part, size, first.detach(), use_reentrant=False))
    log_sum = torch.stack(parts).logsumexp(0) if len(parts) > 1 else first
    scale: Any = trace.nodes[emission_name]["scale"]
    return (scale * (log_sum - math.log(num_mixing))).sum()


def _find_sites(
    trace: Trace, guide_trace: Trace, messenger: MarginalizeImplicit
) -> tuple[str, str] | str:
    """The implicit and the observed site, or what else there is."""
    latents = [
        name
        for nodes in (trace, guide_trace)
        for name in nodes.stochastic_nodes
        if not site_is_subsample(nodes.nodes[name])
    ]
    observed = [n for n in trace.observation_nodes if n not in messenger.implicit_sites]
    if len(messenger.implicit_sites) != 1 or len(observed) != 1 or latents:
        return (
            f"{len(messenger.implicit_sites)} implicit {list(messenger.implicit_sites)}, "
            f"{len(observed)} observed {observed} and {len(set(latents))} other latents "
            f"{sorted(set(latents))}"
        )
    psi_name, emission_name = next(iter(messenger.implicit_sites)), observed[0]
    emission: Any = trace.nodes[emission_name]["fn"]
    if len(emission.batch_shape) <= messenger.max_plate_nesting:
        return f"an observed site '{emission_name}' that does not depend on '{psi_name}'"
    check_scales(trace, psi_name, emission_name)
    return psi_name, emission_name


def _log_sum(trace: Trace, psi_name: str, emission_name: str, nesting: int) -> Tensor:
    """Log of the summed densities over psi, with one entry for each row of the implicit site."""
    emission, psi = trace.nodes[emission_name], trace.nodes[psi_name]
    fn: Any = emission["fn"]
    value: Any = emission["value"]
    own = {f.name for f in psi["cond_indep_stack"]}
    inner = [f.dim for f in emission["cond_indep_stack"] if f.vectorized and f.name not in own]
    if isinstance(fn, PairwiseEmission) and not inner and emission["mask"] is None:
        return fn.mixture_log_prob(value)
    log_prob = scale_and_mask(fn.log_prob(value), mask=emission["mask"])
    for dim in inner:  # rows that share one psi
        log_prob = log_prob.sum(dim, keepdim=True)
    return log_prob.logsumexp(-1 - nesting)
