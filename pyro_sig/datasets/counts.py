"""Counts: toys that mix Poisson laws in closed form, and two real tables of frequencies."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_sig._arguments import (
    Device,
    Dtype,
    check_device,
    check_instance,
    check_number,
    check_tensor,
    refusal,
    shape_of,
)
from pyro_sig.datasets._tensors import check_points, normalise, tensor
from pyro_sig.datasets.toys import Toy

__all__ = [
    "ACCIDENT_FREQUENCIES",
    "MITE_FREQUENCIES",
    "FiniteMixture",
    "accident_counts",
    "mite_counts",
    "negative_binomial",
    "poisson_negative_binomial",
]

ACCIDENT_FREQUENCIES = (7840, 1317, 239, 42, 14, 4, 4, 1)
"""Drivers with 0, 1, ..., 7 accidents in a year: :func:`~pyro_sig.datasets.accident_counts`."""

MITE_FREQUENCIES = (70, 38, 17, 10, 9, 3, 2, 1)
"""Leaves with 0, 1, ..., 7 mites: :func:`~pyro_sig.datasets.mite_counts`."""


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
        if not isinstance(components, Sequence) or not all(
            isinstance(c, torch.distributions.Distribution) for c in components
        ):
            raise refusal("components", "a sequence of laws", components)
        check_instance(
            "support", support, torch.distributions.constraints.Constraint, "a constraint"
        )
        check_tensor("weights", weights)
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
        self.weights = normalise(weights)
        self.components = tuple(components)
        self._support = support
        super().__init__(components[0].batch_shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "FiniteMixture":
        """Return the same law with a larger batch shape."""
        shape = shape_of("batch_shape", batch_shape)
        components = [c.expand(shape) for c in self.components]
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
        shape = shape_of("sample_shape", sample_shape)
        with torch.no_grad():
            index = dist.Categorical(probs=self.weights).sample(shape + self.batch_shape)
            draws = torch.stack([c.sample(shape) for c in self.components], dim=-1)
            return draws.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density or mass in nats; raise if a component is an atom."""
        if any(isinstance(c, dist.Delta) for c in self.components):
            raise NotImplementedError("a mixture with an atom has no density: use `cdf` or draws")
        if self._validate_args:
            check_points(value, self)
            self._validate_sample(value)
        terms = torch.stack([c.log_prob(value) for c in self.components], dim=-1)
        return torch.logsumexp(terms + self.weights.log(), dim=-1)

    def cdf(self, value: Tensor) -> Tensor:
        """Evaluate the probability of a draw not above `value`, where all components can."""
        check_points(value, self)
        terms = [
            (value >= c.v).to(c.v.dtype) if isinstance(c, dist.Delta) else c.cdf(value)
            for c in self.components
        ]
        return (torch.stack(terms, dim=-1) * self.weights).sum(-1)  # of any type of `value`


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
    :param float probs: :math:`p` in (0, 1), as in :func:`~pyro_sig.datasets.negative_binomial`.
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
    lam = tensor(check_number("rate", rate, above=0), dtype, device)
    w = tensor(check_number("weight", weight, above=0, below=1), dtype, device)
    weights = torch.stack([w, 1 - w])
    counts = [dist.Poisson(lam), law]
    return Toy(
        name="poisson_negative_binomial",
        distribution=FiniteMixture(weights, counts, constraints.nonnegative_integer),
        mixing=FiniteMixture(weights, [dist.Delta(lam), gamma], constraints.nonnegative),
    )


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


def _gamma_poisson(
    total_count: float, probs: float, dtype: Dtype, device: Device
) -> tuple[dist.NegativeBinomial, dist.Gamma]:
    """Build a negative binomial and its mixing law."""
    r = tensor(check_number("total_count", total_count, above=0), dtype, device)
    p = tensor(check_number("probs", probs, above=0, below=1), dtype, device)
    return dist.NegativeBinomial(r, probs=p), dist.Gamma(r, (1 - p) / p)


def _expand_frequencies(frequencies: Sequence[int], dtype: Dtype, device: Device) -> Tensor:
    """Repeat each count as often as it was seen."""
    check_instance("dtype", dtype, (torch.dtype, type(None)), "a type of tensors")
    dtype = dtype or torch.get_default_dtype()
    counts = torch.arange(len(frequencies), dtype=dtype, device=check_device(device))
    return counts.repeat_interleave(torch.tensor(frequencies, device=counts.device))
