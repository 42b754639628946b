"""The posterior in one call: scale, schedule, averaging and stopping are found for the user."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from pyro_sig._arguments import check_integer, check_number, describe
from pyro_sig._functions import check_callable, check_takes
from pyro_sig._progress import Progress
from pyro_sig.diagnostics import effective_share, log_importance_weights, pareto_k_hat
from pyro_sig.diagnostics.pareto import k_hat_verdict
from pyro_sig.infer._batches import Arguments
from pyro_sig.infer._check_programs import check_programs
from pyro_sig.infer._fit_schedule import Average, Schedule, tempered
from pyro_sig.infer._mapped_elbo import MappedELBO
from pyro_sig.infer._potential import unconstrained_log_density
from pyro_sig.infer.auto_semi_implicit import AutoSemiImplicit
from pyro_sig.infer.find_scale import ScaleReport
from pyro_sig.infer.history import History
from pyro_sig.infer.train import StopTraining, train

__all__ = ["Fit", "fit"]

_NUM_PARTICLES = 64
_NUM_LOOPED_PARTICLES = 4
_BUDGET = 10_000
_LEARNING_RATE = 0.01
_CLIP_NORM = 10.0
_NUM_WEIGHTS = 2000
_WEIGHT_MIXING = 5000


class Fit(NamedTuple):
    r"""Holds what :func:`fit` found.

    :param guide: the trained guide.
    :param history: the losses; see :class:`History`.
    :param float loss: mean loss over the end of training: for an evidence bound, its negative.
    :param bool converged: whether the loss was level before the learning rate was lowered; False
        too where there were too few steps to tell, as with a budget below 500.
    :param float k_hat: Pareto tail index of the importance weights of 2,000 draws, or NaN
        where it could not be computed, or the guide leaves a latent to the model.
    :param str report: what was done, in a few lines.

    Example::

        >>> Fit(None, History(), 1.0, True, 0.2, "").converged
        True
    """

    guide: Callable[..., Any]
    history: History
    loss: float
    converged: bool
    k_hat: float
    report: str

    def __repr__(self) -> str:
        return f"Fit({self.report})"


def fit(
    model: Callable[..., Any],
    *args: Any,  # noqa: ANN401 - arguments of the program
    guide: Callable[..., Any] | None = None,
    loss: Any = None,  # noqa: ANN401 - anything SVI takes
    budget: int | None = None,
    max_seconds: float | None = None,
    learning_rate: float | None = None,
    annealing: float = 0.0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1000,
    keep: int = 3,
    resume: bool | Literal["auto"] = "auto",
    **kwargs: Any,  # noqa: ANN401
) -> Fit:
    r"""Fits a posterior: finds the scale, sets the schedule, averages, and checks the result.

    Training runs at a constant learning rate (after a short warm-up) until the loss, averaged over
    windows, is level within its Monte Carlo error, or half of the budget is spent; then the rate
    falls along a cosine for half of the budget, and the last iterates are averaged.

    With `checkpoint`, a fit that was killed and is started again, by the same program, goes on from
    its last checkpoint, as a run of :func:`train` does, and ends with the same guide, losses,
    k-hat and report, bit for bit; a complete one trains nothing. The search for the scale is done
    again, and then replaced by what it had found. A clock is no function of the step: under
    ``max_seconds`` the fit goes on too, with the seconds that it has left, and ends elsewhere.

    :param callable model: a Pyro model.
    :param args: its arguments.
    :param callable guide: by default :class:`AutoSemiImplicit`.
    :param loss: an ELBO or any other objective that ``SVI`` takes; by default
        :class:`~pyro.infer.Trace_ELBO` with 64 particles where the model can be vectorised,
        or mapped by ``torch.func.vmap``, which is tried, and 4 otherwise.
    :param int budget: optimiser steps at most; by default 10,000, or as many as fit in
        ``max_seconds``.
    :param float max_seconds: wall-clock limit in seconds, the search for the scale included and
        the k-hat at the end not; the schedule runs on whichever of the two limits is nearer.
    :param float learning_rate: of Adam; by default 0.01, or what the loss suggests. Latents have
        been scaled, so it rarely needs a change.
    :param float annealing: share of the first phase in which the log-density of the model is
        raised from a tenth to one, which keeps separate modes in reach; 0 leaves it out.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :param checkpoint: a folder for the checkpoints of this fit alone, made if need be.
    :param int every: steps between two checkpoints; the end has one in any case.
    :param int keep: how many checkpoints are kept.
    :param resume: ``"auto"`` goes on from the last checkpoint if there is one, True raises if
        there is none, and False raises if there is one.
    :param kwargs: keyword arguments of the model.
    :return: guide, history, convergence, k-hat and a report.
    :raises ValueError: if an argument is out of range; if the model has latents that are discrete
        or without a density, a site that cannot be scored or has another shape than its plates, or
        a log-density that is not finite where the guide begins; if the guide draws what is no
        latent of the model; or if the folder holds another run, or one with another budget,
        annealing or time limit.
    :raises NonFiniteLossError: if a loss is NaN or infinite.

    Example::

        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> result = fit(model, torch.tensor(1.0), budget=100, progress=False)
        >>> round(float(result.guide.median()["x"]), 1)
        0.5
    """
    start = time.perf_counter()
    if budget is None:
        budget = _BUDGET if max_seconds is None else sys.maxsize
    check_callable("model", model, "a program, a function or a module")
    if guide is not None:
        check_callable("guide", guide, "a program, a function or a module")
    if learning_rate is None:
        learning_rate = getattr(loss, "guide_learning_rate", _LEARNING_RATE)
    _check_loss(loss, args, kwargs)
    check_integer("budget", budget, 1)
    if max_seconds is not None:
        max_seconds = check_number("max_seconds", max_seconds, above=0, finite=False)
    learning_rate = check_number("learning_rate", learning_rate, above=0)
    annealing = check_number("annealing", annealing, least=0, most=1)
    guide = _fresh_guide(model) if guide is None else guide
    with Progress(progress, 1, "scale") as bar, torch.no_grad(), poutine.block():
        guide(*args, **kwargs)  # finds the scale
        bar.update()
    left = check_programs(model, guide, args, kwargs)
    loss = _default_loss(model, guide, args, kwargs) if loss is None else loss
    schedule = Schedule(budget, max_seconds, annealing, start)
    optim = pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": learning_rate},
            "lr_lambda": lambda _: schedule.rate,
        },
        clip_args={"clip_norm": _CLIP_NORM},
    )
    svi = _SVI(tempered(model, schedule), guide, optim, loss)
    svi.schedule = schedule
    ending = _Ending(schedule, Average(optim), guide)
    try:
        history = train(
            svi,
            Arguments(args, kwargs),
            budget,
            callbacks=[ending],
            progress=progress,
            description="fit",
            checkpoint=checkpoint,
            every=every,
            keep=keep,
            resume=resume,
        )
    except StopTraining as error:  # at once: what the folder holds is complete
        history = error.history  # type: ignore[attr-defined]
    history.stopped = schedule.finished
    ending.average.restore()
    with Progress(progress, 1, "k-hat") as bar:
        k_hat, share, reason = _k_hat(model, guide, args, kwargs, left)
        bar.update()
    values = next(iter(history.values()))
    final = values[-max(1, len(values) // 10) :]
    mean = sum(final) / len(final)
    report = _report(guide, history, mean, schedule, k_hat, share, reason)
    return Fit(guide, history, mean, schedule.level, k_hat, report)


def _check_loss(loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
    if loss is not None and not isinstance(loss, ELBO):
        check_callable("loss", loss)
        check_takes("loss", loss, None, None, *args, **kwargs)


class _SVI(SVI):
    """Takes no step after the last, and looks at what a function in place of an ELBO returns."""

    schedule: Schedule

    def __init__(self, model: Any, guide: Any, optim: Any, loss: Any) -> None:
        super().__init__(model, guide, optim, loss)
        if not isinstance(loss, ELBO):
            self.loss_and_grads = _checked(self.loss_and_grads)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        if self.schedule.finished:
            raise StopTraining
        return super().step(*args, **kwargs)


def _checked(loss_and_grads: Callable[..., Any]) -> Callable[..., Tensor]:
    def checked(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        value: Any = loss_and_grads(*args, **kwargs)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"`loss` must return a scalar tensor, returned {describe(value)}")
        return value

    return checked


class _Ending:
    """What comes after a step, until the schedule is at its end; a checkpoint has its state."""

    def __init__(self, schedule: Schedule, average: Average, guide: Any) -> None:
        self.schedule, self.average, self.guide = schedule, average, guide

    def __call__(self, step: int, value: Any, _: Any) -> None:
        self.schedule.advance(float(value[0] if isinstance(value, tuple) else value))
        if self.schedule.averages:
            self.average.update()
        if self.schedule.finished:
            raise StopTraining

    def state_dict(self) -> dict[str, Any]:
        scale = getattr(self.guide, "scale_report", None)
        return {
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "scale": None if scale is None else tuple(scale),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])
        if state["scale"] is not None:
            self.guide.scale_report = ScaleReport(*state["scale"])


# ------------------------------------------------------------------------------------ what it needs


def _fresh_guide(model: Callable[..., Any]) -> AutoSemiImplicit:
    """A guide whose name no parameter in the store has: an earlier fit must stay as it was."""
    guide = AutoSemiImplicit(model)
    store = pyro.get_param_store()
    base, number = guide._pyro_name, 0
    while any(name.startswith(f"{guide._pyro_name}.") for name in store.keys()):
        number += 1
        guide._pyro_set_supermodule(f"{base}_{number}", guide._pyro_context)
    return guide


def _default_loss(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ELBO:
    nesting = _vectorized_nesting(model, guide, args, kwargs)
    if nesting is None and _can_be_mapped(model, guide, args, kwargs):
        return MappedELBO(num_particles=_NUM_PARTICLES)
    if nesting is None:
        return Trace_ELBO(num_particles=_NUM_LOOPED_PARTICLES)
    return Trace_ELBO(
        num_particles=_NUM_PARTICLES, vectorize_particles=True, max_plate_nesting=nesting
    )


def _plates(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Any]:
    """The plate frames of all sites of a model."""
    with poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    return [frame for site in sites for frame in site["cond_indep_stack"]]


@torch.no_grad()
def _vectorized_nesting(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> int | None:
    """Plate nesting of a model that is right for several particles at once; None if it is not."""
    if not isinstance(guide, AutoContinuous):
        return None
    frames = _plates(model, guide, args, kwargs)
    nesting = max((-frame.dim for frame in frames if frame.vectorized), default=0)
    latent = guide.get_posterior().sample((3,))
    alone = unconstrained_log_density(model, guide._unpack_latent, args, kwargs)
    try:
        together = unconstrained_log_density(
            model, guide._unpack_latent, args, kwargs, particle_dim=-1 - nesting
        )(latent)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return None
    expected = alone(latent)
    tolerance = 1e-3 * (1 + expected.abs().max())
    return nesting if bool(((together - expected).abs() < tolerance).all()) else None


@torch.no_grad()
def _can_be_mapped(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Whether `vmap` runs the model, and it has no randomness and no parameters of its own."""
    if not isinstance(guide, AutoContinuous):
        return False
    with poutine.block(), poutine.trace(param_only=True) as params:
        guide_trace = poutine.trace(poutine.block(guide, hide_types=["param"])).get_trace(
            *args, **kwargs
        )
        poutine.replay(model, trace=guide_trace)(*args, **kwargs)
    if any(site["type"] == "param" for site in params.trace.nodes.values()):
        return False
    latent = guide.get_posterior().sample((2,))
    values = []
    for seed in (0, 1):
        density = unconstrained_log_density(model, guide._unpack_latent, args, kwargs, seed=seed)
        values.append(density(latent))
        if not density.state["vectorized"]:  # type: ignore[attr-defined]
            return False
    return torch.equal(*values)


