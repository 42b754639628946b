"""Checks of two samples, and exact distances between them in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_sig._arguments import check_finite, check_flag, check_tensor
from pyro_sig.diagnostics._containers import as_tensor
from pyro_sig.diagnostics._streams import own_stream

__all__ = [
    "check_samples",
    "discrepancy",
    "distances",
    "median_distance",
    "row_blocks",
    "sum_over_pairs",
]

# Elements of one block of pairs: blocks that stay in a processor's cache are fastest.
_CHUNK_ELEMENTS = 2**16

# Rows that the median of the distances is taken over.
_MEDIAN_ROWS = 1000


def check_samples(
    x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y"), least: int = 1
) -> tuple[Tensor, Tensor]:
    """Returns both samples as tensors of two dimensions on x's device.

    Their dtype is one, floating and of at least single precision.
    """
    x, y = (_check_sample(name, as_tensor(s)) for name, s in zip(names, (x, y), strict=True))
    for name, sample in zip(names, (x, y), strict=True):
        if len(sample) < least:
            raise ValueError(f"`{name}` must have at least {least} rows, had {len(sample)}")
        check_finite(name, sample)
    x, y = (sample.unsqueeze(-1) if sample.dim() == 1 else sample for sample in (x, y))
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"`{names[1]}` must have as many columns as `{names[0]}`, {x.shape[1]}, "
            f"had {y.shape[1]}"
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    dtype = torch.promote_types(dtype, torch.float32)  # torch has no half cdist
    return x.to(dtype), y.to(device=x.device, dtype=dtype)


def _check_sample(name: str, sample: Any) -> Tensor:  # noqa: ANN401
    must_be = "a tensor of shape [count, D] or [count] and not empty, of real numbers"
    if isinstance(sample, Tensor) and sample.dim() > 2:
        must_be += f" (pass {name}.flatten(1), or features of it)"
    return check_tensor(name, sample, must_be, lambda s: s.dim() in (1, 2) and 0 not in s.shape)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances from differences, shape ``[n, m]``."""
    # The matrix-product form gives near points distances that are rounding noise.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def row_blocks(num_rows: int, num_columns: int, elements: int) -> list[slice]:
    """Cuts rows into blocks of about ``elements`` pairs."""
    rows = max(1, elements // num_columns)
    return [slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def sum_over_pairs(
    pairwise: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor | None = None
) -> Tensor:
    """Sums ``pairwise(x_i, y_j)`` over all pairs, in double and in the memory of one block.

    :param pairwise: symmetric; takes ``[r, D]`` and ``[c, D]`` to ``[r, c]``.
    :param x: shape ``[n, D]``.
    :param y: shape ``[m, D]``. Without it all :math:`n^2` pairs of rows of x are summed, each
        evaluated once.
    """
    return _SumOverPairs.apply(pairwise, x, y)


class _SumOverPairs(torch.autograd.Function):
    """Goes through the blocks once more for the gradient: a graph would hold all pairs."""

    @staticmethod
    def forward(
        ctx: Any,
        pairwise: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        y: Tensor | None,
    ) -> Tensor:
        ctx.pairwise = pairwise
        ctx.save_for_backward(x, y)
        total = torch.zeros((), dtype=torch.double, device=x.device)
        for rows in row_blocks(len(x), len(x if y is None else y), _CHUNK_ELEMENTS):
            columns = x[rows.start :] if y is None else y
            total += _block_sum(pairwise, x[rows], columns, within=y is None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor | None]:
        x, y = ctx.saved_tensors
        of_x = torch.zeros_like(x)
        of_y = of_x if y is None else torch.zeros_like(y)
        for rows in row_blocks(len(x), len(x if y is None else y), _CHUNK_ELEMENTS):
            columns = x[rows.start :] if y is None else y
            of_columns = of_y[rows.start :] if y is None else of_y
            with torch.enable_grad():
                leaves = x[rows].detach().requires_grad_(), columns.detach().requires_grad_()
                total = _block_sum(ctx.pairwise, leaves[0], leaves[1], within=y is None)
                parts = torch.autograd.grad(total, leaves)
            of_x[rows] += parts[0]
            of_columns += parts[1]
        scale = gradient.to(x.dtype)
        return None, scale * of_x, None if y is None else scale * of_y


def _block_sum(
    pairwise: Callable[[Tensor, Tensor], Tensor], rows: Tensor, columns: Tensor, within: bool
) -> Tensor:
    values = pairwise(rows, columns)
    total = values.sum(-1).double().sum()
    if within:  # columns begin with rows: what comes after them counts for both triangles
        total = 2 * total - values[:, : len(rows)].sum(-1).double().sum()
    return total


def discrepancy(
    kernel: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    unbiased: bool,
    at_zero: float,
) -> Tensor:
    """Estimates E k(X, X') + E k(Y, Y') - 2 E k(X, Y), in double.

    :param kernel: as ``pairwise`` of :func:`sum_over_pairs`.
    :param x: shape ``[n, D]``.
    :param y: shape ``[m, D]``.
    :param unbiased: leave the pairs of a row with itself out.
    :param at_zero: the kernel of a row with itself.
    """
    check_flag("unbiased", unbiased)
    n, m = len(x), len(y)
    if unbiased and min(n, m) < 2:
        raise ValueError(
            f"`unbiased` needs at least 2 rows in `x` and in `y`, but these had {n} and {m}"
        )
    itself, within = (at_zero, 1) if unbiased else (0.0, 0)
    return (
        (sum_over_pairs(kernel, x) - n * itself) / (n * (n - within))
        + (sum_over_pairs(kernel, y) - m * itself) / (m * (m - within))
        - 2 * sum_over_pairs(kernel, x, y) / (n * m)
    )


def median_distance(x: Tensor, y: Tensor) -> float:
    """Median distance between rows of the pooled sample, on a random subsample of a large one.

    It does not depend on which rows are x's, so that a permutation test may use it.
    """
    with torch.no_grad():
        pooled = torch.cat([x, y])
        if len(pooled) > _MEDIAN_ROWS:
            # The rows in an order that is a function of the set of rows, then a fixed choice.
            generator = own_stream("median distance", 0)
            direction = torch.randn(pooled.shape[1], generator=generator, dtype=torch.double)
            order = (pooled * direction.to(pooled.device)).sum(-1).argsort()
            chosen = torch.randperm(len(pooled), generator=generator)[:_MEDIAN_ROWS]
            pooled = pooled[order[chosen.to(order.device)]]
        upper = torch.triu_indices(len(pooled), len(pooled), 1, device=pooled.device)
        pairs = distances(pooled, pooled)[upper[0], upper[1]]
        median = float(pairs.median())
        if median > 0:
            return median
        # More than half of the pairs coincide: counts, or a collapsed sample.
        positive = pairs[pairs > 0]
        return float(positive.mean()) if len(positive) else 1.0
