r"""The kernel Stein discrepancy: samples against a density known up to its constant.

With :math:`s = \nabla \log p` and a kernel :math:`k(x, y) = \varphi(\|x - y\|^2)`, the Stein kernel
is a sum of products of inner products and functions of the distance,

.. math::
    k_p(x, y) = s(x)^\top s(y) \, \varphi
        + 2 \varphi' \{s(y)^\top (x - y) - s(x)^\top (x - y)\} - 2 D \varphi'
        - 4 \|x - y\|^2 \varphi'',

so that a block of it is four matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import (
    check_choice,
    check_finite,
    check_flag,
    check_integer,
    check_number,
    check_tensor,
    describe,
    is_dense,
)
from pyro_sig._functions import check_callable
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._streams import check_generator

__all__ = ["SteinTest", "kernel_stein_discrepancy", "kernel_stein_test"]

# Elements of one block of the Stein kernel, of which about six are alive at a time.
_CHUNK_ELEMENTS = 2**22

# Rows that the median distance is taken over.
_MEDIAN_ROWS = 1000

LogProb = Callable[[Tensor], Tensor]


class SteinTest(NamedTuple):
    """Result of :func:`kernel_stein_test`.

    :param statistic: the U-statistic of the squared discrepancy.
    :param p_value: share of bootstrap statistics, the sample's own included, that are as large.
    """

    statistic: float
    p_value: float

    def __repr__(self) -> str:
        return f"SteinTest(statistic={self.statistic:.4g}, p_value={self.p_value:.4g})"


def kernel_stein_discrepancy(
    samples: Tensor,
    log_prob: LogProb | None = None,
    *,
    score: Tensor | None = None,
    kernel: str = "imq",
    bandwidth: float | None = None,
    unbiased: bool = False,
) -> Tensor:
    r"""Estimates the squared kernel Stein discrepancy of samples from a density.

    .. math::
        \mathrm{KSD}^2(q, p) = E_{x, y \sim q} \, k_p(x, y)
            = E_{x, y \sim q} \, d(x)^\top k(x, y) \, d(y),
            \qquad d = \nabla \log p - \nabla \log q,

    with :math:`k = (1 + \|x - y\|^2 / h^2)^{-1/2}` ("imq") or
    :math:`\exp\{-\|x - y\|^2 / (2 h^2)\}` ("rbf"). The density p enters through its score only,
    without its constant, and the law q of the samples through the samples only. Memory is that of
    one block of rows.

    It is blind to the weights of modes that are far apart: between them neither law has mass, and
    at each of them the score does not know how much mass is elsewhere. With one mode missing
    altogether it is near zero as well.

    :param torch.Tensor samples: of shape ``[N, D]`` or ``[N]``.
    :param callable log_prob: the log-density, up to a constant: of the samples, as given, to a
        tensor of shape ``[N]``. It is differentiated by autograd.
    :param torch.Tensor score: in place of ``log_prob``, its gradient at the samples, of their
        shape.
    :param str kernel: "imq", which sees samples far from the mass of p in any dimension, or "rbf",
        which in three and more dimensions may not.
    :param float bandwidth: h; by default the median distance of up to 1000 rows.
    :param bool unbiased: leave :math:`k_p(x_i, x_i)` out (the U-statistic, of mean zero if q = p
        and h is fixed). The default keeps it: the V-statistic, never negative.
    :return: the estimate, a scalar tensor without a gradient.
    :raises ValueError: if not exactly one of ``log_prob`` and ``score`` is given, a shape does not
        fit, samples or scores are not finite, the kernel is unknown, ``bandwidth`` is not positive
        or, by default, half of the rows are equal; or ``unbiased`` meets a sample of one.

    Sources: Q. Liu, J. Lee and M. Jordan (2016), "A kernelized Stein discrepancy for
    goodness-of-fit tests", https://arxiv.org/abs/1602.03253, theorem 3.6; J. Gorham and L. Mackey
    (2017), "Measuring sample quality with kernels", https://arxiv.org/abs/1703.01717; for the far
    modes, L. Wenliang and H. Kanagawa (2020), "Blindness of score-based methods to isolated
    components and mixing proportions", https://arxiv.org/abs/2008.10087.

    Example::

        >>> standard = torch.distributions.Normal(0.0, 1.0)
        >>> samples = standard.icdf(torch.arange(1, 100) / 100)
        >>> bool(kernel_stein_discrepancy(samples, standard.log_prob) < 0.1)
        True
        >>> bool(kernel_stein_discrepancy(samples + 1, standard.log_prob) > 0.5)
        True
    """
    check_flag("unbiased", unbiased)
    points, scores = _check_points(samples, log_prob, score)
    num_points = len(points)
    if unbiased and num_points < 2:
        raise ValueError(f"`unbiased` needs at least 2 rows in `samples`, but it had {num_points}")
    width = _bandwidth(points, bandwidth)
    total = points.new_zeros((), dtype=torch.double)
    for block in _stein_blocks(points, scores, kernel, width):
        total += 2 * block.sum(dtype=torch.double)
        total -= block.diagonal().sum(dtype=torch.double)
        total -= 2 * block[:, : len(block)].tril(-1).sum(dtype=torch.double)
    if unbiased:
        total -= _diagonal(points, scores, width).sum(dtype=torch.double)
        return (total / (num_points * (num_points - 1))).to(points.dtype)
    return (total / num_points**2).to(points.dtype)


def kernel_stein_test(
    samples: Tensor,
    log_prob: LogProb | None = None,
    *,
    score: Tensor | None = None,
    kernel: str = "imq",
    bandwidth: float | None = None,
    num_bootstraps: int = 999,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> SteinTest:
    r"""Tests whether independent samples have a given density, known up to its constant.

    .. math::
        T_b = \frac{1}{N (N - 1)} \sum_{i \ne j} \epsilon_i^b \epsilon_j^b \, k_p(x_i, x_j), \qquad
        p = \frac{1 + \#\{b : T_b \ge T\}}{1 + B},

    with the U-statistic T of :func:`kernel_stein_discrepancy` and independent signs
    :math:`\epsilon`. The level holds as N grows. Dependent samples, such as those of a Markov
    chain, need thinning. The N x N matrix is never held, the B x N signs are.

    What the discrepancy is blind to, the test is too: it does not see wrong weights of modes that
    are far apart, nor that one is missing.

    :param torch.Tensor samples: of shape ``[N, D]`` or ``[N]``, N at least 2.
    :param callable log_prob: as for :func:`kernel_stein_discrepancy`.
    :param torch.Tensor score: as for :func:`kernel_stein_discrepancy`.
    :param str kernel: as for :func:`kernel_stein_discrepancy`.
    :param float bandwidth: as for :func:`kernel_stein_discrepancy`.
    :param int num_bootstraps: the number B of sign vectors; the least p is 1 / (1 + B).
    :param torch.Generator generator: source of the signs; torch's global one by default.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :return: the statistic and its p-value.
    :raises ValueError: as :func:`kernel_stein_discrepancy`, or if ``num_bootstraps`` is not a
        positive integer.

    Sources: Q. Liu, J. Lee and M. Jordan (2016), https://arxiv.org/abs/1602.03253, section 4;
    K. Chwialkowski, H. Strathmann and A. Gretton (2016), "A kernel test of goodness of fit",
    https://arxiv.org/abs/1602.02964, section 3.

    Example::

        >>> standard = torch.distributions.Normal(0.0, 1.0)
        >>> samples = standard.icdf(torch.arange(1, 100) / 100)
        >>> kernel_stein_test(samples, standard.log_prob, num_bootstraps=99).p_value > 0.1
        True
        >>> kernel_stein_test(samples + 1, standard.log_prob, num_bootstraps=99).p_value
        0.01
    """
    check_integer("num_bootstraps", num_bootstraps, 1)
    check_generator(generator)
    points, scores = _check_points(samples, log_prob, score)
    num_points = len(points)
    if num_points < 2:
        raise ValueError(f"`samples` must have at least 2 rows, had {num_points}")
    width = _bandwidth(points, bandwidth)
    device = points.device if generator is None else generator.device
    signs = torch.ones(1 + num_bootstraps, num_points, dtype=torch.int8, device=points.device)
    signs[1:] = torch.randint(
        2, (num_bootstraps, num_points), generator=generator, device=device, dtype=torch.int8
    ).to(points.device)
    signs[1:] = 2 * signs[1:] - 1

    # The sample's own statistic is the one of signs that are all one.
    totals = points.new_zeros(len(signs), dtype=torch.double)
    start = 0
    with Progress(progress, num_points, "Stein") as bar:
        for block in _stein_blocks(points, scores, kernel, width):
            stop = start + len(block)
            # The entries below the blocks are those to the right of them, by symmetry.
            block[:, len(block) :] *= 2
            block.diagonal().zero_()
            for first in range(0, len(signs), rows := max(1, _CHUNK_ELEMENTS // num_points)):
                some = signs[first : first + rows, start:].to(points.dtype)
                products = (some[:, : stop - start] @ block).mul_(some)
                totals[first : first + rows] += products.sum(-1, dtype=torch.double)
            start = stop
            bar.update(len(block))
    statistics = totals / (num_points * (num_points - 1))
    # Signs that are all equal tie with the sample's own, up to rounding.
    rounding = 64 * torch.finfo(points.dtype).eps * float(statistics.abs().max())
    as_large = int((statistics[1:] >= statistics[0] - rounding).sum())
    return SteinTest(float(statistics[0]), (1 + as_large) / (1 + num_bootstraps))


def _check_points(
    samples: Tensor, log_prob: LogProb | None, score: Tensor | None
) -> tuple[Tensor, Tensor]:
    samples = check_tensor(
        "samples",
        samples,
        "a tensor of shape [N, D] or [N] and not empty, of floating point",
        lambda x: x.dim() in (1, 2) and 0 not in x.shape and x.is_floating_point(),
    ).detach()
    check_finite("samples", samples)
    if (log_prob is None) == (score is None):
        both = "neither" if score is None else "both"
        raise ValueError(f"`log_prob` or `score` must be given, one of the two, {both} was")
    if log_prob is not None:
        score = _differentiate(log_prob, samples)
    score = check_tensor(
        "score",
        score,
        f"a tensor of the shape of `samples`, {tuple(samples.shape)}",
        lambda x: x.shape == samples.shape,
    )
    if not bool(torch.isfinite(score).all()):
        name = "score" if log_prob is None else "log_prob"
        be = "be" if log_prob is None else "have a gradient that is"
        raise ValueError(f"`{name}` must {be} finite at all samples, was not at some")
    score = score.detach().to(samples)
    if samples.dim() == 1:
        samples, score = samples.unsqueeze(-1), score.unsqueeze(-1)
    # Inner products of points far from the origin would lose digits; only differences matter.
    return samples - samples.mean(0), score


def _differentiate(log_prob: LogProb, samples: Tensor) -> Tensor:
    check_callable("log_prob", log_prob, "a function of the samples (pass its gradient as `score`)")
    with torch.enable_grad():
        points = samples.clone().requires_grad_()
        values = log_prob(points)
        if not is_dense(values) or values.shape != samples.shape[:1]:
            raise ValueError(
                f"`log_prob` must return a tensor of shape [{len(samples)}], one value for each "
                f"sample, returned {describe(values)}"
            )
        if not values.requires_grad:
            raise ValueError("`log_prob` must be differentiable, had no gradient")
        return torch.autograd.grad(values.sum(), points)[0]


def _bandwidth(points: Tensor, bandwidth: float | None) -> float:
    if bandwidth is not None:
        return check_number("bandwidth", bandwidth, above=0)
    # Evenly spaced, so that equal calls give equal results.
    count = min(len(points), _MEDIAN_ROWS)
    chosen = torch.linspace(0, len(points) - 1, count, dtype=torch.double).round().long()
    median = float(torch.pdist(points[chosen.to(points.device)]).median()) if count > 1 else 1.0
    if median == 0:
        raise ValueError(
            "`bandwidth` must be given where the median distance of the samples is 0, was None"
        )
    return median


def _stein_blocks(points: Tensor, scores: Tensor, kernel: str, width: float) -> Iterator[Tensor]:
    """Yields the upper triangle of the Stein kernel in blocks of rows.

    A block of b rows starts in the column of its first row, so its first b columns are square.
    """
    check_choice("kernel", kernel, ("imq", "rbf"))
    num_points, dim = points.shape
    squares, along = points.square().sum(-1), (scores * points).sum(-1)
    start = 0
    while start < num_points:
        stop = min(num_points, start + max(1, _CHUNK_ELEMENTS // (num_points - start)))
        x, s_x = points[start:stop], scores[start:stop]
        y, s_y = points[start:], scores[start:]
        scaled = torch.addmm(squares[start:], x, y.mT, alpha=-2.0)
        scaled = scaled.add_(squares[start:stop].unsqueeze(-1)).clamp_(min=0.0).div_(width**2)
        # (s(y) - s(x))^T (x - y)
        drift = torch.addmm(-along[start:], x, s_y.mT).addmm_(s_x, y.mT)
        drift = drift.sub_(along[start:stop].unsqueeze(-1)).sub_(dim).div_(width**2)
        block = s_x @ s_y.mT
        # In units of the bandwidth 2 phi' and 4 r^2 phi'' are phi times what stands here.
        if kernel == "imq":
            inverse = (1 + scaled).reciprocal_()
            scaled = scaled.mul_(inverse).mul_(inverse).mul_(3 / width**2)
            phi = inverse.sqrt()
            yield block.sub_(drift.mul_(inverse)).sub_(scaled).mul_(phi)
        else:
            phi = (scaled / -2).exp_()
            yield block.sub_(drift).sub_(scaled.div_(width**2)).mul_(phi)
        start = stop


def _diagonal(points: Tensor, scores: Tensor, width: float) -> Tensor:
    return scores.square().sum(-1) + points.shape[1] / width**2
