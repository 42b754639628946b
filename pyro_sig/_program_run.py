"""What a run of programs touches: parameters and networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["ParamTap", "ProgramHolder", "modules_run"]


class ProgramHolder:
    """What trains programs, and has their parameters once it has run them."""

    def prepare(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Runs the programs once, unless that was done, and fills in a state that waits for it.

        :param args: arguments of the programs.
        :param kwargs: their keyword arguments.
        """
        raise NotImplementedError


class ParamTap(Messenger):
    """Notes the parameters that programs read, unconstrained, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["value"] is not None:
            self.params[msg["name"]] = msg["value"].unconstrained()


@contextmanager
def modules_run(restore: bool = True) -> Iterator[list[nn.Module]]:
    """Lists the outermost modules that run, in order.

    :param restore: put their buffers back afterwards.
    """
    outermost: list[nn.Module] = []
    seen: set[int] = set()
    kept: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, _: Any) -> None:
        if id(module) in seen:
            return
        seen.update(id(m) for m in module.modules())
        outermost.append(module)
        if restore:
            kept.extend((buffer, buffer.clone()) for buffer in module.buffers())

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield outermost
    finally:
        handle.remove()
        for buffer, before in kept:
            buffer.data.copy_(before)  # as data: a graph made before may hold the buffer
