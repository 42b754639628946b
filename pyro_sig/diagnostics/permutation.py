r"""Exact permutation tests of "these samples have one law".

A statistic that is a quadratic form of one symmetric matrix over the pooled sample,

.. math::
    S = -s^\top D s, \qquad s_i = 1/n \text{ for a row of } x, \quad -1/m \text{ for a row of } y,

needs that matrix once: relabelling the pooled sample changes :math:`s` only, so all permutations
take one pass over blocks of its rows, none of which is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._samples import row_blocks
from pyro_sig.diagnostics._streams import check_generator

__all__ = ["TwoSampleTest"]

# Elements of one block of the matrix, and of one block of label vectors.
_CHUNK_ELEMENTS = 2**21


class TwoSampleTest(NamedTuple):
    """Result of a two-sample test.

    :param statistic: the statistic of the two samples as given.
    :param p_value: probability of a statistic at least as bad if the laws are equal. For a
        permutation test: the share of relabellings, the given one included, that are.
    """

    statistic: float
    p_value: float

    def __repr__(self) -> str:
        return f"TwoSampleTest(statistic={self.statistic:.4g}, p_value={self.p_value:.4g})"


def relabellings(
    num_x: int,
    num_y: int,
    num_permutations: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """True where a row of the pooled sample counts as one of x: shape ``[1 + B, n + m]``.

    The first is the labelling as given. Truth values, because B vectors over the pooled sample
    are the largest thing that a test holds.
    """
    check_integer("num_permutations", num_permutations, 1)
    check_generator(generator)
    num_rows = num_x + num_y
    source = device if generator is None else generator.device
    labels = torch.zeros(1 + num_permutations, num_rows, dtype=torch.bool, device=device)
    labels[0, :num_x] = True
    for chunk in labels[1:].split(max(1, _CHUNK_ELEMENTS // num_rows)):
        keys = torch.rand(
            len(chunk), num_rows, generator=generator, device=source, dtype=torch.double
        )
        chosen = keys.argsort(-1)[:, :num_x].to(device)
        chunk.scatter_(-1, chosen, True)
    return labels


def rank(statistics: Tensor, rounding: float) -> TwoSampleTest:
    """Ranks the first statistic, that of the samples as given, among all."""
    observed = statistics[0]
    # Relabellings that tie exactly (repeated rows, swapped sides) differ by rounding: count them.
    as_bad = int((statistics[1:] >= observed - rounding).sum())
    return TwoSampleTest(float(observed), (1 + as_bad) / len(statistics))


def permute_quadratic_form(
    pairwise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    num_permutations: int,
    generator: torch.Generator | None,
    progress: bool | None,
) -> TwoSampleTest:
    """Permutes the statistic -s^T D s of the module's docstring.

    ``pairwise`` gives blocks of D from two sets of rows. It is symmetric, and larger for pairs
    that are farther apart: a distance, or minus a kernel.
    """
    pooled = torch.cat([x, y])
    num_rows = len(pooled)
    labels = relabellings(len(x), len(y), num_permutations, generator, pooled.device)
    statistics = torch.zeros(len(labels), dtype=torch.double, device=pooled.device)
    largest = 0.0
    with Progress(progress, num_rows, "permutations") as bar:
        for rows in row_blocks(num_rows, num_rows, _CHUNK_ELEMENTS):
            # Double: under the null the statistics are small differences of large sums, and their
            # order decides p.
            block = pairwise(pooled[rows], pooled[rows.start :]).double()
            largest = max(largest, float(block.abs().max()))
            count = len(block)
            block[:, count:] *= 2  # for the triangle that is left out
            for some, total in zip(
                labels[:, rows.start :].split(max(1, _CHUNK_ELEMENTS // num_rows)),
                statistics.split(max(1, _CHUNK_ELEMENTS // num_rows)),
                strict=True,
            ):
                s = some.double().mul_(1 / len(x) + 1 / len(y)).sub_(1 / len(y))
                total -= ((s @ block.mT) * s[:, :count]).sum(-1)
            bar.update(count)
    return rank(statistics, 64 * torch.finfo(torch.double).eps * largest)
