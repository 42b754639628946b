r"""Pairwise forms of the exponential families, one registered function each.

A function receives the parameters of :math:`M` components, of shape ``[M | 1, R | 1]`` followed
by the parameter's own event dimensions (1 stands for "the same for all"), and a value of shape
``[N, R]`` followed by the event dimensions; :math:`R` counts independent coordinates. It returns
the :class:`~pyro_sig.distributions.pairwise.Terms` of

.. math::
    \log p(x_{ir} \mid \psi_{jr}) = T_{ir} \cdot \eta_{jr} - A_{jr} + h_{ir},

or a string that says why these parameters have no such form. A function may return
:math:`A` summed over coordinates, of shape ``[M]``.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as torch_dist
from torch import Tensor
from torch.distributions.utils import probs_to_logits
from torch.nn.functional import logsigmoid, one_hot, softplus

from pyro_sig.distributions.pairwise import Terms, register_pairwise

__all__: list[str] = []

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _stack(*features: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*features), -1)


def _finite(logits: Tensor) -> Tensor:
    # 0 * -inf is NaN: an impossible category that did not occur must add nothing, nor must a
    # datum on the boundary under a density that is flat there.
    return logits.clamp_min(torch.finfo(logits.dtype).min / 2**20)


def _given(d: Any) -> dict[str, Tensor]:
    """Takes logits or probs as the user gave them: the other one is computed at full size."""
    raw = d._param
    return {"logits" if raw is d.__dict__.get("logits") else "probs": raw}


def _logits(logits: Tensor | None, probs: Tensor | None, is_binary: bool = False) -> Tensor:
    if logits is not None:
        return logits
    assert probs is not None
    return probs_to_logits(probs, is_binary=is_binary)


# ---------------------------------------------------------------------------- location and scale


class _RowSquares(torch.autograd.Function):
    """Squared norms of rows: one pass over a large matrix each way."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=-1).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ANN401
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (x,) = ctx.saved_tensors
        return (2 * grad).unsqueeze(-1) * x


def _half_squares(loc: Tensor, precision: Tensor) -> Tensor:
    """Half the squared distance of each component to the origin, summed over coordinates."""
    if loc.shape[-1] < 32:  # a small matrix: the function's overhead would show
        return (0.5 * precision * loc.square()).sum(-1)
    if precision.shape[-1] == 1:
        return 0.5 * precision.squeeze(-1) * _RowSquares.apply(loc)
    return 0.5 * _RowSquares.apply(loc * precision.sqrt())


@register_pairwise(
    torch_dist.Normal, dist.Normal, event_dims={"loc": 0, "scale": 0}, location="loc"
)
def normal(value: Tensor, loc: Tensor, scale: Tensor) -> Terms:
    precision = scale.square().reciprocal()
    if len(scale) == 1:
        return Terms(
            statistics=(value * precision).unsqueeze(-1),
            carrier=(-0.5 * precision) * value.square() - scale.log() - _HALF_LOG_2PI,
            natural=loc.unsqueeze(-1),
            log_normalizer=_half_squares(loc.expand(-1, value.shape[1]), precision),
        )
    return Terms(
        statistics=_stack(value, value.square()),
        carrier=torch.full_like(value, -_HALF_LOG_2PI),
        natural=_stack(loc * precision, -0.5 * precision),
        log_normalizer=0.5 * loc.square() * precision + scale.log(),
    )


def _log_normal_parameters(d: torch_dist.LogNormal) -> dict[str, Tensor]:
    return {"loc": d.base_dist.loc, "scale": d.base_dist.scale}


@register_pairwise(
    torch_dist.LogNormal,
    dist.LogNormal,
    event_dims={"loc": 0, "scale": 0},
    parameters=_log_normal_parameters,
)
def log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Terms:
    log_value = value.log()
    terms = normal(log_value, loc, scale)
    return terms._replace(carrier=terms.carrier - log_value)


def _multivariate_normal_parameters(d: torch_dist.MultivariateNormal) -> dict[str, Tensor]:
    return {"loc": d.loc, "scale_tril": d._unbroadcasted_scale_tril}


@register_pairwise(
    torch_dist.MultivariateNormal,
    dist.MultivariateNormal,
    event_dims={"loc": 1, "scale_tril": 2},
    parameters=_multivariate_normal_parameters,
    location="loc",
)
def multivariate_normal(value: Tensor, loc: Tensor, scale_tril: Tensor) -> Terms:
    constant = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = constant + value.shape[-1] * _HALF_LOG_2PI
    if len(scale_tril) == 1:  # whitened: one triangular solve with N and one with M columns
        value, loc = (
            torch.linalg.solve_triangular(
                scale_tril.squeeze(0), x.movedim(0, -1), upper=False
            ).movedim(-1, 0)
            for x in (value, loc)
        )
        carrier = -0.5 * value.square().sum(-1) - constant
        return Terms(value, carrier, loc, 0.5 * loc.square().sum(-1))
    precision = torch.cholesky_inverse(scale_tril)
    shift = (precision * loc.unsqueeze(-2)).sum(-1)
    outer = (value.unsqueeze(-1) * value.unsqueeze(-2)).flatten(-2)
    quadratic = (-0.5 * precision).flatten(-2).expand(*shift.shape[:-1], -1)
    return Terms(
        statistics=torch.cat([value, outer], -1),
        carrier=torch.zeros_like(value[..., 0]),
        natural=torch.cat([shift, quadratic], -1),
        log_normalizer=0.5 * (loc * shift).sum(-1) + constant,
    )


# ---------------------------------------------------------------------------------------- counts