@torch.no_grad()
def _k_hat(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    left: list[str],
) -> tuple[float, float, str]:
    """The tail index and the effective share of draws; NaN and the reason if there are none."""
    if left:  # weights would judge its prior as a proposal
        return math.nan, math.nan, f"the latent {left[0]!r} is left to the model"
    try:
        if isinstance(guide, AutoContinuous):
            frames = _plates(model, guide, args, kwargs)
            if any(f.full_size is not None and f.full_size != f.size for f in frames):
                return math.nan, math.nan, "the model subsamples its data"
            log_density = unconstrained_log_density(model, guide._unpack_latent, args, kwargs)
            if isinstance(guide, AutoSemiImplicit):
                posterior = guide.get_posterior(num_mixing=_WEIGHT_MIXING)
            else:
                posterior = guide.get_posterior(*args, **kwargs)
            latent = posterior.sample((_NUM_WEIGHTS,))
            log_weights = log_density(latent) - posterior.log_prob(latent)
        else:
            log_weights = log_importance_weights(
                model, guide, *args, num_samples=_NUM_WEIGHTS // 4, **kwargs
            )
        return pareto_k_hat(log_weights), effective_share(log_weights), ""
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return math.nan, math.nan, str(error).split("\n")[0]


def _report(
    guide: Callable[..., Any],
    history: History,
    loss: float,
    schedule: Schedule,
    k_hat: float,
    share: float,
    reason: str,
) -> str:
    lines = []
    scale = getattr(guide, "scale_report", None)
    if scale is not None:
        found = (
            f" ({scale.num_modes}), Gaussian bound {scale.elbo:.4g}, "
            f"{scale.num_evaluations} evaluations"
        )
        lines.append(f"scale: {scale.method}{found if scale.num_evaluations else ''}")
    if schedule.level:
        state = "level before cooling"
    elif schedule.judged:
        state = "NOT level when cooling began: give it more steps or time"
    else:
        state = "too few to tell whether it was level when cooling began"
    lines.append(f"loss: {loss:.5g} after {history.num_steps} steps, {state}")
    if math.isnan(k_hat):
        lines.append(f"k-hat: none, {reason}")
    else:
        verdict = k_hat_verdict(k_hat, share)
        lines.append(f"k-hat: {k_hat:.2f}, effective share of draws {share:.2f} ({verdict})")
    return "; ".join(lines)
