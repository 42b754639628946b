"""What takes part in a step without being in any optimiser."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_sig._optimizers import optimizers_of
from pyro_sig.infer._plate_sizes import PlateSizes

__all__ = ["TrainingCheck"]

# How Pyro calls the running averages that TraceGraph_ELBO keeps among the parameters.
_AVERAGE = "__baseline_avg_downstream_cost_"

# How many parameters an error message lists.
_MAX_LISTED = 8


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


def _gradients(store: Any) -> dict[str, tuple[Tensor | None, int]]:
    """Every stored parameter's gradient and its version, which grows when it is added to."""
    grads = {name: param.grad for name, param in store._params.items()}
    return {name: (grad, 0 if grad is None else grad._version) for name, grad in grads.items()}


class TrainingCheck:
    """Records which networks run and which Pyro parameters appear during one step."""

    def __enter__(self) -> TrainingCheck:
        store = pyro.get_param_store()
        self._before = _gradients(store)
        self._ran: dict[tuple[int, str], tuple[nn.Module, str, Tensor]] = {}
        self._handle = nn.modules.module.register_module_forward_hook(self._record)
        self.plates = PlateSizes()
        self.plates.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.plates.__exit__(*error)
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
                "a `log_prob`. `check_training=False` switches this check off"
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
