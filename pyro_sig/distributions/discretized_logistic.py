"""A logistic law rounded to equally spaced levels, such as those of a pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyro_sig._arguments import check_floating, check_integer, refusal, shape_of
from pyro_sig.distributions._checks import check_inside, check_value, expanded_shape

__all__ = ["DiscretizedLogistic"]


class _Levels(constraints.Constraint):
    """Equally spaced numbers, up to rounding."""

    is_discrete = True
    event_dim = 0

    def __init__(self, low: float, high: float, num_levels: int) -> None:
        self.low, self.high, self.num_levels = low, high, num_levels
        self.spacing = (high - low) / (num_levels - 1)

    def check(self, value: Tensor) -> Tensor:
        dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        rounding = 4 * torch.finfo(dtype).eps * max(abs(self.low), abs(self.high))
        position = (value.to(dtype) - self.low) / self.spacing
        index = position.round()
        near = (position - index).abs() <= 1e-3 + rounding / self.spacing
        return near & (index >= 0) & (index <= self.num_levels - 1)

    def __repr__(self) -> str:
        return f"Levels(low={self.low}, high={self.high}, num_levels={self.num_levels})"


class DiscretizedLogistic(TorchDistribution):
    r"""Rounds a logistic variable to the nearest of equally spaced levels.

    .. math::
        P(x) = \sigma\Big(\frac{x + \Delta/2 - \mu}{s}\Big)
             - \sigma\Big(\frac{x - \Delta/2 - \mu}{s}\Big), \qquad
        x \in \{l, l + \Delta, \dots, h\}, \quad \Delta = \frac{h - l}{L - 1}

    The lowest and the highest level take the tails. Computed as
    :math:`\log \sigma(b) + \log \sigma(-a) + \log(1 - e^{-\Delta/s})` for the two arguments
    :math:`b` and :math:`a`, where nothing cancels: it is finite, and has a gradient, however far
    in a tail. The defaults are those of images of 256 greys mapped to ``[-1, 1]``:
    ``images / 127.5 - 1``. It is no exponential family, so mixtures of it are broadcast in
    chunks.

    :param loc: location :math:`\mu`, in the units of the levels, of any batch shape.
    :param scale: scale :math:`s > 0`, in the same units, of a shape that broadcasts with it.
    :param float low: the lowest level :math:`l`.
    :param float high: the highest level :math:`h`.
    :param int num_levels: number :math:`L` of levels, two or more.
    :raises ValueError: for ends that are not finite and in order, or fewer than two levels; with
        validation on, for a scale that is not positive and from ``log_prob`` for a value that is
        no level.

    References: T. Salimans, A. Karpathy, X. Chen and D. P. Kingma (2017), "PixelCNN++", eq. 2;
    D. P. Kingma et al. (2016), "Improving variational inference with inverse autoregressive flow".

    Example::

        >>> pixels = torch.tensor([0, 128, 255], dtype=torch.uint8)
        >>> p = DiscretizedLogistic(torch.zeros(3), 0.1)
        >>> p.log_prob(pixels / 127.5 - 1).shape
        torch.Size([3])
    """

    arg_constraints: dict[str, constraints.Constraint] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    has_enumerate_support = True
    loc: Tensor
    scale: Tensor
    _levels: _Levels

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: float = -1.0,
        high: float = 1.0,
        num_levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        for name, end in (("low", low), ("high", high)):
            if not isinstance(end, Real) or not math.isfinite(end):
                raise refusal(name, "a finite number", end)
        if not low < high:
            raise ValueError(f"`high` must be above `low` = {low!r}, was {high!r}")
        num_levels = check_integer("num_levels", num_levels, 2)
        for name, value in (("loc", loc), ("scale", scale)):
            if not isinstance(value, Real):
                check_floating(name, value)
        try:
            self.loc, self.scale = broadcast_all(loc, scale)
        except RuntimeError as error:
            raise ValueError(f"`loc` and `scale` must broadcast, but: {error}") from error
        self._levels = _Levels(float(low), float(high), num_levels)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def low(self) -> float:
        """The lowest level."""
        return self._levels.low

    @property
    def high(self) -> float:
        """The highest level."""
        return self._levels.high

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return self._levels.num_levels

    @property
    def levels(self) -> Tensor:
        """All levels, ascending, of shape ``[num_levels]``."""
        return self._level(torch.arange(self.num_levels, device=self.loc.device))

    def _level(self, index: Tensor) -> Tensor:
        return self.low + self._levels.spacing * index.to(self.loc.dtype)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels."""
        return self._levels

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiscretizedLogistic:  # noqa: ANN401
        """Returns the same law with another batch shape.

        :param batch_shape: the desired batch shape.
        :return: a distribution that shares the parameters.
        """
        new = self._get_checked_instance(DiscretizedLogistic, _instance)
        batch_shape = expanded_shape(self.batch_shape, batch_shape)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new._levels = self._levels
        super(DiscretizedLogistic, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws levels.

        :param sample_shape: shape of independent draws to the left of the batch shape.
        :return: a tensor of shape ``[*sample_shape, *batch_shape]``.
        """
        shape = shape_of("sample_shape", sample_shape) + self.batch_shape
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        # log 0 is minus infinity, which rounds to the lowest level as it should.
        real = self.loc + self.scale * (uniform.log() - (-uniform).log1p())
        index = ((real - self.low) / self._levels.spacing).round()
        return self._level(index.clamp(0, self.num_levels - 1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Computes the log-probability of levels.

        :param torch.Tensor value: levels, of a shape that broadcasts with the batch shape.
        :return: a tensor of the shape of both together.
        :raises ValueError: with validation on, for a value that is no level.
        """
        if self._validate_args:
            check_value(value, self.event_shape, self.batch_shape)
            check_inside(value, self._levels, "distribution's")
        half = self._levels.spacing / 2
        centred = value - self.loc
        below = logsigmoid((centred + half) / self.scale)  # log P(logistic < upper end)
        above = logsigmoid((half - centred) / self.scale)  # log P(logistic > lower end)
        width = (-torch.expm1(-2 * half / self.scale)).log()
        at_low, at_high = value < self.low + half, value > self.high - half
        return torch.where(at_low, below, torch.where(at_high, above, below + above + width))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Returns all levels along a new first dimension.

        :param bool expand: whether to repeat them over the batch shape.
        :return: a tensor of shape ``[num_levels, *batch_shape]``, with ones in place of the batch
            shape where it is not expanded.
        """
        levels = self.levels.reshape(-1, *(1 for _ in self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels

    @property
    def mean(self) -> Tensor:
        """Mean, a sum over the levels."""
        levels = self.enumerate_support()
        return (self._probs(levels) * levels).sum(0)

    @property
    def variance(self) -> Tensor:
        """Variance, a sum over the levels."""
        levels = self.enumerate_support()
        probs = self._probs(levels)
        mean = (probs * levels).sum(0)
        return (probs * (levels - mean).square()).sum(0)

    def _probs(self, levels: Tensor) -> Tensor:
        return self.log_prob(levels).exp()
