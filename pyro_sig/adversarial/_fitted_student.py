"""The player of a game that estimates a density in closed form, without steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_sig.adversarial._elbo_term import ElboTerm
from pyro_sig.adversarial._student import Call, Draw, check_scores

__all__ = ["FittedStudent"]


class FittedStudent:
    """Stands in for :class:`~pyro_sig.adversarial._student.Student` where draws say all.

    :param fit: maps arguments with draws to a program without latents that scores data.
    :param elbo: the bound, here the log-density.
    """

    optim = None

    def __init__(self, fit: Callable[..., Callable[..., Any]], elbo: ELBO) -> None:
        self._fit = fit
        self._term = ElboTerm(elbo, 1.0, None)

    def prepare(self, data: Call, draws: Call, owned: Callable[[Tensor], bool]) -> None:
        """Checks that a fit to draws scores both; see the other class."""
        with torch.no_grad():
            model = self._fit_to(draws)
            for name, call in (("data", data), ("draws of the model", draws)):
                check_scores(name, partial(self._loss, model, call))

    def _fit_to(self, draws: Call) -> Callable[..., Any]:
        model = self._fit(*draws[0], **draws[1])
        if not callable(model):
            raise ValueError(
                "`estimator` must have a method fit(*args) that returns a program, but it returned "
                f"{type(model).__name__}"
            )
        return model

    def _loss(self, model: Callable[..., Any], call: Call) -> Tensor:
        return torch.as_tensor(self._term(model, *call))

    def teach(self, num_steps: int, rate: float, draw: Draw) -> Tensor:
        """Scores draws by a fit to others; there is nothing to keep."""
        with torch.no_grad():
            model = self._fit_to(draw()[0])
            call, num_units = draw()
            return self._loss(model, call) / num_units

    def ahead(self, num_steps: int, draw: Draw) -> Callable[[Call], Tensor]:
        """Returns the loss of a fit to draws, of arguments."""
        model = self._fit_to(draw()[0])
        return lambda call: self._loss(model, call)

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the state of the bound."""
        return {"elbo": self._term.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it."""
        self._term.load_state_dict(state["elbo"])
