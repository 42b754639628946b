"""A folder of checkpoints of one run."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from pyro_sig._arguments import as_path, check_instance, check_integer
from pyro_sig.checkpoint._files import (
    CheckpointError,
    CheckpointWarning,
    read_file,
    remove_partial_files,
    write_file,
)

__all__ = ["CheckpointFolder"]

_NAME = re.compile(r"step-(\d{9})\.ckpt")
_RANK = re.compile(r"rank-\d+-of-(\d+)")


class CheckpointFolder:
    """Keeps the last checkpoints of one run, for one process at a time.

    A file is named after the number of steps that were taken. In a run of several processes each
    has a folder of its own inside, and all go on from the newest step that every one of them has.

    :param path: the folder, made if need be.
    :param int keep: how many files are kept.
    :raises ValueError: if `keep` is not a positive integer, if the folder cannot be written, if
        another process uses it, or if it has the checkpoints of another number of processes.

    Example::

        >>> import tempfile, torch
        >>> with CheckpointFolder(tempfile.mkdtemp(), keep=2) as folder:
        ...     for step in (10, 20, 30):
        ...         written = folder.write(step, {"loc": torch.tensor(float(step))})
        ...     step, state = folder.newest()
        ...     len(folder.steps()), step, state["loc"]
        (2, 30, tensor(30.))
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        self.keep = check_integer("keep", keep, 1, int)
        self.path = as_path("path", path)
        self._shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self._shared:
            size = dist.get_world_size()
            _check_processes(self.path, size)
            self.path /= f"rank-{dist.get_rank()}-of-{size}"
        else:
            _check_processes(self.path, 1)
        self._lock = _lock(self.path)
        remove_partial_files(self.path)

    def __enter__(self) -> CheckpointFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CheckpointFolder({str(self.path)!r}, steps={self.steps()})"

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._lock.release()

    def file(self, step: int) -> Path:
        """Returns the path of a step's file.

        :param int step: the number of steps.
        """
        return self.path / f"step-{check_integer('step', step):09d}.ckpt"

    def steps(self) -> list[int]:
        """Returns the steps that there are files of, in order."""
        names = (_NAME.fullmatch(path.name) for path in self.path.glob("step-*.ckpt"))
        return sorted(int(name[1]) for name in names if name)

    def write(self, step: int, state: Mapping[str, Any]) -> bool:
        """Writes a checkpoint and removes the oldest ones beyond `keep`.

        A failure is a warning, so that training goes on; the older files stay.

        :param int step: number of steps taken.
        :param state: tensors, numbers, strings, None, and lists, tuples and dicts of these.
        :return: whether it was written.
        :raises ValueError: if `state` holds what a file cannot.
        """
        check_instance("state", state, Mapping, "a dict")
        path = self.file(step)
        try:
            write_file(path, state)
            for old in self.steps()[: -self.keep]:
                self.file(old).unlink()
        except OSError as error:
            steps = self.steps()
            kept = f"the last one is that of step {steps[-1]}" if steps else "there is none so far"
            warnings.warn(
                f"the checkpoint of step {step} could not be written to {self.path}: {error}; "
                f"{kept}, and training goes on",
                CheckpointWarning,
                stacklevel=2,
            )
            return False
        return True

    def newest(self, map_location: Any = None) -> tuple[int, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole.

        A damaged file is passed over with a warning, and gets another name.

        :param map_location: where tensors go, as :func:`torch.load` has it.
        :return: the number of steps and the state; None if there are no checkpoints.
        :raises CheckpointError: (a ``ValueError``) if there are, but none can be read, or none that
            every process has.
        """
        found: dict[int, dict[str, Any]] = {}
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                found[step] = read_file(self.file(step), map_location)
            except (CheckpointError, OSError) as error:
                problems.append(str(error))
                self._put_aside(step, error)
            if found and not self._shared:
                break
        common = set(found)
        if self._shared:
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, (sorted(found), problems))
            common = set.intersection(*(set(steps) for steps, _ in everywhere))
            problems = [problem for _, own in everywhere for problem in own] or [
                f"steps {steps}" for steps, _ in everywhere if steps
            ]
        if not common:
            if problems:
                raise CheckpointError(
                    f"`checkpoint` must hold a checkpoint that can be read, but {self.path} had "
                    "none: " + "; ".join(problems)
                )
            return None
        step = max(common)
        return step, found[step]

    def _put_aside(self, step: int, error: Exception) -> None:
        path = self.file(step)
        aside = path.with_suffix(".unreadable")
        try:
            os.replace(path, aside)
            where = f"is now {aside.name}"
        except OSError:
            where = "stays where it is"
        warnings.warn(
            f"the checkpoint of step {step} is passed over and {where}: {error}",
            CheckpointWarning,
            stacklevel=3,
        )


def _check_processes(path: Path, size: int) -> None:
    """Refuses the run of another number of processes, which would begin again without a word."""
    names = (_RANK.fullmatch(file.parent.name) for file in path.glob("rank-*/step-*.ckpt"))
    sizes = {int(name[1]) for name in names if name}
    if any(path.glob("step-*.ckpt")):
        sizes.add(1)
    if others := sorted(sizes - {size}):
        had = " and ".join(f"{n} process{'es' if n > 1 else ''}" for n in others)
        raise ValueError(
            f"`checkpoint` must be a folder of as many processes as there are, {size}, but {path} "
            f"has checkpoints of {had}; start as many, or pass another folder"
        )


def _lock(path: Path) -> Any:
    """Takes the folder for this process; the system gives it back when the process ends."""
    from filelock import FileLock, Timeout  # comes with torch

    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"`checkpoint` must be a folder that no other process uses, but {path} is in use; "
            "wait for the other run, or pass another folder"
        ) from None
    except OSError as error:
        raise ValueError(
            f"`checkpoint` must be a folder that can be written, but {path} was not: {error}"
        ) from error
    return lock
