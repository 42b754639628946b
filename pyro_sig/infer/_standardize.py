"""Running location and scale of draws, for networks that see them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Standardize"]


class Standardize(nn.Module):
    """Subtracts a running mean and divides by a running standard deviation.

    :param int size: of the last dimension.
    :param float momentum: weight of the newest batch.
    """

    loc: Tensor
    scale: Tensor
    seen: Tensor

    def __init__(self, like: Tensor, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("loc", torch.zeros_like(like))
        self.register_buffer("scale", torch.ones_like(like))
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Takes in a batch of shape ``[N, size]``."""
        if len(x) < 2:
            return
        weight = max(self.momentum, 1.0 / (1.0 + float(self.seen)))
        self.loc.lerp_(x.mean(0), weight)
        self.scale.lerp_(x.std(0).clamp_min(torch.finfo(x.dtype).tiny), weight)
        self.seen += 1

    def forward(self, x: Tensor) -> Tensor:
        """Standardises ``[*, size]``."""
        return (x - self.loc) / self.scale
