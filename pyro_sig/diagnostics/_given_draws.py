"""Draws of a program's latents that stand in for a guide's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_sig._arguments import describe, is_dense
from pyro_sig.diagnostics._containers import as_tensor, check_mapping
from pyro_sig.diagnostics._program_sites import Call

Draws = Mapping[str, "Tensor | np.ndarray"]


def count_draws(argument: str, draws: Mapping[str, Tensor]) -> int:
    """Returns how many draws there are of every site, and refuses unequal numbers or none."""
    lengths = {name: len(value) if value.dim() else 0 for name, value in draws.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"`{argument}` must hold equally many draws of each site, at least 1, held {lengths}"
        )
    return next(iter(lengths.values()))


def check_tensors(argument: str, values: Draws) -> None:
    check_mapping(argument, values, "tensors")
    for name, value in values.items():
        # Data may be words.
        if not (is_dense(as_tensor(value)) or is_words(value)):
            raise ValueError(
                f"`{argument}` must hold tensors or arrays of real numbers, but {name!r} was "
                f"{describe(value)}"
            )


def is_words(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "US"


def tensors_of(argument: str, values: Any) -> dict[str, Tensor]:
    """Returns a dict of tensors or arrays of finite numbers as one of tensors.

    :raises ValueError: if it is none.
    """
    check_tensors(argument, values)
    found = {}
    for name, value in values.items():
        if is_words(value):
            raise ValueError(f"`{argument}` must hold numbers, but {name!r} was {describe(value)}")
        found[name] = tensor = as_tensor(value)
        num_bad = int((~tensor.isfinite()).sum())
        if num_bad:
            raise ValueError(
                f"`{argument}` must be finite, but {name!r} was infinite or NaN in {num_bad} of "
                f"{tensor.numel()} entries"
            )
    return found


def floating_at(value: Tensor, fn: Any) -> Tensor:
    """Makes integers floating point where a continuous law has none."""
    integers = fn.has_rsample and not value.is_floating_point()
    return value.to(torch.get_default_dtype()) if integers else value


def split_chains(
    model: Callable[..., Any], call: Call, argument: str, draws: Draws
) -> list[dict[str, Tensor]]:
    """Reads draws of shape ``[draws, *]`` or ``[chains, draws, *]``, chain by chain."""
    tensors = tensors_of(argument, draws)
    first = _FirstDraw(argument, tensors)  # which makes integers floating point
    trace: Any = call.trace(first(model))
    unknown = [n for n in tensors if n not in first.leads and n not in trace.nodes]
    observed = [n for n in tensors if n not in first.leads and n not in unknown]
    observed = [n for n in observed if not trace.nodes[n]["infer"].get("_deterministic")]
    if unknown or observed:
        raise ValueError(
            f"`{argument}` must hold draws of the latents of `model`, held "
            f"{', '.join(map(repr, unknown + observed))}"
        )
    leads = {name: lead if len(lead) == 2 else (1, *lead) for name, lead in first.leads.items()}
    if len(set(leads.values())) != 1:
        raise ValueError(
            f"`{argument}` must hold the same numbers of chains and draws of every latent, but "
            f"these were {leads}"
        )
    chains: list[dict[str, Tensor]] = [{} for _ in range(next(iter(leads.values()))[0])]
    for name, lead in leads.items():
        shape = tuple(trace.nodes[name]["value"].shape)
        for chain, value in zip(chains, tensors[name].reshape(lead + shape), strict=True):
            chain[name] = value
    return chains


class Given(ConditionMessenger):
    """Conditions on values, and refuses one of another shape before the program goes on with it.

    :param argument: that the values are an error of.
    :param values: by site.
    """

    def __init__(self, argument: str, values: Mapping[str, Tensor]) -> None:
        self.argument, self.values = argument, dict(values)
        super().__init__(self.values)

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name in self.values:
            value = self.values[name] = floating_at(self.values[name], fn)
            shape = tuple(fn.batch_shape + fn.event_shape)
            # One that is broadcast would be scored as often as it has copies.
            if value.numel() != int(np.prod(shape)):
                raise ValueError(
                    f"`{self.argument}` must hold {name!r} in its shape {shape}, but that was "
                    f"{tuple(value.shape)}"
                )
        super()._pyro_sample(msg)


class _FirstDraw(Messenger):
    """Conditions on the first of given draws, and finds what leads the shape of each.

    The site knows its own shape; what is left of it in front counts chains and draws.
    """

    def __init__(self, argument: str, draws: dict[str, Tensor]) -> None:
        super().__init__()
        self.argument = argument
        self.draws = draws
        self.leads: dict[str, tuple[int, ...]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.draws or msg["is_observed"]:
            return
        value = self.draws[name] = floating_at(self.draws[name], fn)
        shape = tuple(fn.batch_shape + fn.event_shape)
        lead = tuple(value.shape[: max(0, value.dim() - len(shape))])
        # Predictive pads what is outside of the plates by dimensions of size 1.
        lead = lead[:1] if all(size == 1 for size in lead[1:]) else lead
        if len(lead) not in (1, 2) or 0 in lead or value.numel() != int(np.prod(lead + shape)):
            raise ValueError(
                f"`{self.argument}` must hold at least one draw, of shape [draws, ...] or "
                f"[chains, draws, ...] with the shape {shape} of the site {name!r} behind, but "
                f"that was {tuple(value.shape)}"
            )
        self.leads[name] = lead
        msg["value"] = value.reshape(-1, *shape)[0]
        msg["is_observed"] = True
