"""The training loop for anything that has a ``step``."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pyro_sig._optimizers import optimizers_of
from pyro_sig._random_state import random_state, set_random_state
from pyro_sig.infer._run_state import RunState

__all__ = ["History", "NonFiniteLossError", "StopTraining", "train"]

# Weight of the newest loss in the smoothed one of the progress bar.
_SMOOTHING = 0.05

# How Pyro calls the running averages that TraceGraph_ELBO keeps among the parameters.
_AVERAGE = "__baseline_avg_downstream_cost_"

# How many parameters an error message lists.
_MAX_LISTED = 8


class Stepper(Protocol):
    """Anything that takes one training step, :class:`pyro.infer.SVI` included."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step and returns its loss, or several as a tuple or a dict."""


class StopTraining(Exception):
    """Raised by a callback to end training; :func:`train` then returns as usual."""


class NonFiniteLossError(ValueError):
    """A loss was NaN or infinite.

    :param step: the number of the step, counted from 0.
    :param name: the name of the loss in the history.
    :param value: the loss.
    :param history: the history up to and including this step.
    :param checkpoint: the last file that the run saved, if there is one.
    """

    def __init__(
        self,
        step: int,
        name: str,
        value: float,
        history: History,
        checkpoint: Path | None = None,
    ) -> None:
        saved = "" if checkpoint is None else f" The last checkpoint is {checkpoint}."
        super().__init__(
            f"`inference` must return finite losses, but {name!r} was {value} at step {step}. "
            "Common causes are a learning rate that is too high, a scale that went to zero, and "
            f"data outside of the support.{saved}"
        )
        self.checkpoint = checkpoint
        self.step = step
        self.name = name
        self.value = value
        self.history = history


