"""The Wasserstein objective."""

from __future__ import annotations

from torch import Tensor

from pyro_sig.adversarial.objectives.objective import Objective

__all__ = ["Wasserstein"]


class Wasserstein(Objective):
    r"""The Wasserstein-1 distance in its dual form.

    .. math::
        L_D = E\,D(G) - E\,D(x), \qquad L_G = -E\,D(G)

    Over critics of slope at most 1 the least :math:`L_D` is minus the distance between data and
    model. Without such a restriction it has no lower bound: combine it with a gradient penalty
    or clipped weights. The critic should be near its optimum: take several of its steps to one of
    the generator. No best score depends on the density ratio at its point alone;
    :func:`~pyro_sig.adversarial.optimal_critic.optimal_critic` has it for laws on the line.

    :raises ValueError: from a loss, for empty or not floating point scores.

    Source: M. Arjovsky, S. Chintala and L. Bottou, "Wasserstein GAN", 2017,
    https://arxiv.org/abs/1701.07875, equation (2).

    Example::

        >>> import torch
        >>> Wasserstein().critic_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.5]))
        tensor(-1.)
    """

    needs_lipschitz = True

    def optimal_score(self, log_ratio: Tensor) -> Tensor:
        """Raise: no function of the log ratio is optimal."""
        raise NotImplementedError(
            "no function of the log ratio is optimal for Wasserstein(); "
            "`optimal_critic` has the potential of two laws on the line"
        )

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()
