"""What a training run has to remember to go on where it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_sig._arguments import check_integer, refusal
from pyro_sig._random_state import preserved_random_state, random_state, set_random_state
from pyro_sig.checkpoint._snapshot import Snapshot, has_state
from pyro_sig.checkpoint.folder import CheckpointFolder
from pyro_sig.infer.history import History

__all__ = ["RunState"]

_FORMAT = 1


class RunState:
    """Saves a run every so many steps, and restores the last one.

    :param path: the folder.
    :param every: steps between two checkpoints.
    :param keep: how many are kept.
    :param resume: "auto", True or False, as ``train`` has it.
    :param inference: what is trained.
    :param callbacks: those with a state are saved too.
    :param cursor: what yields the arguments, which may have a state.
    :param history: the losses so far.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int,
        keep: int,
        resume: bool | str,
        inference: Any,
        callbacks: Sequence[Any],
        cursor: Any,
        history: History,
    ) -> None:
        check_integer("every", every, 1, int)
        if not (isinstance(resume, bool) or (isinstance(resume, str) and resume == "auto")):
            raise refusal("resume", "True, False or 'auto'", resume)
        self.every = every
        self.saved: int | None = None
        self._resume = resume
        self._history = history
        self._cursor = cursor
        self._inference = Snapshot(inference)
        self._callbacks = [Snapshot(c, "callbacks") for c in callbacks if has_state(c)]
        self._first = True
        self._folder = CheckpointFolder(path, keep)

    @property
    def last_good(self) -> Path | None:
        """The newest file that this run has read or written."""
        return None if self.saved is None else self._folder.file(self.saved)

    def close(self) -> None:
        self._folder.close()

    # -------------------------------------------------------------------------------------- restore

    def restore(self, num_steps: int) -> int:
        """Restores the newest checkpoint, if there is one, and returns how many steps it has."""
        if self._resume is False:
            if steps := self._folder.steps():
                raise ValueError(
                    f"`checkpoint` must be a folder without checkpoints where `resume` is False, "
                    f"but {self._folder.path} has those of steps {steps}; pass another folder, or "
                    "resume='auto' to go on"
                )
            return 0
        found = self._folder.newest()
        if found is None:
            if self._resume is True:
                raise ValueError(
                    f"`checkpoint` must hold a checkpoint where `resume` is True, but "
                    f"{self._folder.path} had none; resume='auto' begins where there is none"
                )
            return 0
        step, state = found
        if state.get("format") != _FORMAT or step > num_steps:
            what = (
                f"one of step {step}, more than `num_steps`, {num_steps}"
                if state.get("format") == _FORMAT
                else "one that train did not write"
            )
            raise ValueError(f"`checkpoint` must hold a checkpoint of this run, held {what}")
        if len(state["callbacks"]) != len(self._callbacks):
            raise ValueError(
                f"`callbacks` must have the {len(state['callbacks'])} with a state that the saved "
                f"run had, had {len(self._callbacks)}"
            )
        # First, since it may refuse.
        if callable(getattr(self._cursor, "load_state_dict", None)):
            self._cursor.load_state_dict(state["cursor"])
        self._inference.load(state["inference"])
        for callback, saved in zip(self._callbacks, state["callbacks"], strict=True):
            callback.load(saved)
        self._history.load_state_dict(state["history"])
        set_random_state(state["random_state"])
        self.saved = step
        return step

    def finish(self, arguments: Any, num_steps: int) -> None:
        """Restores programs of a run that has no step left."""
        if num_steps > 0:
            with preserved_random_state():
                args, kwargs = arguments(num_steps - 1)
                self._inference.meet(args, kwargs)
                # A step of several processes, which takes none here.
                step: Any = getattr(
                    getattr(self._inference.inference, "step", None), "__self__", None
                )
                if callable(getattr(step, "note_restored", None)):
                    step.note_restored(args, kwargs)

    # ----------------------------------------------------------------------------------------- save

    @contextmanager
    def step(self, args: tuple, kwargs: dict[str, Any]) -> Iterator[None]:
        """Surrounds a step: the first one of a process restores programs, or gets to know them."""
        if not self._first:
            yield
            return
        self._first = False
        if self.saved is not None:
            self._inference.meet(args, kwargs)
        with self._inference.watching():
            yield

    def after(self, taken: int, last: bool) -> None:
        """Saves, if it is time to do so.

        :param taken: number of steps of the run.
        :param last: whether the run ends here.
        """
        if self.saved == taken or not (last or taken % self.every == 0):
            return
        state = {
            "format": _FORMAT,
            "inference": self._inference.state(),
            "callbacks": [callback.state() for callback in self._callbacks],
            "history": self._history.state_dict(),
            "cursor": self._cursor_state(),
            "random_state": random_state(),
        }
        if self._folder.write(taken, state):
            self.saved = taken

    def _cursor_state(self) -> Mapping[str, Any]:
        get = getattr(self._cursor, "state_dict", None)
        return get() if callable(get) else {}
