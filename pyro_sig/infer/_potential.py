"""The log-density of a program's latents in unconstrained space, for many points at once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
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


def unconstrained_log_density(
    model: Callable[..., Any],
    unpack: Callable[[Tensor], Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int = 0,
) -> Callable[[Tensor], Tensor]:
    """Builds the batched log-density of all latents, transforms included.

    Randomness inside the program, such as the choice of a subsample, is frozen.

    :param callable model: the program.
    :param callable unpack: unconstrained vector -> pairs of a prototype site and its part.
    :param tuple args: arguments of the program.
    :param dict kwargs: keyword arguments of the program.
    :param int seed: of the frozen randomness.
    :return: a function of ``[B, D]`` that returns ``[B]``.
    """

    def one(latent: Tensor) -> Tensor:
        values, log_volume = {}, latent.new_zeros(())
        for site, unconstrained in unpack(latent):
            transform = biject_to(site["fn"].support)
            values[site["name"]] = value = transform(unconstrained)
            log_volume = log_volume + transform.log_abs_det_jacobian(unconstrained, value).sum()
        with poutine.block():
            trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs)
            log_p = trace.log_prob_sum()
        return log_p + log_volume

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

    return log_density