@register_pairwise(
    torch_dist.Bernoulli, dist.Bernoulli, event_dims={"logits": 0, "probs": 0}, parameters=_given
)
def bernoulli(value: Tensor, logits: Tensor | None = None, probs: Tensor | None = None) -> Terms:
    logits = _finite(_logits(logits, probs, is_binary=True))
    return Terms(
        statistics=value.unsqueeze(-1),
        carrier=torch.zeros_like(value),
        natural=logits.unsqueeze(-1),
        # torch replaces log(1 + e^x) by x beyond a threshold: 20 is too low in double precision.
        log_normalizer=softplus(logits, threshold=40.0),
    )


@register_pairwise(torch_dist.Poisson, dist.Poisson, event_dims={"rate": 0})
def poisson(value: Tensor, rate: Tensor) -> Terms:
    # x = 0 at rate 0 has log-probability 0, not the NaN of 0 * -inf.
    log_rate = rate.clamp_min(torch.finfo(rate.dtype).tiny).log()
    return Terms(value.unsqueeze(-1), -(value + 1).lgamma(), log_rate.unsqueeze(-1), rate)


def _negative_binomial_parameters(d: torch_dist.NegativeBinomial) -> dict[str, Tensor]:
    return {"total_count": d.total_count, **_given(d)}


@register_pairwise(
    torch_dist.NegativeBinomial,
    dist.NegativeBinomial,
    event_dims={"total_count": 0, "logits": 0, "probs": 0},
    parameters=_negative_binomial_parameters,
)
def negative_binomial(
    value: Tensor,
    total_count: Tensor,
    logits: Tensor | None = None,
    probs: Tensor | None = None,
) -> Terms | str:
    if len(total_count) > 1:
        return "a `total_count` that differs between components mixes with the datum in lgamma"
    logits = _logits(logits, probs, is_binary=True)
    coefficient = (value + total_count).lgamma() - (value + 1).lgamma() - total_count.lgamma()
    return Terms(
        statistics=value.unsqueeze(-1),
        # No failures allowed and none seen: probability one, as torch has it.
        carrier=coefficient.masked_fill(value + total_count == 0, 0.0),
        natural=logsigmoid(logits).unsqueeze(-1),
        log_normalizer=-total_count * logsigmoid(-logits),
    )


def _category_terms(
    statistics: Tensor, carrier: Tensor, logits: Tensor | None, probs: Tensor | None
) -> Terms:
    logits = _finite(_logits(logits, probs))
    # torch's own constructor normalises both forms.
    return Terms(statistics, carrier, logits, torch.zeros_like(logits[..., 0]))


@register_pairwise(
    torch_dist.Categorical,
    dist.Categorical,
    event_dims={"logits": 1, "probs": 1},
    parameters=_given,
)
def categorical(value: Tensor, logits: Tensor | None = None, probs: Tensor | None = None) -> Terms:
    logits = _logits(logits, probs)
    statistics = one_hot(value.long(), logits.shape[-1]).to(logits.dtype)
    return _category_terms(statistics, torch.zeros_like(statistics[..., 0]), logits, None)


def _inner_categorical_parameters(d: torch_dist.OneHotCategorical) -> dict[str, Tensor]:
    return _given(d._categorical)


@register_pairwise(
    torch_dist.OneHotCategorical,
    dist.OneHotCategorical,
    event_dims={"logits": 1, "probs": 1},
    parameters=_inner_categorical_parameters,
)
def one_hot_categorical(
    value: Tensor, logits: Tensor | None = None, probs: Tensor | None = None
) -> Terms:
    return _category_terms(value, torch.zeros_like(value[..., 0]), logits, probs)


@register_pairwise(
    torch_dist.Multinomial,
    dist.Multinomial,
    event_dims={"logits": 1, "probs": 1},
    parameters=_inner_categorical_parameters,
)
def multinomial(value: Tensor, logits: Tensor | None = None, probs: Tensor | None = None) -> Terms:
    coefficient = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
    return _category_terms(value, coefficient, logits, probs)


# --------------------------------------------------------------------- positive and unit interval


@register_pairwise(torch_dist.Exponential, dist.Exponential, event_dims={"rate": 0})
def exponential(value: Tensor, rate: Tensor) -> Terms:
    return Terms(-value.unsqueeze(-1), torch.zeros_like(value), rate.unsqueeze(-1), -rate.log())


@register_pairwise(torch_dist.Gamma, dist.Gamma, event_dims={"concentration": 0, "rate": 0})
def gamma(value: Tensor, concentration: Tensor, rate: Tensor) -> Terms:
    return Terms(
        statistics=_stack(_finite(value.log()), -value),
        carrier=torch.zeros_like(value),
        natural=_stack(concentration - 1, rate),
        log_normalizer=concentration.lgamma() - concentration * rate.log(),
    )


def _beta_parameters(d: torch_dist.Beta) -> dict[str, Tensor]:
    return {"concentrations": d._dirichlet.concentration}


@register_pairwise(
    torch_dist.Beta, dist.Beta, event_dims={"concentrations": 1}, parameters=_beta_parameters
)
def beta(value: Tensor, concentrations: Tensor) -> Terms:
    return Terms(
        statistics=_stack(_finite(value.log()), _finite((-value).log1p())),
        carrier=torch.zeros_like(value),
        natural=concentrations - 1,
        log_normalizer=concentrations.lgamma().sum(-1) - concentrations.sum(-1).lgamma(),
    )


@register_pairwise(torch_dist.Dirichlet, dist.Dirichlet, event_dims={"concentration": 1})
def dirichlet(value: Tensor, concentration: Tensor) -> Terms:
    return Terms(
        statistics=_finite(value.log()),
        carrier=torch.zeros_like(value[..., 0]),
        natural=concentration - 1,
        log_normalizer=concentration.lgamma().sum(-1) - concentration.sum(-1).lgamma(),
    )
