"""Rows of data that a transform of noise closes over: as many draws would be paired with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro import poutine
from torch import Tensor

from pyro_sig._functions import tensors_closed_over
from pyro_sig._program_run import modules_run
from pyro_sig._random_state import preserved_random_state

__all__ = ["THROUGH_INPUTS", "check_closure", "fixed_tensors"]

THROUGH_INPUTS = "what it depends on besides the noise goes through `inputs`"

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
    transform: Callable[..., Tensor],
    noise: Tensor,
    num_sample_dims: int,
    shape: torch.Size,
    event_shape: torch.Size,
) -> None:
    """Notices that draws of noise are paired with the rows of a tensor that is closed over.

    The batch dimensions are left alone: there a draw for each row is what is wanted.

    :param transform: a function of the noise alone, which has taken this noise.
    :param torch.Tensor noise: of shape ``[*shape, *noise_event_shape]``.
    :param int num_sample_dims: how many leftmost dimensions are draws.
    :param shape: sample and batch shape.
    :param event_shape: what the transform returns of one draw.
    :raises ValueError: if it does so.
    """
    for dim in range(num_sample_dims):
        size = shape[dim]
        if size == 1:
            continue
        rows = fixed_tensors(transform, size)
        if not rows:
            continue
        fewer = 1 if size == 2 else 2
        if noise.device.type != "cpu":  # where an index past the end is the end of the process
            indices = [x for x in tensors_closed_over(transform) if x.dtype in _INDEX_TYPES]
            fewer = max([fewer, *(int(x.max()) + 1 for x in indices if x.numel())])
        if fewer >= size:
            continue
        # Rows fit neither fewer draws nor more. A slice of atoms fits fewer, a statistic of the
        # draws more.
        with torch.no_grad():
            fits = _fits(transform, noise.narrow(dim, 0, fewer), shape, event_shape, dim)
        if not fits and not _fits(transform, torch.cat([noise] * 2, dim), shape, event_shape, dim):
            raise ValueError(
                f"`transform` must take any number of draws, but pairs {size} draws with the "
                f"{size} rows of a tensor of shape {tuple(rows[0].shape)} that it closes over: "
                f"{THROUGH_INPUTS}"
            )


def _fits(
    transform: Callable[..., Tensor],
    noise: Tensor,
    shape: torch.Size,
    event_shape: torch.Size,
    dim: int,
) -> bool:
    """Tells whether the transform takes that many draws, and leaves no other trace."""
    with preserved_random_state(), modules_run(), poutine.block():
        try:
            psi = transform(noise)
        except RuntimeError:
            return False
        except (IndexError, ValueError):  # an index of draws, a statistic of too few
            return True
    return psi.shape == (*shape[:dim], noise.shape[dim], *shape[dim + 1 :], *event_shape)
