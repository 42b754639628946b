"""The state of whatever trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_sig._arguments import refusal
from pyro_sig._elbo_state import elbo_state, load_elbo_state
from pyro_sig._program_player import ProgramPlayer
from pyro_sig._program_run import ParamTap, ProgramHolder, modules_run
from pyro_sig._random_state import preserved_random_state

__all__ = ["Snapshot", "has_state"]


class Snapshot:
    """Takes and restores the state of an inference object, or of a container of such.

    :param inference: as ``save`` has it.
    :param str name: how errors call it.
    :raises ValueError: if it has no state that can be saved.
    """

    def __init__(self, inference: Any, name: str = "inference") -> None:
        self.inference = inference
        self.name = name
        self._parts: dict[Any, Snapshot] = {}
        self._programs: _Programs | None = None
        self._holds_parts = False
        if isinstance(inference, SVI):
            self._programs = _Programs(inference)
        elif isinstance(inference, Mapping) and not callable(
            getattr(inference, "state_dict", None)
        ):
            self._holds_parts = True
            self._parts = {k: Snapshot(v, f"{name}[{k!r}]") for k, v in inference.items()}
        elif isinstance(inference, (list, tuple)):
            self._holds_parts = True
            self._parts = {i: Snapshot(v, f"{name}[{i}]") for i, v in enumerate(inference)}
        elif not has_state(inference):
            must_be = (
                "SVI, a torch.Generator, a Pyro optimiser, or have the methods state_dict and "
            )
            raise refusal(name, must_be + "load_state_dict", inference)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes in a step what programs touch, so that :meth:`meet` need not run them."""
        if self._programs is None or self._programs.met:
            yield
            return
        with modules_run(restore=False) as modules, ParamTap() as tap:
            yield
        self._programs.note(tap.params, modules)

    def meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Runs programs that have not been watched once, and restores a state that waits for it.

        :param args: arguments of a step.
        :param kwargs: its keyword arguments.
        """
        for part in self._parts.values():
            part.meet(args, kwargs)
        if self._programs is not None:
            self._programs.meet(args, kwargs)
        elif isinstance(self.inference, ProgramHolder):
            with _told_as_args(args, "trainer"):
                self.inference.prepare(*args, **kwargs)

    def state(self) -> dict[str, Any]:
        """Returns a copy of the state."""
        kind = type(self.inference).__name__
        held: Any = self.inference
        state: Any
        if self._programs is not None:
            state = self._programs.state()
        elif self._holds_parts:
            state = {key: part.state() for key, part in self._parts.items()}
        elif isinstance(held, torch.Generator):
            state = held.get_state()
        elif isinstance(held, PyroOptim):
            state = held.get_state()
        else:
            state = held.state_dict()
        return {"kind": kind, "state": state}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a state; that of programs which have not run waits for :meth:`meet`.

        :param state: what :meth:`state` returned.
        :raises ValueError: if it is the state of another object.
        """
        self._check(state)
        self._load(state)

    def _check(self, state: Mapping[str, Any]) -> None:
        """Compares all parts before one of them is loaded: a refusal is to change none."""
        held: Any = self.inference
        own = type(held).__name__
        if state["kind"] != own:
            raise ValueError(
                f"`{self.name}` must be the kind of object that was saved, {state['kind']}, but "
                f"was {own}"
            )
        content: Any = state["state"]
        if self._holds_parts:
            if set(content) != set(self._parts):
                raise ValueError(
                    f"`{self.name}` must hold {sorted(map(str, content))} as what was saved, but "
                    f"held {sorted(map(str, self._parts))}"
                )
            for key, part in self._parts.items():
                part._check(content[key])
        elif problems := _differences(held, content):
            raise ValueError(
                f"`{self.name}` must be built as the {own} that was saved: {'; '.join(problems)}"
            )

    def _load(self, state: Mapping[str, Any]) -> None:
        held: Any = self.inference
        content: Any = state["state"]
        if self._programs is not None:
            self._programs.load(content)
        elif self._holds_parts:
            for key, part in self._parts.items():
                part._load(content[key])
        elif isinstance(held, torch.Generator):
            held.set_state(content.cpu())
        elif isinstance(held, PyroOptim):
            held.set_state(content)
        else:
            try:
                held.load_state_dict(content)
            except (RuntimeError, KeyError) as error:  # torch's words for another shape
                raise ValueError(
                    f"`{self.name}` must be built as the {type(held).__name__} that was saved: "
                    f"{error}"
                ) from error


