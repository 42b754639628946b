"""One training step by several processes, each with its own rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pyro
import torch
import torch.distributed as dist
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyro_sig._arguments import check_choice, refusal
from pyro_sig._optimizers import optimizers_of
from pyro_sig._program_run import ParamTap, modules_run
from pyro_sig._random_state import preserved_random_state
from pyro_sig._rank_sum import check_group
from pyro_sig.adversarial._trainer import Trainer
from pyro_sig.distributed._agreement import (
    broadcast,
    by_kind,
    check_alike,
    check_values,
    gather,
    signature,
)
from pyro_sig.distributed._reduction import GradientReduction

__all__ = ["check_equal", "data_parallel"]

Inference = TypeVar("Inference")


def data_parallel(inference: Inference, group: Any = None, reduction: str = "mean") -> Inference:
    r"""Makes every step of an inference object one step of all processes together.

    .. math::
        \theta \leftarrow \theta - u\Big(\frac{1}{W} \sum_{r=1}^{W} \nabla_\theta
        L(\theta; x_r)\Big)

    Process r calls ``step`` with its own rows :math:`x_r`. Each optimiser that takes a step
    within (of the programs, of critics, of networks inside of a bound) first reduces the gradients
    of its parameters over the processes, before it clips them, so that these stay equal everywhere.
    The programs are as they were: what runs them may differentiate as often as it likes, which
    :class:`torch.nn.parallel.DistributedDataParallel` does not allow.

    In the first step the loss is evaluated once more, which leaves the random state as it is, to
    find the parameters; they, and the buffers of networks, become those of the first process.
    After each step floating point buffers, such as batch statistics, are averaged, and
    losses are returned as means (sums) over the processes: all of them stop, or change a learning
    rate by the loss, at the same step.

    :param inference: :class:`~pyro.infer.SVI`, an adversarial trainer, or another object with a
        ``step`` and torch's or Pyro's optimisers; before or after its first step. Every process
        builds the same one, or loads the same checkpoint.
    :param group: the process group, None for all processes.
    :param str reduction: "mean" for losses that are a mean over rows, or that scale a subsample to
        the whole data; "sum" for those that are a sum over the rows of this process only, with no
        term that all processes share.
    :return: `inference` itself; its ``step`` is another one.
    :raises ValueError: without a process group, optimisers or a ``step``; from the first step, in
        every process, if these do not train the same parameters, or one of them fails.

    Example::

        >>> import tempfile, pyro, torch, torch.distributed
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> def model(rows, index):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("row", 100, subsample=index):  # of 100 rows in all
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=rows)
        >>> svi = SVI(model, lambda *_: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> svi = data_parallel(svi)
        >>> loss = svi.step(torch.ones(10), torch.arange(10))
        >>> torch.distributed.destroy_process_group()
    """
    held: Any = inference
    bare = isinstance(inference, (type, torch.optim.Optimizer))
    if bare or not callable(getattr(held, "step", None)):
        raise refusal("inference", "an object with a method `step`", inference)
    if isinstance(getattr(held.step, "__self__", None), _DataParallel):
        raise ValueError("`inference` must not be data parallel already")
    check_choice("reduction", reduction, ("mean", "sum"))
    held.step = _DataParallel(held, group, reduction).step
    return inference


def check_equal(inference: Any) -> None:
    """Checks that all processes have the same parameters, optimiser states and buffers.

    Every process has to call it. It compares bit for bit, which costs a broadcast of the state.

    :param inference: what :func:`data_parallel` returned, after its first step, or after ``train``
        has read a run that is complete.
    :raises ValueError: if they differ, in every process; or if there was no step.

    Example::

        >>> import tempfile, torch, torch.distributed
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> store = torch.distributed.FileStore(tempfile.mktemp(), 1)
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> def model():
        ...     pyro.sample("x", pyro.distributions.Normal(pyro.param("loc", torch.ones(2)), 1.0).
        ...         to_event(1), obs=torch.zeros(2))
        >>> svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> loss = data_parallel(svi).step()
        >>> check_equal(svi)
        >>> torch.distributed.destroy_process_group()
    """
    parallel = getattr(getattr(inference, "step", None), "__self__", None)
    if not isinstance(parallel, _DataParallel) or not parallel.known:
        raise ValueError("`inference` must be data parallel and have taken a step")
    parallel.check_equal()


class _DataParallel:
    """Stands before the step of an inference object."""

    def __init__(self, inference: Any, group: Any, reduction: str) -> None:  # noqa: ANN401
        size = check_group(group)[1]
        optimizers = list(optimizers_of(inference))
        if not optimizers:
            raise ValueError(
                "`inference` must hold its optimisers, of torch.optim or pyro.optim, but "
                f"{type(inference).__name__} has none"
            )
        self.inference = inference
        self.group = group
        self.started = False
        self.known = False
        self._factor = 1.0 / size if reduction == "mean" else 1.0
        self._own_step: Callable[..., Any] = inference.step
        self._reductions: dict[Any, GradientReduction] = {}
        self._modules: list[nn.Module] = []
        self._active = False
        self._pyro_optims = [o for o in dict.fromkeys(optimizers) if isinstance(o, PyroOptim)]
        for optimizer in self._pyro_optims:
            if not hasattr(optimizer, "_data_parallel"):
                optimizer.__class__ = _reducing(type(optimizer))  # type: ignore[arg-type]

    def step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Takes a step together with the other processes.

        :param args: arguments of the step, with the rows of this process.
        :param kwargs: its keyword arguments.
        :return: the losses, reduced over processes.
        """
        if not self.started:
            self._start(args, kwargs)
        with self._reducing_steps():
            losses = self._own_step(*args, **kwargs)
        self.started = self.known = True
        self._average_buffers()
        return self._reduce_losses(losses)

    # ------------------------------------------------------------------------------ the first step

    def _start(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Finds what there is to train, and makes it equal."""
        params = self._find(args, kwargs)
        tensors = {**params, **self._state()}
        marks = [(f"a state waiting for {name!r}", "") for name in self._waiting()]
        check_alike(signature(tensors) + marks, self.group)
        broadcast(tensors, self.group)

    def note_restored(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Gets to know a complete run that ``train`` has read, for :func:`check_equal`.

        :param args: arguments of a step.
        :param kwargs: its keyword arguments.
        """
        self._find(args, kwargs)  # and broadcasts nothing, which would hide a difference
        self.known = True

    def _find(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Runs the programs, notes their networks and returns their parameters."""
        params: dict[str, Tensor] = {}
        evaluate = getattr(self.inference, "evaluate_loss", None)
        if callable(evaluate):
            with self._fail_together(), preserved_random_state(), modules_run() as modules:
                with ParamTap() as tap:
                    evaluate(*args, **kwargs)
            self._modules = modules
            params = dict(sorted(tap.params.items()))
        return params

    @contextmanager
    def _fail_together(self) -> Iterator[None]:
        """Raises in every process if one of them raises."""
        try:
            yield
        except Exception as error:
            gather(f"{type(error).__name__}: {error}", self.group)
            raise
        errors = gather(None, self.group)
        for rank, message in enumerate(errors):
            if message is not None:
                raise ValueError(
                    f"`inference` must take its step in every process, but rank {rank} raised "
                    f"{message}"
                )

    def _waiting(self) -> list[str]:
        return sorted(n for o in self._pyro_optims for n in o._state_waiting_to_be_consumed)

    # ------------------------------------------------------------------------------------ gradients

    @contextmanager
    def _reducing_steps(self) -> Iterator[None]:
        """Puts a reduction before the step of every optimiser, also of one yet to be made."""
        handle = register_optimizer_step_pre_hook(self._before_step)
        self._set_active(True)
        try:
            yield
        finally:
            self._set_active(False)
            handle.remove()

    def _set_active(self, active: bool) -> None:
        self._active = active
        for optim in self._pyro_optims:  # which may serve another inference object too
            optim._data_parallel = self if active else None

    def _reduction(self, optimizer: Any) -> GradientReduction:  # noqa: ANN401
        if optimizer not in self._reductions:
            self._reductions[optimizer] = GradientReduction(self.group, self._factor)
        return self._reductions[optimizer]

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        if not self._active:  # one of a Pyro optimiser, which has been here
            return
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            raise ValueError(
                f"`inference` must step its {type(optimizer).__name__} without a closure, whose "
                "gradients would not be reduced"
            )
        self._reduction(optimizer)(_named(optimizer))

    def call_pyro(self, optim: PyroOptim, call: Callable[..., Any], params: Any) -> None:  # noqa: ANN401
        """Reduces the gradients of a Pyro optimiser, then lets it clip them and step.

        :param optim: the optimiser.
        :param call: what it does by itself.
        :param params: parameters, of which SVI gives a set: in another order in every process.
        """
        own = dict(sorted((_name(param), param) for param in params))
        reduced = self._reduction(optim)(own)
        self._active = False
        try:
            call([param for _, param in sorted({**own, **reduced}.items())])
        finally:
            self._active = True
        for name, param in reduced.items():
            if name not in own:  # another process read it, and this one will not clear it
                param.grad = None

    # ------------------------------------------------------------------------------ after the step

    @torch.no_grad()
    def _average_buffers(self) -> None:
        buffers = {n: b for n, b in self._buffers().items() if b.is_floating_point()}
        for kind in by_kind(buffers):
            flat = torch.cat([buffer.reshape(-1) for buffer in kind.values()])
            dist.all_reduce(flat, group=self.group)
            flat /= dist.get_world_size(self.group)
            parts = flat.split([buffer.numel() for buffer in kind.values()])
            for buffer, part in zip(kind.values(), parts, strict=True):
                buffer.copy_(part.view(buffer.shape))

    def _reduce_losses(self, losses: Any) -> Any:  # noqa: ANN401
        if isinstance(losses, Mapping):
            names, values = list(losses), list(losses.values())
        else:
            values = list(losses) if isinstance(losses, (tuple, list)) else [losses]
        device = next(
            (p.device for r in self._reductions.values() for p in r.params.values()), None
        )
        total = torch.tensor([float(v) for v in values], dtype=torch.float64, device=device)
        dist.all_reduce(total, group=self.group)
        values = (total * self._factor).tolist()
        if isinstance(losses, Mapping):
            return dict(zip(names, values, strict=True))
        return tuple(values) if isinstance(losses, (tuple, list)) else values[0]

    # --------------------------------------------------------------------------------------- state

    def _buffers(self) -> dict[str, Tensor]:
        return {
            f"buffer {i}.{name}": buffer
            for i, module in enumerate(self._modules)
            for name, buffer in module.named_buffers()
        }

    def _state(self) -> dict[str, Tensor]:
        """All tensors that have to be equal, as far as they exist."""
        found = self._buffers()
        if isinstance(self.inference, Trainer):
            average = self.inference._program.average
            found |= {f"average {name}": value for name, value in sorted(average.items())}
        for i, optimizer in enumerate(
            dict.fromkeys([*optimizers_of(self.inference), *self._reductions])
        ):
            held: dict[str, tuple[Tensor, Any]] = {}
            if isinstance(optimizer, PyroOptim):
                for param, inner in optimizer.optim_objs.items():
                    held[_name(param)] = param, getattr(inner, "optimizer", inner)
            else:
                held = {name: (param, optimizer) for name, param in _named(optimizer).items()}
            for name, (param, inner) in sorted(held.items()):
                found[f"optimiser {i} {name}"] = param
                for key, value in sorted(inner.state.get(param, {}).items()):
                    if isinstance(value, Tensor):
                        found[f"optimiser {i} {name} {key}"] = value
        return found

    def check_equal(self) -> None:
        """Compares with the first process."""
        state = self._state()
        check_alike(signature(state), self.group)
        check_values(state, self.group)


def _name(param: Tensor) -> str:
    name = pyro.get_param_store().param_name(param)
    assert name is not None
    return name


def _named(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Names the parameters of a torch optimiser by their places."""
    return {
        f"group {g}.{i}": param
        for g, group in enumerate(optimizer.param_groups)
        for i, param in enumerate(group["params"])
        if param.requires_grad
    }


@functools.cache
def _reducing(kind: type[PyroOptim]) -> type[PyroOptim]:
    """Makes a class of Pyro optimisers that reduce gradients, in place of `kind`.

    Not a wrapper: trainers and schedules know an optimiser by its identity.
    """

    def __call__(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, N807
        def own(params: Any) -> None:  # noqa: ANN401
            kind.__call__(self, params, *args, **kwargs)

        if self._data_parallel is None:  # outside of a step, as where a state is restored
            own(params)
        else:
            self._data_parallel.call_pyro(self, own, params)

    members = {"__call__": __call__, "__doc__": kind.__doc__, "_data_parallel": None}
    made = type(kind.__name__, (kind,), members)
    made.__qualname__, made.__module__ = kind.__qualname__, kind.__module__
    return made
