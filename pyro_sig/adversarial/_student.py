"""The player of a game that estimates a density: a model, its guide, and steps ahead of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor

from pyro_sig._arguments import refusal
from pyro_sig._program_player import ProgramPlayer
from pyro_sig._program_run import modules_run
from pyro_sig.adversarial._elbo_term import ElboTerm
from pyro_sig.adversarial._program_module import ProgramModule
from pyro_sig.adversarial._tap import Tap
from pyro_sig.adversarial.differentiable_optim import differentiable
from pyro_sig.adversarial.unrolling import unrolled

__all__ = ["Call", "Draw", "Student", "check_scores"]

# Arguments of the programs, and what makes them of draws, with the number of their units.
Call = tuple[tuple, Mapping[str, Any]]
Draw = Callable[[], tuple[Call, int]]


class Student:
    """Holds a density estimator, a program with its guide, under one optimiser of torch.

    :param model: a program that observes data.
    :param guide: its guide, None for a program without latents.
    :param optim: torch's or Pyro's optimiser, of a class whose steps can be differentiated.
    :param elbo: the bound that stands for its log-likelihood.
    :raises ValueError: if one of them does not suit.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        optim: PyroOptim | torch.optim.Optimizer | None,
        elbo: ELBO,
    ) -> None:
        self.model = model
        self._optim: Any = optim
        self._term = ElboTerm(elbo, 1.0, guide)
        if not self._term.differentiable:
            raise ValueError(
                "`elbo` must have a differentiable_loss, whose gradient can be differentiated, as "
                f"Trace_ELBO has, was {type(elbo).__name__}"
            )
        if isinstance(optim, torch.optim.Optimizer):
            differentiable(optim)
        elif not isinstance(optim, PyroOptim) or isinstance(optim, PyroLRScheduler):
            must_be = "an optimiser of torch.optim or pyro.optim without a schedule"
            raise refusal("estimator_optim", must_be, optim)
        self._player: ProgramPlayer | None = None
        self._module: ProgramModule | None = None

    @property
    def optim(self) -> PyroOptim | torch.optim.Optimizer:
        """The optimiser; torch's once the parameters are known."""
        return self._optim if self._player is None else self._player.optim

    # ------------------------------------------------------------------------------ the first step

    def prepare(self, data: Call, draws: Call, owned: Callable[[Tensor], bool]) -> None:
        """Runs guide and model to find their parameters, and checks that they score both.

        :param data: arguments with data.
        :param draws: arguments with draws in their place.
        :param owned: tells whether a tensor belongs to another player.
        """
        with modules_run() as modules, torch.no_grad():
            with Tap() as tap:
                self._term.guide(*data[0], **data[1])
                self.model(*data[0], **data[1])
            if not any(site["is_observed"] for site in tap.nodes.values()):
                raise ValueError(
                    "`estimator` must score the data, but its model has no observed site: "
                    "pyro.sample(name, ..., obs=x)"
                )
            for name, call in (("data", data), ("draws of the model", draws)):
                check_scores(name, partial(self._loss, call))
        params = {n: p for n, p in tap.params.items() if p.requires_grad}
        if not params:
            raise ValueError("`estimator` must have parameters to train, had none")
        for name, param in params.items():
            if owned(param):
                raise ValueError(
                    f"`estimator` must share no tensor with the model or the critic, but reads "
                    f"{name!r}"
                )
        self._player = ProgramPlayer(self._as_torch(params), None)
        self._player.meet(params)
        self._player.modules = modules
        self._module = ProgramModule(self._player.params, modules)
        with modules_run():  # batch statistics stay as they are
            self._check_reach(data)

    def _as_torch(self, params: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        optim = self._optim
        if isinstance(optim, torch.optim.Optimizer):
            return optim
        given: Any = optim.pt_optim_args
        groups: list[dict[str, Any]] = []
        for name, param in params.items():
            options = given(name) if callable(given) else given
            groups.append({"params": [param], **options})
        constructor: Any = optim.pt_optim_constructor
        made = constructor(groups)
        differentiable(made)
        return made

    def _check_reach(self, data: Call) -> None:
        """Makes sure that the programs see what stands in for each of their parameters."""
        assert self._player is not None and self._module is not None
        own = self._player.params
        of_own = torch.autograd.grad(self._loss(data), list(own.values()), allow_unused=True)
        optim: Any = self._player.optim
        ahead = unrolled(self._module, lambda student: student(lambda: self._loss(data)), optim, 0)
        by_id = {id(p): ahead.parameters[name] for name, p in self._module.named_parameters()}
        stand_ins = [by_id[id(p)] for p in own.values()]
        loss = ahead(lambda: self._loss(data))
        of_others: Sequence[Tensor | None] = [None] * len(own)
        if loss.requires_grad:
            of_others = torch.autograd.grad(loss, stand_ins, allow_unused=True)
        lost = [
            name
            for name, a, b in zip(own, of_own, of_others, strict=True)
            if a is not None and b is None
        ]
        if lost:
            raise ValueError(
                "`estimator` must use its networks by calling them, or their steps cannot be "
                f"differentiated; the tensors {lost} were read otherwise"
            )

    # ------------------------------------------------------------------------------------ training

    def _loss(self, call: Call) -> Tensor:
        loss = self._term(self.model, *call)
        assert isinstance(loss, Tensor)
        return loss

    def teach(self, num_steps: int, rate: float, draw: Draw) -> Tensor:
        """Takes steps, each on draws of its own.

        :param int num_steps: their number; with 0 the student only scores draws.
        :param float rate: a factor of the learning rates.
        :param draw: makes arguments with draws, and their number.
        :return: the last loss, for one unit.
        """
        loss = None
        for _ in range(num_steps):
            loss = self._loss_of(draw)
            self._step(loss, rate)
        return self._loss_of(draw) if loss is None else loss

    def _loss_of(self, draw: Draw) -> Tensor:
        with torch.no_grad():
            call, num_units = draw()
        return self._loss(call) / num_units

    def _step(self, loss: Tensor, rate: float) -> None:
        player = self._player
        assert player is not None
        player.zero_grad()
        loss.backward(inputs=list(player.params.values()))
        optim: Any = player.optim
        rates = [group["lr"] for group in optim.param_groups]
        try:
            for group in optim.param_groups:
                group["lr"] = rate * group["lr"]
            player.step()
        finally:
            for group, lr in zip(optim.param_groups, rates, strict=True):
                group["lr"] = lr

    def ahead(self, num_steps: int, draw: Draw) -> Callable[[Call], Tensor]:
        """Returns the loss of the student as it will be after some steps, of arguments.

        :param int num_steps: number of steps, each on draws of its own.
        :param draw: makes arguments with draws, and their number.
        """
        assert self._player is not None and self._module is not None
        optim: Any = self._player.optim

        def loss() -> Tensor:
            call, num_units = draw()
            return self._loss(call) / num_units

        module = unrolled(self._module, lambda student: student(loss), optim, num_steps)
        return lambda call: module(lambda: self._loss(call))

    def inner_optimizers(self) -> Iterator[torch.optim.Optimizer]:
        """Yields its optimiser, and those of networks inside of the bound."""
        if isinstance(self.optim, torch.optim.Optimizer):
            yield self.optim
        yield from self._term.inner_optimizers()

    # --------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the states of parameters, optimiser and bound."""
        player = {} if self._player is None else self._player.state_dict()
        return {"program": player, "elbo": self._term.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        :param state: the state.
        """
        assert self._player is not None
        self._player.load_state_dict(state["program"])
        self._term.load_state_dict(state["elbo"])


def check_scores(name: str, loss: Callable[[], Tensor]) -> None:
    """Checks that a student scores something.

    :param str name: what it scores.
    :param loss: computes its loss.
    :raises ValueError: if it raises, or is not finite.
    """
    try:
        value = complex(loss())
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"`estimator` must score the {name} by its `elbo`, but raised: {error}"
        ) from error
    if value.imag or not math.isfinite(value.real):
        raise ValueError(
            f"`estimator` must give the {name} a finite density, but its bound was "
            f"{-value if value.imag else -value.real}"
        )
