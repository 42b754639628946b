"""The hinge objective."""

from __future__ import annotations

from torch import Tensor, relu

from pyro_sig.adversarial.objectives.objective import Objective

__all__ = ["Hinge"]


class Hinge(Objective):
    r"""Large-margin classification by the critic, whose mean score the generator raises.

    .. math::
        L_D = E \max(0, 1 - D(x)) + E \max(0, 1 + D(G)), \qquad L_G = -E\,D(G)

    The best score is :math:`\mathrm{sign}(w)`, w the log ratio of data to model; the critic's loss
    is then 2 - 2 TV, TV the total variation. That score is flat: what trains the generator is the
    smoothness of the critic in use, mostly from spectral normalisation or a penalty.

    :raises ValueError: from a loss, for empty or not floating point scores.

    Source: J. H. Lim and J. C. Ye, "Geometric GAN", 2017, https://arxiv.org/abs/1705.02894,
    section 3.

    Example::

        >>> import torch
        >>> Hinge().critic_loss(torch.tensor([0.0, 2.0]), torch.tensor([-0.5]))
        tensor(1.)
    """

    def optimal_score(self, log_ratio: Tensor) -> Tensor:
        """Return the sign of the log ratio."""
        return log_ratio.sign()

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return relu(1 - real).mean() + relu(1 + fake).mean()

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()

    def _joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return real.mean() - fake.mean()
