"""A Pyro program as a module, so that it can be run with other tensors than its parameters."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

__all__ = ["ProgramModule"]

Result = TypeVar("Result")


class ProgramModule(nn.Module):
    """Holds all parameters that programs read; is called with a function that runs them.

    Under :class:`~pyro_sig.adversarial.unrolling.FunctionalModule` the programs see the tensors
    that stand in for the parameters, in the networks as well as at ``pyro.param``.

    :param params: the parameters by their names in the param store, unconstrained.
    :param modules: the networks that the programs run.
    """

    def __init__(self, params: Mapping[str, Tensor], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(modules)
        inside = {id(p) for p in self.networks.parameters()}
        self.free = nn.Module()
        self._names = [name for name, p in params.items() if id(p) not in inside]
        for i, name in enumerate(self._names):
            # Tensors of the store are leaves, but not of torch's class for parameters.
            self.free._parameters[str(i)] = params[name]  # type: ignore[assignment]

    def forward(self, run: Callable[[], Result]) -> Result:
        """Runs a function that calls the programs."""
        tensors = self.free._parameters
        with _Params({name: tensors[str(i)] for i, name in enumerate(self._names)}):
            return run()


class _Params(Messenger):
    """Gives ``pyro.param`` tensors in place of those of the store."""

    def __init__(self, unconstrained: Mapping[str, Any]) -> None:
        super().__init__()
        self._unconstrained = unconstrained

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._unconstrained:
            constraint = pyro.get_param_store()._constraints[msg["name"]]
            unconstrained = self._unconstrained[msg["name"]]
            msg["value"] = transform_to(constraint)(unconstrained)
            msg["value"].unconstrained = weakref.ref(unconstrained)  # as the store does
            msg["done"] = True
