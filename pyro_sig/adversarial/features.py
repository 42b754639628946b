"""A trained critic as a source of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_sig._arguments import check_instance, refusal
from pyro_sig._functions import first_call

__all__ = ["critic_features"]


@torch.no_grad()
def critic_features(critic: nn.Module, *values: Tensor) -> Tensor:
    r"""Returns the critic's last hidden layer: what its final layer with weights is given.

    .. math::
        h(x), \qquad D(x) = w \cdot h(x) + b

    The critic has learnt what tells data apart; a small classifier on :math:`h` uses it. The
    critic is run in evaluation mode and put back.

    :param torch.nn.Module critic: a critic whose score is made by its last layer with weights, such
        as one of :mod:`pyro_sig.nn`.
    :param torch.Tensor values: what it takes, each of shape ``[N, ...]``.
    :return: features, of shape ``[N, F]``.
    :raises ValueError: if the critic has no layer with weights, or the input of the last one does
        not have a row for each value.

    **Source:** Radford, Metz and Chintala, *Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks* (2016), section 5.1.

    Example::

        >>> from pyro_sig.nn import MLP
        >>> critic_features(MLP(2, [64, 32], 1), torch.zeros(5, 2)).shape
        torch.Size([5, 32])
    """
    check_instance("critic", critic, nn.Module)
    if not values or not all(isinstance(value, Tensor) and value.dim() for value in values):
        raise refusal("values", "tensors with rows, one or several", values)
    last: list[Any] = []

    def note(layer: nn.Module, inputs: tuple) -> None:
        last[:] = [inputs[0]]

    layers = [m for m in critic.modules() if next(m.children(), None) is None]
    weighted = [m for m in layers if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    # Under a parametrisation the weight stands in a child of its layer.
    weighted += [m for m in critic.modules() if hasattr(m, "parametrizations")]
    handles = [m.register_forward_pre_hook(note) for m in weighted]
    modes = {module: module.training for module in critic.modules()}
    try:
        critic.eval()
        first_call("critic", critic, *values)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not last:
        raise ValueError("`critic` must run a layer with weights, ran none")
    features = last[0].detach()
    if features.dim() < 2 or len(features) != len(values[0]):
        raise ValueError(
            f"`critic` must have one row of its last hidden layer for each of {len(values[0])} "
            f"values, had shape {tuple(features.shape)}"
        )
    return features.flatten(1)
