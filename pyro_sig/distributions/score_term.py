"""A gradient to a mixing law that cannot be reparameterised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["leave_one_out_surrogate"]


def leave_one_out_surrogate(scores: Tensor, log_psi: Tensor, dim: int) -> Tensor:
    r"""Adds a score-function gradient for psi to the logsumexp over psi.

    The value is :math:`L = \log \sum_k e^{s_k}`; the gradient is that of
    :math:`\mathbb{E}[L]`,

    .. math::
        \nabla L + \sum_k (\bar L - \bar L_{-k}) \nabla \log p(\psi_k),

    where :math:`\bar L` is the log of the mean and :math:`\bar L_{-k}` the log of the mean without
    the k-th term: a baseline that does not see :math:`\psi_k`, hence no bias.

    :param torch.Tensor scores: :math:`s_k = \log p(x \mid \psi_k)`, with K entries along ``dim``.
    :param torch.Tensor log_psi: :math:`\log p(\psi_k)`, broadcastable to ``scores``.
    :param int dim: the dimension that counts psi, negative.
    :return: the logsumexp, with the gradient above.

    Reference: A. Mnih and D. Rezende (2016), "Variational Inference for Monte Carlo Objectives".

    Example::

        >>> logits = torch.zeros(3, requires_grad=True)
        >>> log_psi = logits.log_softmax(-1)
        >>> leave_one_out_surrogate(torch.zeros(3), log_psi, -1)
        tensor(1.0986, grad_fn=<AddBackward0>)
    """
    log_sum = scores.logsumexp(dim)
    with torch.no_grad():
        size = scores.shape[dim]
        if size == 1:
            advantage = log_sum.unsqueeze(dim)
        else:
            total = log_sum.unsqueeze(dim)
            share = (scores - total).exp()
            best = share == share.amax(dim, keepdim=True)
            # Without its largest term the sum must be taken again: 1 - share would cancel.
            without_best = scores.masked_fill(best, -torch.inf).logsumexp(dim, keepdim=True)
            single = best.sum(dim, keepdim=True) == 1
            without = torch.where(
                best & single, without_best, total + torch.log1p(-share.clamp(max=0.5))
            )
            advantage = total - without - math.log(size / (size - 1))
        # Where only one psi allows the value, or none, E[L] = -inf has no gradient.
        advantage = advantage.masked_fill(~advantage.isfinite(), 0.0)
    return log_sum + (advantage * (log_psi - log_psi.detach())).sum(dim)
