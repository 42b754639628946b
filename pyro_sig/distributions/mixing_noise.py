"""What a mixing law is made of: noise with a density, and the map from it to psi."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_sig.distributions.implicit import Implicit

__all__ = ["noise_law", "push_noise", "sample_noise"]


def noise_law(mixing: Distribution) -> Distribution:
    """Returns the law of the noise behind psi; a mixing that is no push-forward is its own.

    :param mixing: a mixing law.
    :return: a distribution of the same batch shape.

    Example::

        >>> import pyro.distributions as dist
        >>> noise_law(dist.Normal(0.0, 1.0))
        Normal(loc: 0.0, scale: 1.0)
    """
    if isinstance(mixing, Implicit):
        return mixing.noise.expand(mixing.batch_shape)
    return mixing


def sample_noise(mixing: Distribution, sample_shape: Sequence[int]) -> Tensor:
    """Draws the noise, with a gradient where the mixing has one.

    :param mixing: a mixing law.
    :param sample_shape: shape of independent draws.
    :return: a tensor of shape ``[*sample_shape, *batch_shape, *noise_event_shape]``.

    Example::

        >>> import pyro.distributions as dist
        >>> sample_noise(dist.Normal(0.0, 1.0), (3,)).shape
        torch.Size([3])
    """
    shape = torch.Size(sample_shape)
    if isinstance(mixing, Implicit):
        return mixing.sample_noise(shape)
    return mixing.rsample(shape) if mixing.has_rsample else mixing.sample(shape)


def push_noise(mixing: Distribution, noise: Tensor) -> Tensor:
    """Maps noise to psi.

    :param mixing: a mixing law.
    :param torch.Tensor noise: as :func:`sample_noise` returns it.
    :return: psi, of shape ``[*sample_shape, *batch_shape, *event_shape]``.

    Example::

        >>> import pyro.distributions as dist
        >>> push_noise(dist.Normal(0.0, 1.0), torch.ones(3))
        tensor([1., 1., 1.])
    """
    return mixing.push(noise) if isinstance(mixing, Implicit) else noise
