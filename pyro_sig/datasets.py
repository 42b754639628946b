r"""Data of the semi-implicit and adversarial literature: toys in closed form, counts, digits.

Each toy is a :class:`Toy`: a Pyro distribution that can be sampled and scored exactly, with the
centres of its modes and, for counts, the true mixing law. Readers take files that are already on
disk; nothing is downloaded. Where `dtype` or `device` is None, torch's default holds.

The seed of the toys is Yin and Zhou, *Semi-Implicit Generative Model* (2019), "the SIG paper".
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = [
    "ACCIDENT_FREQUENCIES",
    "MITE_FREQUENCIES",
    "FiniteMixture",
    "NoisyRing",
    "Toy",
    "accident_counts",
    "grid_of_gaussians",
    "load_digits",
    "load_mnist",
    "mite_counts",
    "negative_binomial",
    "noisy_ring",
    "poisson_negative_binomial",
    "read_idx",
    "ring_of_gaussians",
    "uneven_grid_of_gaussians",
]

Dtype = torch.dtype | None
Device = torch.device | str | None

ACCIDENT_FREQUENCIES = (7840, 1317, 239, 42, 14, 4, 4, 1)
"""Number of drivers with 0, 1, ..., 7 accidents in a year (see :func:`accident_counts`)."""

MITE_FREQUENCIES = (70, 38, 17, 10, 9, 3, 2, 1)
"""Number of leaves with 0, 1, ..., 7 mites (see :func:`mite_counts`)."""


@dataclass(frozen=True, eq=False)
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
        return self.distribution.sample(torch.Size([_integer("n", n, minimum=1)]))

    def log_prob(self, value: Tensor) -> Tensor:
        """Score data of shape ``[*]`` (counts) or ``[*, D]`` (points) in nats, shape ``[*]``."""
        return self.distribution.log_prob(value)

    def pmf(self, k: Tensor | Sequence[int] | int) -> Tensor:
        """Evaluate the probability mass of counts.

        :param k: counts of any shape; integers are converted to the toy's dtype and device.
        :return: probabilities, with the shape of `k`.
        :raises ValueError: if the toy is continuous.

        Example::

            >>> round(negative_binomial(1.0, 0.5).pmf(0).item(), 4)
            0.5
        """
        support = self.distribution.support
        if support is None or not support.is_discrete:
            raise ValueError(f"`pmf` needs a toy of counts, was {self.name!r}: use `log_prob`")
        mean = self.distribution.mean
        return self.log_prob(torch.as_tensor(k, dtype=mean.dtype, device=mean.device)).exp()


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
        self.radius, self.std = torch.distributions.utils.broadcast_all(radius, std)
        super().__init__(self.radius.shape, torch.Size([2]), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "NoisyRing":
        """Return the same law with a larger batch shape."""
        radius, std = self.radius.expand(batch_shape), self.std.expand(batch_shape)
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
        shape = torch.Size(sample_shape) + self.batch_shape
        angle = 2 * math.pi * self.radius.new_empty(shape).uniform_()
        circle = torch.stack([angle.cos(), angle.sin()], dim=-1)
        noise = self.std.new_empty(circle.shape).normal_()
        return self.radius.unsqueeze(-1) * circle + self.std.unsqueeze(-1) * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density in nats of points of shape ``[*, 2]``."""
        if self._validate_args:
            self._validate_sample(value)
        r = torch.linalg.vector_norm(value, dim=-1)
        variance = self.std**2
        # I0 overflows at rR / s^2 > 88 in float32: its exponential goes into the square instead.
        bessel = torch.special.i0e(r * self.radius / variance).log()
        return bessel - (r - self.radius) ** 2 / (2 * variance) - (2 * math.pi * variance).log()


