"""The weight of an evidence bound beside an adversary, found from their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_number, refusal

__all__ = ["Balance"]


class Balance:
    r"""Weighs the bound so that its gradient stays in proportion to the adversary's.

    .. math::
        \lambda_t = r \, \frac{a_t}{b_t}, \qquad
        a_t = \rho a_{t-1} + (1 - \rho) \lVert \nabla_\theta \mathcal{L}_{\text{adv}} \rVert, \quad
        b_t = \rho b_{t-1} + (1 - \rho) \lVert \nabla_\theta \mathcal{L}_{\text{bound}} \rVert

    over the parameters that both losses reach. The paper sets the weight so that the two losses
    are on one scale; a log-density has no zero (a change of units shifts it), so that here the
    scale is that of the gradients.

    :param float ratio: the :math:`r`: 1 for equal norms, more for more weight on the bound.
    :param float decay: the :math:`\rho` of the running means, in [0, 1).
    :raises ValueError: if an argument is outside of its range.

    **Source:** Yin and Zhou, *Semi-Implicit Generative Model* (2019), section 4 (the losses on one
    scale); Esser, Rombach and Ommer, *Taming Transformers* (2021), eq. 7 (by gradients).

    Example::

        >>> balance = Balance(ratio=2.0)
        >>> balance.update([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 10.0])])
        tensor(1.)
    """

    def __init__(self, ratio: float = 1.0, decay: float = 0.99) -> None:
        self.ratio = check_number("ratio", ratio, above=0, tensors=False)
        self.decay = check_number("decay", decay, least=0, below=1, tensors=False)
        self._adversarial: Tensor | None = None
        self._bound: Tensor | None = None

    def __repr__(self) -> str:
        return f"Balance(ratio={self.ratio:g}, decay={self.decay:g})"

    @property
    def weight(self) -> float:
        """The weight found last; NaN before the first."""
        found = self._weight()
        return math.nan if found is None else float(found)

    def _weight(self) -> Tensor | None:
        if self._adversarial is None or self._bound is None:
            return None
        tiny = torch.finfo(self._bound.dtype).tiny
        return self.ratio * self._adversarial / self._bound.clamp_min(tiny)

    def update(
        self, adversarial: Sequence[Tensor | None], bound: Sequence[Tensor | None]
    ) -> Tensor:
        """Takes in the gradients of a step and returns the weight.

        :param adversarial: gradients of the adversarial loss, one for each parameter or None.
        :param bound: gradients of the evidence bound, of the same parameters.
        :return: the weight, a scalar.
        :raises ValueError: if no parameter has both.
        """
        for name, gradients in (("adversarial", adversarial), ("bound", bound)):
            if not isinstance(gradients, (list, tuple)):
                raise refusal(name, "a sequence of gradients or None", gradients)
        pairs = [
            (a, b)
            for a, b in zip(adversarial, bound, strict=True)
            if a is not None and b is not None
        ]
        if not pairs:
            raise ValueError(
                '`elbo_weight` must not be "balance" where no parameter of the model has a '
                "gradient from both the critic and the bound; give a number"
            )
        if not all(isinstance(g, Tensor) for pair in pairs for g in pair):
            raise ValueError("`adversarial` and `bound` must hold tensors or None, held others")
        norms = [torch.stack(torch._foreach_norm(list(g))).norm() for g in zip(*pairs, strict=True)]
        if self._adversarial is None or self._bound is None:
            self._adversarial, self._bound = norms
        else:
            self._adversarial = self._adversarial.to(norms[0]).lerp(norms[0], 1 - self.decay)
            self._bound = self._bound.to(norms[1]).lerp(norms[1], 1 - self.decay)
        weight = self._weight()
        assert weight is not None
        return weight

    def state_dict(self) -> dict[str, Any]:
        """Returns the running means."""
        return {"adversarial": self._adversarial, "bound": self._bound}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        :param state_dict: the state.
        """
        self._adversarial, self._bound = state_dict["adversarial"], state_dict["bound"]
