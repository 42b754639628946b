"""Reader of CIFAR-10, from the files of its binary version."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import as_path, check_choice, check_sizes, refusal
from pyro_sig.datasets._files import find, read_bytes

__all__ = ["load_cifar10"]

_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then the red, the green and the blue plane
_NUM_BATCHES = 5


def load_cifar10(
    root: str | os.PathLike[str], split: str = "train", batches: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Load CIFAR-10 from the files of its binary version.

    :param root: the folder with ``data_batch_1.bin`` to ``data_batch_5.bin`` and
        ``test_batch.bin``, or with ``cifar-10-batches-bin`` that has them; each file plain or
        compressed as ``.gz`` or ``.xz``.
    :param str split: ``"train"`` or ``"test"``.
    :param batches: which of the five training files to read, 1 to 5, in this order; by default
        all five, and all must be there.
    :return: images, uint8 in 0..255, shape ``[N, 3, 32, 32]``, and labels, int64 in 0..9, shape
        ``[N]``; 10,000 for each of the original files.
    :raises FileNotFoundError: if a file is missing, with where to get it.
    :raises ValueError: if `split` or `batches` is not allowed, or a file is damaged.

    **Source:** Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009);
    https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     _ = (Path(root) / "data_batch_1.bin").write_bytes(bytes([7]) + bytes(3072))
        ...     images, labels = load_cifar10(root, batches=(1,))
        >>> images.shape, labels
        (torch.Size([1, 3, 32, 32]), tensor([7]))
    """
    check_choice("split", split, ("train", "test"))
    names = ["test_batch.bin"]
    if split == "train":
        names = [f"data_batch_{i}.bin" for i in _check_batches(batches)]
    elif batches is not None:
        raise refusal("batches", "None where `split` is 'test'", batches)
    root = as_path("root", root)
    folders = [root, root / "cifar-10-batches-bin"]
    found = {name: find(folders, name, ["", ".gz", ".xz"]) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise FileNotFoundError(_say_missing(missing, folders, split, len(names)))
    parts = [_read(path) for path in found.values() if path is not None]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return images, labels


def _check_batches(batches: Sequence[int] | None) -> list[int]:
    if batches is None:
        return list(range(1, _NUM_BATCHES + 1))
    numbers = check_sizes("batches", batches)
    if not numbers or max(numbers) > _NUM_BATCHES or len(set(numbers)) < len(numbers):
        raise refusal("batches", "different numbers 1 to 5", batches)
    return numbers


def _say_missing(missing: list[str], folders: list[Path], split: str, asked: int) -> str:
    message = f"no {', '.join(missing)} (plain, .gz or .xz) in {folders[0]} or {folders[1]}: "
    if split == "train" and len(missing) < asked:
        message += "`batches=` reads some of the training files, for example (1,); "
    return message + f"cifar-10-binary.tar.gz at {_HOME} holds all"


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Read one file."""
    data = read_bytes(path, "a CIFAR-10 file")
    rest = len(data) % _RECORD
    if rest or not data:
        raise ValueError(
            f"`path` is truncated, or no binary CIFAR-10: expected records of {_RECORD} bytes, "
            f"found {len(data) // _RECORD} and {rest} bytes in {path}; download it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        row = int((labels > 9).argmax())
        raise ValueError(
            f"`path` must have labels 0 to 9, was {labels[row]} in record {row} of {path}"
        )
    images = records[:, 1:].reshape(-1, *_SHAPE).copy()  # the file's memory is read-only
    return torch.from_numpy(images), torch.from_numpy(labels)
