"""Affine bijections that all components of a mixture share: triangular and low-rank."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_sig._arguments import check_floating, check_like, refusal
from pyro_sig._show_settings import show_settings
from pyro_sig.distributions.log_mixture import full_precision

__all__ = ["LowRankAffine", "SharedTransform", "TriangularAffine"]


class SharedTransform(Transform):
    r"""Marks a bijection whose parameters are the same for all components of a mixture.

    .. math::
        \log p(x \mid \psi) = \log p_0(f^{-1}(x) \mid \psi) - \log |f'(f^{-1}(x))|

    A ``TransformedDistribution`` of such transforms keeps the matrix product of its base
    distribution: a datum is mapped back once, not once for each component.

    :param int cache_size: as :class:`torch.distributions.Transform` takes it.

    Example::

        >>> issubclass(TriangularAffine, SharedTransform)
        True
    """

    __repr__ = show_settings

    def __init__(self, cache_size: int = 0) -> None:
        if not isinstance(cache_size, int) or cache_size not in (0, 1):
            raise refusal("cache_size", "0 or 1", cache_size)
        super().__init__(cache_size)

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __hash__(self) -> int:
        return id(self)


def _check_vector(name: str, x: Tensor, size: int | None = None) -> None:
    if check_floating(name, x).dim() != 1 or (size is not None and len(x) != size):
        raise refusal(name, "a vector" if size is None else f"a vector of size {size}", x)


class TriangularAffine(SharedTransform):
    r"""Maps a vector through a lower triangular matrix.

    .. math::
        f(u) = \text{loc} + L u, \qquad \log |f'| = \sum_i \log |L_{ii}|

    :param torch.Tensor loc: of shape ``[D]``.
    :param torch.Tensor scale_tril: lower triangular :math:`L` of shape ``[D, D]``, its diagonal
        without zeros.
    :param int cache_size: as :class:`torch.distributions.Transform` takes it.
    :raises ValueError: for other shapes.

    Example::

        >>> f = TriangularAffine(torch.ones(2), 2 * torch.eye(2))
        >>> f(torch.ones(3, 2))[0], f.inv(torch.ones(2))
        (tensor([3., 3.]), tensor([0., 0.]))
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        _check_vector("loc", loc)
        check_floating("scale_tril", scale_tril)
        if scale_tril.shape != (len(loc), len(loc)):
            raise refusal("scale_tril", f"of shape {(len(loc), len(loc))}", scale_tril)
        self.loc, self.scale_tril = loc, scale_tril

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TriangularAffine)
            and torch.equal(self.loc, other.loc)
            and torch.equal(self.scale_tril, other.scale_tril)
        )

    __hash__ = SharedTransform.__hash__

    def with_cache(self, cache_size: int = 1) -> TriangularAffine:
        """Returns the same map with another size of the cache.

        :param int cache_size: 0 or 1.
        """
        return TriangularAffine(self.loc, self.scale_tril, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        check_like("x", x, (len(self.loc),), self.scale_tril)
        with full_precision(x.device):  # autocast would round a draw, and its inverse with it
            return x.to(self.loc.dtype) @ self.scale_tril.mT + self.loc

    def _inverse(self, y: Tensor) -> Tensor:
        check_like("y", y, (len(self.loc),), self.scale_tril)
        # One solve with all rows as columns: a batched solve would copy the matrix for each row.
        rows = (y - self.loc).to(self.scale_tril.dtype).reshape(-1, len(self.loc))
        solved = torch.linalg.solve_triangular(self.scale_tril, rows.mT, upper=False)
        return solved.mT.reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the log-volume, which is the same everywhere.

        :param torch.Tensor x: of shape ``[*, D]``.
        :param torch.Tensor y: the image of ``x``.
        :return: a tensor of shape ``[*]``.
        """
        volume = self.scale_tril.diagonal().abs().log().sum()
        return volume.expand(x.shape[:-1])


class LowRankAffine(SharedTransform):
    r"""Maps a vector through a diagonal and a symmetric low-rank update.

    .. math::
        f(u) = \text{loc} + \text{scale} \odot (I + W W^\top) u, \qquad
        \log |f'| = \sum_i \log \text{scale}_i + \log |I + W^\top W|

    Cost and memory are O(D R); the inverse is Woodbury's.

    :param torch.Tensor loc: of shape ``[D]``.
    :param torch.Tensor scale: positive, of shape ``[D]``.
    :param torch.Tensor factor: :math:`W`, of shape ``[D, R]``.
    :param int cache_size: as :class:`torch.distributions.Transform` takes it.
    :raises ValueError: for other shapes.

    Example::

        >>> f = LowRankAffine(torch.zeros(3), torch.ones(3), torch.ones(3, 1))
        >>> f(torch.ones(3)), f.inv(torch.full((3,), 4.0))
        (tensor([4., 4., 4.]), tensor([1., 1., 1.]))
    """

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        _check_vector("loc", loc)
        _check_vector("scale", scale, len(loc))
        check_floating("factor", factor)
        if factor.dim() != 2 or len(factor) != len(loc):
            raise refusal("factor", f"of shape [{len(loc)}, R]", factor)
        self.loc, self.scale, self.factor = loc, scale, factor

    def _small_tril(self) -> Tensor:
        """Cholesky factor of I + W' W; made at every use, for a graph of its own."""
        with full_precision(self.factor.device):
            small = self.factor.mT @ self.factor
        try:
            return torch.linalg.cholesky(small + torch.eye(len(small)).to(small))
        except torch.linalg.LinAlgError as error:  # of what is positive definite by construction
            raise ValueError("`factor` must be finite, was not; lower the learning rate") from error

    def __eq__(self, other: object) -> bool:
        names = ("loc", "scale", "factor")
        return isinstance(other, LowRankAffine) and all(
            torch.equal(getattr(self, name), getattr(other, name)) for name in names
        )

    __hash__ = SharedTransform.__hash__

    def with_cache(self, cache_size: int = 1) -> LowRankAffine:
        """Returns the same map with another size of the cache.

        :param int cache_size: 0 or 1.
        """
        return LowRankAffine(self.loc, self.scale, self.factor, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        check_like("x", x, (len(self.loc),), self.factor)
        with full_precision(x.device):
            x = x.to(self.factor.dtype)
            return self.loc + self.scale * (x + (x @ self.factor) @ self.factor.mT)

    def _inverse(self, y: Tensor) -> Tensor:
        check_like("y", y, (len(self.loc),), self.factor)
        with full_precision(y.device):
            x = ((y - self.loc) / self.scale).to(self.factor.dtype)
            inner = (x @ self.factor).reshape(math.prod(x.shape[:-1]), self.factor.shape[1])
            solved = torch.cholesky_solve(inner.mT, self._small_tril()).mT
            return x - (solved @ self.factor.mT).reshape(x.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the log-volume, which is the same everywhere.

        :param torch.Tensor x: of shape ``[*, D]``.
        :param torch.Tensor y: the image of ``x``.
        :return: a tensor of shape ``[*]``.
        """
        volume = self.scale.log().sum() + 2 * self._small_tril().diagonal().log().sum()
        return volume.expand(x.shape[:-1])


def map_back(transforms: Any, value: Tensor) -> tuple[Tensor, Tensor] | None:  # noqa: ANN401
    """Undoes shared transforms: the value before them and the log-volume; None for any other.

    :param transforms: as ``TransformedDistribution.transforms`` lists them.
    :param torch.Tensor value: of shape ``[*, D]``.
    """
    if not all(isinstance(transform, SharedTransform) for transform in transforms):
        return None
    volume = value.new_zeros(value.shape[:-1])
    for transform in reversed(transforms):
        before = transform.inv(value)
        volume = volume + transform.log_abs_det_jacobian(before, value)
        value = before
    return value, volume
