"""R1 and R2: the critic's gradient is drawn to zero at the reals, or at the fakes."""

from __future__ import annotations

from torch import Tensor

from pyro_sig._arguments import check_number
from pyro_sig.adversarial.penalties.penalty import Penalty

__all__ = ["R1", "R2"]


class _ZeroCentred(Penalty):
    """Half of gamma times the mean square of the gradient, wherever a subclass takes it."""

    def __init__(self, gamma: float) -> None:
        self.gamma = check_number("gamma", gamma, least=0)

    def value(self, squared_norm: Tensor) -> Tensor:
        """Return half of gamma times the mean of `squared_norm`, shape ``[N]``."""
        return self.gamma / 2 * squared_norm.mean()


class R1(_ZeroCentred):
    r"""Penalises the critic's gradient at the data.

    .. math::

        \frac{\gamma}{2}\, \mathbb{E}_{x \sim \text{data}} \|\nabla_x D(x)\|^2

    Where generator and data agree, the critic is flat and the penalty zero: training can come to
    rest there, and does for small steps. Code that leaves the 1/2 out writes its weight 10 for
    :math:`\gamma = 20`. It belongs into every critic step: now and then, with a larger weight, was
    not enough for points of the plane.

    :param float gamma: the weight, in squared units of the data: where modes are of width s, the
        best critic has slopes near 1 / s, and a weight far above s^2 forbids them.
    :raises ValueError: if `gamma` is negative or not finite.

    Source: L. Mescheder, A. Geiger and S. Nowozin, "Which Training Methods for GANs do actually
    Converge?", 2018, https://arxiv.org/abs/1801.04406, section 4.1.

    Example::

        >>> import torch
        >>> critic = torch.nn.Linear(2, 1)  # with the same gradient everywhere
        >>> value = R1(10.0)(critic, torch.randn(5, 2), torch.randn(5, 2))
        >>> torch.allclose(value, 5 * critic.weight.square().sum())
        True
    """

    where = "real"


class R2(_ZeroCentred):
    r"""Penalises the critic's gradient at the generator's samples.

    .. math::

        \frac{\gamma}{2}\, \mathbb{E}_{x \sim \text{generator}} \|\nabla_x D(x)\|^2

    The mirror of :class:`R1`; relativistic pairing takes both.

    :param float gamma: the weight.
    :raises ValueError: if `gamma` is negative or not finite.

    Source: Mescheder et al. (2018), as in :class:`R1`.

    Example::

        >>> import torch
        >>> critic = torch.nn.Linear(2, 1)
        >>> value = R2(10.0)(critic, torch.randn(5, 2), torch.randn(5, 2))
        >>> torch.allclose(value, 5 * critic.weight.square().sum())
        True
    """

    where = "fake"
