"""What trainers with a critic, or two, share beside the state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pyro_sig._arguments import refusal
from pyro_sig.adversarial._critic_player import CriticPlayer
from pyro_sig.adversarial._trainer import Stateful, Trainer
from pyro_sig.adversarial.objectives import Objective
from pyro_sig.adversarial.penalties import Penalty

__all__ = ["CriticTrainer"]


class CriticTrainer(Trainer):
    """Holds a player that is one critic, or all of them in a list.

    A subclass sets ``_critic`` beside ``_program``.

    :param autocast: a type for :func:`torch.autocast`, None for none.
    :raises ValueError: for a type other than ``torch.bfloat16`` and ``torch.float16``.
    """

    _critic: CriticPlayer

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        # torch.autocast takes other types with a warning, and does nothing.
        if all(autocast is not kind for kind in (None, torch.bfloat16, torch.float16)):
            raise refusal("autocast", "torch.bfloat16, torch.float16 or None", autocast)
        self.autocast = autocast

    @property
    def critic_optim(self) -> torch.optim.Optimizer:
        """The optimiser of the critic, or of all."""
        return self._critic.optim

    @property
    def objective(self) -> Objective:
        """The objective."""
        return self._critic.objective

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        """The penalties."""
        return self._critic.penalties

    def _precision(self) -> AbstractContextManager[Any]:
        """Returns the context of runs and scores."""
        if self.autocast is None:
            return nullcontext()
        device = next(self._critic.critic.parameters()).device
        return torch.autocast(device.type, dtype=self.autocast)

    def _parts(self) -> dict[str, Stateful]:
        return {"program": self._program, "critic": self._critic}
