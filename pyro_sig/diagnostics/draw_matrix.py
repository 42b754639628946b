"""Draws by site as the rows of one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import describe, is_dense
from pyro_sig.diagnostics._containers import as_tensor, check_names
from pyro_sig.diagnostics._given_draws import count_draws

__all__ = ["draw_matrix"]


def draw_matrix(draws: Any, sites: Sequence[str] | None = None) -> Tensor:
    """Lays draws out as a matrix, a row for each draw and a column for each scalar.

    Distances and two-sample tests take such a matrix. Columns of different units want to be
    standardised first, by the spread of one of the samples.

    :param draws: a dict of tensors or arrays of shape ``[S, *]`` by site, as :func:`draws_from`
        and ``mcmc.get_samples()`` return; or what :func:`to_inference_data` returns, of which the
        posterior is taken, all chains one after the other.
    :param sites: which, in which order; by default all, sorted by name.
    :return: a tensor of shape ``[S, D]``.
    :raises ValueError: if a site is missing, there is none, or their numbers of draws differ.

    Example::

        >>> draw_matrix({"b": torch.zeros(10, 2, 3), "a": torch.ones(10)}).shape
        torch.Size([10, 7])
    """
    if isinstance(draws, Mapping) and all(
        isinstance(x, Tensor | np.ndarray) for x in draws.values()
    ):
        given = draws
    elif isinstance(draws, dict) and "posterior" not in draws:
        given = draws  # by site, though not all are tensors
    else:
        given = _posterior(draws)
    if not given:
        raise ValueError("`draws` must hold draws of at least one site, was empty")
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        if not is_dense(as_tensor(value)):
            raise ValueError(
                f"`draws` must hold tensors of real numbers, but {name!r} was {describe(value)}"
            )
        found[name] = as_tensor(value).detach()
    names = sorted(found) if sites is None else check_names("sites", sites)
    missing = [name for name in names if name not in found]
    if missing or not names:
        raise ValueError(f"`sites` must be among {sorted(found)}, and not empty, was {names}")
    count = count_draws("draws", {name: found[name] for name in names})
    matrix = torch.cat([found[name].reshape(count, -1) for name in names], -1)
    if not matrix.numel():
        raise ValueError(f"`draws` must hold a scalar for each draw, but {names} were empty")
    return matrix


def _posterior(data: Any) -> dict[str, np.ndarray]:
    try:
        group = data["posterior"]
        arrays = {str(name): group[name].values for name in group.data_vars}
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(
            "`draws` must be a dict of tensors or arrays by site, or hold a posterior as "
            f"to_inference_data returns it, was {describe(data)}"
        ) from None
    return {name: values.reshape(-1, *values.shape[2:]) for name, values in arrays.items()}
