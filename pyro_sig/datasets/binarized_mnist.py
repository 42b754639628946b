"""Reader of static binarised MNIST, the benchmark of latent-variable models."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import as_path, check_choice
from pyro_sig.datasets._files import find, read_bytes

__all__ = ["load_binarized_mnist"]

_HOME = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_PACKED = "binarized_mnist_packed.npz"
_SIZE = 28 * 28
# What NumPy raises on a file that is no npz, is damaged, or lacks the array. A lone array (.npy)
# cannot be entered: TypeError, and AttributeError before Python 3.11.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_binarized_mnist(root: str | os.PathLike[str], split: str = "train") -> Tensor:
    """Load MNIST whose pixels were drawn once as 0 or 1, with their grey as probability.

    :param root: the folder with the original text files ``binarized_mnist_train.amat``,
        ``binarized_mnist_valid.amat`` and ``binarized_mnist_test.amat``, each plain or compressed
        as ``.gz`` or ``.xz``; or with ``binarized_mnist_packed.npz``, which is read first: arrays
        ``train``, ``valid`` and ``test`` of uint8, shape ``[N, 98]``, each row an image by
        ``numpy.packbits``.
    :param str split: ``"train"``, ``"valid"`` or ``"test"``.
    :return: images, uint8, 0 or 1, shape ``[N, 28, 28]``: 50,000, 10,000 and 10,000 in the
        original files. They have no labels.
    :raises FileNotFoundError: if there is no file of the split, with where to get it.
    :raises ValueError: if `split` is unknown, or a file is damaged or holds something else.

    **Source:** Salakhutdinov and Murray, *On the Quantitative Analysis of Deep Belief Networks*
    (2008); Larochelle and Murray, *The Neural Autoregressive Distribution Estimator* (2011), whose
    files these are.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = Path(root) / "binarized_mnist_test.amat"
        ...     _ = path.write_text(" ".join(["0", "1"] * 392) + chr(10))
        ...     load_binarized_mnist(root, "test")[0, 0, :4]
        tensor([0, 1, 0, 1], dtype=torch.uint8)
    """
    check_choice("split", split, ("train", "valid", "test"))
    root = as_path("root", root)
    name = f"binarized_mnist_{split}.amat"
    if (root / _PACKED).is_file():
        images = _read_packed(root / _PACKED, split)
    else:
        path = find([root], name, ["", ".gz", ".xz"])
        if path is None:
            raise FileNotFoundError(
                f"neither {root / _PACKED} nor {root / name} (plain, .gz or .xz) exists: the "
                f"text files are at {_HOME}"
            )
        images = _read_text(path)
    return torch.from_numpy(images).reshape(-1, 28, 28)


def _read_packed(path: Path, split: str) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            packed = arrays[split]
    except _UNREADABLE as error:
        message = f"`root` must hold an npz file with an array {split!r}, {path} has none: {error}"
        raise ValueError(message) from error
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != _SIZE // 8:
        raise ValueError(
            f"`root` must hold packed images, uint8 of shape [N, {_SIZE // 8}], had "
            f"{packed.dtype} of shape {list(packed.shape)} in {path}"
        )
    return np.unpackbits(packed, axis=1)


def _read_text(path: Path) -> np.ndarray:
    """Read lines of 784 zeros and ones."""
    text = np.frombuffer(read_bytes(path, "a text file of 0 and 1"), np.uint8)
    ends = text == ord("\n")
    pixels = ~np.isin(text, np.frombuffer(b" \t\r\n", np.uint8))
    bits = text[pixels] - ord("0")  # below zero wraps around
    if not bits.size or bits.max() > 1:
        raise ValueError(f"`path` must be a text file of 0 and 1, {path} holds something else")
    counts = np.cumsum(pixels)[ends] % _SIZE  # 0 where every line so far was whole
    if counts.any() or bits.size % _SIZE:
        line = int((counts != 0).argmax()) if counts.any() else len(counts)
        raise ValueError(
            f"`path` must have {_SIZE} numbers in each line, line {line + 1} of {path} has others"
        )
    return bits.reshape(-1, _SIZE)
