"""Draws of the latents of a Pyro program, as tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_sig._arguments import check_integer
from pyro_sig._functions import check_callable
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._guide_parameters import refuse_foreign_parameters
from pyro_sig.diagnostics._program_sites import scored_sites

__all__ = ["draws_from"]


def draws_from(
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    progress: bool | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    r"""Draws from a guide, site by site.

    .. math::
        z^{(1)}, \ldots, z^{(S)} \sim q(z)

    The guide runs once for each draw, so it may be any program; what it observes, its
    deterministic sites and its auxiliary ones are left out.

    :param callable guide: a Pyro program without observations.
    :param args: arguments of the guide.
    :param int num_samples: the number S of draws.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :param kwargs: keyword arguments of the guide.
    :return: a dict of tensors of shape ``[S, *]``, with \* the shape of the site in one run.
    :raises ValueError: if ``num_samples`` is not a positive integer, the guide is not callable or
        would read another guide's parameters from the param store, or it draws no site, or not
        the same sites of the same shapes in every run.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
        >>> draws_from(guide, torch.zeros(3), num_samples=10)["z"].shape
        torch.Size([10, 3])
    """
    check_integer("num_samples", num_samples, 1)
    check_callable("guide", guide)
    refuse_foreign_parameters(guide)
    runs: list[dict[str, Tensor]] = []
    with Progress(progress, num_samples, "draws") as bar, torch.no_grad(), poutine.block():
        for _ in range(num_samples):
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            runs.append(dict(_latents(trace)))
            bar.update()
    shapes = [{name: tuple(value.shape) for name, value in run.items()} for run in runs]
    if not shapes[0]:
        raise ValueError("`guide` must draw at least one site, drew none")
    for other in shapes:
        if other != shapes[0]:
            raise ValueError(
                "`guide` must draw the same sites of the same shapes in every run, "
                f"drew {shapes[0]} and {other}"
            )
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _latents(trace: Trace) -> Iterator[tuple[str, Tensor]]:
    for name, site in scored_sites(trace):
        if not (site["is_observed"] or site["infer"].get("is_auxiliary")):
            yield name, site["value"].detach()
