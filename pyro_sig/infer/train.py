"""The training loop for anything that has a ``step``."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_sig._arguments import check_choice, check_flag, check_integer, describe, refusal
from pyro_sig.infer._bad_site import find_bad_site
from pyro_sig.infer._batches import Cycle, Fixed, arguments_of
from pyro_sig.infer._gradient_guard import BadGradient, GradientGuard
from pyro_sig.infer._progress_bar import LossBar
from pyro_sig.infer._run_state import RunState
from pyro_sig.infer._training_check import TrainingCheck
from pyro_sig.infer.history import History
from pyro_sig.infer.mixing_gap import mixing_gap, sig_elbo_of

__all__ = [
    "NonFiniteError",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "StopTraining",
    "train",
]


# A run of fewer steps is a trial, of which nothing is said.
_LONG = 100

# How many updates in a row may be skipped.
_MAX_SKIPPED = 100

# How many parameters an error message lists.
_MAX_LISTED = 8


class Stepper(Protocol):
    """Anything that takes one training step, :class:`pyro.infer.SVI` included."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step and returns its loss, or several as a tuple or a dict."""


class StopTraining(Exception):
    """Raised by a callback to end training; :func:`train` then returns as usual."""


class NonFiniteError(ValueError):
    """A loss or a gradient was NaN or infinite.

    :param what: what was not finite.
    :param step: the number of the step, counted from 0.
    :param history: the history up to and including this step.
    :param site: where in the programs, if it was found.
    :param checkpoint: the last file that the run saved, if there is one.
    """

    _more = ""

    def __init__(
        self,
        what: str,
        step: int,
        history: History,
        site: str | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        where = "" if site is None else f" In a run of the programs {site}."
        saved = "" if checkpoint is None else f" The last checkpoint is {checkpoint}."
        super().__init__(
            f"`inference` must have finite losses and gradients, but {what} at step {step}."
            f"{self._more}{where} Common causes are a learning rate that is too high, a scale that "
            f"went to zero, and data outside of the support.{saved}"
        )
        self.step = step
        self.history = history
        self.site = site
        self.checkpoint = checkpoint


class NonFiniteLossError(NonFiniteError):
    """A loss was NaN or infinite.

    :ivar name: the name of the loss in the history.
    :ivar value: the loss.
    """

    name: str
    value: float


class NonFiniteGradientError(NonFiniteError):
    """A gradient was NaN or infinite; no optimiser has used it.

    :ivar names: the parameters.
    """

    names: list[str]
    _more = " No optimiser has used it."


def train(
    inference: Stepper,
    batches: Any,
    num_steps: int,
    *,
    callbacks: Iterable[Callable[[int, Any, Any], object] | LRScheduler] = (),
    progress: bool | None = None,
    description: str | None = None,
    check_training: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1000,
    keep: int = 3,
    resume: bool | Literal["auto"] = "auto",
    on_non_finite: Literal["raise", "skip", "ignore"] = "raise",
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

    A gradient that is not finite is noticed before an optimiser uses it, at the price of one
    synchronisation for each optimiser; processes that train together notice it by the loss.
    After the run a warning says so if a :class:`~pyro_sig.infer.SIG_ELBO` has too few draws: if
    four times as many would raise its bound by more than a nat for each row, or if that could not
    be computed.

    With `checkpoint`, a run that was killed and is started again, by the same program, goes on
    from its last checkpoint and ends as if it had not been: on one machine with the same number of
    threads, bit for bit. Saved are the parameters, buffers, optimisers and inner networks of
    `inference`, callbacks that have ``state_dict`` and ``load_state_dict``, the random states of
    torch, NumPy and Python, the losses, and the place in `batches`, with a digest of data that are
    tensors: other data are another run. An iterable is begun with the
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
        of torch among them advances by one. ``ReduceLROnPlateau`` needs the loss: pass
        ``lambda step, loss, inference: plateau.step(loss)``, whose state no checkpoint has.
    :param progress: show a bar with the smoothed loss and the learning rate; None does where
        someone watches: on a terminal or in a notebook, not under CI. False is for bars of what
        runs inside too.
    :param description: text in front of the bar, for a script that shows several.
    :param check_training: look for what does not train, as said above.
    :param checkpoint: a folder for the checkpoints of this run alone, made if need be.
    :param every: steps between two checkpoints; the end of the run has one in any case.
    :param keep: how many checkpoints are kept.
    :param resume: ``"auto"`` goes on from the last checkpoint if there is one, True raises if
        there is none, and False raises if there is one.
    :param on_non_finite: at a loss or gradient that is NaN or infinite, ``"raise"``; or ``"skip"``
        the update, count it in ``history.num_skipped`` and give it the loss NaN, and raise after
        100 of them in a row; or ``"ignore"``.
    :return: the losses of all steps, those before the last checkpoint included.
    :raises NonFiniteError: (a ``ValueError``) a :class:`NonFiniteGradientError` before an optimiser
        has used the gradient, or a :class:`NonFiniteLossError`; with the site of the program where
        it can be found, and the last checkpoint.
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
        raise refusal("inference", "an object with a method `step`", inference)
    check_integer("num_steps", num_steps, 0, int)
    check_choice("on_non_finite", on_non_finite, ("raise", "skip", "ignore"))
    check_flag("check_training", check_training)
    is_path = isinstance(checkpoint, (str, os.PathLike)) and str(checkpoint) != ""
    if checkpoint is not None and not is_path:
        raise refusal("checkpoint", "the path of a folder", checkpoint)
    iterable = isinstance(callbacks, Iterable) and not isinstance(callbacks, torch.Tensor)
    given = list(callbacks) if iterable else [None]
    calls = _check_callbacks(given, callbacks)

    history = History()
    arguments = arguments_of(batches)
    run: RunState | None = None
    done = 0
    if checkpoint is not None:
        cursor = arguments if isinstance(arguments, (Cycle, Fixed)) else batches
        run = RunState(checkpoint, every, keep, resume, inference, given, cursor, history)
    guard = None if on_non_finite == "ignore" else GradientGuard()
    in_a_row = 0
    meter = LossBar(progress, num_steps, description)
    start = time.perf_counter()
    before = 0.0
    try:
        if run is not None:
            if isinstance(arguments, Cycle):
                arguments.track()
            done = run.restore(num_steps)
            before = history.seconds
            if done == num_steps:
                run.finish(arguments_of(batches), num_steps)
        meter.done = done
        meter.__enter__()
        for step in range(done, num_steps):
            args, kwargs = arguments(step)
            if step == done and isinstance(inference, torch.optim.Optimizer):
                _check_closure(inference, args)
            check = TrainingCheck() if step == done and check_training else None
            skipped: list[str] = []
            with ExitStack() as stack:
                for context in (None if run is None else run.step(args, kwargs), check, guard):
                    if context is not None:
                        stack.enter_context(context)
                try:
                    result = inference.step(*args, **kwargs)
                except BadGradient as error:
                    skipped = error.names
            if skipped:
                result = _nothing(history, inference)
                in_a_row += 1
                history.num_skipped += 1
            else:
                in_a_row = 0
            losses = _as_losses(result, step, getattr(inference, "loss_names", None))
            history.append(losses)
            at = (step, history, inference, args, kwargs, run)
            if skipped and (on_non_finite == "raise" or in_a_row == _MAX_SKIPPED):
                what = f"the gradient of {_listed(skipped)} was not finite"
                raise _error(NonFiniteGradientError, what, *at, names=skipped)
            if on_non_finite == "raise":
                for name, value in losses.items():
                    if not math.isfinite(value):
                        what = f"{name!r} was {value}"
                        raise _error(NonFiniteLossError, what, *at, name=name, value=value)
            if check is not None and not skipped:
                check.check(inference)
                check.plates.check([*args, *kwargs.values()])
            if not skipped:
                _advance_schedule(inference, losses)
            meter.step(losses, inference)
            try:
                for callback in calls:
                    callback(step, result, inference)
            except StopTraining:
                history.stopped = True
            if run is not None:
                history.seconds = before + time.perf_counter() - start
                run.after(step + 1, history.stopped or step + 1 == num_steps)
            if history.stopped:
                break
        else:
            if num_steps - done >= _LONG:
                _warn_of_small_mixing(inference, args, kwargs)
    except BaseException as error:
        error.history = history  # type: ignore[attr-defined]
        raise
    finally:
        history.seconds = before + time.perf_counter() - start
        meter.__exit__()
        if run is not None:
            run.close()
    return history


def _check_closure(optimizer: torch.optim.Optimizer, args: tuple) -> None:
    if not all(map(callable, args)):
        raise ValueError(
            "`inference` must have a `step` that takes the batches, as SVI has, was an "
            f"optimiser, {type(optimizer).__name__}, which takes a function"
        )


def _nothing(history: History, inference: Any) -> dict[str, float]:
    names = list(history) or list(getattr(inference, "loss_names", None) or ["loss"])
    return dict.fromkeys(names, math.nan)


def _error(
    kind: type[NonFiniteError],
    what: str,
    step: int,
    history: History,
    inference: Any,
    args: tuple,
    kwargs: dict[str, Any],
    run: RunState | None,
    **found: Any,
) -> NonFiniteError:
    site = find_bad_site(inference, args, kwargs)
    error = kind(what, step, history, site, None if run is None else run.last_good)
    vars(error).update(found)
    return error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")


def _warn_of_small_mixing(inference: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    elbo = sig_elbo_of(inference)
    if elbo is None:
        return
    try:
        gap = mixing_gap(inference, *args, **kwargs)
    except Exception as error:  # out of memory, for instance: a finished run must not end so
        warnings.warn(
            f"`num_mixing` is {elbo.num_mixing}; training is complete, but whether that is enough "
            "could not be checked, since four times as many draws, in "
            f"`pyro_sig.infer.mixing_gap`, raised {type(error).__name__}: {error}",
            stacklevel=3,
        )
        return
    if gap > 1.0:
        warnings.warn(
            f"`num_mixing` is {elbo.num_mixing}, but four times as many draws would raise the "
            f"bound by {gap:.1f} nats for each row: what the generator cannot tell apart by that "
            "few, it averages. See `pyro_sig.infer.mixing_gap`",
            stacklevel=3,
        )


def _check_callbacks(given: list[Any], callbacks: Any) -> list[Callable[[int, Any, Any], object]]:
    if any(isinstance(c, ReduceLROnPlateau) for c in given):
        raise ValueError(
            "`callbacks` must have no ReduceLROnPlateau, whose step takes the loss, but had one: "
            "pass `lambda step, loss, inference: plateau.step(loss)`"
        )
    calls = [_advance(c) if isinstance(c, LRScheduler) else c for c in given]
    if not all(callable(callback) for callback in calls):
        raise refusal("callbacks", "an iterable of callables", callbacks)
    return calls


def _advance(schedule: LRScheduler) -> Callable[[int, Any, Any], object]:
    return lambda step, loss, inference: schedule.step()


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
            f"returned {describe(result)} at step {step}"
        ) from None


def _advance_schedule(inference: Any, losses: dict[str, float]) -> None:
    optim = getattr(inference, "optim", None)
    if not isinstance(optim, PyroLRScheduler):
        return
    if optim.pt_scheduler_constructor is torch.optim.lr_scheduler.ReduceLROnPlateau:
        optim.step(sum(losses.values()))  # the one schedule that looks at the loss
    else:
        optim.step()
