"""What all adversarial trainers share: the first step's preparation, and the state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from pyro.optim import PyroOptim

from pyro_sig._program_player import ProgramPlayer
from pyro_sig._program_run import ProgramHolder

__all__ = ["Stateful", "Trainer"]


class Stateful(Protocol):
    """A part of a trainer that has a state."""

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the state."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it in place."""


class Trainer(ProgramHolder):
    """Steps like SVI, ``step(*args, **kwargs)``, with several losses that have names.

    A subclass writes :meth:`step`, :meth:`evaluate_loss`, and two more methods: ``_meet`` runs the
    programs once to find their sites, parameters and networks, ``_parts`` names what has a state.
    Before it needs the programs, each of the public methods calls :meth:`prepare`.

    :cvar loss_names: names of what :meth:`step` returns.
    """

    loss_names: Any = ()
    _program: ProgramPlayer

    def __init__(self) -> None:
        self.num_steps = 0
        self._prepared = False
        self._waiting: Mapping[str, Any] | None = None

    def step(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Updates every player once.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: the losses that `loss_names` names.
        """
        raise NotImplementedError

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> tuple[float, ...]:  # noqa: ANN401
        """Computes the losses of :meth:`step`; changes no tensor.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :return: losses as :meth:`step` returns them.
        """
        raise NotImplementedError

    @property
    def optim(self) -> PyroOptim | torch.optim.Optimizer:
        """The optimiser of the programs."""
        return self._program.optim

    def averaged(self) -> AbstractContextManager[None]:
        """Puts the running averages in place of the programs' parameters, within a context.

        Buffers stay: networks that have batch statistics draw in ``eval()`` mode.

        :return: a context manager; the programs are run inside of it.
        :raises ValueError: without `ema`; if a state that was loaded waits for the first run; from
            a step inside of it, whose result would be lost.
        """
        if self._waiting is not None:
            raise ValueError(
                "`averaged` needs the networks that the loaded state belongs to, which are known "
                "after a run of the programs: call prepare(*args) with the arguments of a step"
            )
        return self._program.averaged()

    def prepare(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Runs the programs once, unless that was done, and fills in a state that waits for it.

        The first step does so by itself. The random state is left as it was.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        :raises ValueError: see the class.
        """
        if self._prepared:
            return
        self._meet(args, kwargs)
        self._prepared = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._restore(waiting)

    def _meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        raise NotImplementedError

    def _parts(self) -> dict[str, Stateful]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of all that the next step depends on, but the random state.

        :return: parameters and buffers of programs and critics, optimisers, running averages,
            what else a trainer keeps between steps, and the number of steps.
        """
        if self._waiting is not None:
            return copy.deepcopy(dict(self._waiting))
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return {"num_steps": self.num_steps, **states}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; before the first step it waits for it.

        The first step of a new object finds the parameters first, without touching the random
        state; so does :meth:`prepare`, after which the programs can be run without a step.

        :param state_dict: the state.
        :raises ValueError: if it is that of another trainer or program, now or in the first step.
        """
        expected = {"num_steps", *self._parts()}
        if set(state_dict) != expected:
            raise ValueError(
                f"`state_dict` must hold {sorted(expected)}, held {sorted(state_dict)}"
            )
        if self._prepared:
            self._restore(state_dict)
        else:
            self._waiting = copy.deepcopy(dict(state_dict))

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        # A copy would step networks that its programs do not read.
        name = type(self).__name__
        raise TypeError(
            f"{name} can be neither copied nor pickled, since its programs, their networks and "
            f"Pyro's store belong together: build another {name} and give it "
            "load_state_dict(trainer.state_dict()), or use pyro_sig.checkpoint"
        )

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.num_steps = state["num_steps"]
