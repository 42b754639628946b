"""Rows of data that a function of draws closes over: as many draws would be paired with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_sig._functions import tensors_closed_over
from pyro_sig._program_run import modules_run
from pyro_sig._random_state import preserved_random_state

__all__ = ["ROWS_OF_CONDITIONAL", "THROUGH_INPUTS", "check_closure", "fixed_tensors"]

THROUGH_INPUTS = "what it depends on besides the noise goes through `inputs`"
ROWS_OF_CONDITIONAL = (
    "what differs between rows goes into psi through Implicit(inputs=), or psi is a site of its "
    "own, which SIG_ELBO sums out"
)

_INDEX_TYPES = (torch.int32, torch.int64)


def fixed_tensors(transform: object, size: int | None = None) -> list[Tensor]:
    """Finds what a Python function closes over without training it.

    :param transform: what was passed.
    :param size: only tensors that have a dimension of that size.
    """
    tensors = tensors_closed_over(transform)
    if size is not None:
        tensors = [x for x in tensors if size in x.shape]
    # Pyro marks what its constrained parameters were made of.
    return [
        x for x in tensors if not ((x.is_leaf and x.requires_grad) or hasattr(x, "unconstrained"))
    ]


def check_closure(
    name: str,
    function: Callable[..., Any],
    draws: Tensor,
    num_sample_dims: int,
    shape: torch.Size,
    shape_of: Callable[[Any], torch.Size],
    remedy: str,
) -> None:
    """Notices that draws are paired with the rows of a tensor that is closed over.

    The batch dimensions are left alone: there a draw for each row is what is wanted.

    :param str name: the argument's name.
    :param function: a function of the draws alone, which has taken these.
    :param torch.Tensor draws: of shape ``[*shape, *event_shape]``.
    :param int num_sample_dims: how many leftmost dimensions are draws.
    :param shape: sample and batch shape.
    :param shape_of: the same of what the function returns.
    :param str remedy: what to do instead.
    :raises ValueError: if it does so.
    """
    for dim in range(num_sample_dims):
        size = shape[dim]
        if size == 1:
            continue
        rows = fixed_tensors(function, size)
        if not rows:
            continue
        fewer = 1 if size == 2 else 2
        if draws.device.type != "cpu":  # where an index past the end is the end of the process
            indices = [x for x in tensors_closed_over(function) if x.dtype in _INDEX_TYPES]
            fewer = max([fewer, *(int(x.max()) + 1 for x in indices if x.numel())])
        if fewer >= size:
            continue
        # Rows fit neither fewer draws nor more. A slice of atoms fits fewer, a statistic of the
        # draws more.
        with torch.no_grad():
            fits = _fits(function, draws.narrow(dim, 0, fewer), shape, shape_of, dim)
        if not fits and not _fits(function, torch.cat([draws] * 2, dim), shape, shape_of, dim):
            raise ValueError(
                f"`{name}` must take any number of draws, but pairs {size} draws with the "
                f"{size} rows of a tensor of shape {tuple(rows[0].shape)} that it closes over: "
                f"{remedy}"
            )


def _fits(
    function: Callable[..., Any],
    draws: Tensor,
    shape: torch.Size,
    shape_of: Callable[[Any], torch.Size],
    dim: int,
) -> bool:
    """Tells whether the function takes that many draws, and leaves no other trace."""
    with preserved_random_state(), modules_run(), poutine.block():
        try:
            result = function(draws)
        except RuntimeError:
            return False
        except (IndexError, ValueError):  # an index of draws, a statistic of too few
            return True
    return shape_of(result) == (*shape[:dim], draws.shape[dim], *shape[dim + 1 :])
