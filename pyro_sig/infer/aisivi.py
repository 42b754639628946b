"""Semi-implicit inference with an adaptive importance sampler for the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import ConditionalAffineCoupling, Permute
from pyro.nn import ConditionalDenseNN
from torch import Tensor, nn

from pyro_sig._arguments import check_integer, check_sizes
from pyro_sig.distributions.components import (
    component_log_prob,
    run_conditional,
)
from pyro_sig.distributions.mixing_noise import noise_law, push_noise
from pyro_sig.infer._objective import Draw, InnerNetworks, batch_law, one_law, real_noise
from pyro_sig.infer._standardize import Standardize
from pyro_sig.infer.path_gradient import PathGradient_ELBO, ScoreEstimator
from pyro_sig.nn import Encoder

__all__ = ["AISIVI", "ImportanceScore"]


class _Proposal(nn.Module):
    """A conditional flow over the noise: a normal given z, then affine couplings given z."""

    def __init__(
        self, rows: Tensor, noise: Tensor, hidden_dims: list[int], num_layers: int
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": rows.device, "dtype": rows.dtype}
        size, context = noise.shape[-1], rows.shape[-1]
        self.standardize = Standardize(rows[0])
        self.encoder = Encoder(context, hidden_dims, size, nn.SiLU, **options)
        half = size // 2
        self.couplings = nn.ModuleList()
        if half:
            for _ in range(num_layers):
                net = ConditionalDenseNN(
                    half,
                    context,
                    hidden_dims,
                    [size - half, size - half],
                    nonlinearity=nn.SiLU(),
                )
                # Begin at the identity: couplings with random scales diverge.
                last: Any = net.layers[-1]
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
                self.couplings.append(ConditionalAffineCoupling(half, net).to(rows))
        self.reverse = torch.arange(size - 1, -1, -1, device=rows.device)

    def forward(self, rows: Tensor) -> dist.TransformedDistribution:
        context = self.standardize(rows)
        loc, scale = self.encoder(context)
        transforms: list[Any] = []
        coupling: Any
        for coupling in self.couplings:
            transforms += [coupling.condition(context), Permute(self.reverse)]
        base = dist.Normal(loc, scale).to_event(1)
        return dist.TransformedDistribution(base, transforms)


class ImportanceScore(ScoreEstimator):
    r"""Weighs the conditional's score over noise from a learned proposal.

    .. math::
        \hat s(z) = \sum_k \bar w_k \nabla_z \log q(z \mid \epsilon_k), \qquad
        w_k = \frac{q(z \mid \epsilon_k) q(\epsilon_k)}{\tau(\epsilon_k \mid z)}, \quad
        \epsilon_k \sim \tau(\cdot \mid z)

    The proposal is a conditional flow trained by the forward divergence: it maximises
    :math:`\log \tau(\epsilon_0 \mid z)` at the pairs that the guide draws.

    :param int num_importance: draws K from the proposal for each row.
    :param hidden_dims: sizes of the flow's hidden layers.
    :param int num_layers: coupling layers.
    :param int inner_steps: its steps for each step of the guide, on the same draws.
    :param float learning_rate: of its Adam.
    :raises ValueError: for numbers below 1; from a step, if the noise is not a vector of reals or
        the rows of a site differ in law: use UIVI.

    Example::

        >>> score = ImportanceScore(num_importance=16)
    """

    def __init__(
        self,
        num_importance: int = 32,
        hidden_dims: Sequence[int] = (64, 64),
        num_layers: int = 4,
        inner_steps: int = 2,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        check_integer("num_importance", num_importance, 1)
        check_integer("num_layers", num_layers, 1)
        check_integer("inner_steps", inner_steps, 1)
        hidden_dims = check_sizes("hidden_dims", hidden_dims)
        if not hidden_dims:
            raise ValueError("`hidden_dims` must have at least one size, was empty")
        self.num_importance, self.inner_steps = num_importance, inner_steps
        self.hidden_dims, self.num_layers = hidden_dims, num_layers
        self.learning_rate = learning_rate
        self.inner = {
            "proposal": InnerNetworks(
                lambda rows, noise: _Proposal(rows, noise, hidden_dims, num_layers), learning_rate
            )
        }

    def __call__(self, draw: Draw, train: bool) -> Tensor:
        """Returns the score, of the shape of the draw, without a graph.

        :param draw: a semi-implicit site.
        :param bool train: whether the proposal takes its steps.
        """
        one_law(draw, "AISIVI")
        mixing = batch_law(draw)
        law = noise_law(mixing)
        noise = real_noise(draw, "AISIVI")
        if len(law.event_shape) != 1:
            raise ValueError(
                "AISIVI must have a vector of noise in the mixing, was of event_shape "
                f"{tuple(law.event_shape)}"
            )
        rows = draw.value.detach().reshape(-1, draw.distribution.event_shape.numel())
        flat_noise = noise.reshape(len(rows), -1)
        proposal: Any = self.inner["proposal"].get(draw.name, rows, flat_noise)
        if train:
            proposal.standardize.update(rows)
            for _ in range(self.inner_steps):
                loss = -proposal(rows).log_prob(flat_noise).mean()
                if loss.isfinite():
                    self.inner["proposal"].minimize(draw.name, loss)
        value = draw.value.detach().requires_grad_()
        with torch.no_grad():
            tau = proposal(rows)
            draws = tau.sample((self.num_importance,))
            log_tau = tau.log_prob(draws).reshape(-1, *law.batch_shape)
            draws = draws.reshape(self.num_importance, *law.batch_shape, *law.event_shape)
            psi = push_noise(mixing, draws)
            log_prior = law.log_prob(draws)
            conditional = draw.distribution.conditional
            components = run_conditional(conditional, psi, len(mixing.event_shape))
        log_weights = component_log_prob(components, value) + log_prior - log_tau
        # The gradient of the logsumexp is the weighted mean of the components' scores.
        return torch.autograd.grad(log_weights.logsumexp(0).sum(), value)[0]


class AISIVI(PathGradient_ELBO):
    r"""Climbs the evidence bound by importance sampling.

    :class:`PathGradient_ELBO` with :class:`ImportanceScore`.

    :param int num_importance: draws from the proposal for each row.
    :param hidden_dims: sizes of the flow's hidden layers.
    :param int inner_steps: steps of the flow for each step of the guide.
    :param float learning_rate: of the flow.
    :param kwargs: as :class:`PathGradient_ELBO` takes them.

    Reference: the adaptive importance sampling variant of semi-implicit variational inference,
    whose proposal is a conditional normalising flow.

    Example::

        >>> loss = AISIVI(num_particles=16)
    """

    guide_learning_rate = 5e-4  # for `fit`: its score network has to keep up

    def __init__(
        self,
        num_importance: int = 32,
        hidden_dims: Sequence[int] = (64, 64),
        inner_steps: int = 2,
        learning_rate: float = 1e-3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        score = ImportanceScore(
            num_importance, hidden_dims, inner_steps=inner_steps, learning_rate=learning_rate
        )
        super().__init__(score, **kwargs)
