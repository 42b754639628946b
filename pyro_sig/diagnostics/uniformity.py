"""An exact test that ranks are uniform, with the bands that belong to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, check_number, check_tensor

__all__ = ["EcdfBands", "UniformityTest", "ecdf_bands", "uniformity_test"]

# Simulations of the null law in one block, and its seed: equal calls give equal results.
_BLOCK = 2**21
_SEED = 20220210


class UniformityTest(NamedTuple):
    """Result of :func:`uniformity_test`, one entry for each column of ranks.

    :param statistic: the smallest pointwise tail probability.
    :param p_value: how probable one as small is if the ranks are uniform.
    """

    statistic: Tensor
    p_value: Tensor


class EcdfBands(NamedTuple):
    """Result of :func:`ecdf_bands`: K points, and the band at each.

    :param points: the uniform distribution function at the evaluated ranks.
    :param ranks: the evaluated ranks.
    :param lower: the smallest value of the empirical distribution function inside of the band.
    :param upper: the largest one.
    """

    points: Tensor
    ranks: Tensor
    lower: Tensor
    upper: Tensor


def uniformity_test(
    ranks: Tensor,
    num_draws: int,
    *,
    num_points: int = 100,
    num_simulations: int = 9999,
) -> UniformityTest:
    r"""Tests whether independent ranks are uniform on 0, ..., L.

    .. math::
        \gamma = \min_k \, 2 \min\{P(B_k \le c_k), P(B_k \ge c_k)\}, \qquad
        c_k = \#\{n : r_n \le k\}, \quad B_k \sim \mathrm{Binomial}(N, (k + 1) / (L + 1)),

    the most surprising value of the empirical distribution function, over evenly spaced ranks k.
    The law of :math:`\gamma` for uniform ranks is simulated, so :math:`P(p \le \alpha) \le \alpha`
    at any N, L and number of points, and p is small exactly if the empirical distribution function
    leaves the bands of :func:`ecdf_bands`. Below what the simulations resolve, p is the union
    bound :math:`K \gamma` over the K points, which many simultaneous tests need.

    :param torch.Tensor ranks: integers of shape ``[N, *]``; every column is tested by itself.
    :param int num_draws: the largest rank L: a rank among L draws has the values 0, ..., L.
    :param int num_points: at how many ranks to evaluate, at most; all L of them if that is fewer.
    :param int num_simulations: of the null law. It is kept for the next call with the same
        numbers, and torch's and numpy's random streams are left alone.
    :return: statistics and p-values, doubles of shape ``[*]`` on the device of the ranks.
    :raises ValueError: if the ranks are not integers from 0 to L or empty, or a number is not a
        positive integer.

    Source: T. Säilynoja, P.-C. Bürkner and A. Vehtari (2022), "Graphical test for discrete
    uniformity and its applications in goodness-of-fit evaluation and multiple sample comparison",
    https://doi.org/10.1007/s11222-022-10090-6, sections 2 and 3.

    Example::

        >>> even = torch.arange(100) % 10  # each of 0, ..., 9 ten times
        >>> uniformity_test(even, num_draws=9).p_value
        tensor(1., dtype=torch.float64)
        >>> bool(uniformity_test(even.clamp(max=6), num_draws=9).p_value < 1e-6)
        True
    """
    _check_numbers(num_draws, num_points, num_simulations)
    check_ranks("ranks", ranks, num_draws)
    num_ranks = len(ranks)
    columns = ranks.detach().reshape(num_ranks, -1).long().cpu().mT.contiguous().sort().values
    cuts = _cuts(num_draws, num_points)
    counts = torch.searchsorted(
        columns, torch.from_numpy(cuts).expand(len(columns), -1).contiguous(), right=True
    ).numpy()
    statistic = np.ones(len(columns))
    for i, tails in enumerate(_tails(num_ranks, cuts, num_draws)):
        statistic = np.minimum(statistic, tails[counts[:, i]])
    p_value = _p_value(statistic, num_ranks, num_draws, num_points, num_simulations)
    shape = ranks.shape[1:]
    return UniformityTest(
        torch.from_numpy(statistic).reshape(shape).to(ranks.device),
        torch.from_numpy(p_value).reshape(shape).to(ranks.device),
    )


def ecdf_bands(
    num_ranks: int,
    num_draws: int,
    level: float = 0.95,
    *,
    num_points: int = 100,
    num_simulations: int = 9999,
) -> EcdfBands:
    r"""Computes simultaneous bands for the empirical distribution function of uniform ranks.

    .. math::
        P(\ell_k \le c_k / N \le u_k \text{ at all evaluated } k) \ge \text{level},

    with :math:`c_k` of :func:`uniformity_test`: its p-value is at most ``1 - level`` exactly if
    the empirical distribution function leaves the bands somewhere.

    :param int num_ranks: the number N of ranks.
    :param int num_draws: the largest rank L.
    :param float level: of the bands, between 0 and 1.
    :param int num_points: as for :func:`uniformity_test`.
    :param int num_simulations: as for :func:`uniformity_test`.
    :return: points, evaluated ranks and bands, each of shape ``[K]``.
    :raises ValueError: if a number is not a positive integer, or ``level`` not between 0 and 1.

    Source: as for :func:`uniformity_test`.

    Example::

        >>> bands = ecdf_bands(num_ranks=100, num_draws=4)
        >>> bands.points.tolist()
        [0.2, 0.4, 0.6, 0.8]
        >>> bool(((bands.lower < bands.points) & (bands.points < bands.upper)).all())
        True
    """
    check_integer("num_ranks", num_ranks, 1)
    _check_numbers(num_draws, num_points, num_simulations)
    level = check_number("level", level, above=0, below=1)
    cuts = _cuts(num_draws, num_points)
    lower, upper = np.empty(len(cuts)), np.empty(len(cuts))
    for i, tails in enumerate(_tails(num_ranks, cuts, num_draws)):
        p_value = _p_value(tails, num_ranks, num_draws, num_points, num_simulations)
        inside = np.flatnonzero(p_value > 1 - level)
        # A low level may leave no count inside: the most probable one then is the band.
        ends = inside[[0, -1]] if len(inside) else [tails.argmax()] * 2
        lower[i], upper[i] = ends[0] / num_ranks, ends[1] / num_ranks
    return EcdfBands(
        torch.from_numpy((cuts + 1) / (num_draws + 1)),
        torch.from_numpy(cuts),
        torch.from_numpy(lower),
        torch.from_numpy(upper),
    )


def _check_numbers(num_draws: int, num_points: int, num_simulations: int) -> None:
    check_integer("num_draws", num_draws, 1)
    check_integer("num_points", num_points, 1)
    check_integer("num_simulations", num_simulations, 1)


def check_ranks(name: str, ranks: Tensor, num_draws: int) -> None:
    check_tensor(
        name,
        ranks,
        "a dense tensor of integers, of shape [N, *], not empty",
        lambda r: (
            r.dim() > 0 and r.numel() > 0 and not (r.is_floating_point() or r.dtype == torch.bool)
        ),
    )
    least, largest = int(ranks.min()), int(ranks.max())
    if least < 0 or largest > num_draws:
        raise ValueError(
            f"`{name}` must be from 0 to `num_draws`, {num_draws}, was from {least} to {largest}"
        )


def _cuts(num_draws: int, num_points: int) -> np.ndarray:
    count = min(num_points, num_draws)
    return np.rint(np.arange(1, count + 1) * ((num_draws + 1) / (count + 1))).astype(int) - 1


def _tails(num_ranks: int, cuts: np.ndarray, num_draws: int) -> Iterator[np.ndarray]:
    """Yields for each cut the two-sided binomial tail of the counts 0, ..., N."""
    # One table serves counts seen, simulated and banded, so that equal counts tie exactly.
    count = torch.arange(num_ranks + 1, dtype=torch.double)
    log_choose = (
        math.lgamma(num_ranks + 1) - (count + 1).lgamma() - (num_ranks - count + 1).lgamma()
    )
    for cut in cuts:
        odds = (int(cut) + 1) / (num_draws + 1)
        mass = (log_choose + count * math.log(odds) + (num_ranks - count) * math.log1p(-odds)).exp()
        below, above = mass.cumsum(0), mass.flip(0).cumsum(0).flip(0)
        yield (2 * torch.minimum(below, above)).clamp(max=1.0).numpy()


def _p_value(
    statistic: np.ndarray, num_ranks: int, num_draws: int, num_points: int, num_simulations: int
) -> np.ndarray:
    null = _null_law(num_ranks, num_draws, num_points, num_simulations)
    p_value = (1 + np.searchsorted(null, statistic, side="right")) / (1 + len(null))
    # Above 1 / (1 + simulations), where a p-value can be told from the simulations, nothing
    # changes by this; below, the union bound is valid by itself.
    bound = min(num_points, num_draws) * statistic
    return np.where(statistic < null[0], np.minimum(p_value, bound), p_value)


@lru_cache(maxsize=32)
def _null_law(num_ranks: int, num_draws: int, num_points: int, num_simulations: int) -> np.ndarray:
    """Simulates the statistics of uniform ranks, in ascending order."""
    generator = np.random.default_rng(_SEED)
    cuts = _cuts(num_draws, num_points)
    odds = np.diff(cuts, prepend=-1, append=num_draws) / (num_draws + 1)
    blocks = []
    for start in range(0, num_simulations, rows := max(1, _BLOCK // len(odds))):
        size = min(rows, num_simulations - start)
        counts = generator.multinomial(num_ranks, odds, size=size).cumsum(1)
        statistic = np.ones(size)
        for i, tails in enumerate(_tails(num_ranks, cuts, num_draws)):
            statistic = np.minimum(statistic, tails[counts[:, i]])
        blocks.append(statistic)
    return np.sort(np.concatenate(blocks))
