"""Whether anything controls the Lipschitz constant of a critic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from pyro_sig.adversarial.penalties.penalty import Penalty
from pyro_sig.adversarial.penalties.spectral_norm import is_normalised

__all__ = ["controls_lipschitz"]


def controls_lipschitz(critic: Any, penalties: Iterable[Penalty]) -> bool:
    r"""Tells whether the Lipschitz constant of a critic is under control.

    .. math::

        \sup_{x \ne y} \frac{|D(x) - D(y)|}{\|x - y\|}

    bounds the Wasserstein distance that a critic can estimate: without control, its loss has no
    minimum. It is under control if a penalty says so, or if every parameter of the critic, but
    for biases, belongs to a layer with a spectral norm.

    :param critic: the critic. One that is not a module has no layers to look at.
    :param penalties: its penalties.
    :return: whether it is.

    Example::

        >>> import torch
        >>> from pyro_sig.adversarial.penalties import R1, GradientPenalty, spectral_norm
        >>> critic = torch.nn.Linear(2, 1)
        >>> controls_lipschitz(critic, [R1(1.0)])
        False
        >>> controls_lipschitz(critic, [R1(1.0), GradientPenalty()])
        True
        >>> controls_lipschitz(spectral_norm(critic), [])
        True
    """
    if any(penalty.lipschitz for penalty in penalties):
        return True
    if not isinstance(critic, nn.Module):
        return False
    normalised = [name for name, layer in critic.named_modules() if is_normalised(layer)]
    inside = tuple(f"{name}." if name else "" for name in normalised)
    free = [
        name
        for name, _ in critic.named_parameters()
        if not name.rpartition(".")[2].startswith("bias") and not name.startswith(inside)
    ]
    return bool(normalised) and not free
