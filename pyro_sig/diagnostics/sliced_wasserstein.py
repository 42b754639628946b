"""The Wasserstein distance of two samples, averaged over random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_sig.diagnostics.two_sample import _check_samples

__all__ = ["sliced_wasserstein"]

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
    x, y = _check_samples(x, y)
    if isinstance(num_projections, bool) or not (
        isinstance(num_projections, int) and num_projections >= 1
    ):
        raise ValueError(
            f"`num_projections` must be an integer of at least 1, but was {num_projections!r}."
        )
    n, m = len(x), len(y)
    # Both quantile functions are constant between the multiples of 1/n and 1/m: in units of
    # 1/(n m) these levels are integers.
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = (levels.diff(prepend=levels.new_zeros(1)).double() / (n * m)).to(x)
    of_x, of_y = ((levels - 1) // m).to(x.device), ((levels - 1) // n).to(x.device)

    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_projections, x.shape[1], generator=generator, dtype=torch.float64)
    directions = (directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)).to(x)
    # Large common offsets would cost digits in the projections.
    centre = x.mean(0)
    x, y = x - centre, y - centre
    squares = [
        ((chunk @ x.mT).sort().values[:, of_x] - (chunk @ y.mT).sort().values[:, of_y]).square()
        @ widths
        for chunk in directions.split(max(1, _CHUNK_ELEMENTS // (n + m)))
    ]
    return torch.cat(squares).mean().sqrt()
