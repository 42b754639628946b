"""Noise of a mixing law in chunks, each of which can be drawn again from its random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from pyro_sig._show_settings import show_settings
from pyro_sig.distributions.mixing_noise import sample_noise

__all__ = ["PsiStream"]

_STATES_IN_BLOCK = 64


class _States:
    """Random states of the CPU (None) or of a device."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        # In blocks: small tensors kept between large temporary ones would split the heap.
        self.blocks: list[Tensor] = []
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def now(self) -> Tensor:
        if self.device is None:
            return torch.get_rng_state()
        return getattr(torch, self.device.type).get_rng_state(*self._named())

    def set(self, state: Tensor) -> None:
        if self.device is None:
            torch.set_rng_state(state)
        else:
            getattr(torch, self.device.type).set_rng_state(state, *self._named())

    def keep(self) -> None:
        state = self.now()
        if self.size == len(self.blocks) * _STATES_IN_BLOCK:
            self.blocks.append(state.new_empty(_STATES_IN_BLOCK, len(state)))
        self.blocks[-1][self.size % _STATES_IN_BLOCK] = state
        self.size += 1

    def restore(self, i: int) -> None:
        self.set(self.blocks[i // _STATES_IN_BLOCK][i % _STATES_IN_BLOCK].clone())

    def fork(self) -> _States:
        new = _States(self.device)
        new.blocks, new.size = [block.clone() for block in self.blocks], self.size
        return new

    def _named(self) -> tuple[Any, ...]:
        assert self.device is not None
        return () if self.device.type == "mps" else (self.device,)  # of which there is one only


def _devices_in_use() -> list[torch.device]:
    found = []
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_initialized():
            found += [torch.device(kind, i) for i in range(module.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


class PsiStream:
    """Draws the noise behind psi, keeps the random state of each chunk and none of its numbers.

    :ivar list sizes: number of psi in each chunk so far.

    Example::

        >>> import pyro.distributions as dist
        >>> stream, mixing = PsiStream(), dist.Normal(0.0, 1.0)
        >>> noise = torch.cat([stream.draw(mixing, 3), stream.draw(mixing, 2)])
        >>> torch.equal(stream.rows(mixing, torch.tensor([1, 4])), noise[[1, 4]])
        True
    """

    __repr__ = show_settings

    def __init__(self) -> None:
        self.sizes: list[int] = []
        # Until the first draw shows the device of the noise, it may be any.
        self._states = [_States(), *(_States(device) for device in _devices_in_use())]

    def fork(self) -> PsiStream:
        """Returns a stream with the same chunks so far, which is continued by itself."""
        new = object.__new__(PsiStream)
        new.sizes, new._states = list(self.sizes), [states.fork() for states in self._states]
        return new

    def draw(self, mixing: Distribution, size: int) -> Tensor:
        """Draws the next chunk.

        :param mixing: a mixing law.
        :param int size: number of psi.
        :return: noise of shape ``[size, *batch_shape, *noise_event_shape]``.
        """
        for states in self._states:
            states.keep()
        self.sizes.append(size)
        noise = sample_noise(mixing, (size,))
        if len(self.sizes) == 1:
            used = (None, noise.device)
            self._states = [states for states in self._states if states.device in used]
        return noise

    def redraw(self, mixing: Distribution, chunk: int) -> Tensor:
        """Draws a chunk again; the random state is afterwards what it was before.

        :param mixing: a mixing law.
        :param int chunk: which.
        :return: the noise that :meth:`draw` returned, with a gradient where the mixing has one.
        """
        with self._kept_random_state():
            return self._redraw(mixing, chunk)

    @contextmanager
    def _kept_random_state(self) -> Iterator[None]:
        before = [states.now() for states in self._states]
        try:
            yield
        finally:
            for states, state in zip(self._states, before, strict=True):
                states.set(state)

    def _redraw(self, mixing: Distribution, chunk: int) -> Tensor:
        for states in self._states:
            states.restore(chunk)
        return sample_noise(mixing, (self.sizes[chunk],))

    def rows(self, mixing: Distribution, chosen: Tensor) -> Tensor:
        """Draws some of the noise again, with a gradient where the mixing has one.

        :param mixing: a mixing law.
        :param torch.Tensor chosen: numbers of the psi, ascending, on the CPU.
        :return: noise of shape ``[len(chosen), *batch_shape, *noise_event_shape]``.
        """
        parts = []
        ends = torch.tensor(self.sizes).cumsum(0)
        starts = torch.searchsorted(chosen, torch.cat([ends.new_zeros(1), ends])).tolist()
        with self._kept_random_state():
            for chunk, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
                if start < stop:
                    within = chosen[start:stop] - (ends[chunk] - self.sizes[chunk])
                    parts.append(self._rows_of_chunk(mixing, chunk, within))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _rows_of_chunk(self, mixing: Distribution, chunk: int, within: Tensor) -> Tensor:
        noise = self._redraw(mixing, chunk)
        within = within.to(noise.device)
        if not noise.requires_grad:
            return noise[within]

        # The graph of a whole chunk is not kept for the few rows of it that matter.
        def again(within: Tensor) -> Tensor:
            return self.redraw(mixing, chunk)[within]

        del noise
        return checkpoint(again, within, use_reentrant=False, preserve_rng_state=False)

    def seed(self) -> int:
        """Returns a seed made of the random state now, which is not changed."""
        digest = hashlib.blake2b(digest_size=7)
        for states in self._states:
            digest.update(states.now().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest(), "big")
