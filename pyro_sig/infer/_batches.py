"""The arguments of every step, from a tensor, a function or an iterable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyro_sig._arguments import refusal
from pyro_sig._functions import is_function
from pyro_sig._random_state import random_state, set_random_state
from pyro_sig.infer._fingerprint import fingerprint

__all__ = ["Arguments", "Cycle", "Fixed", "arguments_of"]


class Arguments(NamedTuple):
    """Those of a step; a batch that is one is used as it is."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def as_arguments(batch: Any) -> Arguments:
    if isinstance(batch, Arguments):
        return batch
    if isinstance(batch, (tuple, list)):
        return Arguments(tuple(batch), {})
    if isinstance(batch, Mapping):
        return Arguments((), dict(batch))
    return Arguments((batch,), {})


def arguments_of(batches: Any) -> Callable[[int], Arguments]:
    """Turns ``batches`` into a function from the step number to that step's arguments."""
    if isinstance(batches, (Tensor, np.ndarray, tuple, Mapping)):
        return Fixed(as_arguments(batches))
    if hasattr(batches, "__iter__") and not isinstance(batches, (str, bytes)):
        return Cycle(batches)
    if is_function(batches) and not isinstance(batches, nn.Module):
        return lambda step: as_arguments(batches(step))
    raise refusal(
        "batches",
        "a tensor, a tuple or dict of arguments, an iterable of batches or a callable of the step "
        "number",
        batches,
    )


def _check_data(own: str | None, saved: str | None) -> None:
    if own is not None and saved is not None and own != saved:
        raise ValueError(
            "`batches` must be the data of the run whose checkpoint this is, had other shapes, "
            "types or values: pass another folder for another run"
        )


class Fixed:
    """The same arguments at every step."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._data: str | None = None

    def __call__(self, step: int) -> Arguments:
        return self._arguments

    def _fingerprint(self) -> str:
        if self._data is None:
            self._data = fingerprint(self._arguments)
        return self._data

    def state_dict(self) -> dict[str, Any]:
        return {"data": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _check_data(self._fingerprint(), state.get("data"))


class Cycle:
    """Goes through an iterable again and again."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._iterator: Iterator[Any] | None = None
        self._consumed = 0  # of this pass
        self._tracked = False
        self._begun: dict[str, Any] = {}  # the random states where this pass began
        self._data: str | None = None

    def __call__(self, step: int) -> Arguments:
        for _ in range(2):
            if self._iterator is None:
                self._begin()
            assert self._iterator is not None
            try:
                batch = next(self._iterator)
            except StopIteration:
                ended, self._iterator = self._iterator, None
                again = iter(self._batches) if self._is_iterator() else None
                if again is ended:
                    raise ValueError(
                        f"`batches` must yield a batch for every step, was an iterator that was "
                        f"exhausted at step {step}: pass the iterable that it came from, which "
                        "can be begun again"
                    ) from None
            else:
                self._consumed += 1
                return as_arguments(batch)
        raise ValueError(
            f"`batches` must yield a batch, was empty at step {step}; are there rows, and as many "
            "as a batch of drop_last?"
        )

    def _is_iterator(self) -> bool:
        return hasattr(self._batches, "__next__")

    def _begin(self) -> None:
        if self._tracked:
            generators = [g.get_state() for g in self._generators()]
            self._begun = {
                "random_state": random_state(),
                "generators": generators,
                "epochs": self._epochs(),
            }
        self._iterator = iter(self._batches)
        self._consumed = 0

    # A pass is saved as its beginning and the number of batches taken.

    def track(self) -> None:
        """Notes the random states of every beginning, which a state needs."""
        self._tracked = True

    def state_dict(self) -> dict[str, Any]:
        data = {} if self._fingerprint() is None else {"data": self._data}
        # A callback may have set the epoch of the pass that comes next.
        epochs = self._epochs()
        return {"consumed": self._consumed, "begun": self._begun, "epochs": epochs, **data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _check_data(self._fingerprint(), state.get("data"))
        if not state["begun"]:
            return
        for generator, saved in zip(self._generators(), state["begun"]["generators"], strict=True):
            generator.set_state(saved)
        set_random_state(state["begun"]["random_state"])
        self._set_epochs(state["begun"]["epochs"])
        self._begin()
        assert self._iterator is not None
        for _ in range(state["consumed"]):
            try:
                next(self._iterator)
            except StopIteration:
                raise ValueError(
                    f"`batches` must yield the {state['consumed']} batches that the saved run took "
                    f"of it, had {self._consumed}"
                ) from None
            self._consumed += 1
        self._set_epochs(state["epochs"])

    def _epochs(self) -> list[int]:
        return [sampler.epoch for sampler in self._epoch_samplers()]

    def _set_epochs(self, epochs: list[int]) -> None:
        for sampler, epoch in zip(self._epoch_samplers(), epochs, strict=True):
            sampler.set_epoch(epoch)

    def _epoch_samplers(self) -> list[Any]:
        """Those whose order is that of their epoch, as a DistributedSampler's."""
        return [
            holder
            for holder in (self._batches, *self._samplers())
            if callable(getattr(holder, "set_epoch", None))
            and isinstance(getattr(holder, "epoch", None), int)
        ]

    def _samplers(self) -> list[Any]:
        """Those of a DataLoader, outermost first."""
        loader: Any = self._batches
        samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
        samplers += [getattr(samplers[1], "sampler", None)]
        return list({id(sampler): sampler for sampler in samplers}.values())

    def _fingerprint(self) -> str | None:
        """That of tensors which are there to be looked at, as those of a TensorDataset are."""
        dataset = getattr(self._batches, "dataset", self._batches)
        tensors = getattr(dataset, "tensors", dataset)
        if self._data is None and isinstance(tensors, (Tensor, np.ndarray, tuple, list)):
            self._data = fingerprint(tensors)
        return self._data

    def _generators(self) -> list[torch.Generator]:
        """Those of a DataLoader and its samplers."""
        holders = (self._batches, *self._samplers())
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
