"""The player of a game that is a Pyro program: its parameters under one optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pyro_sig._arguments import check_instance, check_number

__all__ = ["ProgramPlayer"]


class ProgramPlayer:
    """Holds the parameters that programs read, with their optimiser and running average.

    :param optim: Pyro's or torch's optimiser.
    :param ema: decay of the average of the parameters, None for none.
    :raises ValueError: if one of them is something else.
    """

    def __init__(self, optim: PyroOptim | torch.optim.Optimizer, ema: float | None) -> None:
        must_be = "an optimiser of pyro.optim or torch.optim"
        check_instance("optim", optim, (PyroOptim, torch.optim.Optimizer), must_be)
        if ema is not None:
            must_be = "None or a decay in [0, 1)"
            ema = check_number("ema", ema, must_be, least=0, below=1, tensors=False)
        self.optim = optim
        self.ema = ema
        self.params: dict[str, Tensor] = {}  # by name, unconstrained
        self.average: dict[str, Tensor] = {}
        self.num_averaged = 0
        self.modules: list[nn.Module] = []  # those that ran; their buffers belong to the state
        self._kept: dict[str, Tensor] | None = None  # what the average stands in for, inside of it

    # ------------------------------------------------------------------------------------ training

    def meet(
        self, params: Mapping[str, Tensor], others: Callable[[Tensor], bool] | None = None
    ) -> list[Tensor]:
        """Notes the parameters of a run, and returns all that train, in the order of their names.

        :param params: what the run read, by name.
        :param others: tells whether a tensor belongs to the other player, if there is one.
        :raises ValueError: if a parameter does, or is not in a torch optimiser, or if there is
            nothing to train.
        """
        new = {n: p for n, p in params.items() if self.params.get(n) is not p}
        if new:
            self._check(new, others)
            known = {**self.params, **{n: p for n, p in new.items() if p.requires_grad}}
            self.params = dict(sorted(known.items()))
        if not self.params:
            raise ValueError(
                "`model` must read parameters that train, read none: register its networks with "
                "pyro.module inside of it, or use pyro.param"
            )
        return list(self.params.values())

    def _check(self, new: Mapping[str, Tensor], others: Callable[[Tensor], bool] | None) -> None:
        for name, param in new.items():
            if others is not None and others(param):
                raise ValueError(
                    f"`critic` must share no tensor with the model, but the model reads its "
                    f"parameter as {name!r}"
                )
        if isinstance(self.optim, torch.optim.Optimizer):
            given = [p for group in self.optim.param_groups for p in group["params"]]
            foreign = sum(p.numel() > 0 and others(p) for p in given) if others else 0
            if foreign:
                raise ValueError(
                    f"`optim` must hold no parameter of the critic, held {foreign}: it would take "
                    "steps of the critic too; make it of the parameters that the model reads"
                )
            held = {id(p) for p in given}
            lacking = [n for n, p in new.items() if p.requires_grad and id(p) not in held]
            if lacking:
                raise ValueError(
                    f"`optim` must hold every parameter that the model reads, but these would "
                    f"never train: {lacking}. An optimiser of pyro.optim finds them by itself; "
                    "pyro.module may have put the tensors of the param store into a network"
                )

    def zero_grad(self) -> None:
        """Forgets the gradients, before and after a step.

        :raises ValueError: while the average stands in for the parameters.
        """
        if self._kept is not None:
            raise ValueError(
                "`step` must be called outside of averaged(), which puts the running average in "
                "place of the parameters: the step would be lost"
            )
        for param in self.params.values():
            param.grad = None

    def step(self) -> None:
        """Takes a step by the gradients that the parameters have, and averages."""
        if isinstance(self.optim, PyroOptim):
            self.optim([p for p in self.params.values() if p.grad is not None])
        else:
            self.optim.step()
        self.zero_grad()
        if self.ema is not None:
            self._update_average(self.ema)

    # ---------------------------------------------------------------------------- running average

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        # A young average forgets faster, or it would hold the start for long.
        decay = min(decay, (1 + self.num_averaged) / (10 + self.num_averaged))
        self.num_averaged += 1
        floating = {n: p for n, p in self.params.items() if p.is_floating_point()}
        for name, param in floating.items():
            self.average.setdefault(name, param.detach().clone())
        if floating:
            update: Any = get_ema_multi_avg_fn(decay)
            update([self.average[n] for n in floating], list(floating.values()), None)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the average in place of the parameters."""
        if self.ema is None:
            raise ValueError(
                "`ema` must be a decay for an average to be kept, was None; pass ema=0.999, say"
            )
        if self._kept is not None:  # inside of another
            yield
            return
        self._kept = {name: self.params[name].detach().clone() for name in self.average}
        self._copy_in(self.average)
        try:
            yield
        finally:
            self._copy_in(self._kept)
            self._kept = None

    @torch.no_grad()
    def _copy_in(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.params[name].copy_(value)

    # --------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of parameters, buffers, average and optimiser; the same in averaged()."""
        optim: Any = self.optim
        pyro_optim = isinstance(optim, PyroOptim)
        state = {
            "params": {n: p.detach() for n, p in self.params.items()} | (self._kept or {}),
            "buffers": dict(self._buffers()),
            "average": self.average,
            "num_averaged": self.num_averaged,
            "optim": optim.get_state() if pyro_optim else optim.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, in place.

        :param state: the state.
        :raises ValueError: if it is that of other parameters, or inside of :meth:`averaged`.
        """
        if self._kept is not None:
            raise ValueError("`load_state_dict` must be called outside of averaged(), was inside")
        for part, own in (("params", self.params), ("buffers", dict(self._buffers()))):
            if set(state[part]) != set(own):
                raise ValueError(
                    f"`state_dict` must hold the {part} {sorted(own)} of this model, held "
                    f"{sorted(state[part])}"
                )
            for name, value in state[part].items():
                if own[name].shape != value.shape:
                    raise ValueError(
                        f"`state_dict` must hold {name!r} of shape {tuple(own[name].shape)}, held "
                        f"{tuple(value.shape)}"
                    )
            with torch.no_grad():
                for name, value in state[part].items():
                    own[name].copy_(value)
        self.average = {
            name: value.detach().clone().to(self.params[name])
            for name, value in state["average"].items()
        }
        self.num_averaged = state["num_averaged"]
        if isinstance(self.optim, torch.optim.Optimizer):
            self.optim.load_state_dict(copy.deepcopy(state["optim"]))  # torch would share it
        else:
            self._load_pyro_optim(copy.deepcopy(state["optim"]))

    def _load_pyro_optim(self, states: dict[str, Any]) -> None:
        """Restores the optimiser of every parameter that has a state."""
        optim: Any = self.optim
        store = pyro.get_param_store()
        for name, param in self.params.items():
            optim.optim_objs.pop(param, None)
            optim.grad_clip.pop(param, None)
            if name not in states or store.param_name(param) != name:
                continue
            # Called without a gradient it only makes the parameter's optimiser, but for a decay of
            # the learning rate, which the state then undoes.
            kept, param.grad = param.grad, None
            optim([param])
            param.grad = kept
            made, saved = optim.optim_objs[param], states.pop(name)
            if "scheduler" in saved:
                made.load_state_dict(saved["scheduler"])
                made.optimizer.load_state_dict(saved["optimizer"])
            else:
                made.load_state_dict(saved)
        optim.set_state(states)  # of parameters that it has not met yet

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for i, module in enumerate(self.modules):
            for name, buffer in module.named_buffers():
                yield f"{i}.{name}", buffer