class History(Mapping[str, list[float]]):
    """The losses of a run by name, as read-only mapping.

    A step that returns one number has the name ``"loss"``; a tuple has the ``loss_names`` of the
    inference object, or else ``"loss_0"``, ``"loss_1"``, ...; a dict has its own keys. A name that
    a step does not report is NaN there, so that every list has one entry per step.

    :ivar num_steps: steps taken.
    :ivar seconds: wall-clock time of the run, in seconds.
    :ivar stopped: whether a callback ended the run early.

    Example::

        >>> history = History()
        >>> history.append({"loss": 2.0})
        >>> history["loss"]
        [2.0]
    """

    def __init__(self) -> None:
        self.num_steps = 0
        self.seconds = 0.0
        self.stopped = False
        self._losses: dict[str, list[float]] = {}

    def __getitem__(self, name: str) -> list[float]:
        return self._losses[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={values[-1]:.4g}" for name, values in self.items())
        return f"History(num_steps={self.num_steps}, {last})"

    def append(self, losses: Mapping[str, float]) -> None:
        """Adds the losses of one step.

        :param losses: losses by name.
        """
        for name in losses:
            self._losses.setdefault(name, [math.nan] * self.num_steps)
        for name, values in self._losses.items():
            values.append(losses.get(name, math.nan))
        self.num_steps += 1

    def load(self, num_steps: int, losses: Mapping[str, Tensor], seconds: float) -> None:
        """Puts the losses of an earlier part of the run in place of all others.

        :param num_steps: steps taken.
        :param losses: by name, with shape ``[num_steps]``.
        :param seconds: wall-clock time, in seconds.
        """
        self.num_steps, self.seconds = num_steps, seconds
        self._losses = {name: values.tolist() for name, values in losses.items()}


def train(
    inference: Stepper,
    batches: Any,
    num_steps: int,
    *,
    callbacks: Iterable[Callable[[int, Any, Any], object] | LRScheduler] = (),
    progress: bool = True,
    description: str | None = None,
    check_training: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1000,
    keep: int = 3,
    resume: bool | Literal["auto"] = "auto",
) -> History:
    r"""Trains by calling ``inference.step`` on one batch after another.

    .. math::
        \ell_t = \texttt{inference.step}(\text{batch}_t), \qquad t = 0, \dots, T - 1.

    A learning-rate schedule of Pyro, ``inference.optim`` (a
    :class:`~pyro.optim.lr_scheduler.PyroLRScheduler`), advances after every step; so do those of
    torch among the callbacks.

    After the first step, a network or Pyro parameter that took part in it without being in any
    optimiser of ``inference`` raises, because it would never train. Optimisers are looked for
    among the attributes of ``inference``, in lists and dicts there, in attributes that
    themselves have a ``step``, and in a loss that has ``inner_optimizers``. A network
    counts if it ran with gradients enabled and has parameters that require them. Switch the check
    off for a program that chooses its networks at random, or that keeps parameters fixed by
    :func:`pyro.poutine.block`.

    With `checkpoint`, a run that was killed and is started again, by the same program, goes on
    from its last checkpoint and ends as if it had not been: on one machine with the same number of
    threads, bit for bit. Saved are the parameters, buffers, optimisers and inner networks of
    `inference`, callbacks that have ``state_dict`` and ``load_state_dict``, the random states of
    torch, NumPy and Python, the losses, and the place in `batches`. An iterable is begun with the
    random state that it had been begun with, and run to its place. A function of the step should
    depend on the step and on random states alone, or have ``state_dict`` and ``load_state_dict``.

    :param inference: an object with ``step(*args, **kwargs)`` that returns a float, or a tuple or
        dict of floats. With `checkpoint`, :class:`~pyro.infer.SVI` or an object with
        ``state_dict`` and ``load_state_dict``.
    :param batches: the arguments of every step: a tensor (one argument), a tuple (positional
        arguments) or a dict (keyword arguments) is used at every step as it is. A callable is
        given the step number and returns one of these. Any other iterable, such as a
        :class:`~torch.utils.data.DataLoader`, yields one batch for each step, where a list is
        taken for a tuple, and is begun again when it is exhausted.
    :param num_steps: the number :math:`T` of steps, those before the last checkpoint included.
    :param callbacks: functions called in turn as ``callback(step, loss, inference)`` after each
        step, with the step number counted from 0 and what the step returned. Raising
        :class:`StopTraining` ends the run; what they return is ignored. A learning-rate schedule
        of torch among them advances by one.
    :param progress: show a bar with the smoothed loss and the learning rate.
    :param description: text in front of the bar, for a script that shows several.
    :param check_training: look for what does not train, as said above.
    :param checkpoint: a folder for the checkpoints of this run alone, made if need be.
    :param every: steps between two checkpoints; the end of the run has one in any case.
    :param keep: how many checkpoints are kept.
    :param resume: ``"auto"`` goes on from the last checkpoint if there is one, True raises if
        there is none, and False raises if there is one.
    :return: the losses of all steps, those before the last checkpoint included.
    :raises NonFiniteLossError: (a ``ValueError``) at the first loss that is NaN or infinite.
    :raises ValueError: if an argument is not as described, if a one-shot iterator is exhausted,
        if a step does not return numbers, if something does not train, or if the folder holds
        another run, is in use by another process or cannot be written. A write that fails later is
        a :class:`~pyro_sig.checkpoint.CheckpointWarning`.
    :raises KeyboardInterrupt: when interrupted; like any other exception from a step, it carries
        the losses so far as its attribute ``history``.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(data):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("row", len(data)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=data)
        >>> svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> history = train(svi, torch.ones(4), num_steps=100, progress=False)
        >>> len(history["loss"]), history["loss"][-1] < history["loss"][0]
        (100, True)
    """
    if not callable(getattr(inference, "step", None)):
        raise ValueError(
            f"`inference` must have a method `step`, but was {type(inference).__name__}."
        )
    if isinstance(num_steps, bool) or not (isinstance(num_steps, int) and num_steps >= 0):
        raise ValueError(f"`num_steps` must be zero or a positive integer, but was {num_steps!r}.")
    given = list(callbacks) if isinstance(callbacks, Iterable) else [None]
    calls = _check_callbacks(given, callbacks)

    history = History()
    arguments = _arguments(batches)
    run: RunState | None = None
    done = 0
    if checkpoint is not None:
        cursor = arguments if isinstance(arguments, _Cycle) else batches
        run = RunState(checkpoint, every, keep, resume, inference, given, cursor, history)
    meter = _NoProgress()
    start = time.perf_counter()
    before = 0.0
    try:
        if run is not None:
            if isinstance(arguments, _Cycle):
                arguments.track()
            done = run.restore(num_steps)
            before = history.seconds
            if done == num_steps:
                run.finish(_arguments(batches), num_steps)
        if progress:
            meter = _ProgressBar(num_steps, description, done)
        for step in range(done, num_steps):
            args, kwargs = arguments(step)
            watch = _Watch() if step == done and check_training else None
            with nullcontext() if run is None else run.step(args, kwargs):
                with nullcontext() if watch is None else watch:
                    result = inference.step(*args, **kwargs)
            losses = _as_losses(result, step, getattr(inference, "loss_names", None))
            history.append(losses)
            for name, value in losses.items():
                if not math.isfinite(value):
                    saved = None if run is None else run.last_good
                    raise NonFiniteLossError(step, name, value, history, saved)
            if watch is not None:
                watch.check(inference)
            _advance_schedule(inference, losses)
            meter.update(losses, inference)
            try:
                for callback in calls:
                    callback(step, result, inference)
            except StopTraining:
                history.stopped = True
            if run is not None:
                last = history.stopped or step + 1 == num_steps
                run.after(step + 1, time.perf_counter() - start, last)
            if history.stopped:
                break
    except BaseException as error:
        error.history = history  # type: ignore[attr-defined]
        raise
    finally:
        history.seconds = before + time.perf_counter() - start
        meter.close()
        if run is not None:
            run.close()
    return history


def _check_callbacks(given: list[Any], callbacks: Any) -> list[Callable[[int, Any, Any], object]]:
    calls = [_advance(c) if isinstance(c, LRScheduler) else c for c in given]
    if not all(callable(callback) for callback in calls):
        raise ValueError(f"`callbacks` must be an iterable of callables, but was {callbacks!r}.")
    return calls


def _advance(schedule: LRScheduler) -> Callable[[int, Any, Any], object]:
    return lambda step, loss, inference: schedule.step()


# ----------------------------------------------------------------------------------- the arguments

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _as_arguments(batch: Any) -> _Arguments:
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch,), {}


