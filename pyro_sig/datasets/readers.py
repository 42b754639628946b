"""Readers of files that are already on disk: idx, MNIST, scikit-learn's digits."""

import math
import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import Device, Dtype, as_path, check_choice
from pyro_sig.datasets._files import find, read_bytes
from pyro_sig.datasets._tensors import tensor

__all__ = ["load_digits", "load_mnist", "read_idx"]

_MNIST_HOME = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an array from an idx file, the format of MNIST, plain or compressed by gzip or xz.

    :param path: the file; whether it is compressed is seen from its content, not its name.
    :return: a tensor on the CPU with the shape and the element type of the file: uint8, int8,
        int16, int32, float32 or float64.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is not idx, is shorter or longer than its header says, or is
        corrupt gzip or xz.

    **Source:** LeCun, Cortes and Burges, *The MNIST database of handwritten digits*, "The IDX
    file format".

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = Path(root) / "labels-idx1-ubyte"
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(path)
        tensor([7, 2, 1], dtype=torch.uint8)
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"no idx file at {path}; give the path of one, plain or compressed")
    data = read_bytes(path, "an idx file")
    if any(data[:2]) or (len(data) > 2 and data[2] not in _IDX_DTYPES):
        raise ValueError(
            f"`path` must be an idx file (00 00, then one of 08 09 0b 0c 0d 0e), "
            f"{path} starts with {data[:4].hex(' ')}"
        )
    _check_length(path, len(data), 4)
    header = 4 + 4 * data[3]
    _check_length(path, len(data), header)
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    dtype = np.dtype(_IDX_DTYPES[data[2]])
    expected = header + dtype.itemsize * math.prod(shape)
    _check_length(path, len(data), expected)
    if len(data) > expected:
        raise ValueError(
            f"`path` has trailing bytes: expected {expected} bytes, found {len(data)} in {path}"
        )
    array = np.ndarray(shape, dtype, buffer=data, offset=header)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def load_mnist(root: str | os.PathLike[str], split: str = "train") -> tuple[Tensor, Tensor]:
    """Load MNIST, or a data set in its format, from the standard files.

    :param root: the folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each with or without ``.gz``.
    :param str split: ``"train"`` or ``"test"``.
    :return: images, uint8 in 0..255, shape ``[N, 28, 28]``, and labels, int64, shape ``[N]``.
    :raises FileNotFoundError: if a file is missing, with where to get it.
    :raises ValueError: if `split` is unknown, or a file is damaged or holds something else.

    **Source:** LeCun, Cortes and Burges, *The MNIST database of handwritten digits* (1998).

    Example::

        >>> images, labels = load_mnist("data/mnist", split="test")  # doctest: +SKIP
    """
    check_choice("split", split, ("train", "test"))
    folder, prefix = as_path("root", root), {"train": "train", "test": "t10k"}[split]
    images = read_idx(_find_mnist(folder, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find_mnist(folder, f"{prefix}-labels-idx1-ubyte"))
    if images.dtype != torch.uint8 or images.dim() != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"`root` must hold uint8 images of shape [N, 28, 28], "
            f"had {images.dtype} of shape {list(images.shape)} in {root}"
        )
    if labels.dtype != torch.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"`root` must hold one uint8 label for each of {len(images)} images, "
            f"had {labels.dtype} of shape {list(labels.shape)} in {root}"
        )
    return images, labels.long()


def load_digits(*, dtype: Dtype = None, device: Device = None) -> tuple[Tensor, Tensor]:
    """Load the 8 x 8 handwritten digits that scikit-learn carries.

    :param dtype: floating point type of the images.
    :param device: device of the tensors.
    :return: images in [0, 1], shape ``[1797, 8, 8]``, and labels, int64, shape ``[1797]``.
    :raises ImportError: if scikit-learn is not installed.
    :raises ValueError: if `dtype` is not a floating point type.

    **Source:** Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI (1998).

    Example::

        >>> images, labels = load_digits()
        >>> images.shape, labels.shape
        (torch.Size([1797, 8, 8]), torch.Size([1797]))
    """
    try:
        from sklearn import datasets as sklearn_datasets
    except ImportError as error:
        raise ImportError(
            "`load_digits` needs scikit-learn: pip install pyro-sig[examples]"
        ) from error
    bunch = sklearn_datasets.load_digits()
    images = tensor(bunch.images / 16.0, dtype, device)
    return images, torch.tensor(bunch.target, dtype=torch.int64, device=device)


def _find_mnist(root: Path, name: str) -> Path:
    """Return the plain or the compressed file of that name."""
    path = find([root], name, ["", ".gz"])
    if path is None:
        raise FileNotFoundError(
            f"neither {root / name} nor {root / name}.gz exists: MNIST's four files are at "
            f"{_MNIST_HOME}"
        )
    return path


def _check_length(path: Path, found: int, expected: int) -> None:
    if found < expected:
        raise ValueError(f"`path` is truncated: expected {expected} bytes, found {found} in {path}")
