"""Quality and variety of generated samples, from balls around nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer
from pyro_sig.diagnostics._samples import check_samples, distances, row_blocks

__all__ = ["PrecisionRecall", "precision_recall_density_coverage"]

# Elements of one block of distances.
_CHUNK_ELEMENTS = 2**20

# Columns of a group, of which the least is taken before the least of all are looked for.
_GROUP = 256

# Up to so many columns distances are taken from differences, with more from matrix products.
_EXACT_COLUMNS = 32


class PrecisionRecall(NamedTuple):
    """Result of :func:`precision_recall_density_coverage`.

    :param precision: share of the generated rows inside some ball of a real row.
    :param recall: share of the real rows inside some ball of a generated row.
    :param density: mean number of real balls that a generated row is in, over
        ``num_neighbors``; about 1 if the laws are equal, may be larger.
    :param coverage: share of the real rows with a generated row in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    real: Tensor, fake: Tensor, num_neighbors: int = 5
) -> PrecisionRecall:
    r"""Measures how real generated samples look, and how much of the real ones they reach.

    With :math:`B_k(z)` the closed ball around a row :math:`z` that reaches to its :math:`k`-th
    nearest neighbour in its own sample (itself not counted),

    .. math::
        \text{precision} &= \frac{1}{M} \sum_j 1\Bigl\{y_j \in \bigcup_i B_k(x_i)\Bigr\}, &
        \text{recall} &= \frac{1}{N} \sum_i 1\Bigl\{x_i \in \bigcup_j B_k(y_j)\Bigr\}, \\
        \text{density} &= \frac{1}{k M} \sum_j \sum_i 1\{y_j \in B_k(x_i)\}, &
        \text{coverage} &= \frac{1}{N} \sum_i 1\{\exists j: y_j \in B_k(x_i)\},

    for real rows :math:`x_i` and generated :math:`y_j`. Samples that are real but all alike have
    a high precision and density, and a low recall and coverage. One real outlier has a large ball
    and raises the precision; density and coverage are less sensitive to it. If both samples, of
    one size :math:`n`, have one law, the expected coverage is
    :math:`1 - \prod_{l=0}^{k-1} (n - 1 - l) / (2 n - 1 - l)`, about :math:`1 - 2^{-k}`.

    Neighbours are exact, in blocks of rows. Distances are taken from differences up to 32
    columns, beyond that from matrix products in double, of features less their mean.

    :param real: shape ``[N, D]`` or ``[N]``.
    :param fake: shape ``[M, D]`` or ``[M]``, with the same :math:`D`: the generated sample.
    :param num_neighbors: the :math:`k`.
    :return: precision, recall, density and coverage.
    :raises ValueError: if a shape does not fit, a sample is not finite, or ``num_neighbors`` is
        not between 1 and the rows of the smaller sample less one.

    Source: precision and recall, T. Kynkäänniemi et al., "Improved Precision and Recall Metric for
    Assessing Generative Models", 2019, https://arxiv.org/abs/1904.06991; density and coverage, M.
    F. Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020,
    https://arxiv.org/abs/2002.09797.

    Example::

        >>> real = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
        >>> fake = torch.tensor([0.5, 1.0, 1.5])  # one of two groups
        >>> precision_recall_density_coverage(real, fake, num_neighbors=2)
        PrecisionRecall(precision=1.0, recall=0.5, density=1.5, coverage=0.5)
    """
    real, fake = check_samples(real, fake, ("real", "fake"), least=2)
    check_integer("num_neighbors", num_neighbors, 1)
    if num_neighbors >= min(len(real), len(fake)):
        raise ValueError(
            f"`num_neighbors` must be less than the number of rows of `real`, {len(real)}, and of "
            f"`fake`, {len(fake)}, was {num_neighbors}"
        )
    with torch.no_grad():
        if real.shape[1] > _EXACT_COLUMNS:
            real, fake = real.double(), fake.double()
            centre = real.mean(0)
            real, fake = real - centre, fake - centre
        real_radii, fake_radii = _radii(real, num_neighbors), _radii(fake, num_neighbors)
        in_real_ball = torch.zeros(len(fake), dtype=torch.bool, device=real.device)
        num_memberships = num_recalled = num_covered = 0
        for rows in row_blocks(len(real), len(fake), _CHUNK_ELEMENTS):
            block = _distances(real[rows], fake)
            inside = block <= real_radii[rows].unsqueeze(-1)
            in_real_ball |= inside.any(0)
            num_memberships += int(inside.sum())
            num_covered += int(inside.any(-1).sum())
            num_recalled += int((block <= fake_radii).any(-1).sum())
    return PrecisionRecall(
        precision=int(in_real_ball.sum()) / len(fake),
        recall=num_recalled / len(real),
        density=num_memberships / (num_neighbors * len(fake)),
        coverage=num_covered / len(real),
    )


def _distances(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[1] > _EXACT_COLUMNS:
        return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")
    return distances(x, y)


def _radii(points: Tensor, num_neighbors: int) -> Tensor:
    """Distance of each row to its k-th nearest other row."""
    radii = points.new_empty(len(points))
    for rows in row_blocks(len(points), len(points), _CHUNK_ELEMENTS):
        # The row itself is the nearest.
        nearest = _smallest(_distances(points[rows], points), num_neighbors + 1)
        radii[rows] = nearest[:, -1]
    return radii


def _smallest(block: Tensor, count: int) -> Tensor:
    """The ``count`` smallest entries of each row, in order.

    They lie in the groups of columns whose minima are smallest, so that only these, and before
    them the minima, need a selection, which is far slower than a minimum.
    """
    num_groups = -(-block.shape[1] // _GROUP)
    if num_groups > count:
        padding = num_groups * _GROUP - block.shape[1]
        groups = torch.nn.functional.pad(block, (0, padding), value=torch.inf)
        groups = groups.view(len(block), num_groups, _GROUP)
        nearest = groups.amin(-1).topk(count, largest=False).indices
        block = groups.gather(1, nearest.unsqueeze(-1).expand(-1, -1, _GROUP)).flatten(1)
    return block.topk(count, largest=False, sorted=True).values
