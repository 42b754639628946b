"""A buffer of earlier fakes, so that a critic does not forget them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, refusal

__all__ = ["ImagePool"]


class ImagePool:
    r"""Keeps earlier fakes and shows them to the critic in place of half of the new ones.

    .. math::
        \tilde x'_i = \begin{cases}
            \tilde x_i & \text{with probability } \tfrac12 \\
            s_j, \text{ where } \tilde x_i \text{ is stored from now on, } j \text{ uniform} &
            \text{else}
        \end{cases}

    Until there are `size` fakes, each new one is stored and shown. Fakes of one call (of each run
    of `size` fakes, where there are more) take the places of different stored ones; the published
    code goes through them one by one, so that one of a batch may push out another.

    :param int size: the number of fakes to keep; 0 for none, so that all are shown as they are.
    :raises ValueError: if `size` is not an integer of at least 0, or fakes have another shape than
        those that are stored.

    **Source:** Zhu et al., *Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
    Networks* (2017), section 4, after Shrivastava et al. (2017); the probability is that of the
    published code.

    Example::

        >>> pool = ImagePool(50)
        >>> _ = pool(torch.zeros(50, 3))
        >>> shown = pool(torch.ones(10, 3))  # about five zeros
        >>> shown.shape, len(pool)
        (torch.Size([10, 3]), 50)
    """

    def __init__(self, size: int) -> None:
        self.size = check_integer("size", size, 0, int)
        self._stored: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self._stored is None else len(self._stored)

    def __repr__(self) -> str:
        return f"ImagePool({self.size})"

    @torch.no_grad()
    def __call__(self, fakes: Tensor) -> Tensor:
        """Takes in new fakes and returns as many, new and old, without a gradient.

        :param torch.Tensor fakes: the new ones, with shape ``[B, *]``.
        :return: what the critic is to see, with the shape, type and device of `fakes`.
        :raises ValueError: see :class:`ImagePool`.
        """
        if not isinstance(fakes, Tensor) or not fakes.dim() or fakes.layout != torch.strided:
            raise refusal("fakes", "a dense tensor of shape [B, *]", fakes)
        fakes = fakes.detach()
        if not self.size:
            return fakes
        stored = fakes[:0].clone() if self._stored is None else self._stored.to(fakes)
        if stored.shape[1:] != fakes.shape[1:]:
            raise ValueError(
                f"`fakes` must have rows of shape {tuple(stored.shape[1:])} as those that are "
                f"stored, were {tuple(fakes.shape[1:])}"
            )
        room = self.size - len(stored)
        if room:
            stored = torch.cat([stored, fakes[:room]])
        shown = fakes.clone()
        # Drawn on the CPU: no device has to be waited for.
        swapped = torch.rand(len(fakes), device="cpu") < 0.5
        swapped[:room] = False
        for start in range(room, len(fakes), self.size):
            new = start + swapped[start : start + self.size].nonzero()[:, 0]
            old = torch.randperm(self.size, device="cpu")[: len(new)]
            new, old = new.to(fakes.device), old.to(fakes.device)
            shown[new] = stored[old]
            stored[old] = fakes[new]
        self._stored = stored
        return shown

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the stored fakes."""
        return {"stored": None if self._stored is None else self._stored.clone()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        :param state_dict: the state.
        :raises ValueError: if it holds more than `size` fakes.
        """
        stored = state_dict["stored"]
        if stored is not None and len(stored) > self.size:
            raise ValueError(
                f"`state_dict` must hold at most {self.size} fakes, held {len(stored)}; make the "
                f"pool as the saved one, ImagePool({len(stored)}) or larger"
            )
        self._stored = None if stored is None else stored.clone()