class FiniteMixture(dist.TorchDistribution):
    r"""Scores and samples a mixture of scalar laws that need not be of one family.

    .. math::

        p(x) = \sum_k w_k \, p_k(x)

    A component may be an atom (:class:`pyro.distributions.Delta`): then there is a :meth:`cdf`,
    and :meth:`log_prob` raises :class:`NotImplementedError`.

    :param weights: positive shares :math:`w_k`, shape ``[K]``; normalised here.
    :param components: K scalar distributions of one batch shape.
    :param support: the constraint that every draw meets.
    :param bool validate_args: whether to check arguments; Pyro's setting if None.
    :raises ValueError: if `weights` and `components` do not match or have other shapes.

    Example::

        >>> laws = [dist.Poisson(torch.tensor(1.0)), dist.Geometric(torch.tensor(0.5))]
        >>> law = FiniteMixture(torch.ones(2), laws, constraints.nonnegative_integer)
        >>> round(law.log_prob(torch.tensor(0.0)).exp().item(), 4)
        0.4339
    """

    arg_constraints = {"weights": constraints.simplex}

    def __init__(
        self,
        weights: Tensor,
        components: Sequence[dist.TorchDistribution],
        support: constraints.Constraint,
        validate_args: bool | None = None,
    ) -> None:
        shapes = {(c.batch_shape, c.event_shape) for c in components}
        if len(shapes) != 1 or components[0].event_shape:
            raise ValueError(
                f"`components` must be scalar laws of one batch shape, had {sorted(shapes)}"
            )
        if weights.shape != (len(components),):
            raise ValueError(
                f"`weights` must have shape [{len(components)}], one for each component, "
                f"had {list(weights.shape)}"
            )
        self.weights = _normalise(weights)
        self.components = tuple(components)
        self._support = support
        super().__init__(components[0].batch_shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "FiniteMixture":
        """Return the same law with a larger batch shape."""
        components = [c.expand(torch.Size(batch_shape)) for c in self.components]
        return FiniteMixture(self.weights, components, self._support, self._validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The constraint that every draw meets."""
        return self._support

    @property
    def mean(self) -> Tensor:
        """The mean, with shape ``batch_shape``."""
        return torch.stack([c.mean for c in self.components], dim=-1) @ self.weights

    @property
    def variance(self) -> Tensor:
        """The variance, with shape ``batch_shape``."""
        means = torch.stack([c.mean for c in self.components], dim=-1)
        within = torch.stack([c.variance for c in self.components], dim=-1)
        return (within + (means - self.mean.unsqueeze(-1)) ** 2) @ self.weights

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw values of shape ``[*sample_shape, *batch_shape]``, without gradients."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            index = dist.Categorical(probs=self.weights).sample(shape + self.batch_shape)
            draws = torch.stack([c.sample(shape) for c in self.components], dim=-1)
            return draws.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density or mass in nats; raise if a component is an atom."""
        if any(isinstance(c, dist.Delta) for c in self.components):
            raise NotImplementedError("a mixture with an atom has no density: use `cdf` or draws")
        if self._validate_args:
            self._validate_sample(value)
        terms = torch.stack([c.log_prob(value) for c in self.components], dim=-1)
        return torch.logsumexp(terms + self.weights.log(), dim=-1)

    def cdf(self, value: Tensor) -> Tensor:
        """Evaluate the probability of a draw not above `value`, where all components can."""
        terms = [
            (value >= c.v).to(c.v.dtype) if isinstance(c, dist.Delta) else c.cdf(value)
            for c in self.components
        ]
        return torch.stack(terms, dim=-1) @ self.weights


def negative_binomial(
    total_count: float = 2.0, probs: float = 0.8, *, dtype: Dtype = None, device: Device = None
) -> Toy:
    r"""Make negative binomial counts, with the Gamma law that mixes a Poisson into them.

    .. math::

        \mathrm{NB}(k; r, p) = \frac{\Gamma(k + r)}{k! \, \Gamma(r)} (1 - p)^r p^k
        = \int \mathrm{Poisson}(k; \psi) \, \mathrm{Gamma}(\psi; r, (1 - p) / p) \, d\psi

    :param float total_count: shape :math:`r`, positive.
    :param float probs: :math:`p` in (0, 1), in torch's convention: the mean is
        :math:`r p / (1 - p)`.
    :param dtype: floating point type of the tensors.
    :param device: device of the tensors.
    :return: the toy; its ``mixing`` is the Gamma law.
    :raises ValueError: if a parameter is out of its range.

    **Source:** the SIG paper, section 5.1, figure 1 a-b; the parameters there are not known, and
    the defaults are our choice.

    Example::

        >>> toy = negative_binomial(2.0, 0.8)
        >>> round(toy.distribution.mean.item(), 3), round(toy.mixing.mean.item(), 3)
        (8.0, 8.0)
    """
    law, mixing = _gamma_poisson(total_count, probs, dtype, device)
    return Toy("negative_binomial", law, mixing=mixing)


def poisson_negative_binomial(
    rate: float = 30.0,
    total_count: float = 2.0,
    probs: float = 0.8,
    weight: float = 0.5,
    *,
    dtype: Dtype = None,
    device: Device = None,
) -> Toy:
    r"""Make counts from a mixture of a Poisson and a negative binomial.

    .. math::

        p(k) = w \, \mathrm{Poisson}(k; \lambda) + (1 - w) \, \mathrm{NB}(k; r, p)

    As a mixture of Poisson laws, :math:`\psi` is an atom at :math:`\lambda` with probability
    :math:`w`, and Gamma otherwise: ``mixing`` has ``sample`` and ``cdf``, and no density.

    :param float rate: mean :math:`\lambda` of the Poisson, positive.
    :param float total_count: shape :math:`r` of the negative binomial, positive.
    :param float probs: :math:`p` in (0, 1), as in :func:`negative_binomial`.
    :param float weight: share :math:`w` of the Poisson, in (0, 1).
    :param dtype: floating point type of the tensors.
    :param device: device of the tensors.
    :return: the toy.
    :raises ValueError: if a parameter is out of its range.

    **Source:** the SIG paper, section 5.1, figure 1 f-g; the parameters there are not known, and
    the defaults, with two separate modes, are our choice.

    Example::

        >>> round(poisson_negative_binomial(rate=30.0, weight=0.5).distribution.mean.item(), 3)
        19.0
    """
    law, gamma = _gamma_poisson(total_count, probs, dtype, device)
    lam = _tensor(_positive("rate", rate), dtype, device)
    w = _tensor(_probability("weight", weight), dtype, device)
    weights = torch.stack([w, 1 - w])
    counts = [dist.Poisson(lam), law]
    return Toy(
        name="poisson_negative_binomial",
        distribution=FiniteMixture(weights, counts, constraints.nonnegative_integer),
        mixing=FiniteMixture(weights, [dist.Delta(lam), gamma], constraints.nonnegative),
    )


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
    r = _tensor(_positive("radius", radius), dtype, device)
    return Toy("noisy_ring", NoisyRing(r, _tensor(_positive("std", std), dtype, device)))


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
    step = _arange(_integer("num_modes", num_modes, minimum=1), dtype, device)
    angle = step * (2 * math.pi / num_modes)
    modes = _positive("radius", radius) * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return _gaussians("ring_of_gaussians", modes, _positive("std", std), None)


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
    step = _arange(_integer("side", side, minimum=1), dtype, device)
    line = (step - (side - 1) / 2) * _positive("spacing", spacing)
    modes = torch.cartesian_prod(line, line)
    return _gaussians("grid_of_gaussians", modes, _positive("std", std), weights)


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


def accident_counts(*, dtype: Dtype = None, device: Device = None) -> Tensor:
    """Return the numbers of accidents of 9461 insured drivers in one year.

    :param dtype: type of the counts.
    :param device: device of the tensors.
    :return: counts in ascending order, shape ``[9461]``; floating point by default, as Pyro's
        distributions of counts draw them.

    **Source:** claims at a European automobile insurer (Thyrion 1960), as in Efron and Hastie,
    *Computer Age Statistical Inference* (2016), table 6.1.

    Example::

        >>> accident_counts().shape, accident_counts().max().item()
        (torch.Size([9461]), 7.0)
    """
    return _expand_frequencies(ACCIDENT_FREQUENCIES, dtype, device)


def mite_counts(*, dtype: Dtype = None, device: Device = None) -> Tensor:
    """Return the numbers of European red mites on 150 apple leaves.

    :param dtype: type of the counts.
    :param device: device of the tensors.
    :return: counts in ascending order, shape ``[150]``; floating point by default.

    **Source:** Bliss and Fisher, *Biometrics* 9 (1953); used by Yin and Zhou, *Semi-Implicit
    Variational Inference* (2018).

    Example::

        >>> mite_counts().shape, round(mite_counts().mean().item(), 3)
        (torch.Size([150]), 1.147)
    """
    return _expand_frequencies(MITE_FREQUENCIES, dtype, device)


_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an array from an idx file, the format of MNIST, gzip-compressed or plain.

    :param path: the file; whether it is compressed is seen from its content, not its name.
    :return: a tensor on the CPU with the shape and the element type of the file: uint8, int8,
        int16, int32, float32 or float64.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is not idx, is shorter or longer than its header says, or is
        corrupt gzip.

    **Source:** LeCun, Cortes and Burges, *The MNIST database of handwritten digits*, "The IDX
    file format".

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = Path(root) / "labels-idx1-ubyte"
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(path)
        tensor([7, 2, 1], dtype=torch.uint8)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no idx file at {path}")
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            message = f"`path` must be an idx file, {path} is corrupt gzip: {error}"
            raise ValueError(message) from error
    if any(data[:2]) or (len(data) > 2 and data[2] not in _IDX_DTYPES):
        raise ValueError(
            f"`path` must be an idx file (00 00, then one of 08 09 0b 0c 0d 0e), "
            f"{path} starts with {data[:4].hex(' ')}"
        )
    _check_length(path, len(data), 4)
    header = 4 + 4 * data[3]
    _check_length(path, len(data), header)
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    dtype = np.dtype(_IDX_DTYPES[data[2]])
    expected = header + dtype.itemsize * math.prod(shape)
    _check_length(path, len(data), expected)
    if len(data) > expected:
        raise ValueError(
            f"`path` has trailing bytes: expected {expected} bytes, found {len(data)} in {path}"
        )
    array = np.ndarray(shape, dtype, buffer=data, offset=header)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def load_mnist(root: str | os.PathLike[str], split: str = "train") -> tuple[Tensor, Tensor]:
    """Load MNIST, or a data set in its format, from the standard files.

    :param root: the folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each with or without ``.gz``.
    :param str split: ``"train"`` or ``"test"``.
    :return: images, uint8 in 0..255, shape ``[N, 28, 28]``, and labels, int64, shape ``[N]``.
    :raises FileNotFoundError: if a file is missing.
    :raises ValueError: if `split` is unknown, or a file is damaged or holds something else.

    **Source:** LeCun, Cortes and Burges, *The MNIST database of handwritten digits* (1998).

    Example::

        >>> images, labels = load_mnist("data/mnist", split="test")  # doctest: +SKIP
    """
    prefix = {"train": "train", "test": "t10k"}.get(split)
    if prefix is None:
        raise ValueError(f"`split` must be 'train' or 'test', was {split!r}")
    images = read_idx(_find(Path(root), f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find(Path(root), f"{prefix}-labels-idx1-ubyte"))
    if images.dtype != torch.uint8 or images.dim() != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"`root` must hold uint8 images of shape [N, 28, 28], "
            f"had {images.dtype} of shape {list(images.shape)} in {root}"
        )
    if labels.dtype != torch.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"`root` must hold one uint8 label for each of {len(images)} images, "
            f"had {labels.dtype} of shape {list(labels.shape)} in {root}"
        )
    return images, labels.long()


def load_digits(*, dtype: Dtype = None, device: Device = None) -> tuple[Tensor, Tensor]:
    """Load the 8 x 8 handwritten digits that scikit-learn carries.

    :param dtype: floating point type of the images.
    :param device: device of the tensors.
    :return: images in [0, 1], shape ``[1797, 8, 8]``, and labels, int64, shape ``[1797]``.
    :raises ImportError: if scikit-learn is not installed.
    :raises ValueError: if `dtype` is not a floating point type.

    **Source:** Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI (1998).

    Example::

        >>> images, labels = load_digits()
        >>> images.shape, labels.shape
        (torch.Size([1797, 8, 8]), torch.Size([1797]))
    """
    try:
        from sklearn import datasets as sklearn_datasets
    except ImportError as error:
        raise ImportError(
            "`load_digits` needs scikit-learn: pip install pyro-sig[examples]"
        ) from error
    bunch = sklearn_datasets.load_digits()
    images = _tensor(bunch.images / 16.0, dtype, device)
    return images, torch.tensor(bunch.target, dtype=torch.int64, device=device)


def _gamma_poisson(
    total_count: float, probs: float, dtype: Dtype, device: Device
) -> tuple[dist.NegativeBinomial, dist.Gamma]:
    """Build a negative binomial and its mixing law."""
    r = _tensor(_positive("total_count", total_count), dtype, device)
    p = _tensor(_probability("probs", probs), dtype, device)
    return dist.NegativeBinomial(r, probs=p), dist.Gamma(r, (1 - p) / p)


def _gaussians(
    name: str, modes: Tensor, std: float, weights: Tensor | Sequence[float] | None
) -> Toy:
    """Build the mixture of isotropic Gaussians with the given centres."""
    weights = modes.new_ones(len(modes)) if weights is None else torch.as_tensor(weights).to(modes)
    if weights.shape != modes.shape[:1]:
        raise ValueError(
            f"`weights` must have shape [{len(modes)}], one for each mode, "
            f"had {list(weights.shape)}"
        )
    weights = _normalise(weights)
    components = dist.Normal(modes, torch.full_like(modes, std)).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(probs=weights), components)
    return Toy(name, law, modes=modes, mode_std=std, mode_weights=weights)


