"""Draws in the place of data among the arguments of programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pyro_sig.adversarial._units import Run, observed_sites

__all__ = ["Substitute", "substitutes", "with_draws"]


class Substitute(NamedTuple):
    """A draw and the data that it stands for."""

    data: Any
    draw: Tensor


def substitutes(run: Run) -> dict[str, Substitute]:
    """Returns data and draws of all observed sites.

    :param run: of a program whose observations were released.
    """
    return {
        name: Substitute(site["infer"]["obs"], site["value"])
        for name, site in observed_sites(run).items()
    }


def with_draws(
    args: tuple, kwargs: Mapping[str, Any], draws: Mapping[str, Substitute]
) -> tuple[tuple, dict[str, Any]]:
    """Puts draws in the place of the data among a program's arguments.

    The data are looked for among the arguments, and in lists, tuples and dictionaries there.

    :param args: arguments of the program that was run.
    :param kwargs: its keyword arguments.
    :param draws: what :func:`substitutes` returned.
    :return: the arguments with draws.
    :raises ValueError: if the data of a site are no argument.
    """
    missing = set(draws)

    def replaced(item: Any) -> Any:  # noqa: ANN401
        for name, (data, draw) in draws.items():
            if item is data or _same_memory(item, data):
                missing.discard(name)
                return draw
        if isinstance(item, Mapping):
            return {key: replaced(value) for key, value in item.items()}
        if type(item) in (list, tuple):
            return type(item)(map(replaced, item))
        return item

    new_args, new_kwargs = replaced(tuple(args)), replaced(dict(kwargs))
    if missing:
        raise ValueError(
            "`model` must observe arguments of its own, pyro.sample(name, ..., obs=x) with x an "
            "argument, so that draws can take their place, but the data of "
            f"{sorted(missing)} are no argument: neither a subsample nor a transform will do"
        )
    return new_args, new_kwargs


def _same_memory(item: Any, data: Any) -> bool:  # noqa: ANN401
    """Tells whether two tensors are one, such as a tensor and a view of all of it."""
    if not (isinstance(item, Tensor) and isinstance(data, Tensor)):
        return False
    same = item.shape == data.shape and item.stride() == data.stride() and item.dtype == data.dtype
    return same and item.numel() > 0 and item.data_ptr() == data.data_ptr()
