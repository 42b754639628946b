r"""The log of a sum over very many psi, whose backward pass touches only those that matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from pyro.distributions.util import validation_enabled
from torch import Tensor
from torch.nn.functional import threshold

from pyro_sig.distributions.backward_modes import BackwardReport, Responsibility, Shares, TopK

__all__ = ["Scores", "chunk_for", "chunk_sizes", "large_log_sum", "whole_log_sum"]

# Up to this many pairs the scores are kept between the passes, beyond it they are made again.
_KEPT_PAIRS = 2**27
# Numbers in a chunk of psi, of data at psi, or of scores: what stays in a cache is read faster.
_CHUNK_ELEMENTS = 2**20
_BLOCK_ELEMENTS = 2**22
_SMALLEST_CHUNK, _LARGEST_CHUNK = 256, 16384
_MORE_ON_DEVICES = 8


def whole_log_sum(parts: Sequence[Tensor]) -> Tensor:
    """Combines log-sums over chunks of the psi, each with its gradient, into that over all.

    :param parts: log-sums of equal shape.
    :return: the log of the sum of their exponentials.

    Example::

        >>> whole_log_sum([torch.zeros(2), torch.zeros(2)])
        tensor([0.6931, 0.6931])
    """
    return torch.stack(list(parts)).logsumexp(0) if len(parts) > 1 else parts[0]


def chunk_for(num_elements: int, num_rows: int = 1, device: torch.device | None = None) -> int:
    """Finds how many psi to draw at a time where the caller does not say.

    :param int num_elements: numbers in one psi, or in the datum that it emits.
    :param int num_rows: number of data.
    :param torch.device device: where they are; by default the CPU.
    :return: a number of psi.

    Example::

        >>> chunk_for(784, 64)
        1337
    """
    # An accelerator needs more work for each launch, and has no cache to speak of.
    factor = 1 if device is None or device.type == "cpu" else _MORE_ON_DEVICES
    size = factor * _CHUNK_ELEMENTS // max(1, num_elements)
    size = min(max(size, _SMALLEST_CHUNK), factor * _LARGEST_CHUNK)
    return max(1, min(size, factor * _BLOCK_ELEMENTS // max(1, num_rows)))


def chunk_sizes(num_mixing: int, first: int, chunk: int) -> list[int]:
    """Splits a number of psi, of which the first chunk is drawn already.

    :param int num_mixing: number of all.
    :param int first: size of the first chunk.
    :param int chunk: largest size of the others.
    :return: sizes that add up to ``num_mixing``.

    Example::

        >>> chunk_sizes(10, 3, 4)
        [3, 4, 3]
    """
    later = range(first, num_mixing, chunk)
    return [first, *(min(chunk, num_mixing - start) for start in later)]


class Scores(NamedTuple):
    """Holds the ways to score data under psi, each a tensor of shape ``[N, psi]``.

    :param callable next: number of psi -> scores of as many new ones, without a gradient.
    :param callable again: number of a chunk -> its scores again, without a gradient.
    :param callable rows: numbers of psi, ascending and on the CPU -> scores with a gradient.
    :param callable seed: a seed made of the random state after all psi are drawn.
    """

    next: Callable[[int], Tensor]
    again: Callable[[int], Tensor]
    rows: Callable[[Tensor], Tensor]
    seed: Callable[[], int]


def large_log_sum(
    scores: Scores,
    sizes: list[int],
    mode: Responsibility | TopK,
    row_weights: Tensor | None = None,
) -> tuple[Tensor, BackwardReport | None]:
    r"""Sums the densities of all psi, with the gradient of the chosen ones.

    .. math::
        \ell_i = \log \sum_j p(x_i \mid \psi_j), \qquad
        \nabla \ell_i \approx \sum_{j\ \text{chosen}} \frac{w_{ij}}{\pi_j}
        \nabla \log p(x_i \mid \psi_j)

    The first pass has no gradient. It keeps N M scores where these are few enough, and makes them
    twice where they are not. Second derivatives are not supported.

    :param Scores scores: ways to score data under psi.
    :param list sizes: number of psi in each chunk.
    :param mode: how the psi are chosen.
    :param torch.Tensor row_weights: how much each datum counts in the choice, ``[N]``, at least 0.
    :return: the log-sums, ``[N]``, exact in value; and a report, None where no gradient is wanted.
    :raises ValueError: if psi that are drawn again by themselves are not those of the first pass.

    Example::

        >>> x, psi = torch.zeros(2), torch.linspace(-1, 1, 6)
        >>> def score(at):
        ...     return -(x.unsqueeze(-1) - psi[at]).square()
        >>> chunks = iter([slice(0, 4), slice(4, 6)])
        >>> scores = Scores(lambda size: score(next(chunks)), score, score, lambda: 0)
        >>> log_sum, report = large_log_sum(scores, [4, 2], TopK(2))
        >>> torch.allclose(log_sum, score(slice(6)).logsumexp(-1)), report.num_psi
        (True, 2)
    """
    k = mode.k if isinstance(mode, TopK) else 0
    wants_gradient = torch.is_grad_enabled()
    with torch.no_grad():
        log_sum, shares = _first_pass(scores, sizes, k, row_weights, wants_gradient)
        if shares is None:
            return log_sum, None
        chosen, counts = mode.choose(shares, scores.seed())
        if not len(chosen):  # no datum has a density: one psi, of weight 0
            chosen, counts = chosen.new_zeros(1), counts.new_ones(1)
    again = scores.rows(chosen.cpu())
    with torch.no_grad():
        kept = again.detach().to(log_sum.dtype)
        weights = _shares(kept, log_sum.unsqueeze(-1))
        per_row = _row_weights(row_weights, log_sum)
        _check(per_row @ _wide(weights), shares.totals[chosen], log_sum)
        report = _report(weights, shares.totals, chosen, per_row)
        weights = (weights * counts).to(again.dtype)
    # A pair without density has weight 0, which would make NaN of its infinite score.
    surrogate = (weights * again.masked_fill(weights == 0, 0.0)).sum(-1)
    return log_sum.to(again.dtype) + (surrogate - surrogate.detach()), report


def _row_weights(given: Tensor | None, log_sum: Tensor) -> Tensor:
    weights = torch.ones_like(log_sum) if given is None else given.expand(log_sum.shape)
    return _wide(weights).masked_fill(~log_sum.isfinite(), 0.0)


def _shares(scores: Tensor, log_sum: Tensor) -> Tensor:
    """Responsibilities; 0 for all psi where none has density."""
    return (scores - log_sum.clamp_min(torch.finfo(log_sum.dtype).min)).exp()


# ------------------------------------------------------------------------------- first pass


def _first_pass(
    scores: Scores, sizes: list[int], k: int, row_weights: Tensor | None, wants_shares: bool
) -> tuple[Tensor, Shares | None]:
    first = scores.next(sizes[0])
    num_rows, num_mixing = len(first), sum(sizes)
    dtype = torch.promote_types(first.dtype, torch.float32)
    parts = _chunks(first, scores, sizes, dtype)
    if wants_shares and num_rows * num_mixing <= _KEPT_PAIRS:
        return _from_kept(parts, num_rows, num_mixing, k, row_weights)
    running = _RunningLogSum(num_rows, first, dtype)
    best = _RunningBest(k)
    for start, part in parts:
        running.add(part)
        best.add(part, start)
    log_sum = running.log_sum()
    if not wants_shares:
        return log_sum, None
    per_row = _row_weights(row_weights, log_sum)
    totals, owners = [], []
    with _unchecked():
        for i in range(len(sizes)):
            weights = _shares(scores.again(i).to(dtype), log_sum.unsqueeze(-1))
            totals.append(per_row @ _wide(weights))
            if not k:
                owners.append(weights.max(0).indices)
    owner = torch.cat(owners) if owners else None
    return log_sum, Shares(torch.cat(totals), best.indices, owner)


def _chunks(
    first: Tensor, scores: Scores, sizes: list[int], dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    start = 0
    for i, size in enumerate(sizes):
        if i == 0:
            part = first
        else:
            with _unchecked():
                part = scores.next(size)
        yield start, part.to(dtype)
        start += size


def _unchecked() -> AbstractContextManager:
    """Leaves out torch's checks of parameters, a third of the first pass, after the first chunk.

    They are made of the first chunk and of the chosen psi; others that are not valid show as NaN.
    """
    return validation_enabled(is_validate=False)


def _from_kept(
    parts: Iterator[tuple[int, Tensor]],
    num_rows: int,
    num_mixing: int,
    k: int,
    row_weights: Tensor | None,
) -> tuple[Tensor, Shares]:
    kept: Tensor | None = None
    for start, part in parts:
        if kept is None:
            kept = part.new_empty(num_rows, num_mixing)
        kept[:, start : start + part.shape[1]] = part
    assert kept is not None
    best = kept.topk(min(k, num_mixing)).indices if k else None
    top = kept.amax(-1).clamp_min_(torch.finfo(kept.dtype).min)
    mass = torch.empty_like(top)
    for rows in _blocks(num_rows, max(1, _BLOCK_ELEMENTS // num_mixing)):
        block = _exp_in_place(kept[rows].sub_(top[rows].unsqueeze(-1)))
        mass[rows] = block.sum(-1)
    log_sum = top + mass.log()
    # Read once for the totals: what makes them responsibilities is in the left factor.
    share_of_top = _shares(top, log_sum)
    factor = _row_weights(row_weights, log_sum) * _wide(share_of_top)
    totals = _wide(factor.to(kept.dtype) @ kept)
    owner = None
    if not k:
        blocks = kept.split(max(1, _BLOCK_ELEMENTS // max(1, num_rows)), -1)
        owner = torch.cat([(share_of_top.unsqueeze(-1) * x).max(0).indices for x in blocks])
    return log_sum, Shares(totals, best, owner)


def _blocks(size: int, length: int) -> Iterator[slice]:
    for start in range(0, size, length):
        yield slice(start, start + length)


def _exp_in_place(scores: Tensor) -> Tensor:
    """Exponentials of what is at most 0; tiny ones, which are slow to make and to add, are 0."""
    smallest = 0.9 * math.log(torch.finfo(scores.dtype).tiny)
    weights = scores.clamp_min_(smallest).exp_()
    return threshold(weights, 1.001 * math.exp(smallest), 0.0, inplace=True)


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()  # where there is no double precision


class _RunningLogSum:
    def __init__(self, num_rows: int, like: Tensor, dtype: torch.dtype) -> None:
        self.top = like.new_full((num_rows,), torch.finfo(dtype).min, dtype=dtype)
        self.mass = torch.zeros_like(self.top)

    def add(self, scores: Tensor) -> None:
        top = torch.maximum(self.top, scores.amax(-1))
        mass = (scores - top.unsqueeze(-1)).exp_().sum(-1)
        self.mass = self.mass * (self.top - top).exp() + mass
        self.top = top

    def log_sum(self) -> Tensor:
        return self.top + self.mass.log()


class _RunningBest:
    """The psi of the k largest scores of each row, of all chunks so far."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.scores: Tensor | None = None
        self.indices: Tensor | None = None

    def add(self, scores: Tensor, start: int) -> None:
        if not self.k:
            return
        best, indices = scores.topk(min(self.k, scores.shape[1]))
        indices = indices + start
        if self.scores is not None and self.indices is not None:
            best = torch.cat([self.scores, best], -1)
            indices = torch.cat([self.indices, indices], -1)
            best, order = best.topk(min(self.k, best.shape[1]))
            indices = indices.gather(-1, order)
        self.scores, self.indices = best, indices