def _normalise(weights: Tensor) -> Tensor:
    if not (weights.isfinite() & (weights > 0)).all():
        raise ValueError(f"`weights` must be positive and finite, was {weights.tolist()}")
    return weights / weights.sum()


def _expand_frequencies(frequencies: Sequence[int], dtype: Dtype, device: Device) -> Tensor:
    """Repeat each count as often as it was seen."""
    dtype = dtype or torch.get_default_dtype()
    counts = torch.arange(len(frequencies), dtype=dtype, device=device)
    return counts.repeat_interleave(torch.tensor(frequencies, device=counts.device))


def _find(root: Path, name: str) -> Path:
    """Return the plain or the compressed file of that name."""
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"neither {root / name} nor {root / name}.gz exists")


def _check_length(path: Path, found: int, expected: int) -> None:
    if found < expected:
        raise ValueError(f"`path` is truncated: expected {expected} bytes, found {found} in {path}")


def _floating(dtype: Dtype) -> torch.dtype:
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating point type, was {dtype}")
    return dtype or torch.get_default_dtype()


def _tensor(value: float | np.ndarray, dtype: Dtype, device: Device) -> Tensor:
    return torch.tensor(value, dtype=_floating(dtype), device=device)


def _arange(n: int, dtype: Dtype, device: Device) -> Tensor:
    return torch.arange(n, dtype=_floating(dtype), device=device)


def _number(value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _positive(name: str, value: float) -> float:
    number = _number(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"`{name}` must be positive and finite, was {value!r}")
    return number


def _probability(name: str, value: float) -> float:
    number = _number(value)
    if not 0 < number < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1, was {value!r}")
    return number


def _integer(name: str, value: int, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, was {value!r}")
    return int(value)
