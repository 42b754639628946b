r"""The streaming logsumexp over all (datum, component) pairs of an exponential family."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import threshold

from pyro_sig._arguments import check_integer, check_tensor

__all__ = ["full_precision", "log_mixture"]

# Up to this many pairs the responsibilities are kept for the backward pass, beyond it they
# are computed again, chunk by chunk: 2**24 pairs are 64 MiB in single precision.
_KEPT_PAIRS = 2**24
_STREAMED_PAIRS = 2**22
# Fewer features than this are a thin matrix: its layout decides the speed of the product.
_NARROW = 32


def log_mixture(
    statistics: Tensor,
    natural: Tensor,
    log_normalizer: Tensor,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Sums the densities of all components at every datum, on the log scale.

    .. math::
        \ell_i = \log \sum_{j=1}^{M} \exp\{T_i \cdot \eta_j - A_j\}

    Both passes are matrix products. Where :math:`N M` is large, an online logsumexp runs over
    chunks of components and the backward pass computes the responsibilities
    :math:`w_{ij} = \exp\{T_i \cdot \eta_j - A_j - \ell_i\}` again, so that memory is
    O(N x chunk). Second derivatives are supported.

    :param torch.Tensor statistics: sufficient statistics :math:`T`, of shape ``[N, F]``.
    :param torch.Tensor natural: natural parameters :math:`\eta`, of shape ``[M, F]``.
    :param torch.Tensor log_normalizer: log normalisers :math:`A`, of shape ``[M]``.
    :param int chunk_size: components per chunk; by default one chunk while the pairs fit in
        memory, else as many as make four million pairs.
    :return: a tensor of shape ``[N]``.
    :raises ValueError: if the shapes disagree, there is no component, or ``chunk_size`` is not
        positive.

    Example::

        >>> x, psi = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> log_mixture(x, psi, 0.5 * psi.square().sum(-1)).shape
        torch.Size([2])
    """
    for name, x in (
        ("statistics", statistics),
        ("natural", natural),
        ("log_normalizer", log_normalizer),
    ):
        check_tensor(name, x)
        if x.dtype != statistics.dtype or not x.is_floating_point():
            raise ValueError(
                f"`{name}` must be of the floating point type that all three share, was "
                f"{x.dtype}; `statistics` was {statistics.dtype}"
            )
    if statistics.dim() != 2 or natural.dim() != 2 or statistics.shape[1] != natural.shape[1]:
        raise ValueError(
            "`statistics` and `natural` must have shapes [N, F] and [M, F], were "
            f"{tuple(statistics.shape)} and {tuple(natural.shape)}"
        )
    if len(natural) < 1:
        raise ValueError("`natural` must have at least one row (component), had none")
    if log_normalizer.shape != natural.shape[:1]:
        raise ValueError(
            f"`log_normalizer` must have shape [M] = {tuple(natural.shape[:1])}, was "
            f"{tuple(log_normalizer.shape)}"
        )
    if chunk_size is not None:
        check_integer("chunk_size", chunk_size, 1)
    num_data, num_components = len(statistics), len(natural)
    if chunk_size is None:
        if num_data * num_components <= _KEPT_PAIRS:
            chunk_size = num_components
        else:
            chunk_size = max(1, _STREAMED_PAIRS // max(1, num_data))
    with full_precision(statistics.device):
        log_sum, _, _ = _LogMixture.apply(statistics, natural, log_normalizer, chunk_size)
    return log_sum


def full_precision(device: torch.device) -> AbstractContextManager:
    """Leaves autocast: scores in half precision would be off by whole units.

    :param torch.device device: where the products are taken.
    :return: a context manager.

    Example::

        >>> with full_precision(torch.device("cpu")):
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
    """
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class _LogMixture(torch.autograd.Function):
    @staticmethod
    def forward(
        statistics: Tensor, natural: Tensor, log_normalizer: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The lowest number, not -inf: with -inf, a chunk without density would give inf - inf.
        lowest = torch.finfo(statistics.dtype).min
        best: Tensor | None = None
        total = statistics.new_zeros(())
        buffer = statistics.new_empty(len(statistics) * min(chunk_size, len(natural)))
        scores = buffer
        for rows in _chunks(len(natural), chunk_size):
            scores = _scores(statistics, natural[rows], log_normalizer[rows], buffer)
            new_best = scores.amax(-1).clamp_min_(lowest)
            if best is not None:
                new_best = torch.maximum(best, new_best)
                total = total * (best - new_best).exp()
            # Unnormalised: two passes fewer than a softmax.
            total = total + _exp_in_place(scores.sub_(new_best.unsqueeze(-1))).sum(-1)
            best = new_best
        assert best is not None
        kept = scores if chunk_size >= len(natural) else statistics.new_empty(0)
        return best + total.log(), kept, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:  # noqa: ANN401
        statistics, natural, log_normalizer, ctx.chunk_size = inputs
        log_sum, kept, total = output
        ctx.mark_non_differentiable(kept, total)
        ctx.save_for_backward(statistics, natural, log_normalizer, log_sum, kept, total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        with full_precision(grad.device):
            return (*_LogMixture._backward(ctx, grad), None)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        statistics, natural, log_normalizer, log_sum, kept, total = ctx.saved_tensors
        lowest = torch.finfo(log_sum.dtype).min  # a row without density has weights 0, not NaN
        if torch.is_grad_enabled():  # create_graph=True: differentiable operations only
            scores = statistics @ natural.mT - log_normalizer
            weights = (scores - scores.logsumexp(-1, keepdim=True).clamp_min(lowest)).exp()
            return _gradients(ctx, weights, statistics, natural, grad)
        if kept.numel():
            return _gradients(ctx, kept, statistics, natural, grad / total.clamp_min(1))
        log_sum = log_sum.clamp_min(lowest).unsqueeze(-1)
        buffer = statistics.new_empty(len(statistics) * ctx.chunk_size)
        of_rows: Any = 0 if ctx.needs_input_grad[0] else None
        # Filled in place: small results kept between large temporaries would split the heap.
        of_natural = torch.empty_like(natural)
        of_normalizer = torch.empty_like(log_normalizer)
        for rows in _chunks(len(natural), ctx.chunk_size):
            weights = _scores(statistics, natural[rows], log_normalizer[rows], buffer)
            _exp_in_place(weights.sub_(log_sum))
            parts = _gradients(ctx, weights, statistics, natural[rows], grad)
            if parts[0] is not None:
                of_rows += parts[0]
            if parts[1] is not None and parts[2] is not None:
                of_natural[rows], of_normalizer[rows] = parts[1], parts[2]
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return of_rows, None, None
        return of_rows, of_natural, of_normalizer


# Torch binds the arguments at every call, and would work out the signature each time.
_LogMixture.forward.__signature__ = inspect.signature(_LogMixture.forward)  # type: ignore[attr-defined]


def _chunks(size: int, chunk_size: int) -> Iterator[slice]:
    for start in range(0, size, chunk_size):
        yield slice(start, min(start + chunk_size, size))


def _exp_in_place(scores: Tensor) -> Tensor:
    """Takes exponentials of what is at most 0; a weight below 1e-24 (1e-200 in double) becomes 0.

    It is lost in every sum, but the gradients that it would leave turn into subnormal numbers in
    the network behind psi, which make its products several times slower. So do exponentials of
    very small and of infinite numbers: they are raised first, and their weights put to 0 after.
    """
    smallest = 0.65 * math.log(torch.finfo(scores.dtype).tiny)
    weights = scores.clamp_min_(smallest).exp_()
    return threshold(weights, 1.001 * math.exp(smallest), 0.0, inplace=True)


def _scores(statistics: Tensor, natural: Tensor, log_normalizer: Tensor, buffer: Tensor) -> Tensor:
    """The log-densities of one chunk, in memory that all chunks share."""
    out = buffer[: len(statistics) * len(natural)].view(len(statistics), len(natural))
    if statistics.shape[-1] > _NARROW:
        return torch.addmm(-log_normalizer, statistics, natural.mT, out=out)
    # As one more feature, the normaliser costs no pass of its own.
    statistics = torch.cat([statistics, torch.ones_like(statistics[:, :1])], -1)
    natural = torch.cat([natural, -log_normalizer.unsqueeze(-1)], -1)
    return torch.mm(statistics, natural.mT, out=out)


def _gradients(
    ctx: Any,  # noqa: ANN401
    weights: Tensor,
    statistics: Tensor,
    natural: Tensor,
    grad: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The two products of the backward pass, for weights that sum to grad's denominator."""
    column = grad.unsqueeze(-1)
    for_statistics = column * (weights @ natural) if ctx.needs_input_grad[0] else None
    if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        return for_statistics, None, None
    if statistics.shape[-1] > _NARROW:
        return for_statistics, weights.mT @ (column * statistics), -(grad @ weights)
    # [F + 1, N] @ [N, M]: the weights, by far the largest factor, are read as they lie.
    both = torch.cat([column * statistics, column], -1).mT @ weights
    return for_statistics, both[:-1].mT.contiguous(), -both[-1]
