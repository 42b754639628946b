"""Weight clipping, the constraint of the first Wasserstein GAN."""

from __future__ import annotations

import torch
from torch import nn

from pyro_sig._arguments import check_instance, check_number
from pyro_sig.adversarial.penalties.penalty import Penalty

__all__ = ["WeightClipping"]


class WeightClipping(Penalty):
    r"""Clamps every parameter of the critic after each of its steps.

    .. math::

        w \leftarrow \min(\max(w, -c), c)

    The critic's Lipschitz constant is then bounded, by a number that nobody knows.

    :param float bound: :math:`c`.
    :raises ValueError: if `bound` is not positive or not finite; from :meth:`constrain`, if the
        critic is not a module.

    Source: M. Arjovsky, S. Chintala and L. Bottou, "Wasserstein GAN", 2017,
    https://arxiv.org/abs/1701.07875, algorithm 1.

    Example::

        >>> critic = torch.nn.Linear(2, 1)
        >>> WeightClipping(0.01).constrain(critic)
        >>> bool(critic.weight.abs().max() <= 0.01)
        True
    """

    lipschitz = True

    def __init__(self, bound: float = 0.01) -> None:
        self.bound = check_number("bound", bound, above=0)

    @torch.no_grad()
    def constrain(self, critic: nn.Module) -> None:
        """Clamp the parameters of `critic` in place."""
        check_instance("critic", critic, nn.Module)
        for parameter in critic.parameters():
            parameter.clamp_(-self.bound, self.bound)