def _arguments(batches: Any) -> Callable[[int], _Arguments]:
    """Turns ``batches`` into a function from the step number to that step's arguments."""
    if isinstance(batches, (Tensor, np.ndarray, tuple, Mapping)):
        fixed = _as_arguments(batches)
        return lambda step: fixed
    if hasattr(batches, "__iter__") and not isinstance(batches, (str, bytes)):
        return _Cycle(batches)
    if callable(batches):
        return lambda step: _as_arguments(batches(step))
    raise ValueError(
        "`batches` must be a tensor, a tuple or dict of arguments, an iterable of batches or a "
        f"callable of the step number, but was {type(batches).__name__}."
    )


class _Cycle:
    """Goes through an iterable again and again."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._iterator: Iterator[Any] | None = None
        self._consumed = 0  # of this pass
        self._tracked = False
        self._begun: dict[str, Any] = {}  # the random states where this pass began

    def __call__(self, step: int) -> _Arguments:
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
                        f"`batches` must yield a batch for every step, but was an iterator that "
                        f"was exhausted at step {step}. Pass the iterable that it came from, "
                        "which can be begun again."
                    ) from None
            else:
                self._consumed += 1
                return _as_arguments(batch)
        raise ValueError(f"`batches` must yield a batch, but was empty at step {step}.")

    def _is_iterator(self) -> bool:
        return hasattr(self._batches, "__next__")

    def _begin(self) -> None:
        if self._tracked:
            generators = [g.get_state() for g in self._generators()]
            self._begun = {"random_state": random_state(), "generators": generators}
        self._iterator = iter(self._batches)
        self._consumed = 0

    # A pass is saved as its beginning and the number of batches taken.

    def track(self) -> None:
        """Notes the random states of every beginning, which a state needs."""
        self._tracked = True

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self._consumed, "begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not state["begun"]:
            return
        for generator, saved in zip(self._generators(), state["begun"]["generators"], strict=True):
            generator.set_state(saved)
        set_random_state(state["begun"]["random_state"])
        self._begin()
        assert self._iterator is not None
        for _ in range(state["consumed"]):
            try:
                next(self._iterator)
            except StopIteration:
                raise ValueError(
                    f"`batches` must yield the {state['consumed']} batches that the saved run took "
                    f"of it, but had {self._consumed}"
                ) from None
            self._consumed += 1

    def _generators(self) -> list[torch.Generator]:
        """Those of a DataLoader and its samplers."""
        loader: Any = self._batches
        samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
        samplers += [getattr(samplers[1], "sampler", None)]
        found = [getattr(holder, "generator", None) for holder in (loader, *samplers)]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


# -------------------------------------------------------------------------------------- the losses


def _as_losses(result: Any, step: int, names: Sequence[str] | None) -> dict[str, float]:
    if isinstance(result, Mapping):
        named = {str(name): value for name, value in result.items()}
    elif isinstance(result, (tuple, list)):
        if names is None or len(names) != len(result):
            names = [f"loss_{i}" for i in range(len(result))]
        named = dict(zip(names, result, strict=True))
    else:
        named = {"loss": result}
    try:
        return {name: float(value) for name, value in named.items()}
    except (TypeError, ValueError, RuntimeError):  # the last by a tensor of several elements
        raise ValueError(
            "`inference.step` must return a float, or a tuple or dict of floats, "
            f"but returned {result!r} at step {step}."
        ) from None


def _advance_schedule(inference: Any, losses: dict[str, float]) -> None:
    optim = getattr(inference, "optim", None)
    if not isinstance(optim, PyroLRScheduler):
        return
    if optim.pt_scheduler_constructor is torch.optim.lr_scheduler.ReduceLROnPlateau:
        optim.step(sum(losses.values()))  # the one schedule that looks at the loss
    else:
        optim.step()


class _NoProgress:
    def update(self, losses: dict[str, float], inference: Any) -> None:
        pass

    def close(self) -> None:
        pass


class _ProgressBar(_NoProgress):
    def __init__(self, num_steps: int, description: str | None, done: int) -> None:
        from tqdm.auto import tqdm

        total = None if num_steps == sys.maxsize else num_steps  # someone else ends the run
        self._bar = tqdm(total=total, desc=description, initial=done)
        self._smoothed: dict[str, float] = {}

    def update(self, losses: dict[str, float], inference: Any) -> None:
        for name, value in losses.items():
            before = self._smoothed.get(name, value)
            self._smoothed[name] = before + _SMOOTHING * (value - before)
        shown = {name: f"{value:.4g}" for name, value in self._smoothed.items()}
        rate = _learning_rate(inference)
        if rate is not None:
            shown["lr"] = f"{rate:.2e}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


# --------------------------------------------------------------------------------- what is trained


def _optimized(inference: Any) -> set[int] | None:
    """Identities of the tensors that some optimiser holds; None without any optimiser."""
    found: set[int] | None = None
    for optimizer in optimizers_of(inference):
        found = set() if found is None else found
        if isinstance(optimizer, PyroOptim):
            found.update(id(param) for param in optimizer.optim_objs)
        else:
            found.update(id(p) for group in optimizer.param_groups for p in group["params"])
    return found


def _learning_rate(inference: Any) -> float | None:
    for optimizer in optimizers_of(inference):
        held: Any = optimizer
        if isinstance(optimizer, PyroOptim):
            held = next(iter(optimizer.optim_objs.values()), None)
            held = getattr(held, "optimizer", held)  # a scheduler wraps its optimiser
        if held is not None:
            return float(held.param_groups[0]["lr"])
    return None


def _gradients(store: Any) -> dict[str, tuple[Tensor | None, int]]:
    """Every stored parameter's gradient and its version, which grows when it is added to."""
    grads = {name: param.grad for name, param in store._params.items()}
    return {name: (grad, 0 if grad is None else grad._version) for name, grad in grads.items()}


