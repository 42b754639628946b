"""Semi-implicit inference with a score network fitted by denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_sig._arguments import check_integer, check_sizes
from pyro_sig.infer._objective import Draw, InnerNetworks, one_law
from pyro_sig.infer._standardize import Standardize
from pyro_sig.infer.path_gradient import PathGradient_ELBO, ScoreEstimator
from pyro_sig.nn import MLP

__all__ = ["DIVI", "DenoisingScore"]


class _ScoreNetwork(nn.Module):
    """A standard normal's score plus a network, in standardised coordinates."""

    def __init__(self, rows: Tensor, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        size = rows.shape[-1]
        self.standardize = Standardize(rows[0])
        options: dict[str, Any] = {"device": rows.device, "dtype": rows.dtype}
        self.net = MLP(size, list(hidden_dims), size, nn.SiLU, **options)
        nn.init.zeros_(self.net.head.weight)
        nn.init.zeros_(self.net.head.bias)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.standardize(rows)
        return self.net(x) - x


class DenoisingScore(ScoreEstimator):
    r"""Fits a network to the conditional's score by least squares.

    .. math::
        \hat s = \arg\min_s \mathbb{E}_{\psi, z} \| s(z) - \nabla_z \log q(z \mid \psi) \|^2,
        \qquad \text{whose solution is } \nabla_z \log q(z)

    :param hidden_dims: sizes of its hidden layers.
    :param int inner_steps: its steps for each step of the guide, on the same draws.
    :param float learning_rate: of its Adam.
    :raises ValueError: from a step, if the rows of a site differ in law: use UIVI.

    Example::

        >>> score = DenoisingScore(inner_steps=2)
    """

    def __init__(
        self,
        hidden_dims: Sequence[int] = (128, 128),
        inner_steps: int = 5,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        check_integer("inner_steps", inner_steps, 1)
        hidden_dims = check_sizes("hidden_dims", hidden_dims)
        self.hidden_dims, self.inner_steps = hidden_dims, inner_steps
        self.learning_rate = learning_rate
        self.inner = {
            "score": InnerNetworks(lambda rows: _ScoreNetwork(rows, hidden_dims), learning_rate)
        }

    def __call__(self, draw: Draw, train: bool) -> Tensor:
        """Returns the score, of the shape of the draw, without a graph.

        :param draw: a semi-implicit site.
        :param bool train: whether the network takes its steps.
        """
        one_law(draw, "DIVI")
        size = draw.distribution.event_shape.numel()
        rows = draw.value.detach().reshape(-1, size)
        target = draw.conditional_score.detach().reshape(-1, size)
        network: Any = self.inner["score"].get(draw.name, rows)
        if train:
            network.standardize.update(rows)
            for _ in range(self.inner_steps):
                scaled = network.standardize.standardize_score(target)
                # The noise of the target, not its mean, sets its size: keep the loss near one.
                weight = scaled.square().mean(0).clamp_min(1.0).rsqrt()
                loss = ((network(rows) - scaled) * weight).square().mean()
                self.inner["score"].minimize(draw.name, loss)
        with torch.no_grad():
            score = network.standardize.restore_score(network(rows))
        return score.reshape(draw.value.shape)


class DIVI(PathGradient_ELBO):
    r"""Climbs the evidence bound with a learned score.

    :class:`PathGradient_ELBO` with :class:`DenoisingScore`.

    :param hidden_dims: sizes of the score network's hidden layers.
    :param int inner_steps: steps of the score network for each step of the guide.
    :param float learning_rate: of the score network.
    :param kwargs: as :class:`PathGradient_ELBO` takes them.

    Reference: denoising score matching is P. Vincent's (2011), "A connection between score matching
    and denoising autoencoders".

    Example::

        >>> loss = DIVI(num_particles=16)
    """

    guide_learning_rate = 5e-4  # for `fit`: its score network has to keep up

    def __init__(
        self,
        hidden_dims: Sequence[int] = (128, 128),
        inner_steps: int = 5,
        learning_rate: float = 1e-3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        kwargs.setdefault("num_particles", 64)
        super().__init__(DenoisingScore(hidden_dims, inner_steps, learning_rate), **kwargs)
