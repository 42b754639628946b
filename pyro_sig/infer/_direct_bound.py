"""A program with one implicit site, which one observed site depends on: no enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_sig._rank_sum import all_reduce_logsumexp, check_same, own_share, same_draws
from pyro_sig.distributions import BackwardReport, Implicit, Responsibility, TopK
from pyro_sig.distributions.large_mixing import (
    Scores,
    chunk_for,
    chunk_sizes,
    large_log_sum,
    whole_log_sum,
)
from pyro_sig.distributions.psi_stream import PsiStream
from pyro_sig.infer._marginalize import (
    MarginalizeImplicit,
    NeedsIndexError,
    PairwiseEmission,
    check_scales,
    refuse_guided_sites,
)

__all__ = ["direct_bound", "large_bound", "stream_psi"]


class _Runs(NamedTuple):
    """Runs of a program: the guide's, the first, and how to make another of the same rows."""

    guide: Trace
    first: Trace
    again: Callable[[int], Trace]
    psi_name: str
    emission_name: str
    latents: list[str]
    num_mixing: int
    num_own: int  # of them, which this process draws
    mixing_group: Any
    nesting: int


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
    :param callable guide: its guide, which samples the latents that are not implicit.
    :param tuple args: arguments of both.
    :param dict kwargs: keyword arguments of both.
    :param MarginalizeImplicit messenger: with ``max_plate_nesting`` known.
    :param int chunk_size: psi for each run, by default all at once.
    :return: the bound, a scalar; or a string that says why the program needs enumeration.
    """
    runs = _prepare(model, guide, args, kwargs, messenger, chunk_size)
    if isinstance(runs, str):
        return runs
    first = _log_sum(runs, runs.first)

    def part(size: int, _: Tensor) -> Tensor:
        return _log_sum(runs, runs.again(size))

    # `first` tells the checkpoint which device's random state to keep.
    parts = [first]
    for size in _later_sizes(runs.num_own, chunk_size):
        parts.append(checkpoint(part, size, first.detach(), use_reentrant=False))
    return _bound(runs, runs.first, whole_log_sum(parts))


def large_bound(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    messenger: MarginalizeImplicit,
    chunk_size: int | None,
    mode: Responsibility | TopK,
) -> tuple[Tensor, BackwardReport | None] | str:
    """Runs the program without a gradient for each chunk of psi, and with one for the chosen.

    :param callable model: a Pyro program.
    :param callable guide: its guide, which samples the latents that are not implicit.
    :param tuple args: arguments of both.
    :param dict kwargs: keyword arguments of both.
    :param MarginalizeImplicit messenger: with ``max_plate_nesting`` known.
    :param int chunk_size: psi for each run, by default as many as a cache holds.
    :param mode: how the psi are chosen.
    :return: the bound, a scalar, and a report of the choice; or a string that says why the
        program needs enumeration.
    :raises ValueError: if rows have psi of their own.
    """
    stream = PsiStream()

    def draw(implicit: Implicit, size: int) -> Tensor:
        if implicit.batch_shape.numel() > 1:
            raise ValueError(
                "`backward` must be 'exact' where an implicit site has a batch shape of its own "
                f"(`inputs` or noise of batch shape {tuple(implicit.batch_shape)}): rows share no "
                "psi"
            )
        if chunk_size is None and not stream.sizes:  # the first is found here
            size = min(size, chunk_for(max(1024, implicit.event_shape.numel())))
        return implicit.push(stream.draw(implicit, size))

    messenger.draw = draw
    runs = _prepare(model, guide, args, kwargs, messenger, chunk_size, has_grad=False)
    if isinstance(runs, str):
        return runs
    with torch.no_grad():
        first = _pair_scores(runs, runs.first)
    shape = first.shape[1:]
    traces = [runs.first]

    def flat(trace: Trace) -> Tensor:
        return _pair_scores(runs, trace).reshape(-1, shape.numel()).mT

    def new(size: int) -> Tensor:
        return first_scores.pop() if first_scores else flat(runs.again(size))

    def again(chunk: int) -> Tensor:
        messenger.draw = lambda implicit, _: implicit.push(stream.redraw(implicit, chunk))
        return flat(runs.again(stream.sizes[chunk]))

    def rows(chosen: Tensor) -> Tensor:
        messenger.draw = lambda implicit, _: implicit.push(stream.rows(implicit, chosen))
        traces.append(runs.again(len(chosen)))
        return flat(traces[-1])

    first_scores = [first.reshape(-1, shape.numel()).mT]
    emission: Any = runs.first.nodes[runs.emission_name]["fn"]
    chunk = chunk_size or chunk_for(emission.event_shape.numel(), shape.numel(), first.device)
    sizes = chunk_sizes(runs.num_own, stream.sizes[0], chunk)
    scores = Scores(new, again, rows, stream.seed)
    log_sum, report = large_log_sum(scores, sizes, mode, _row_weights(runs, shape))
    # The last trace is the one with a gradient, if any is.
    return _bound(runs, traces[-1], log_sum.reshape(shape)), report


def _bound(runs: _Runs, trace: Trace, log_sum: Tensor) -> Tensor:
    emission: Any = runs.first.nodes[runs.emission_name]
    if runs.mixing_group is not None:
        if is_validation_enabled():
            check_same(runs.emission_name, emission["value"], runs.mixing_group)
        log_sum = all_reduce_logsumexp(log_sum, runs.mixing_group)
    scale = emission["scale"]
    bound = (scale * (log_sum - math.log(runs.num_mixing))).sum()
    return bound + _log_prob_sum(trace, runs.latents) - _log_prob_sum(runs.guide)


def _row_weights(runs: _Runs, shape: torch.Size) -> Tensor | None:
    """How much each row of the implicit site counts: its scale, and 0 where all data are masked."""
    emission: Any = runs.first.nodes[runs.emission_name]
    weights: Tensor | None = None
    scale, mask = emission["scale"], emission["mask"]
    if isinstance(scale, Tensor) and scale.dim():
        weights = scale.expand(shape)
    if isinstance(mask, Tensor) and mask.dim() <= runs.nesting:
        plates = emission["fn"].batch_shape[1:]
        kept = mask.expand(plates)
        for dim in _inner_dims(runs, runs.first):
            kept = kept.any(dim, keepdim=True)
        kept = kept.expand(shape)
        weights = kept.to(emission["value"].device) if weights is None else weights * kept
    return None if weights is None else weights.reshape(-1).to(torch.get_default_dtype())


def _pair_scores(runs: _Runs, trace: Trace) -> Tensor:
    """Log-density of each (psi, row) pair, by a matrix product where there is one."""
    if _by_product(runs, trace):
        emission: Any = trace.nodes[runs.emission_name]
        shared = _inner_dims(runs, trace)
        return emission["fn"].pair_log_prob(emission["value"], shared, emission["mask"])
    return _log_prob(runs, trace)


def _by_product(runs: _Runs, trace: Trace) -> bool:
    emission: Any = trace.nodes[runs.emission_name]
    mask = emission["mask"]
    fits = mask is None or not isinstance(mask, Tensor) or mask.dim() <= runs.nesting
    return isinstance(emission["fn"], PairwiseEmission) and fits


def stream_psi(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    messenger: MarginalizeImplicit,
    chunk_size: int,
) -> tuple[str, Iterator[tuple[Tensor, Tensor]]] | str:
    """Draws psi in chunks, each with its log-density of the data in every row.

    :param callable model: a Pyro program.
    :param callable guide: its guide, run once.
    :param tuple args: arguments of both.
    :param dict kwargs: keyword arguments of both.
    :param MarginalizeImplicit messenger: with ``max_plate_nesting`` known.
    :param int chunk_size: psi for each run.
    :return: the implicit site, and pairs of psi and scores as
        :func:`~pyro_sig.distributions.psi_posterior.resample_psi` takes them; or a string that
        says why the program needs enumeration.
    """
    runs = _prepare(model, guide, args, kwargs, messenger, chunk_size)
    if isinstance(runs, str):
        return runs

    def chunk(trace: Trace) -> tuple[Tensor, Tensor]:
        scores = _log_prob(runs, trace)  # [chunk, *plates]
        psi = messenger.rows_of_atoms(runs.psi_name, scores.dim() - 1)
        return psi.to(scores), scores  # far data are scored in double precision

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        yield chunk(runs.first)
        for size in _later_sizes(runs.num_own, chunk_size):
            yield chunk(runs.again(size))

    return runs.psi_name, chunks()


def _prepare(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    messenger: MarginalizeImplicit,
    chunk_size: int | None,
    has_grad: bool = True,
) -> _Runs | str:
    group = messenger.mixing_group
    with nullcontext() if group is None else same_draws(group):  # latents are shared
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)

    def run(size: float, replayed: Trace) -> Trace:
        messenger.largest_draw = size
        program = poutine.replay(messenger(model), trace=replayed)
        return poutine.trace(program).get_trace(*args, **kwargs)

    try:
        with torch.set_grad_enabled(has_grad and torch.is_grad_enabled()):
            trace = run(chunk_size or math.inf, guide_trace)
    except NeedsIndexError:
        return f"several implicit sites, {list(messenger.implicit_sites)} first"
    refuse_guided_sites(messenger, guide_trace)
    found = _find_sites(trace, guide_trace, messenger)
    if isinstance(found, str):
        return found
    psi_name, emission_name, latents = found
    rest = trace.copy()
    rest.remove_node(psi_name)

    def again(size: int) -> Trace:
        with poutine.block():
            return run(size, rest)

    num_mixing = messenger.requested[psi_name]
    return _Runs(
        guide=guide_trace,
        first=trace,
        again=again,
        psi_name=psi_name,
        emission_name=emission_name,
        latents=latents,
        num_mixing=num_mixing,
        num_own=own_share(num_mixing, group),
        mixing_group=group,
        nesting=int(messenger.max_plate_nesting),
    )


def _later_sizes(num_mixing: int, chunk_size: int | None) -> list[int]:
    """Sizes of the chunks after the first."""
    if chunk_size is None:
        return []
    return [min(chunk_size, num_mixing - i) for i in range(chunk_size, num_mixing, chunk_size)]


def _find_sites(
    trace: Trace, guide_trace: Trace, messenger: MarginalizeImplicit
) -> tuple[str, str, list[str]] | str:
    """The implicit and the observed site and the latents beside them, or what is in the way."""
    latents = [n for n in trace.stochastic_nodes if not site_is_subsample(trace.nodes[n])]
    observed = [n for n in trace.observation_nodes if n not in messenger.implicit_sites]
    if len(messenger.implicit_sites) != 1 or len(observed) != 1:
        return (
            f"{len(messenger.implicit_sites)} implicit {list(messenger.implicit_sites)} and "
            f"{len(observed)} observed {observed}"
        )
    nesting = messenger.max_plate_nesting
    for name in latents:
        fn: Any = trace.nodes[name]["fn"]
        if name not in guide_trace:
            return f"a latent '{name}' that the guide does not sample"
        if len(fn.batch_shape) > nesting:
            return f"a latent '{name}' that depends on '{next(iter(messenger.implicit_sites))}'"
    for name in guide_trace.stochastic_nodes:
        site: Any = guide_trace.nodes[name]
        if not site_is_subsample(site) and not site["fn"].has_rsample:
            return f"a latent '{name}' whose law in the guide has no rsample"
    psi_name, emission_name = next(iter(messenger.implicit_sites)), observed[0]
    emission: Any = trace.nodes[emission_name]["fn"]
    if len(emission.batch_shape) <= nesting:
        return f"an observed site '{emission_name}' that does not depend on '{psi_name}'"
    check_scales(trace, psi_name, emission_name)
    return psi_name, emission_name, latents


def _log_prob_sum(trace: Trace, names: list[str] | None = None) -> Tensor | float:
    """Log-density of some sites, by default of all that are drawn; scaled and masked."""
    total: Tensor | float = 0.0
    for name in trace.stochastic_nodes if names is None else names:
        site: Any = trace.nodes[name]
        if not site_is_subsample(site):
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            total = total + scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
    return total


def _log_sum(runs: _Runs, trace: Trace) -> Tensor:
    """Log of the summed densities over psi, with one entry for each row of the implicit site."""
    if _by_product(runs, trace):
        emission: Any = trace.nodes[runs.emission_name]
        shared = _inner_dims(runs, trace)
        return emission["fn"].mixture_log_prob(emission["value"], shared, emission["mask"])
    return _log_prob(runs, trace).logsumexp(-1 - runs.nesting)


def _log_prob(runs: _Runs, trace: Trace) -> Tensor:
    """Log-density of each (psi, row) pair; data of rows that share one psi are summed."""
    emission: Any = trace.nodes[runs.emission_name]
    log_prob = scale_and_mask(emission["fn"].log_prob(emission["value"]), mask=emission["mask"])
    for dim in _inner_dims(runs, trace):
        log_prob = log_prob.sum(dim, keepdim=True)
    return log_prob


def _inner_dims(runs: _Runs, trace: Trace) -> list[int]:
    """Plates of the data inside of those of the implicit site."""
    own = {f.name for f in trace.nodes[runs.psi_name]["cond_indep_stack"]}
    frames = trace.nodes[runs.emission_name]["cond_indep_stack"]
    return [f.dim for f in frames if f.dim is not None and f.name not in own]
