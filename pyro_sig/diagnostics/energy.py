"""The energy distance of two samples, and the permutation test of it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_sig.diagnostics._samples import check_samples, discrepancy, distances
from pyro_sig.diagnostics.permutation import TwoSampleTest, permute_quadratic_form

__all__ = ["energy_distance", "energy_test"]


def energy_distance(x: Tensor, y: Tensor, unbiased: bool = False) -> Tensor:
    r"""Estimates the energy distance between the laws of two samples.

    .. math::
        \mathcal{E}(X, Y) = 2 E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|,

    which is zero exactly if the laws are equal. Uses memory for one block of rows only, and has a
    gradient with respect to both samples, in the same memory.

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
    x, y = check_samples(x, y)

    def nearness(rows: Tensor, columns: Tensor) -> Tensor:
        return -distances(rows, columns)

    return discrepancy(nearness, x, y, unbiased, at_zero=0.0).to(x.dtype)


def energy_test(
    x: Tensor,
    y: Tensor,
    num_permutations: int = 999,
    generator: torch.Generator | None = None,
    *,
    progress: bool | None = None,
) -> TwoSampleTest:
    r"""Tests whether two samples have one law by permuting the energy distance.

    .. math::
        p = \frac{1 + \#\{b : \mathcal{E}_b \ge \mathcal{E}\}}{1 + B},

    where :math:`\mathcal{E}_b` is the V-statistic of :func:`energy_distance` after the
    :math:`b`-th random relabelling of the pooled sample. If the laws are equal and the rows
    independent, :math:`P(p \le \alpha) \le \alpha` at any sample size. Memory grows with
    :math:`B (n + m)` bytes, the time with :math:`B (n + m)^2`.

    :param x: shape ``[n, D]`` or ``[n]``.
    :param y: shape ``[m, D]`` or ``[m]``, with the same :math:`D`.
    :param num_permutations: the number :math:`B` of relabellings; the least p is
        :math:`1 / (1 + B)`.
    :param generator: source of the relabellings; torch's global one by default.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
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
    x, y = check_samples(x, y)
    with torch.no_grad():
        return permute_quadratic_form(distances, x, y, num_permutations, generator, progress)
