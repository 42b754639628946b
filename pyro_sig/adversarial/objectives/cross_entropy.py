"""Objectives whose critic is a classifier trained by cross-entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_sig._arguments import is_number, refusal
from pyro_sig.adversarial.objectives.objective import Objective

__all__ = ["MaximumLikelihood", "Minimax", "NonSaturating", "ReverseKL"]


class Minimax(Objective):
    r"""The two-player game of the first GAN.

    .. math::
        L_D = E\,\mathrm{sp}(-D(x)) + E\,\mathrm{sp}(D(G)), \qquad L_G = -E\,\mathrm{sp}(D(G)),
        \qquad \mathrm{sp}(v) = \log(1 + e^v)

    The best score is the log ratio w of data to model. With it the generator minimises
    :math:`2\,\mathrm{JS} - \log 4`, JS the Jensen-Shannon divergence that has the factor 1/2.
    The generator's gradient vanishes where the critic is sure of a fake: use
    :class:`NonSaturating` unless the value of the game is wanted, as in unrolling.

    :raises ValueError: from a loss, for empty or not floating point scores.

    Source: I. Goodfellow et al., "Generative Adversarial Nets", 2014,
    https://arxiv.org/abs/1406.2661, equation (1).

    Example::

        >>> Minimax().critic_loss(torch.zeros(2), torch.zeros(3))  # log 4
        tensor(1.3863)
        >>> Minimax().generator_loss(None, torch.zeros(3))
        tensor(-0.6931)
    """

    def optimal_score(self, log_ratio: Tensor) -> Tensor:
        """Return the log ratio itself."""
        return log_ratio

    # torch's softplus returns its argument above 20, where float64 still sees a difference.

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return -logsigmoid(real).mean() - logsigmoid(-fake).mean()

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return logsigmoid(-fake).mean()

    def _joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return -self._critic_loss(real, fake)


class NonSaturating(Minimax):
    r"""The critic of the first GAN with a generator that gets its labels flipped.

    .. math::
        L_D = E\,\mathrm{sp}(-D(x)) + E\,\mathrm{sp}(D(G)), \qquad L_G = E\,\mathrm{sp}(-D(G))

    Fixed points are those of :class:`Minimax`, and the gradient is largest where the critic is
    sure of a fake. No divergence is minimised in all: a generator may leave modes out.

    :raises ValueError: from a loss, for empty or not floating point scores.

    Source: I. Goodfellow et al., "Generative Adversarial Nets", 2014,
    https://arxiv.org/abs/1406.2661, section 3.

    Example::

        >>> NonSaturating().generator_loss(None, torch.tensor([-9.0]))
        tensor(9.0001)
    """

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -logsigmoid(fake).mean()

    def _joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._critic_loss(fake, real)


class MaximumLikelihood(Minimax):
    r"""The critic of the first GAN with a generator that maximises the likelihood of the data.

    .. math::
        L_D = E\,\mathrm{sp}(-D(x)) + E\,\mathrm{sp}(D(G)), \qquad L_G = -E\,e^{D(G)}

    At the optimal critic :math:`e^D = p_\text{data} / p_\text{model}`, and the generator's
    gradient is that of the cross-entropy :math:`-E_\text{data} \log p_\text{model}`: a
    semi-implicit generator in the limit of many psi is this objective with an ideal critic. Few
    draws with large ratios carry the gradient, so its variance is large while data and model
    overlap little.

    :param float max_score: c. Beyond it the exponential goes on as its tangent,
        :math:`e^c (1 + D - c)`: nothing overflows, and the weight of a draw in the gradient is
        :math:`e^{\min(D, c)}`.
    :raises ValueError: if `max_score` is not finite; from a loss, for empty or not floating point
        scores.

    Source: M. Yin and M. Zhou, "Semi-Implicit Generative Model", 2019,
    https://arxiv.org/abs/1905.12659, equation (10); I. Goodfellow, "On distinguishability criteria
    for estimating generative models", 2014, https://arxiv.org/abs/1412.6515.

    Example::

        >>> MaximumLikelihood().generator_loss(None, torch.tensor([0.0, 1.0]))  # -(1 + e) / 2
        tensor(-1.8591)
        >>> MaximumLikelihood(max_score=2.0).generator_loss(None, torch.tensor([3.0]))  # -2 e^2
        tensor(-14.7781)
    """

    def __init__(self, max_score: float = 20.0) -> None:
        if not is_number(max_score) or not math.isfinite(max_score):
            raise refusal("max_score", "a finite number", max_score)
        self.max_score = max_score

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        capped = fake.clamp(max=self.max_score)
        excess = torch.relu(fake - self.max_score)
        return -(capped.exp() * (1 + excess)).mean()

    def _joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        # KL of the data's joint law from the model's: the data's side moves along the log ratio.
        return self._generator_loss(None, fake) + real.mean()


class ReverseKL(Minimax):
    r"""The critic of the first GAN with a generator that minimises the raw score.

    .. math::
        L_D = E\,\mathrm{sp}(-D(x)) + E\,\mathrm{sp}(D(G)), \qquad L_G = -E\,D(G)

    With the best critic the score is the log ratio w of data to model, and the loss is
    :math:`\mathrm{KL}(\text{model} \,\|\, \text{data})`, gradient included. VEEGAN and adversarial
    variational Bayes are made of it. The divergence prefers draws that are likely to draws that
    are everywhere.

    :raises ValueError: from a loss, for empty or not floating point scores.

    Source: Srivastava et al., "VEEGAN", 2017, https://arxiv.org/abs/1705.07761;
    Mescheder, Nowozin and Geiger, "Adversarial Variational Bayes", 2017,
    https://arxiv.org/abs/1701.04722.

    Example::

        >>> ReverseKL().generator_loss(None, torch.tensor([-9.0, 1.0]))
        tensor(4.)
    """

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()

    def _joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return real.mean() - fake.mean()
