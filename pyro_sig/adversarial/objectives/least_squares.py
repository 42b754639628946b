"""The least squares objective."""

from __future__ import annotations

from torch import Tensor

from pyro_sig.adversarial.objectives.objective import Objective

__all__ = ["LeastSquares"]


class LeastSquares(Objective):
    r"""Regression of the scores on labels 1 (real) and 0 (fake).

    .. math::
        L_D = \tfrac{1}{2} E (D(x) - 1)^2 + \tfrac{1}{2} E\,D(G)^2, \qquad
        L_G = \tfrac{1}{2} E (D(G) - 1)^2

    The best score is the probability :math:`\sigma(w)` that a point is real, w the log ratio of
    data to model. A score is pulled back from beyond its label, so gradients do not vanish far
    from the boundary; above 1 a larger score is therefore no better, for either player.

    :raises ValueError: from a loss, for empty or not floating point scores.

    Source: X. Mao et al., "Least Squares Generative Adversarial Networks", 2017,
    https://arxiv.org/abs/1611.04076, equation (9).

    Example::

        >>> import torch
        >>> LeastSquares().critic_loss(torch.tensor([0.0]), torch.tensor([0.5]))
        tensor(0.6250)
        >>> LeastSquares().optimal_score(torch.tensor(0.0))
        tensor(0.5000)
    """

    def optimal_score(self, log_ratio: Tensor) -> Tensor:
        """Return the logistic function of the log ratio."""
        return log_ratio.sigmoid()

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return 0.5 * (fake - 1).square().mean()
