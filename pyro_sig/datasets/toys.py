"""Toys in the plane: laws in closed form, most of them with a finite set of modes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_sig._arguments import Device, Dtype, check_floating, check_integer, check_number, shape_of
from pyro_sig._show_settings import show_settings
from pyro_sig.datasets._tensors import arange, check_points, normalise, numbers, tensor

__all__ = [
    "NoisyRing",
    "Toy",
    "grid_of_gaussians",
    "noisy_ring",
    "ring_of_gaussians",
    "uneven_grid_of_gaussians",
]


@dataclass(frozen=True, eq=False, repr=False)
class Toy:
    r"""Holds a toy problem whose truth is known in closed form.

    :param str name: name of the toy, for tables and file names.
    :param distribution: the law of the data, with ``sample`` and an exact ``log_prob``.
    :param mixing: for counts, the law of :math:`\psi` in :math:`x \sim \mathrm{Poisson}(\psi)`.
    :param modes: centres of the modes, shape ``[K, D]``; None where they are no finite set.
    :param float mode_std: standard deviation of each mode per coordinate, in data units.
    :param mode_weights: share of the data in each mode, shape ``[K]``, sum 1.

    Example::

        >>> toy = ring_of_gaussians()
        >>> toy.sample(5).shape, toy.modes.shape
        (torch.Size([5, 2]), torch.Size([8, 2]))
    """

    __repr__ = show_settings

    name: str
    distribution: dist.TorchDistribution
    mixing: dist.TorchDistribution | None = None
    modes: Tensor | None = None
    mode_std: float | None = None
    mode_weights: Tensor | None = None

    def sample(self, n: int) -> Tensor:
        """Draw independent data from torch's global generator.

        :param int n: number of draws, at least 1.
        :return: a tensor with shape ``[n]`` for counts and ``[n, D]`` for points.
        :raises ValueError: if `n` is not a positive integer.
        """
        return self.distribution.sample(torch.Size([check_integer("n", n, 1)]))

    def log_prob(self, value: Tensor) -> Tensor:
        """Score data of shape ``[*]`` (counts) or ``[*, D]`` (points) in nats, shape ``[*]``."""
        check_points(value, self.distribution)
        return self.distribution.log_prob(value)

    def pmf(self, k: Tensor | Sequence[int] | int) -> Tensor:
        """Evaluate the probability mass of counts.

        :param k: counts of any shape; integers are converted to the toy's dtype and device.
        :return: probabilities, with the shape of `k`.
        :raises ValueError: if the toy is continuous.

        Example::

            >>> from pyro_sig.datasets import negative_binomial
            >>> round(negative_binomial(1.0, 0.5).pmf(0).item(), 4)
            0.5
        """
        support = self.distribution.support
        if support is None or not support.is_discrete:
            raise ValueError(f"`pmf` needs a toy of counts, was {self.name!r}: use `log_prob`")
        mean = self.distribution.mean
        return self.log_prob(numbers("k", k).to(mean)).exp()


class NoisyRing(dist.TorchDistribution):
    r"""Scores and samples points on a circle blurred by isotropic Gaussian noise.

    .. math::

        p(x) = \frac{1}{2 \pi s^2} \exp\left(-\frac{r^2 + R^2}{2 s^2}\right)
               I_0\left(\frac{r R}{s^2}\right), \quad r = \lVert x \rVert,

    the law of :math:`R (\cos t, \sin t) + s \epsilon` with a uniform angle :math:`t` and
    standard normal noise :math:`\epsilon`; :math:`r` has a Rice distribution.

    :param radius: radius :math:`R` of the circle, shape ``[*]``, positive.
    :param std: noise :math:`s` per coordinate, shape ``[*]``, positive, in units of `radius`.
    :param bool validate_args: whether to check arguments; Pyro's setting if None.
    :raises ValueError: if validation is on and a parameter or a value is out of range.

    Example::

        >>> law = NoisyRing(torch.tensor(2.0), torch.tensor(0.1))
        >>> round(law.log_prob(torch.tensor([2.0, 0.0])).item(), 3)
        -1.147
    """

    arg_constraints = {"radius": constraints.positive, "std": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, radius: Tensor, std: Tensor, validate_args: bool | None = None) -> None:
        for name, value in (("radius", radius), ("std", std)):
            if not isinstance(value, (int, float)):
                check_floating(name, value)
        self.radius, self.std = torch.distributions.utils.broadcast_all(radius, std)
        super().__init__(self.radius.shape, torch.Size([2]), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "NoisyRing":
        """Return the same law with a larger batch shape."""
        shape = shape_of("batch_shape", batch_shape)
        radius, std = self.radius.expand(shape), self.std.expand(shape)
        return NoisyRing(radius, std, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, zero, with shape ``[*, 2]``."""
        return torch.zeros_like(self.radius).unsqueeze(-1).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, ``radius**2 / 2 + std**2``, with shape ``[*, 2]``."""
        return (self.radius**2 / 2 + self.std**2).unsqueeze(-1).expand(self.shape())

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw points of shape ``[*sample_shape, *batch_shape, 2]``, with gradients."""
        shape = shape_of("sample_shape", sample_shape) + self.batch_shape
        angle = 2 * math.pi * self.radius.new_empty(shape).uniform_()
        circle = torch.stack([angle.cos(), angle.sin()], dim=-1)
        noise = self.std.new_empty(circle.shape).normal_()
        return self.radius.unsqueeze(-1) * circle + self.std.unsqueeze(-1) * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density in nats of points of shape ``[*, 2]``."""
        if self._validate_args:
            check_points(check_floating("value", value), self)
            self._validate_sample(value)
        r = torch.linalg.vector_norm(value, dim=-1)
        variance = self.std**2
        # I0 overflows at rR / s^2 > 88 in float32: its exponential goes into the square instead.
        bessel = torch.special.i0e(r * self.radius / variance).log()
        return bessel - (r - self.radius) ** 2 / (2 * variance) - (2 * math.pi * variance).log()


def noisy_ring(
    radius: float = 2.0, std: float = 0.2, *, dtype: Dtype = None, device: Device = None
) -> Toy:
    """Make points on a circle in the plane with isotropic Gaussian noise.

    :param float radius: radius of the circle, positive.
    :param float std: noise per coordinate, positive, in the units of `radius`.
    :param dtype: floating point type of the tensors.
    :param device: device of the tensors.
    :return: the toy, with the density of :class:`NoisyRing`; it has no finite set of modes.
    :raises ValueError: if a parameter is not positive.

    **Source:** the SIG paper, section 5.1, figure 1 c-e; the parameters there are not known, and
    the defaults are our choice.

    Example::

        >>> noisy_ring(radius=2.0, std=0.1).sample(3).shape
        torch.Size([3, 2])
    """
    r = tensor(check_number("radius", radius, above=0), dtype, device)
    return Toy("noisy_ring", NoisyRing(r, tensor(check_number("std", std, above=0), dtype, device)))


def ring_of_gaussians(
    num_modes: int = 8,
    radius: float = 2.0,
    std: float = 0.02,
    *,
    dtype: Dtype = None,
    device: Device = None,
) -> Toy:
    r"""Make equal Gaussians whose centres are equally spaced on a circle.

    .. math::

        p(x) = \frac{1}{K} \sum_{k=0}^{K-1}
               \mathcal{N}(x; R (\cos(2 \pi k / K), \sin(2 \pi k / K)), s^2 I)

    :param int num_modes: number :math:`K` of distinct modes, at least 1.
    :param float radius: radius :math:`R` of the circle, positive.
    :param float std: standard deviation :math:`s` of a mode, positive, in units of `radius`.
    :param dtype: floating point type of the tensors.
    :param device: device of the tensors.
    :return: the toy.
    :raises ValueError: if a parameter is out of its range.

    **Source:** the SIG paper, section 5.1, figure 1 h-j; the defaults are those of Metz et al.,
    *Unrolled Generative Adversarial Networks* (2017), as the parameters there are not known.

    Example::

        >>> ring_of_gaussians(num_modes=4, radius=1.0).modes.shape
        torch.Size([4, 2])
    """
    # Not linspace(0, 2 pi, K): it includes the end point, and the first mode comes twice.
    step = arange(check_integer("num_modes", num_modes, 1), dtype, device)
    angle = step * (2 * math.pi / num_modes)
    modes = check_number("radius", radius, above=0) * torch.stack(
        [angle.cos(), angle.sin()], dim=-1
    )
    return _gaussians("ring_of_gaussians", modes, check_number("std", std, above=0), None)


def grid_of_gaussians(
    side: int = 5,
    spacing: float = 2.0,
    std: float = 0.05,
    weights: Tensor | Sequence[float] | None = None,
    *,
    dtype: Dtype = None,
    device: Device = None,
) -> Toy:
    r"""Make Gaussians centred on a square grid around the origin.

    .. math::

        p(x) = \sum_{i, j = 0}^{n - 1} w_{i n + j} \, \mathcal{N}\left(x;
               \left(i - \tfrac{n - 1}{2}, j - \tfrac{n - 1}{2}\right) d, s^2 I\right)

    :param int side: number :math:`n` of modes along each axis, at least 1.
    :param float spacing: distance :math:`d` of neighbouring centres, positive.
    :param float std: standard deviation :math:`s` of a mode, positive, in units of `spacing`.
    :param weights: positive shares, shape ``[side ** 2]``, column after column from the left and
        upwards in each; normalised here; equal if None.
    :param dtype: floating point type of the tensors.
    :param device: device of the tensors.
    :return: the toy.
    :raises ValueError: if a parameter is out of its range or `weights` has another shape.

    **Source:** the SIG paper, section 5.2, table 1, which prints neither spacing nor width: the
    defaults are those of Srivastava et al., *VEEGAN* (2017), and are assumed.

    Example::

        >>> toy = grid_of_gaussians()
        >>> toy.modes.shape, toy.modes.min().item(), toy.modes.max().item()
        (torch.Size([25, 2]), -4.0, 4.0)
    """
    step = arange(check_integer("side", side, 1), dtype, device)
    line = (step - (side - 1) / 2) * check_number("spacing", spacing, above=0)
    modes = torch.cartesian_prod(line, line)
    return _gaussians("grid_of_gaussians", modes, check_number("std", std, above=0), weights)


def uneven_grid_of_gaussians(*, dtype: Dtype = None, device: Device = None) -> Toy:
    """Make the 5 x 5 grid whose columns 1, 3 and 5 hold twice the data of columns 2 and 4.

    A mode of a heavy column holds 1/20 of the data, one of a light column 1/40.

    :param dtype: floating point type of the tensors.
    :param device: device of the tensors.
    :return: the toy; otherwise as :func:`grid_of_gaussians` with its defaults.
    :raises ValueError: if `dtype` is not a floating point type.

    **Source:** the SIG paper, section 5.2, figure 3 a.

    Example::

        >>> weights = uneven_grid_of_gaussians().mode_weights.reshape(5, 5)
        >>> [round(w, 3) for w in weights[:, 0].tolist()]
        [0.05, 0.025, 0.05, 0.025, 0.05]
    """
    weights = [w for w in (2.0, 1.0, 2.0, 1.0, 2.0) for _ in range(5)]
    toy = grid_of_gaussians(weights=weights, dtype=dtype, device=device)
    return replace(toy, name="uneven_grid_of_gaussians")


def _gaussians(
    name: str, modes: Tensor, std: float, weights: Tensor | Sequence[float] | None
) -> Toy:
    """Build the mixture of isotropic Gaussians with the given centres."""
    weights = (
        modes.new_ones(len(modes)) if weights is None else numbers("weights", weights).to(modes)
    )
    if weights.shape != modes.shape[:1]:
        raise ValueError(
            f"`weights` must have shape [{len(modes)}], one for each mode, "
            f"had {list(weights.shape)}"
        )
    weights = normalise(weights)
    components = dist.Normal(modes, torch.full_like(modes, std)).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(probs=weights), components)
    return Toy(name, law, modes=modes, mode_std=std, mode_weights=weights)
