r"""Two-sample statistics and exact permutation tests of "these samples have one law".

A statistic that is a quadratic form of one matrix over the pooled sample,

.. math::
    S = -s^\top D s, \qquad s_i = 1/n \text{ for a row of } x, \quad -1/m \text{ for a row of } y,

needs that matrix once: relabelling the pooled sample changes :math:`s` only, so all permutations
are one matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TwoSampleTest", "energy_distance", "energy_test"]

# Elements of one block of distances, and of one block of label vectors.
_CHUNK_ELEMENTS = 2**22


class TwoSampleTest(NamedTuple):
    """Result of a two-sample test.

    :param statistic: the statistic of the two samples as given.
    :param p_value: share of relabellings, the given one included, that do at least as badly.
    """

    statistic: float
    p_value: float


def energy_distance(x: Tensor, y: Tensor, unbiased: bool = False) -> Tensor:
    r"""Estimates the energy distance between the laws of two samples.

    .. math::
        \mathcal{E}(X, Y) = 2 E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|,

    which is zero exactly if the laws are equal. Uses memory for one block of rows only, and has a
    gradient with respect to both samples.

    :param x: shape ``[n, D]`` or ``[n]``.
    :param y: shape ``[m, D]`` or ``[m]``, with the same :math:`D`.
    :param unbiased: leave the zero distances of a point to itself out of the last two means (the
        U-statistic, which may be negative). The default keeps them: the V-statistic, never
        negative.
    :return: the estimate, a scalar tensor in the units of the samples.
    :raises ValueError: if a shape does not fit, a sample is not finite, or ``unbiased`` meets a
        sample of one.

    Source: Székely and Rizzo, "Energy statistics: A class of statistics based on distances",
    2013, https://doi.org/10.1016/j.jspi.2013.03.018.

    Example::

        >>> x, y = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])
        >>> energy_distance(x, y)  # 2 * 1 - 1 - 0
        tensor(1.)
        >>> energy_distance(x, y, unbiased=True)  # 2 * 1 - 2 - 0
        tensor(0.)
    """
    x, y = _check_samples(x, y)
    n, m = len(x), len(y)
    if unbiased and min(n, m) < 2:
        raise ValueError(
            f"`unbiased` needs at least 2 rows in `x` and in `y`, but these had {n} and {m}."
        )
    within = 1 if unbiased else 0
    return (
        2 * _sum_distances(x, y) / (n * m)
        - _sum_distances(x, x) / (n * (n - within))
        - _sum_distances(y, y) / (m * (m - within))
    )


def energy_test(
    x: Tensor,
    y: Tensor,
    num_permutations: int = 999,
    generator: torch.Generator | None = None,
) -> TwoSampleTest:
    r"""Tests whether two samples have one law by permuting the energy distance.

    .. math::
        p = \frac{1 + \#\{b : \mathcal{E}_b \ge \mathcal{E}\}}{1 + B},

    where :math:`\mathcal{E}_b` is the V-statistic of :func:`energy_distance` after the
    :math:`b`-th random relabelling of the pooled sample. If the laws are equal and the rows
    independent, :math:`P(p \le \alpha) \le \alpha` at any sample size. The pooled distances,
    :math:`(n + m)^2` doubles (128 MB at 4,000 rows), are held in memory.

    :param x: shape ``[n, D]`` or ``[n]``.
    :param y: shape ``[m, D]`` or ``[m]``, with the same :math:`D`.
    :param num_permutations: the number :math:`B` of relabellings; the least p is
        :math:`1 / (1 + B)`.
    :param generator: source of the relabellings; torch's global one by default.
    :return: the statistic and its p-value.
    :raises ValueError: if a shape does not fit, a sample is not finite, or
        ``num_permutations`` is less than 1.

    Source: Székely and Rizzo, "Testing for equal distributions in high dimension", 2004,
    InterStat 5.

    Example::

        >>> x, y = torch.arange(20.0), torch.arange(100.0, 120.0)  # nothing in common
        >>> statistic, p_value = energy_test(x, y, num_permutations=99)
        >>> round(statistic, 1), p_value
        (186.7, 0.01)
    """
    x, y = _check_samples(x, y)
    with torch.no_grad():
        pooled = torch.cat([x, y])
        distances = _distances(pooled, pooled)
        return _permutation_test(distances, len(x), num_permutations, generator)


def _check_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for name, sample in (("x", x), ("y", y)):
        if not isinstance(sample, Tensor) or sample.dim() not in (1, 2) or 0 in sample.shape:
            was = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
            raise ValueError(
                f"`{name}` must be a tensor of shape [count, D] or [count] and not empty, "
                f"but was {was}."
            )
        if not bool(torch.isfinite(sample).all()):
            raise ValueError(f"`{name}` must be finite, but has NaN or infinite entries.")
    x, y = (sample.unsqueeze(-1) if sample.dim() == 1 else sample for sample in (x, y))
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"`y` must have as many columns as `x`, {x.shape[1]}, but had {y.shape[1]}."
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return x.to(dtype), y.to(device=x.device, dtype=dtype)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The matrix-product form gives near points distances that are rounding noise.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _sum_distances(x: Tensor, y: Tensor) -> Tensor:
    rows = max(1, _CHUNK_ELEMENTS // len(y))
    return torch.stack([_distances(chunk, y).sum() for chunk in x.split(rows)]).sum()


def _permutation_test(
    matrix: Tensor,
    num_x: int,
    num_permutations: int,
    generator: torch.Generator | None,
) -> TwoSampleTest:
    """Permutes the statistic -s^T matrix s of the module's docstring.

    ``matrix`` is symmetric over the pooled sample, larger for pairs that are farther apart: a
    distance, or minus a kernel. Its first ``num_x`` rows are those of x.
    """
    if isinstance(num_permutations, bool) or not (
        isinstance(num_permutations, int) and num_permutations >= 1
    ):
        raise ValueError(
            f"`num_permutations` must be an integer of at least 1, but was {num_permutations!r}."
        )
    num_rows = len(matrix)
    num_y = num_rows - num_x
    # Double, and centred (s sums to 0, so S is unchanged): under the null the statistics are small
    # differences of large sums, and their order decides p.
    matrix = matrix.double()
    means = matrix.mean(0)
    matrix = matrix - means - means.unsqueeze(-1) + means.mean()

    def statistics(labels: Tensor) -> Tensor:
        return -((labels @ matrix) * labels).sum(-1)

    observed_labels = matrix.new_full((1, num_rows), -1 / num_y)
    observed_labels[:, :num_x] = 1 / num_x
    observed = statistics(observed_labels).squeeze(0)

    # Relabellings that tie exactly (repeated rows, swapped sides) differ by rounding: count them.
    rounding = 64 * torch.finfo(matrix.dtype).eps * matrix.abs().max()
    device = matrix.device if generator is None else generator.device
    as_bad, done = 0, 0
    while done < num_permutations:
        count = min(max(1, _CHUNK_ELEMENTS // num_rows), num_permutations - done)
        keys = torch.rand(count, num_rows, generator=generator, device=device, dtype=matrix.dtype)
        chosen = keys.argsort(-1)[:, :num_x].to(matrix.device)
        labels = matrix.new_full((count, num_rows), -1 / num_y).scatter_(-1, chosen, 1 / num_x)
        as_bad += int((statistics(labels) >= observed - rounding).sum())
        done += count
    return TwoSampleTest(float(observed), (1 + as_bad) / (1 + num_permutations))
