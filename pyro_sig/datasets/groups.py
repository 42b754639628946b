"""Groups of unequal size as one rectangle and a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_sig._arguments import check_tensor, refusal

__all__ = ["pad_groups"]


def pad_groups(groups: Tensor, *values: Tensor, fill: float = 0.0) -> tuple[Tensor, ...]:
    r"""Lay rows that name their group out as [observation, group].

    .. math::

        y_{jg} = \text{value of the } j\text{-th row of group } g, \qquad
        m_{jg} = 1 \text{ if there is one}

    Nested plates, groups inside of observations from the left, take such a rectangle, with
    ``poutine.mask(mask=mask)`` around what is observed.

    :param groups: numbers from 0 to G - 1, shape ``[N]``.
    :param values: tensors of shape ``[N, *]``.
    :param float fill: what stands where there is no row; it must lie in the support of the data,
        and does not matter otherwise.
    :return: the mask, of shape ``[J, G]`` with J the size of the largest group, then each of the
        values in shape ``[J, G, *]``, rows of a group in their order.
    :raises ValueError: if `groups` does not hold such numbers, or a tensor has another length.

    **Source:** no data; a layout.

    Example::

        >>> mask, y = pad_groups(torch.tensor([0, 1, 0]), torch.tensor([1.0, 2.0, 3.0]))
        >>> mask
        tensor([[ True,  True],
                [ True, False]])
        >>> y
        tensor([[1., 2.],
                [3., 0.]])
    """
    check_tensor("groups", groups)
    here = groups.device
    for value in values:
        check_tensor("values", value, f"dense tensors on {here}", lambda v: v.device == here)
    if (
        groups.dim() != 1
        or not len(groups)
        or groups.is_floating_point()
        or groups.dtype == torch.bool
    ):
        raise ValueError(
            "`groups` must hold integers in shape [N], not empty, was "
            f"{groups.dtype} in shape {tuple(groups.shape)}"
        )
    if groups.min() < 0:
        raise ValueError(f"`groups` must not be negative, was {int(groups.min())} in some row")
    lengths = [tuple(value.shape) for value in values]
    if any(not shape or shape[0] != len(groups) for shape in lengths):
        raise ValueError(f"`values` must have {len(groups)} rows, had shapes {lengths}")
    if not isinstance(fill, (int, float)):
        raise refusal("fill", "a number", fill)
    if not float(fill).is_integer() and any(not value.is_floating_point() for value in values):
        raise refusal("fill", "an integer where values are", fill)
    sizes = torch.bincount(groups)
    order = groups.argsort(stable=True)
    start = sizes.cumsum(0) - sizes
    column = groups[order]
    row = torch.arange(len(groups), device=groups.device) - start[column]
    mask = torch.zeros(int(sizes.max()), len(sizes), dtype=torch.bool, device=groups.device)
    mask[row, column] = True
    padded = []
    for value in values:
        laid = value.new_full((*mask.shape, *value.shape[1:]), fill)
        laid[row, column] = value[order]
        padded.append(laid)
    return mask, *padded