# ---------------------------------------------------------------------- check and report


def _check(again: Tensor, before: Tensor, log_sum: Tensor) -> None:
    """Compares the responsibilities of the chosen psi with those of the first pass."""
    eps = torch.finfo(log_sum.dtype).eps
    if torch.is_autocast_enabled(log_sum.device.type):  # the network's products are rounded to it
        eps = torch.finfo(torch.get_autocast_dtype(log_sum.device.type)).eps
    largest = torch.where(log_sum.isfinite(), log_sum, 0.0).abs().max()
    # What rounding does to scores as large as these, and no less than it does to a matrix product.
    tolerance = 60 * math.sqrt(eps) + 16 * eps * largest
    difference = (again - before).abs().sum()
    if difference > tolerance * before.sum():  # False for NaN, which the loss shows
        share = (difference / before.sum()).item()
        raise ValueError(
            "`backward` must be 'exact' where psi depends on more than its own noise: drawn "
            f"again by themselves, the chosen psi had other densities (responsibilities differ by "
            f"{share:.1%}). Batch normalisation in training mode makes psi depend on its chunk, "
            "and dropout or other randomness in the network on what is drawn beside it; put the "
            "network in eval mode, or draw that randomness as noise of the mixing"
        )


def _report(weights: Tensor, totals: Tensor, chosen: Tensor, per_row: Tensor) -> BackwardReport:
    total = totals.sum()
    dropped = (1 - _wide(weights).sum(-1)).clamp_min(0.0)
    counts = per_row > 0
    return BackwardReport(
        num_psi=len(chosen),
        num_mixing=len(totals),
        carried=totals[chosen].sum() / total,
        mean_dropped=torch.where(counts, dropped, 0.0).sum() / counts.sum(),
        max_dropped=torch.where(counts, dropped, 0.0).max(),
        effective_num_psi=total.square() / totals.square().sum(),
    )
