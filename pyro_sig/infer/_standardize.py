"""Running location and covariance of draws, for networks that see them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Standardize"]

# Up to this many coordinates draws are made uncorrelated as well.
_MAX_DENSE = 200
# A smaller first batch leans on mean zero and unit covariance as if on so many rows.
_PRIOR_ROWS = 16.0
# How many rows are remembered.
_MEMORY = 1000.0


class Standardize(nn.Module):
    r"""Maps draws to running mean zero and unit covariance (unit variance in many dimensions).

    :param torch.Tensor like: one draw, for size, dtype and device.
    """

    loc: Tensor
    cov: Tensor
    tril: Tensor
    seen: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        size = len(like)
        self.dense = size <= _MAX_DENSE
        unit = torch.eye(size).to(like) if self.dense else torch.ones_like(like)
        self.register_buffer("loc", torch.zeros_like(like))
        self.register_buffer("cov", unit)
        self.register_buffer("tril", unit.clone())
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Takes in a batch of shape ``[N, size]``."""
        # Rows count alike, however many come at once; old ones are forgotten.
        if self.seen == 0 and len(x) < _PRIOR_ROWS:
            self.seen.fill_(_PRIOR_ROWS)
        weight = len(x) / (len(x) + float(self.seen))
        self.loc.lerp_(x.mean(0), weight)
        centred = x - self.loc
        tiny = torch.finfo(x.dtype).eps ** 0.5
        if self.dense:
            self.cov.lerp_(centred.mT @ centred / len(x), weight)
            # Few rows leave the matrix singular: lean on its diagonal.
            diagonal = torch.diag(self.cov.diagonal() + torch.finfo(x.dtype).tiny)
            share = min(0.5, max(1e-4, len(self.loc) / (float(self.seen) + len(x)) / 10))
            tril, failed = torch.linalg.cholesky_ex((1 - share) * self.cov + share * diagonal)
            self.tril.copy_(diagonal.sqrt() if failed else tril)
        else:
            self.cov.lerp_(centred.square().mean(0), weight)
            self.tril.copy_(self.cov.clamp_min(tiny * self.cov.mean()).sqrt())
        self.seen += len(x)
        self.seen.clamp_(max=_MEMORY)

    def forward(self, x: Tensor) -> Tensor:
        """Standardises ``[N, size]``."""
        centred = x - self.loc
        if self.dense:
            return torch.linalg.solve_triangular(self.tril, centred.mT, upper=False).mT
        return centred / self.tril

    def standardize_score(self, score: Tensor) -> Tensor:
        """Maps a gradient in a draw to the gradient in the standardised draw."""
        return score @ self.tril if self.dense else score * self.tril

    def restore_score(self, score: Tensor) -> Tensor:
        """Maps a gradient in the standardised draw to the gradient in the draw."""
        if self.dense:
            return torch.linalg.solve_triangular(self.tril.mT, score.mT, upper=True).mT
        return score / self.tril