class _Watch:
    """Records which networks run and which Pyro parameters appear during one step."""

    def __enter__(self) -> _Watch:
        store = pyro.get_param_store()
        self._before = _gradients(store)
        self._ran: dict[tuple[int, str], tuple[nn.Module, str, Tensor]] = {}
        self._handle = nn.modules.module.register_module_forward_hook(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _record(self, module: nn.Module, inputs: object, output: object) -> None:
        if not torch.is_grad_enabled():
            return
        for name, param in module._parameters.items():
            # A tensor computed from others (torch.func.functional_call) only passes through.
            if param is not None and param.requires_grad and param.is_leaf:
                self._ran[id(module), name] = (module, name, param)

    def check(self, inference: Any) -> None:
        """Raises if something took part in the step and is in no optimiser."""
        optimized = _optimized(inference)
        if optimized is None:  # nothing to compare with: the optimiser is out of sight
            return
        store = pyro.get_param_store()
        stored_names = {id(param): name for name, param in store._params.items()}
        lines: dict[int, str] = {}
        for module, name, param in self._ran.values():
            # Pyro may have put the stored tensor into the module since.
            current = module._parameters.get(name)
            if id(param) in optimized or current is None or id(current) in optimized:
                continue
            # A PyroModule registers what the program reads, so its other parameters are unused.
            if isinstance(module, PyroModule) and optimized and param.grad is None:
                continue
            stored = stored_names.get(id(param))
            also = f", in the param store as {stored!r}" if stored is not None else ""
            lines[id(param)] = f"`{name}` {tuple(param.shape)} of a `{type(module).__name__}`{also}"
        for name, (grad, version) in _gradients(store).items():
            param = store._params[name]
            if name.startswith(_AVERAGE):
                continue
            if name in self._before:
                before, version_before = self._before[name]
                touched = grad is not before or version != version_before
            else:
                touched = True
            if touched and id(param) not in optimized and id(param) not in lines:
                lines[id(param)] = f"the Pyro parameter {name!r} {tuple(param.shape)}"
        if lines:
            raise ValueError(_describe(list(lines.values())))
        if isinstance(inference, SVI):
            self._check_gradients(inference)

    def _check_gradients(self, inference: SVI) -> None:
        """Raises if SVI captured parameters but no gradient came back to any of them."""
        # After a step SVI sets gradients to zero, not to None: None has had no gradient.
        params = [param for param in inference.optim.optim_objs if isinstance(param, Tensor)]
        if params and all(param.grad is None for param in params):
            store = pyro.get_param_store()
            names = [
                name for name, param in store._params.items() if any(param is p for p in params)
            ]
            raise ValueError(
                "`inference` must compute a gradient in its step, but no parameter had one: "
                f"{', '.join(names[:_MAX_LISTED])}. An ELBO does not go backward unless the model "
                "or guide reads a parameter while it runs: touch one in the program, not only in "
                "a `log_prob`. `check_training=False` switches this check off."
            )


def _describe(lines: list[str]) -> str:
    listed = lines[:_MAX_LISTED]
    if len(lines) > _MAX_LISTED:
        listed.append(f"and {len(lines) - _MAX_LISTED} more")
    return (
        "`inference` must hold every parameter that takes part in its step in an optimiser, but "
        "these would never train:\n"
        + "".join(f"  - {line}\n" for line in listed)
        + "SVI trains what the model or guide reads while it runs. Missing are\n"
        "  - a network that is neither an attribute of a PyroModule nor registered: make it one, "
        "or call `pyro.module(name, network)` in the model or guide;\n"
        "  - a network or `pyro.param` first touched after the program has ended, as in the "
        "`log_prob` of an observed site: touch it in the program;\n"
        "  - a `pyro.param` read, or a distribution built, outside of the program: move it "
        "inside;\n"
        "  - a network registered under a name that the param store already gives to another one: "
        "call `pyro.clear_param_store()` or choose another name.\n"
        "What is meant to stay fixed: `requires_grad_(False)`, or `torch.no_grad()` around it. "
        "`check_training=False` switches this check off."
    )
