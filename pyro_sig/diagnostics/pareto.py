"""The Pareto tail index of importance weights."""

from __future__ import annotations

import math

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_sig._arguments import check_tensor

__all__ = ["k_hat_verdict", "pareto_k_hat"]

_LEAST_TAIL = 10
_GOOD, _USABLE = 0.5, 0.7
# Where all weights are near one, the shape of their largest says nothing.
_EXACT_SHARE = 0.95
# Where so few draws have all the weight, others with more have not been drawn yet.
_LEAST_SHARE = 0.02


def pareto_k_hat(log_weights: Tensor) -> float:
    r"""Fits a generalised Pareto law to the largest importance weights; returns its shape.

    .. math::
        w_s = p(x, z_s) / q(z_s), \qquad \hat k = \text{shape of the largest } w_s

    Below 0.5 the approximation q serves as a proposal, up to 0.7 with care; above, means of
    the weighted draws are not to be trusted, though q itself may still predict well.

    :param torch.Tensor log_weights: of shape ``[S]``, at least 50.
    :return: the shape, or infinity where a few draws have all the weight.
    :raises ValueError: for fewer draws, or log weights that are NaN, plus infinity or all minus
        infinity.

    References: Y. Yao, A. Vehtari, D. Simpson and A. Gelman (2018), "Yes, but did it work?:
    Evaluating variational inference"; A. Vehtari, D. Simpson, A. Gelman, Y. Yao and J. Gabry
    (2024), "Pareto smoothed importance sampling".

    Example::

        >>> log_weights = torch.distributions.Exponential(2.0).sample((100_000,))
        >>> abs(pareto_k_hat(log_weights) - 1 / 2) < 0.25  # 5 standard errors
        True
    """
    log_weights = check_tensor(
        "log_weights",
        log_weights,
        "a dense tensor of shape [S] with at least 50 draws",
        lambda w: w.dim() == 1 and len(w) >= 50,
    )
    if log_weights.isnan().any() or (log_weights == math.inf).any():
        raise ValueError("`log_weights` must not be NaN or plus infinity, were in some entries")
    if log_weights.max() == -math.inf:
        raise ValueError("`log_weights` must not all be minus infinity, were")
    size = len(log_weights)
    ordered = (log_weights.detach().double() - log_weights.max().double()).sort().values
    tail = math.ceil(min(0.2 * size, 3 * math.sqrt(size)))
    cutoff = max(float(ordered[-tail - 1]), math.log(torch.finfo(torch.float64).tiny))
    excess = (ordered[ordered > cutoff].exp() - math.exp(cutoff)).clamp_min(0.0)
    excess = excess[excess > 0]
    if len(excess) < _LEAST_TAIL:
        # Constant weights have no tail; a few that dwarf all others have nothing but a tail.
        return -math.inf if float(ordered[-1] - ordered[0]) < 1e-10 else math.inf
    return float(fit_generalized_pareto(excess)[0])


def k_hat_verdict(k_hat: float, effective_share: float) -> str:
    """Says what a tail index allows.

    :param float k_hat: as :func:`pareto_k_hat` finds it.
    :param float effective_share: effective sample size as a share of the draws. At 0.95 and above
        the guide is nearly exact, and below 0.02 it is not, whatever the shape of its largest
        weights: a tail that is never drawn cannot be fitted.
    :return: a few words.

    Example::

        >>> k_hat_verdict(0.6, 0.3)
        'usable with importance weights'
    """
    if effective_share >= _EXACT_SHARE or (k_hat < _GOOD and effective_share >= _LEAST_SHARE):
        return "good"
    if k_hat < _USABLE and effective_share >= _LEAST_SHARE:
        return "usable with importance weights"
    return "do not trust expectations, weighted or not"
