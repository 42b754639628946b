"""The gradient penalty of WGAN-GP: norms of the critic's gradient near one."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_sig._arguments import check_flag, check_number
from pyro_sig.adversarial.penalties.penalty import Penalty

__all__ = ["GradientPenalty"]


class GradientPenalty(Penalty):
    r"""Penalises gradient norms away from a target, between data and samples.

    .. math::

        \lambda\, \mathbb{E} \big(\|\nabla_x D(\hat x)\| - t\big)^2, \qquad
        \hat x = \alpha x + (1 - \alpha) G, \quad \alpha \sim \mathrm{Uniform}(0, 1)

    with one :math:`\alpha` for each row, for all parts of a tuple. The best critic of the
    Wasserstein distance has norm 1 on these lines. Where data and samples agree such a critic is
    not flat, so that for t > 0 training does not come to rest there.

    :param float weight: :math:`\lambda`; 10 for images, 0.1 for points of the plane.
    :param float target: the norm :math:`t`.
    :param bool one_sided: leave norms below the target alone.
    :raises ValueError: if `weight` or `target` is negative or not finite.

    Source: I. Gulrajani, F. Ahmed, M. Arjovsky, V. Dumoulin and A. Courville, "Improved Training
    of Wasserstein GANs", 2017, https://arxiv.org/abs/1704.00028, equation (3); one-sided:
    H. Petzka, A. Fischer and D. Lukovnikov, "On the regularization of Wasserstein GANs", 2018,
    https://arxiv.org/abs/1709.08894.

    Example::

        >>> critic = torch.nn.Linear(2, 1)
        >>> value = GradientPenalty(10.0)(critic, torch.randn(5, 2), torch.randn(5, 2))
        >>> torch.allclose(value, 10 * (critic.weight.norm() - 1) ** 2)
        True
    """

    where = "interpolated"
    lipschitz = True

    def __init__(
        self, weight: float = 10.0, target: float = 1.0, *, one_sided: bool = False
    ) -> None:
        self.weight = check_number("weight", weight, least=0)
        self.target = check_number("target", target, least=0)
        self.one_sided = check_flag("one_sided", one_sided)

    def value(self, squared_norm: Tensor) -> Tensor:
        """Return the weighted mean square of the excess norms, from their squares ``[N]``."""
        # The root has no derivative at zero, where a critic may start: there it is taken as zero.
        positive = squared_norm > 0
        norm = torch.where(positive, torch.where(positive, squared_norm, 1.0).sqrt(), 0.0)
        excess = norm - self.target
        if self.one_sided:
            excess = excess.clamp_min(0.0)
        return self.weight * excess.square().mean()
