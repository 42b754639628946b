r"""The table of f-divergences: a new divergence is one entry in :data:`DIVERGENCES`.

With :math:`D_f(P \| Q) = E_Q f(p / q)`, f convex on :math:`u \ge 0` and infinite below, a row has
what a critic needs to bound the divergence by samples. Formulas are in the form that neither
overflows nor cancels while the value can be represented.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import xlog1py, xlogy

from pyro_sig._arguments import refusal

__all__ = ["DIVERGENCES", "Divergence"]

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    r"""One row of the table: elementwise functions of tensors.

    .. math::
        f^*(t) = \sup_{u \ge 0} u t - f(u), \qquad t = g(v)

    :param f: the convex function, for :math:`u \ge 0`.
    :param f_prime: its derivative, or a subgradient.
    :param conjugate: :math:`f^*`, for t up to ``upper``.
    :param activation: g, increasing, from the reals into the domain of :math:`f^*`.
    :param fused_conjugate: :math:`f^*(g(v))` without a detour through t.
    :param optimal_score: the v with :math:`g(v) = f'(e^w)`, given the log ratio w.
    :param upper: where the domain of :math:`f^*` ends. Below, it is never left: f is infinite for
        negative u, so that :math:`f^*` does not decrease.
    """

    f: Function
    f_prime: Function
    conjugate: Function
    activation: Function
    fused_conjugate: Function
    optimal_score: Function
    upper: float = math.inf


# Below this log(1 + e^x) and 1 - e^(-e^x) are told from e^x by the next term of their series only.
_SERIES = -17.0


def _log_softplus(x: Tensor) -> Tensor:
    """Return log(log(1 + e^x)), which tends to x below and to log(x) above."""
    log = (-logsigmoid(-x.clamp(min=_SERIES))).log()
    return torch.where(x < _SERIES, x - 0.5 * x.clamp(max=_SERIES).exp(), log)


def _log1mexp(log_a: Tensor) -> Tensor:
    """Return log(1 - e^-a) given log(a), which may be far below what a can represent."""
    log = (-torch.expm1(-log_a.clamp(min=_SERIES).exp())).log()
    return torch.where(log_a < _SERIES, log_a - 0.5 * log_a.clamp(max=_SERIES).exp(), log)


def _inverse_softplus(log_a: Tensor) -> Tensor:
    """Return the x with log(1 + e^x) = a, given log(a)."""
    return log_a.exp() + _log1mexp(log_a)


def _infinite_sign(w: Tensor) -> Tensor:
    return torch.where(w == 0, w, w.sign() * math.inf)


def _f_gan(u: Tensor) -> Tensor:
    # u log u - (u + 1) log(u + 1); both terms are large where u is.
    return -xlog1py(u, 1 / u) - torch.log1p(u)


def _log_share(u: Tensor) -> Tensor:
    """Return log(u / (1 + u))."""
    return -torch.log1p(1 / u)


def _conjugate_jeffrey(t: Tensor) -> Tensor:
    # t = f'(e^w) is solved for w. The start is below the root of a concave increasing function,
    # where Newton's steps neither leave that side nor overshoot.
    limit = torch.finfo(t.dtype).max / 4
    t = t.clamp(-limit, limit)
    negative, positive = t.clamp(max=0.0), t.clamp(min=0.0)
    w = torch.maximum(0.5 * positive, positive - 1) - torch.log1p(-negative)
    for _ in range(6):
        w = w - (w - torch.expm1(-w) - t) / (1 + (-w).exp())
    return torch.expm1(w) + w


def _jensen_shannon_weighted(pi: float) -> Divergence:
    if not 0 < pi < 1:
        raise refusal("pi", "between 0 and 1", pi)
    rest = 1 - pi
    upper = -pi * math.log(pi)
    logit = math.log(pi) - math.log(rest)
    return Divergence(
        f=lambda u: -pi * xlogy(u, pi + rest / u) - rest * (rest + pi * u).log(),
        f_prime=lambda u: -pi * (pi + rest / u).log(),
        conjugate=lambda t: rest * (math.log(rest) - (-torch.expm1((t - upper) / pi)).log()),
        activation=lambda v: upper + logsigmoid(v),
        fused_conjugate=lambda v: (
            rest * (math.log(rest) - _log1mexp(_log_softplus(-v) - math.log(pi)))
        ),
        optimal_score=lambda w: -_inverse_softplus(math.log(pi) + _log_softplus(-w - logit)),
        upper=upper,
    )


def _alpha(alpha: float) -> Divergence:
    if not math.isfinite(alpha) or alpha in (0, 1):
        must_be = "finite and neither 0 nor 1, whose limits are 'reverse_kl' and 'kl'"
        raise refusal("alpha", must_be, alpha)
    beta = alpha - 1
    power = alpha / beta

    def f(u: Tensor) -> Tensor:
        return (u**alpha - 1 - alpha * (u - 1)) / (alpha * beta)

    def f_prime(u: Tensor) -> Tensor:
        return (u**beta - 1) / beta

    def conjugate(t: Tensor) -> Tensor:
        # Where f' is bounded below, no u has the slope t there, and u = 0 is best.
        return ((1 + beta * t).clamp(min=0.0) ** power - 1) / alpha

    if alpha > 1:
        return Divergence(
            f=f,
            f_prime=f_prime,
            conjugate=conjugate,
            activation=lambda v: v,
            fused_conjugate=conjugate,
            optimal_score=lambda w: torch.expm1(beta * w) / beta,
        )
    return Divergence(
        f=f,
        f_prime=f_prime,
        conjugate=conjugate,
        activation=lambda v: -1 / beta + logsigmoid(v),
        fused_conjugate=lambda v: (
            torch.expm1(power * (math.log(-beta) + _log_softplus(-v))) / alpha
        ),
        optimal_score=lambda w: -_inverse_softplus(beta * w - math.log(-beta)),
        upper=-1 / beta,
    )


_LOG_2 = math.log(2)

#: The rows by name; a family is a function of its parameters.
DIVERGENCES: dict[str, Divergence | Callable[..., Divergence]] = {
    "total_variation": Divergence(
        f=lambda u: 0.5 * (u - 1).abs(),
        f_prime=lambda u: 0.5 * (u - 1).sign(),
        conjugate=lambda t: t.clamp(min=-0.5),
        activation=lambda v: 0.5 * v.tanh(),
        fused_conjugate=lambda v: 0.5 * v.tanh(),
        optimal_score=_infinite_sign,
        upper=0.5,
    ),
    "kl": Divergence(
        f=lambda u: xlogy(u, u),
        f_prime=lambda u: u.log() + 1,
        conjugate=lambda t: (t - 1).exp(),
        activation=lambda v: v,
        fused_conjugate=lambda v: (v - 1).exp(),
        optimal_score=lambda w: w + 1,
    ),
    "reverse_kl": Divergence(
        f=lambda u: -u.log(),
        f_prime=lambda u: -1 / u,
        conjugate=lambda t: -1 - (-t).log(),
        activation=lambda v: -(-v).exp(),
        fused_conjugate=lambda v: v - 1,
        optimal_score=lambda w: w,
        upper=0.0,
    ),
    "pearson_chi2": Divergence(
        f=lambda u: (u - 1).square(),
        f_prime=lambda u: 2 * (u - 1),
        # Below -2, the slope of f at 0, u = 0 is best.
        conjugate=lambda t: t.clamp(min=-2.0) * (t.clamp(min=-2.0) / 4 + 1),
        activation=lambda v: v,
        fused_conjugate=lambda v: v.clamp(min=-2.0) * (v.clamp(min=-2.0) / 4 + 1),
        optimal_score=lambda w: 2 * torch.expm1(w),
    ),
    "neyman_chi2": Divergence(
        f=lambda u: (1 - u).square() / u,
        f_prime=lambda u: 1 - u**-2,
        conjugate=lambda t: 2 - 2 * (1 - t).sqrt(),
        activation=lambda v: -torch.expm1(-v),
        fused_conjugate=lambda v: -2 * torch.expm1(-v / 2),
        optimal_score=lambda w: 2 * w,
        upper=1.0,
    ),
    "squared_hellinger": Divergence(
        f=lambda u: (u.sqrt() - 1).square(),
        f_prime=lambda u: 1 - u.rsqrt(),
        conjugate=lambda t: t / (1 - t),
        activation=lambda v: -torch.expm1(-v),
        fused_conjugate=torch.expm1,
        optimal_score=lambda w: w / 2,
        upper=1.0,
    ),
    "jeffrey": Divergence(
        f=lambda u: (u - 1) * u.log(),
        f_prime=lambda u: u.log() + 1 - 1 / u,
        conjugate=_conjugate_jeffrey,
        # With g(v) = v the conjugate would need Lambert's W; with v = log(u) it does not.
        activation=lambda v: v - torch.expm1(-v),
        fused_conjugate=lambda v: v + torch.expm1(v),
        optimal_score=lambda w: w,
    ),
    "jensen_shannon": Divergence(
        f=lambda u: _f_gan(u) + (u + 1) * _LOG_2,
        f_prime=lambda u: _log_share(u) + _LOG_2,
        conjugate=lambda t: -(-torch.expm1(t - _LOG_2)).log() - _LOG_2,
        activation=lambda v: logsigmoid(v) + _LOG_2,
        fused_conjugate=lambda v: -logsigmoid(-v) - _LOG_2,
        optimal_score=lambda w: w,
        upper=_LOG_2,
    ),
    "jensen_shannon_weighted": _jensen_shannon_weighted,
    "gan": Divergence(
        f=_f_gan,
        f_prime=_log_share,
        conjugate=lambda t: -(-torch.expm1(t)).log(),
        activation=logsigmoid,
        fused_conjugate=lambda v: -logsigmoid(-v),
        optimal_score=lambda w: w,
        upper=0.0,
    ),
    "alpha": _alpha,
}
