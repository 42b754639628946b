"""A mixing law that is a set of particles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_sig._arguments import check_tensor, shape_of
from pyro_sig._show_settings import show_settings
from pyro_sig.distributions._checks import expanded_shape

__all__ = ["ParticleMixing"]


class ParticleMixing(TorchDistribution):
    r"""Puts equal mass on each of M particles.

    .. math::
        q(\psi) = \frac{1}{M} \sum_{m=1}^{M} \delta_{\psi_m}(\psi)

    Under it a :class:`~pyro_sig.distributions.SemiImplicit` is a finite mixture, and its
    ``log_prob`` is exact: all particles enter, whatever ``num_mixing`` says. The gradient of a
    draw goes to the particle that it is. An optimiser may move the particles like any parameter;
    :class:`~pyro_sig.infer.PVI` moves them by a noisy gradient flow of its own.

    :param torch.Tensor particles: of shape ``[M, *event_shape]``.
    :raises ValueError: if there is no particle.

    Reference: J. N. Lim and A. M. Johansen (2024), "Particle semi-implicit variational inference".

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import SemiImplicit
        >>> mixing = ParticleMixing(torch.tensor([-1.0, 1.0]))
        >>> q = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 1.0), num_mixing=1)
        >>> q.log_prob(torch.tensor(0.0)) == dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0))
        tensor(True)
    """

    has_rsample = True
    arg_constraints: dict[str, constraints.Constraint] = {}

    __repr__ = show_settings

    def __init__(self, particles: Tensor, validate_args: bool | None = None) -> None:
        must_be = "a dense tensor of real numbers, of shape [M, *event_shape], not empty"
        check_tensor("particles", particles, must_be, lambda p: p.dim() > 0 and len(p) > 0)
        self.particles = particles
        super().__init__(torch.Size(), particles.shape[1:], validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All values of the event shape: particles move."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ParticleMixing:  # noqa: ANN401
        """Returns the same law with another batch shape; draws are independent along it.

        :param batch_shape: the desired batch shape.
        """
        new = self._get_checked_instance(ParticleMixing, _instance)
        new.particles = self.particles
        super(ParticleMixing, new).__init__(
            expanded_shape(self.batch_shape, batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws particles with replacement.

        :param sample_shape: shape of independent draws to the left of the batch shape.
        :return: a tensor of shape ``[*sample_shape, *batch_shape, *event_shape]``.
        """
        shape = shape_of("sample_shape", sample_shape) + self.batch_shape
        index = torch.randint(len(self.particles), shape, device=self.particles.device)
        return self.particles[index]

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws without a gradient; shapes as :meth:`rsample`."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises: particles have masses, not a density.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError(
            "ParticleMixing has no density; mix a conditional over it: "
            "SemiImplicit(mixing, conditional, num_mixing)"
        )
