"""One look at the programs before a search or a training that would take them as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape

from pyro_sig._arguments import describe
from pyro_sig._random_state import preserved_random_state
from pyro_sig.diagnostics._own_draws import OwnDraws
from pyro_sig.distributions import SemiImplicit
from pyro_sig.infer._bad_site import describe_bad_site
from pyro_sig.infer._paired_traces import paired_traces

__all__ = ["check_programs", "check_start"]


@torch.no_grad()
def check_programs(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[str]:
    """Checks that a guide has latents of its model only, and that the model scores its draw.

    :param callable model: the model.
    :param callable guide: its guide, set up.
    :param tuple args: arguments of both.
    :param dict kwargs: keyword arguments of both.
    :return: the latents that the guide leaves to the model.
    :raises ValueError: names the site.
    """
    with preserved_random_state(), poutine.block():
        trace, drawn = paired_traces(model, guide, args, kwargs)
        guided, latent = _latents(drawn), _latents(trace)
        for name, site in guided.items():
            if name not in latent and not site["infer"].get("is_auxiliary"):
                raise ValueError(
                    "`guide` must draw latents of `model` or auxiliary sites only, drew "
                    f"{name!r}, which is no latent of `model`"
                )
        _score(trace, searched=None)
        if is_validation_enabled():
            _check_shapes(trace)
        _check_finite(trace)
    return [name for name in latent if name not in guided]


@torch.no_grad()
def check_start(
    model: Callable[..., Any],
    latents: Trace,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Trace, bool]:
    """Checks that a model can be scored where a search begins.

    A value outside of a support is let pass: there are other starts.

    :param callable model: the model.
    :param Trace latents: of its latents at the start.
    :param tuple args: arguments of the model.
    :param dict kwargs: keyword arguments of the model.
    :return: a trace of the model there, and whether it draws anything of its own, such as a
        latent that is hidden from the search. Subsamples do not count, nor the noise of a density
        that is estimated.
    :raises ValueError: names the site.
    """
    values: dict[str, Any] = {name: site["value"] for name, site in latents.iter_stochastic_nodes()}
    program = poutine.condition(model, data=values)
    strict = is_validation_enabled()
    with preserved_random_state(), poutine.block(), pyro.validation_enabled(False):
        first = _scored_run(program, 0, args, kwargs, values)
        if strict:
            _check_shapes(first)
        same_rows = poutine.replay(program, trace=first)
        second = _scored_run(same_rows, 1, args, kwargs, values)
    return first, not _alike(first, second)


class _DrawsWhenScored(OwnDraws):
    """Gives every semi-implicit site fresh psi that are drawn when it is scored."""

    def __init__(self) -> None:
        super().__init__(1)

    def _with_own_draws(self, fn: Any) -> Any:
        if isinstance(fn, SemiImplicit):
            return fn.with_draws(fn.num_mixing)
        return super()._with_own_draws(fn)


def _sample_sites(trace: Trace) -> dict[str, Any]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def _latents(trace: Trace) -> dict[str, Any]:
    return {
        name: site
        for name, site in _sample_sites(trace).items()
        if not site["is_observed"] and site["value"].numel() > 0  # a factor has none
    }


def _scored_run(
    program: Callable[..., Any],
    seed: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    latents: Collection[str],
) -> Trace:
    torch.manual_seed(seed)
    with _DrawsWhenScored():
        trace = poutine.trace(program).get_trace(*args, **kwargs)
    torch.manual_seed(0)  # the noise of an estimate is the same in every run
    _score(trace, latents)
    return trace


def _score(trace: Trace, searched: Collection[str] | None) -> None:
    """Scores all sites that have a density, and all of them where latents are searched."""
    for name, site in _sample_sites(trace).items():
        try:
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            log_prob = scale_and_mask(log_prob, site["scale"], site["mask"])
        except torch.OutOfMemoryError:
            raise
        except NotImplementedError as error:
            if searched is None:
                continue
            kind, remedy = "site", ""
            if name in searched:
                kind = "latent"
                remedy = (
                    "leave the site to SIG_ELBO (hide it from this guide with poutine.block), "
                    "sample it from a SemiImplicit, or "
                )
            raise ValueError(
                f"`model` must have a density at every {kind} for find_scale=True, had none at "
                f"site {name!r}: {remedy}pass find_scale=False"
            ) from error
        except Exception as error:  # whatever a law says of a value
            raise ValueError(
                f"`model` must have a density at every site, but that of site {name!r} cannot be "
                f"had for {describe(site['value'])}: {error}"
            ) from error
        site["log_prob"] = torch.as_tensor(log_prob)


def _check_shapes(trace: Trace) -> None:
    for site in _sample_sites(trace).values():
        if "log_prob" not in site:
            continue
        try:
            check_site_shape(site, math.inf)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(
                "`model` must have a plate for every dimension of its densities, but "
                f"{error}\nThe value there is {describe(site['value'])}: data of shape [N, 1] "
                "against a law of shape [N] make a density of shape [N, N]"
            ) from error


def _check_finite(trace: Trace) -> None:
    for name, site in _sample_sites(trace).items():
        if "log_prob" in site and not bool(site["log_prob"].isfinite().all()):
            found = describe_bad_site(trace, "model")
            found = found or f"the log-density of site {name!r} of the model is not finite"
            raise ValueError(
                f"`model` must have a finite log-density at the draws of `guide`, but {found}"
            )


def _alike(first: Trace, second: Trace) -> bool:
    """Whether two traces have the same densities, but for rounding."""
    one, other = _sample_sites(first), _sample_sites(second)
    if one.keys() != other.keys():
        return False
    for name, site in one.items():
        here, there = site["log_prob"], other[name]["log_prob"]
        if here.shape != there.shape or not torch.allclose(
            here, there, rtol=1e-4, atol=1e-4, equal_nan=True
        ):
            return False
    return True