def has_state(value: Any) -> bool:
    """Tells whether an object has a state that can be saved."""
    if isinstance(value, type):
        return False
    return isinstance(value, (SVI, torch.Generator, PyroOptim)) or all(
        callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _differences(held: Any, content: Mapping[str, Any]) -> list[str]:
    """Says in which names and shapes a network or optimiser of torch is not the one saved.

    One that loads in a way of its own is not asked.
    """
    own: dict[str, Any]
    saved: dict[str, Any]
    if isinstance(held, nn.Module) and _loads_as_torch(held):
        own, saved = _shapes(held.state_dict()), _shapes(content)
    elif (
        isinstance(held, torch.optim.Optimizer)
        and type(held).load_state_dict is torch.optim.Optimizer.load_state_dict
        and not held._optimizer_load_state_dict_pre_hooks
    ):
        own, saved = (
            {f"group {i}": len(group["params"]) for i, group in enumerate(groups)}
            for groups in (held.param_groups, content["param_groups"])
        )
    else:
        return []
    missing = "missing"
    return [
        f"{name!r} was {saved.get(name, missing)}, is {own.get(name, missing)}"
        for name in {**saved, **own}
        if saved.get(name, missing) != own.get(name, missing)
    ][:5]


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value.shape)
        if isinstance(value, Tensor) and not name.endswith("_extra_state")  # of any shape
        else ""
        for name, value in state.items()
    }


def _loads_as_torch(module: nn.Module) -> bool:
    return type(module).load_state_dict is nn.Module.load_state_dict and all(
        type(part)._load_from_state_dict.__module__.startswith("torch.")
        and not part._load_state_dict_pre_hooks
        for part in module.modules()
    )


@contextmanager
def _told_as_args(args: tuple, who: str) -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise ValueError(
            f"`args` must be the arguments of a step of the {who}, but a run of its programs with "
            f"{len(args)} of them failed: {error}"
        ) from error


class _Programs:
    """The state of SVI: what is in Pyro's store, in networks, in the optimiser and in the loss."""

    def __init__(self, svi: SVI) -> None:
        self.svi: Any = svi
        self.met = False
        self._player = ProgramPlayer(svi.optim, ema=None)
        self._names: set[str] = set()
        self._waiting: Mapping[str, Any] | None = None

    @property
    def _elbo(self) -> Any:
        # SVI keeps methods of its loss.
        return getattr(self.svi.loss_and_grads, "__self__", None)

    def note(self, params: Mapping[str, Tensor], modules: list[Any]) -> None:
        self._names |= set(params)
        self._player.modules = modules
        self.met = True

    def meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self.met:
            self._run(args, kwargs)
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._restore(waiting)

    def _run(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Makes every parameter, network and optimiser that a step makes."""
        elbo = self._elbo
        before = {} if elbo is None else copy.deepcopy(elbo_state(elbo))
        with preserved_random_state(), modules_run() as modules, ParamTap() as tap:
            with _told_as_args(args, "SVI"):
                # Unlike evaluate_loss it makes baselines too; gradients are what it leaves behind.
                self.svi.loss_and_grads(self.svi.model, self.svi.guide, *args, **kwargs)
        for param in tap.params.values():
            if param.grad is not None:
                param.grad.zero_()  # as SVI does
        if elbo is not None and before.get("elbo"):  # networks inside have taken a step
            load_elbo_state(elbo, before)
        self.note(tap.params, modules)

    def _refresh(self) -> None:
        """Looks parameters up by name: a program may have put others in their place."""
        stored = pyro.get_param_store()._params
        trained = {pyro.get_param_store().param_name(p) for p in self.svi.optim.optim_objs}
        self._names |= {name for name in trained if name is not None}
        names = sorted(name for name in self._names if name in stored)
        self._player.params = {name: stored[name] for name in names}

    def state(self) -> dict[str, Any]:
        if self._waiting is not None:
            return dict(self._waiting)
        self._refresh()
        elbo = {} if self._elbo is None else elbo_state(self._elbo)
        return {**self._player.state_dict(), "loss": elbo}

    def load(self, state: Mapping[str, Any]) -> None:
        self._waiting = state
        if self._elbo is not None and "max_plate_nesting" in state["loss"]:
            # A guess in the first run is of no use.
            self._elbo.max_plate_nesting = state["loss"]["max_plate_nesting"]
        if self.met:
            self.meet((), {})

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._refresh()
        self._player.load_state_dict(state)
        if self._elbo is not None:
            load_elbo_state(self._elbo, state["loss"])
