"""Critics that surely score each row by itself, so that data and draws can share one pass."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import activation, pooling

from pyro_sig.nn import MLP, DCGANCritic, Joint

__all__ = ["is_row_wise"]

_ROW_WISE = {
    nn.Sequential,
    nn.ModuleList,
    nn.Identity,
    nn.Flatten,
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.LayerNorm,
    nn.GroupNorm,
    Joint,
    MLP,
    DCGANCritic,
    *(getattr(activation, name) for name in activation.__all__),
    *(getattr(pooling, name) for name in pooling.__all__),
} - {nn.MultiheadAttention, nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.RReLU}


def is_row_wise(critic: nn.Module) -> bool:
    """Tells whether all modules of a critic are known to treat each row by itself.

    A module of another class may compare rows (batch statistics, features of the whole batch), or
    draw what is to differ between data and draws.

    :param torch.nn.Module critic: the critic.

    Example::

        >>> is_row_wise(MLP(2, [8], 1)), is_row_wise(nn.Sequential(nn.BatchNorm1d(2)))
        (True, False)
    """
    return all(type(module) in _ROW_WISE for module in critic.modules())
