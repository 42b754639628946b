"""One file of a checkpoint: written whole or not at all, and read without running code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import as_path, refusal

__all__ = ["CheckpointError", "CheckpointWarning", "read_file", "write_file"]

VERSION = 1
_FIRST = b"pyro_sig checkpoint "
_SUFFIX = ".partial"


class CheckpointError(ValueError):
    """A file is no checkpoint that can be read: damaged, foreign, or of a newer version."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written, or was passed over; training goes on."""


def write_file(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes a state to a file that has either the old content or the new one at any moment.

    The bytes go to a file beside it, from there to the disk, and then the name is changed.

    :param path: the file.
    :param state: tensors, numbers, strings, None, and lists, tuples and dicts of these.
    :raises ValueError: if `state` holds something else.
    :raises OSError: if it cannot be written; the old content is then still there.
    """
    path = as_path("path", path)
    content = io.BytesIO()
    torch.save(_plain(state, "state"), content)
    payload = content.getbuffer()
    header = _FIRST + f"{VERSION} {hashlib.sha256(payload).hexdigest()}\n".encode()
    partial = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        with open(partial, "wb") as file:
            file.write(header)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read_file(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Reads what :func:`write_file` wrote.

    Only tensors and plain values are made: a file cannot run code.

    :param path: the file.
    :param map_location: where tensors go, as :func:`torch.load` has it; by default to the CPU
        where the device that they were on is not here.
    :raises CheckpointError: (a ``ValueError``) if the file is damaged, foreign or of a newer
        version.
    :raises OSError: if it cannot be opened.
    """
    location = _location(map_location)
    with open(as_path("path", path), "rb") as file:
        header, payload = file.readline(200), file.read()
    words = header[len(_FIRST) :].split()
    if not header.startswith(_FIRST) or len(words) != 2 or not words[0].isdigit():
        raise CheckpointError(f"`path` must be a checkpoint of pyro_sig, but was not: {path}")
    if int(words[0]) > VERSION:
        raise CheckpointError(
            f"`path` must be a checkpoint of version {VERSION} at most, but was one of version "
            f"{int(words[0])}, written by a newer pyro_sig: {path}"
        )
    if hashlib.sha256(payload).hexdigest().encode() != words[1]:
        raise CheckpointError(
            f"`path` must be a whole checkpoint, but its bytes do not match their checksum; it was "
            f"cut off or changed: {path}"
        )
    try:
        state = torch.load(io.BytesIO(payload), map_location=location, weights_only=True)
    except Exception as error:  # unpicklers raise whatever they meet
        if map_location is not None and _loads_here(payload):
            raise ValueError(
                f"`map_location` must be what torch.load takes, was {map_location!r}: {error}"
            ) from error
        raise CheckpointError(
            f"`path` must hold tensors and plain values only, but could not be read as such: {path}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"`path` must hold a dict, but held {type(state).__name__}: {path}")
    return state


def _loads_here(payload: bytes) -> bool:
    """Tells whether a file is sound, so that the places asked for are what cannot be had."""
    try:
        torch.load(io.BytesIO(payload), map_location=_here, weights_only=True)
    except Exception:  # as above
        return False
    return True


def _location(map_location: Any) -> Any:
    """Returns what torch is to be told of the places of tensors."""
    if map_location is None:
        return _here
    try:
        if not (callable(map_location) or isinstance(map_location, Mapping)):
            torch.empty(0, device=map_location)
    except (TypeError, RuntimeError, AssertionError) as error:  # the last without CUDA
        raise ValueError(
            f"`map_location` must be None, a device at hand, a dict or a callable, was "
            f"{map_location!r}: {error}"
        ) from error
    return map_location


def remove_partial_files(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left."""
    for partial in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            partial.unlink()


def _here(storage: Any, location: str) -> Any:
    """Leaves a tensor where it was, if there is such a device."""
    kind, _, index = location.partition(":")
    there = kind != "cuda" or int(index or 0) < torch.cuda.device_count()
    return torch.serialization.default_restore_location(storage, location if there else "cpu")


def _plain(value: Any, name: str) -> Any:
    """Copies nested containers into those that a file can hold without code."""
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            raise refusal(name, "a dense tensor with data", value)
        # Not a view of a larger storage, which would be saved whole; nor a parameter.
        value = value.detach()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole else value.clone()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, (torch.dtype, torch.device)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise ValueError(
                    f"`{name}` must have strings or numbers as keys, had {type(key).__name__}"
                )
        return {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    must_be = "made of tensors, numbers, strings, None, lists, tuples and dicts"
    raise refusal(name, must_be, value)


def _sync_folder(folder: Path) -> None:
    """Brings the new name to the disk, where the system can do so."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems have no such call
            os.fsync(handle)
    finally:
        os.close(handle)
