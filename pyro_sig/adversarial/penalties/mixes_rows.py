"""Whether a critic's score of a row depends on the other rows."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["mixes_rows"]


def mixes_rows(critic: Any) -> bool:
    """Tells whether a critic has batch normalisation in it.

    Its score of a row then depends on the whole batch, so that no gradient belongs to one row:
    gradient penalties and relativistic pairing do not go with it. Layer and instance
    normalisation do.

    :param critic: the critic. One that is not a module has no layers to look at.
    :return: whether it has.

    Source: I. Gulrajani et al., "Improved Training of Wasserstein GANs", 2017,
    https://arxiv.org/abs/1704.00028, section 4.

    Example::

        >>> import torch
        >>> layers = [torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)]
        >>> mixes_rows(torch.nn.Sequential(*layers))
        True
    """
    return isinstance(critic, nn.Module) and any(
        isinstance(module, _BatchNorm) for module in critic.modules()
    )
