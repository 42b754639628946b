"""Fits kept on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def kept(path: Path, settings: dict[str, Any], fit: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Reads a result that was made with the same settings, or makes and writes it.

    A folder of the same name with the suffix ``.checkpoints``, from which a run would go on, is
    removed once the result is written.
    """
    if path.exists():
        found = torch.load(path, weights_only=True)
        if found["settings"] == settings:
            return found
    result = {"settings": settings, **fit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(result, partial)
    partial.rename(path)
    shutil.rmtree(path.with_suffix(".checkpoints"), ignore_errors=True)
    return result
