"""The maximum mean discrepancy of two samples, and the permutation test of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_choice, check_number, is_dense, refusal
from pyro_sig.diagnostics._containers import as_tensor
from pyro_sig.diagnostics._samples import (
    check_samples,
    discrepancy,
    distances,
    median_distance,
)
from pyro_sig.diagnostics.permutation import TwoSampleTest, permute_quadratic_form

__all__ = ["mmd", "mmd_test"]

# Bandwidths by default, in medians of the pooled distances: laws may differ in their bulk, or in
# features much smaller than that.
_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)

# exp(-80) is nothing in a sum of kernels, but what is below 1e-38 takes ten times as long.
_LEAST_EXPONENT = -80.0


def mmd(
    x: Tensor,
    y: Tensor,
    unbiased: bool = False,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] | None = None,
) -> Tensor:
    r"""Estimates the squared maximum mean discrepancy between the laws of two samples.

    .. math::
        \mathrm{MMD}^2(X, Y) = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y),
        \qquad k(x, y) = \sum_h \kappa(\|x - y\| / h),

    with :math:`\kappa(r) = e^{-r^2/2}` (``"rbf"``) or :math:`(1 + r^2)^{-1/2}` (``"imq"``, the
    inverse multiquadric, whose heavy tail still sees laws that are many bandwidths apart). Both
    are characteristic: it is zero exactly if the laws are equal. Uses memory for one block of
    rows only, and has a gradient with respect to both samples, in the same memory.

    :param x: shape ``[n, D]`` or ``[n]``.
    :param y: shape ``[m, D]`` or ``[m]``, with the same :math:`D`.
    :param unbiased: leave the kernel of a point with itself out of the first two means (the
        U-statistic, which may be negative). The default keeps it: the V-statistic, never
        negative.
    :param kernel: ``"rbf"`` or ``"imq"``.
    :param bandwidth: the :math:`h`, or several of which the kernels are added. By default 1/4,
        1/2, 1, 2 and 4 times the median distance of the pooled sample (of 1000 of its rows, a
        fixed choice, if there are more), which the gradient takes for constants. Give them where
        values are to be compared: a default differs from one pair of samples to the next.
    :return: the estimate of the square, a scalar tensor between 0 and twice the number of
        bandwidths (for ``unbiased``, a little below 0 too).
    :raises ValueError: if a shape does not fit, a sample is not finite, ``kernel`` is unknown, a
        bandwidth is not positive, or ``unbiased`` meets a sample of one.

    Source: A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf and A. Smola, "A Kernel Two-Sample
    Test", 2012, https://jmlr.org/papers/v13/gretton12a.html, equations (3) and (5).

    Example::

        >>> x, y = torch.zeros(3), torch.ones(3)
        >>> mmd(x, y, bandwidth=1.0)  # 2 - 2 exp(-1/2)
        tensor(0.7869)
        >>> mmd(x, y, kernel="imq", bandwidth=[1.0, 1.0])  # 2 (2 - 2 / sqrt(2))
        tensor(1.1716)
    """
    x, y = check_samples(x, y)
    bandwidths = _bandwidths(bandwidth, x, y)
    pairwise = _kernel(kernel, bandwidths)
    # Every kernel of the sum is 1 at distance 0.
    return discrepancy(pairwise, x, y, unbiased, at_zero=len(bandwidths)).to(x.dtype)


def mmd_test(
    x: Tensor,
    y: Tensor,
    num_permutations: int = 999,
    generator: torch.Generator | None = None,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] | None = None,
    progress: bool | None = None,
) -> TwoSampleTest:
    r"""Tests whether two samples have one law by permuting the maximum mean discrepancy.

    .. math::
        p = \frac{1 + \#\{b : \mathrm{MMD}^2_b \ge \mathrm{MMD}^2\}}{1 + B},

    where :math:`\mathrm{MMD}^2_b` is the V-statistic of :func:`mmd` after the :math:`b`-th random
    relabelling of the pooled sample. If the laws are equal and the rows independent,
    :math:`P(p \le \alpha) \le \alpha` at any sample size: the bandwidths do not depend on the
    labels. Memory grows with :math:`B (n + m)` bytes, the time with :math:`B (n + m)^2`.

    :param x: shape ``[n, D]`` or ``[n]``.
    :param y: shape ``[m, D]`` or ``[m]``, with the same :math:`D`.
    :param num_permutations: the number :math:`B` of relabellings; the least p is
        :math:`1 / (1 + B)`.
    :param generator: source of the relabellings; torch's global one by default.
    :param kernel: as in :func:`mmd`.
    :param bandwidth: as in :func:`mmd`.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :return: the statistic (the square) and its p-value.
    :raises ValueError: as in :func:`mmd`, or if ``num_permutations`` is less than 1.

    Source: Gretton et al. (2012), as in :func:`mmd`.

    Example::

        >>> x, y = torch.arange(20.0), torch.arange(100.0, 120.0)  # nothing in common
        >>> statistic, p_value = mmd_test(x, y, num_permutations=99, bandwidth=20.0)
        >>> round(statistic, 2), p_value
        (1.85, 0.01)
    """
    x, y = check_samples(x, y)
    with torch.no_grad():
        pairwise = _kernel(kernel, _bandwidths(bandwidth, x, y))
        return permute_quadratic_form(
            lambda rows, columns: -pairwise(rows, columns),
            x,
            y,
            num_permutations,
            generator,
            progress,
        )


def _bandwidths(bandwidth: float | Sequence[float] | None, x: Tensor, y: Tensor) -> list[float]:
    if bandwidth is None:
        median = median_distance(x, y)
        return [factor * median for factor in _FACTORS]
    several: Any = as_tensor(bandwidth)
    if is_dense(several):
        several = several.reshape(-1).tolist() if several.dim() < 2 else None
    if isinstance(several, Real):
        several = [several]
    must_be = "a positive number or a sequence of them"
    if not isinstance(several, Sequence) or isinstance(several, (str, bytes)) or not several:
        raise refusal("bandwidth", must_be, bandwidth)
    return [check_number("bandwidth", h, must_be, above=0) for h in several]


def _kernel(kernel: str, bandwidths: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    check_choice("kernel", kernel, ("rbf", "imq"))

    def pairwise(rows: Tensor, columns: Tensor) -> Tensor:
        squares = distances(rows, columns).square()

        def term(h: float) -> Tensor:
            if kernel == "imq":
                return (squares / h**2 + 1).rsqrt()
            return (squares * (-0.5 / h**2)).clamp(min=_LEAST_EXPONENT).exp()

        total = term(bandwidths[0])
        for h in bandwidths[1:]:
            total = total + term(h)
        return total

    return pairwise
