"""The relativistic pairing objective."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_sig.adversarial.objectives.objective import Objective

__all__ = ["Relativistic"]


class Relativistic(Objective):
    r"""Classification of which of a real and a fake draw is the real one.

    .. math::
        L_D = E\,\mathrm{sp}(-(D(x) - D(G))), \qquad L_G = E\,\mathrm{sp}(-(D(G) - D(x)))

    with one fake for each real. The best score is the log ratio of data to model, up to a
    constant. A generator cannot win by putting all its draws on one side of a boundary, since
    each is compared with data: mode dropping costs. The game needs R1 and R2 penalties to
    converge, and networks without batch normalisation.

    :raises ValueError: from a loss, for empty or not floating point scores, shapes that differ, or
        a generator's loss without real scores.

    Source: A. Jolicoeur-Martineau, "The relativistic discriminator", 2018,
    https://arxiv.org/abs/1807.00734, section 4.1; N. Huang et al., "The GAN is dead; long live the
    GAN!", 2024, https://arxiv.org/abs/2501.05441, equation (2).

    Example::

        >>> import torch
        >>> real, fake = torch.tensor([1.0, 5.0]), torch.tensor([1.0, 5.0])
        >>> Relativistic().critic_loss(real, fake)  # log 2: they cannot be told apart
        tensor(0.6931)
        >>> Relativistic().generator_loss(real, fake - 9.0)
        tensor(9.0001)
    """

    paired = True
    uses_real = True

    def optimal_score(self, log_ratio: Tensor) -> Tensor:
        """Return the log ratio: adding a constant to it changes no loss."""
        return log_ratio

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return -logsigmoid(real - fake).mean()

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        assert real is not None  # `uses_real` is checked before
        return -logsigmoid(fake - real).mean()
