"""The log-density of a program's latents in unconstrained space, for many points at once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

__all__ = ["unconstrained_log_density"]


@contextlib.contextmanager
def _frozen_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Every call sees the same subsample and the same inner noise; the caller's stream stays."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _sum_particles(log_prob: Tensor, particle_dim: int | None, latent: Tensor) -> Tensor:
    """Sums over all but the particles; over everything without any."""
    if particle_dim is None:
        return log_prob.sum()
    if log_prob.dim() < -particle_dim:  # the same for all particles
        return log_prob.sum().expand(len(latent))
    return log_prob.reshape(log_prob.shape[0], -1).sum(-1).expand(len(latent))


def unconstrained_log_density(
    model: Callable[..., Any],
    unpack: Callable[[Tensor], Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int = 0,
    particle_dim: int | None = None,
) -> Callable[[Tensor], Tensor]:
    """Builds the batched log-density of all latents, transforms included.

    Randomness inside the program, such as the choice of a subsample, is frozen.

    :param callable model: the program.
    :param callable unpack: unconstrained vector -> pairs of a prototype site and its part.
    :param tuple args: arguments of the program.
    :param dict kwargs: keyword arguments of the program.
    :param int seed: of the frozen randomness.
    :param int particle_dim: run the program once for all points, in a plate at this dimension,
        as the vectorised objectives of Pyro do, instead of mapping it over them.
    :return: a function of ``[B, D]`` that returns ``[B]``.
    """

    def conditioned(latent: Tensor) -> tuple[poutine.Trace, Tensor]:
        values, log_volume = {}, latent.new_zeros(())
        for site, unconstrained in unpack(latent):
            transform = biject_to(site["fn"].support)
            values[site["name"]] = value = transform(unconstrained)
            log_det = transform.log_abs_det_jacobian(unconstrained, value)
            log_volume = log_volume + _sum_particles(log_det, particle_dim, latent)
        with poutine.block():
            trace = poutine.trace(poutine.condition(model, data=values))
            if particle_dim is None:
                return trace.get_trace(*args, **kwargs), log_volume
            with pyro.plate("_particles", len(latent), dim=particle_dim):
                return trace.get_trace(*args, **kwargs), log_volume

    def one(latent: Tensor) -> Tensor:
        trace, log_volume = conditioned(latent)
        return trace.log_prob_sum() + log_volume

    if particle_dim is not None:

        def together(latent: Tensor) -> Tensor:
            shaped = latent.reshape(len(latent), *(1,) * (-1 - particle_dim), latent.shape[-1])
            with _frozen_randomness(seed, latent.device), pyro.validation_enabled(False):
                trace, log_p = conditioned(shaped)
                trace.compute_log_prob()
            for site in trace.nodes.values():
                if site["type"] == "sample" and not site_is_subsample(site):
                    log_p = log_p + _sum_particles(site["log_prob"], particle_dim, latent)
            return log_p

        return together

    batched = torch.func.vmap(one, randomness="same")
    state = {"vectorized": True}

    def log_density(latent: Tensor) -> Tensor:
        with _frozen_randomness(seed, latent.device), pyro.validation_enabled(False):
            if state["vectorized"]:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # about slow batching rules
                        return batched(latent)
                except (RuntimeError, ValueError, TypeError, NotImplementedError):
                    state["vectorized"] = False  # the program looks at values: one by one
            out = []
            for row in latent:
                with _frozen_randomness(seed, latent.device):
                    out.append(one(row))
            return torch.stack(out)

    log_density.state = state  # type: ignore[attr-defined]
    return log_density
