"""The Wasserstein distance of two samples, averaged over random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._samples import check_samples
from pyro_sig.diagnostics._streams import own_stream
from pyro_sig.diagnostics.permutation import TwoSampleTest, rank, relabellings

__all__ = ["sliced_wasserstein", "sliced_wasserstein_test"]

# Elements of one block of projected samples.
_CHUNK_ELEMENTS = 2**22


def sliced_wasserstein(
    x: Tensor, y: Tensor, num_projections: int = 500, *, seed: int = 0
) -> Tensor:
    r"""Estimates the sliced Wasserstein-2 distance between the laws of two samples.

    .. math::
        SW_2^2(X, Y) = E_\theta \int_0^1
            \{F^{-1}_{\theta^\top X}(u) - F^{-1}_{\theta^\top Y}(u)\}^2 \, du,
        \qquad \theta \text{ uniform on the unit sphere},

    with the quantile functions of the samples. The integral is exact, for samples of unequal sizes
    too; the mean is over ``num_projections`` directions, the same for every call with that seed.
    In each direction the distance counts as much as the spread of the columns lets it, so
    standardise columns of different units. Two samples of one law are not at distance zero: their
    own distance, from halves of a sample, says what is small.

    :param torch.Tensor x: shape ``[N, D]``, or ``[N]``.
    :param torch.Tensor y: shape ``[M, D]``, or ``[M]``, with the same :math:`D`.
    :param int num_projections: number of directions.
    :param int seed: of the directions; torch's global stream is left alone.
    :return: the distance (not its square), a scalar tensor in the units of the samples, on the
        device of x.
    :raises ValueError: if a shape does not fit, a sample is not finite, or ``num_projections`` is
        less than 1.

    Source: N. Bonneel, J. Rabin, G. Peyré and H. Pfister (2015), "Sliced and Radon Wasserstein
    Barycenters of Measures", https://doi.org/10.1007/s10851-014-0506-3.

    Example::

        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> sliced_wasserstein(x, x + 3)  # in one dimension, without slicing
        tensor(3.)
        >>> sliced_wasserstein(x, torch.ones(1, 1)).square()  # (1 + 0 + 1) / 3
        tensor(0.6667)
    """
    x, y = check_samples(x, y)
    directions = _directions(num_projections, x.shape[1], seed).to(x)
    levels = _Levels(x, y)
    # Large common offsets would cost digits in the projections.
    centre = x.mean(0)
    x, y = x - centre, y - centre
    squares = [
        levels.squares((chunk @ x.mT).sort().values, (chunk @ y.mT).sort().values)
        for chunk in directions.split(max(1, _CHUNK_ELEMENTS // (len(x) + len(y))))
    ]
    return torch.cat(squares).mean().sqrt()


def sliced_wasserstein_test(
    x: Tensor,
    y: Tensor,
    num_permutations: int = 999,
    generator: torch.Generator | None = None,
    *,
    num_projections: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> TwoSampleTest:
    r"""Tests whether two samples have one law by permuting the sliced Wasserstein distance.

    .. math::
        p = \frac{1 + \#\{b : SW_{2,b} \ge SW_2\}}{1 + B},

    where :math:`SW_{2,b}` is :func:`sliced_wasserstein` after the :math:`b`-th random relabelling
    of the pooled sample, in the same directions. If the laws are equal and the rows independent,
    :math:`P(p \le \alpha) \le \alpha` at any sample size. The pooled sample is sorted once in each
    direction; the time grows with :math:`B (n + m)` times the number of directions, the memory
    with :math:`B (n + m)` bytes.

    :param x: shape ``[n, D]`` or ``[n]``.
    :param y: shape ``[m, D]`` or ``[m]``, with the same :math:`D`.
    :param num_permutations: the number :math:`B` of relabellings; the least p is
        :math:`1 / (1 + B)`.
    :param generator: source of the relabellings; torch's global one by default.
    :param num_projections: number of directions; in one dimension there is only one.
    :param seed: of the directions.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :return: the statistic (the distance) and its p-value.
    :raises ValueError: if a shape does not fit, a sample is not finite, or ``num_permutations``
        or ``num_projections`` is less than 1.

    Source: as :func:`sliced_wasserstein`; the permutation test as :func:`energy_test`.

    Example::

        >>> x, y = torch.arange(20.0), torch.arange(100.0, 120.0)  # nothing in common
        >>> sliced_wasserstein_test(x, y, num_permutations=99)
        TwoSampleTest(statistic=100, p_value=0.01)
    """
    x, y = check_samples(x, y)
    with torch.no_grad():
        # Double, as the order of near statistics decides p.
        pooled = torch.cat([x, y]).double()
        pooled = pooled - pooled.mean(0)
        directions = _directions(num_projections, x.shape[1], seed).to(pooled)
        if x.shape[1] == 1:
            directions = torch.ones_like(directions[:1])
        labels = relabellings(len(x), len(y), num_permutations, generator, pooled.device)
        levels = _Levels(x, y)
        squares = torch.zeros(len(labels), dtype=torch.double, device=pooled.device)
        rows = max(1, _CHUNK_ELEMENTS // len(pooled))
        with Progress(progress, len(directions), "directions") as bar:
            for direction in directions:
                projected, order = (pooled @ direction).sort()
                for some, total in zip(labels.split(rows), squares.split(rows), strict=True):
                    # The parts of a sorted sample are sorted.
                    of_x = some[:, order]
                    values = projected.expand(len(some), -1)
                    total += levels.squares(
                        values[of_x].view(-1, len(x)), values[~of_x].view(-1, len(y))
                    )
                bar.update()
        squares /= len(directions)
        scale = float(pooled.square().sum(-1).max())
        statistic, p_value = rank(squares, 64 * torch.finfo(torch.double).eps * scale)
        return TwoSampleTest(max(statistic, 0.0) ** 0.5, p_value)


class _Levels:
    """Where two empirical quantile functions may jump.

    Both are constant between the multiples of 1/n and 1/m: in units of 1/(n m) these levels are
    integers.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        n, m = len(x), len(y)
        levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
        self.widths = levels.diff(prepend=levels.new_zeros(1)).double().to(x.device) / (n * m)
        self.of_x, self.of_y = ((levels - 1) // m).to(x.device), ((levels - 1) // n).to(x.device)

    def squares(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared Wasserstein-2 distances of sorted samples, shapes ``[..., n]``, ``[..., m]``."""
        return (x[..., self.of_x] - y[..., self.of_y]).square() @ self.widths.to(x)


def _directions(num_projections: int, dim: int, seed: int) -> Tensor:
    check_integer("num_projections", num_projections, 1)
    generator = own_stream("directions", seed)
    directions = torch.randn(num_projections, dim, generator=generator, dtype=torch.double)
    return directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
