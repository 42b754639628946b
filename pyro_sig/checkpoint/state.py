"""The state of whatever trains, and one file of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_sig._elbo_state import elbo_state, load_elbo_state
from pyro_sig._program_player import ProgramPlayer
from pyro_sig._program_run import ParamTap, modules_run
from pyro_sig._random_state import preserved_random_state, random_state, set_random_state
from pyro_sig.checkpoint.files import read_file, write_file

__all__ = ["Snapshot", "load", "save"]


def save(path: str | os.PathLike[str], inference: Any, *args: Any, **kwargs: Any) -> None:
    r"""Writes all that the next step depends on to one file.

    .. math::
        \text{file} = (\theta, \text{buffers}, \text{optimisers}, \text{inner networks},
        \text{random states})

    The file has the old content or the new one at any moment, carries a checksum, and holds
    tensors and plain values only.

    :param path: the file; its folder exists.
    :param inference: :class:`~pyro.infer.SVI`, which stands for the parameters that its programs
        read, their networks' buffers, its optimiser and its loss; a trainer of
        :mod:`pyro_sig.adversarial`; anything with ``state_dict`` and ``load_state_dict``
        (networks, optimisers and schedules of torch); an optimiser of Pyro; a
        :class:`torch.Generator`; or a dict or list of these.
    :param args: arguments of a step, for SVI: its programs are run once, which leaves no trace.
    :param kwargs: keyword arguments of a step.
    :raises ValueError: if `inference` has no state that can be saved.
    :raises OSError: if the file cannot be written; the old one is then still there.

    Example::

        >>> import tempfile, pyro, torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(data):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("row", len(data)):
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=data)
        >>> svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> path, data = tempfile.mktemp(), torch.ones(4)
        >>> loss = svi.step(data)
        >>> save(path, svi, data)
        >>> loss = svi.step(data)
        >>> load(path, svi, data)
        >>> loss == svi.step(data)
        True
    """
    snapshot = Snapshot(inference)
    snapshot.meet(args, kwargs)
    write_file(path, {"inference": snapshot.state(), "random_state": random_state()})


def load(
    path: str | os.PathLike[str],
    inference: Any,
    *args: Any,
    map_location: Any = None,
    **kwargs: Any,
) -> None:
    """Restores what :func:`save` wrote, into an object that was built in the same way.

    Tensors are filled in place, so that networks, optimisers and Pyro's parameter store go on
    holding the same ones. The random states are restored last.

    :param path: the file.
    :param inference: as the object that was saved; it may have taken steps, or none.
    :param args: arguments of a step, for SVI: a first run of its programs makes their parameters.
    :param map_location: where tensors go, as :func:`torch.load` has it.
    :param kwargs: keyword arguments of a step.
    :raises CheckpointError: (a ``ValueError``) if the file is damaged, foreign or of a newer
        version.
    :raises ValueError: if it is the state of another object.

    Example::

        >>> import tempfile, torch
        >>> first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> path = tempfile.mktemp()
        >>> save(path, first)
        >>> load(path, second)
        >>> torch.equal(first.weight, second.weight)
        True
    """
    state = read_file(path, map_location)
    if set(state) != {"inference", "random_state"}:
        raise ValueError(
            f"`path` must be a file of `checkpoint.save`, but held {sorted(map(str, state))}: a "
            f"file that `train` wrote is read by `train`: {path}"
        )
    snapshot = Snapshot(inference)
    snapshot.load(state["inference"])
    snapshot.meet(args, kwargs)
    set_random_state(state["random_state"])


class Snapshot:
    """Takes and restores the state of an inference object, or of a container of such.

    :param inference: as :func:`save` has it.
    :param str name: how errors call it.
    :raises ValueError: if it has no state that can be saved.
    """

    def __init__(self, inference: Any, name: str = "inference") -> None:
        self.inference = inference
        self.name = name
        self._parts: dict[Any, Snapshot] = {}
        self._programs: _Programs | None = None
        if isinstance(inference, SVI):
            self._programs = _Programs(inference)
        elif isinstance(inference, Mapping) and not callable(
            getattr(inference, "state_dict", None)
        ):
            self._parts = {k: Snapshot(v, f"{name}[{k!r}]") for k, v in inference.items()}
        elif isinstance(inference, (list, tuple)):
            self._parts = {i: Snapshot(v, f"{name}[{i}]") for i, v in enumerate(inference)}
        elif not has_state(inference):
            raise ValueError(
                f"`{name}` must be SVI, a torch.Generator, a Pyro optimiser, or have the methods "
                f"state_dict and load_state_dict, but was {type(inference).__name__}"
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes in a step what programs touch, so that :meth:`meet` need not run them."""
        programs = [p._programs for p in self._parts.values()] + [self._programs]
        own = [p for p in programs if p is not None and not p.met]
        if not own:
            yield
            return
        with modules_run(restore=False) as modules, ParamTap() as tap:
            yield
        for part in own:
            part.note(tap.params, modules)

    def meet(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Runs programs that have not been watched once, and restores a state that waits for it.

        :param args: arguments of a step.
        :param kwargs: its keyword arguments.
        """
        for part in self._parts.values():
            part.meet(args, kwargs)
        if self._programs is not None:
            self._programs.meet(args, kwargs)

    def state(self) -> dict[str, Any]:
        """Returns a copy of the state."""
        kind = type(self.inference).__name__
        held: Any = self.inference
        state: Any
        if self._programs is not None:
            state = self._programs.state()
        elif self._parts or isinstance(held, (Mapping, list, tuple)):
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
        held: Any = self.inference
        own = type(held).__name__
        if state["kind"] != own:
            raise ValueError(
                f"`{self.name}` must be the kind of object that was saved, {state['kind']}, but "
                f"was {own}"
            )
        content: Any = state["state"]
        if self._programs is not None:
            self._programs.load(content)
        elif self._parts or isinstance(held, (Mapping, list, tuple)):
            if set(content) != set(self._parts):
                raise ValueError(
                    f"`{self.name}` must hold {sorted(map(str, content))} as what was saved, but "
                    f"held {sorted(map(str, self._parts))}"
                )
            for key, part in self._parts.items():
                part.load(content[key])
        elif isinstance(held, torch.Generator):
            held.set_state(content.cpu())
        elif isinstance(held, PyroOptim):
            held.set_state(content)
        else:
            try:
                held.load_state_dict(content)
            except (RuntimeError, KeyError) as error:  # torch's words for another shape
                raise ValueError(
                    f"`{self.name}` must be built as the {own} that was saved: {error}"
                ) from error


def has_state(value: Any) -> bool:
    """Tells whether an object has a state that can be saved."""
    return isinstance(value, (SVI, torch.Generator, PyroOptim)) or all(
        callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict")
    )


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
            try:
                # Unlike evaluate_loss it makes baselines too; gradients are what it leaves behind.
                self.svi.loss_and_grads(self.svi.model, self.svi.guide, *args, **kwargs)
            except TypeError as error:
                raise ValueError(
                    f"`args` must be the arguments of a step of the SVI, but a run of its programs "
                    f"with {len(args)} of them failed: {error}"
                ) from error
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
