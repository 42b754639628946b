"""Readers against made and real files."""

import gzip
import lzma
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_sig import datasets


def idx_bytes(array, code):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


IDX = [
    (0x08, np.uint8, torch.uint8),
    (0x09, np.int8, torch.int8),
    (0x0B, np.int16, torch.int16),
    (0x0C, np.int32, torch.int32),
    (0x0D, np.float32, torch.float32),
    (0x0E, np.float64, torch.float64),
]


@pytest.mark.parametrize(("code", "numpy_type", "torch_type"), IDX)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
def test_read_idx(tmp_path, code, numpy_type, torch_type, compress):
    array = (np.arange(24).reshape(2, 3, 4) * 5).astype(numpy_type)
    data = idx_bytes(array, code)
    path = tmp_path / "array-idx3"
    path.write_bytes(gzip.compress(data) if compress else data)
    tensor = datasets.read_idx(str(path))
    assert tensor.dtype == torch_type
    assert tensor.tolist() == array.tolist()
    tensor += 1  # its memory is its own, and can be written


def test_read_idx_without_elements(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(idx_bytes(np.zeros((0, 28, 28), np.uint8), 0x08))
    assert datasets.read_idx(path).shape == (0, 28, 28)


GOOD = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3), 0x08)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x89PNG\r\n", r"`path` must be an idx file.*starts with 89 50 4e 47"),
        (b"\x00\x00\x07\x01\x00\x00\x00\x00", r"must be an idx file.*starts with 00 00 07 01"),
        (b"", r"truncated: expected 4 bytes, found 0"),
        (GOOD[:3], r"truncated: expected 4 bytes, found 3"),
        (GOOD[:9], r"truncated: expected 12 bytes, found 9"),
        (GOOD[:-1], r"truncated: expected 18 bytes, found 17"),
        (b"\x00\x00\x0e\x02" + b"\xff" * 8, r"truncated: expected \d{20,} bytes, found 12"),
        (gzip.compress(GOOD[:-2], mtime=0), r"truncated: expected 18 bytes, found 16"),
        (GOOD + b"ab", r"trailing bytes: expected 18 bytes, found 20"),
        (gzip.compress(GOOD, mtime=0)[:-9], r"corrupt gzip"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\x00" * 8, r"corrupt gzip"),
        (gzip.compress(GOOD, mtime=0) + b"junk", r"corrupt gzip"),
        (gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 20, r"corrupt gzip"),
        (b"\x1f\x8b", r"corrupt gzip"),
        (lzma.compress(GOOD)[:-9], r"corrupt xz"),
    ],
)
def test_read_idx_refuses(tmp_path, data, match):
    path = tmp_path / "bad-idx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        datasets.read_idx(path)
    assert str(path) in str(caught.value)


def test_read_idx_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere-idx1"):
        datasets.read_idx(tmp_path / "nowhere-idx1")


def write_mnist(root, images, labels, prefix="train", compress=False):
    for name, array in (
        (f"{prefix}-images-idx3-ubyte", images),
        (f"{prefix}-labels-idx1-ubyte", labels),
    ):
        data = idx_bytes(array, 0x08)
        if compress:
            name, data = name + ".gz", gzip.compress(data)
        (root / name).write_bytes(data)


def test_load_mnist(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, n, compress in (("train", 5, True), ("t10k", 3, False)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = np.arange(n, dtype=np.uint8)
        write_mnist(tmp_path, images, labels, prefix, compress)
        split = {"train": "train", "t10k": "test"}[prefix]
        loaded, targets = datasets.load_mnist(str(tmp_path), split)
        assert (loaded.dtype, targets.dtype) == (torch.uint8, torch.int64)
        assert loaded.tolist() == images.tolist()
        assert targets.tolist() == list(range(n))


def test_load_mnist_refuses(tmp_path):
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'test', was 'valid'"):
        datasets.load_mnist(tmp_path, "valid")
    missing = r"train-images-idx3-ubyte nor .*\.gz exists: .* at https://ossci-datasets"
    with pytest.raises(FileNotFoundError, match=missing):
        datasets.load_mnist(tmp_path)
    write_mnist(tmp_path, np.zeros((2, 28, 27), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match=r"`root` must hold uint8 images .*\[2, 28, 27\]"):
        datasets.load_mnist(tmp_path)
    write_mnist(tmp_path, np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"one uint8 label for each of 2 images.*\[3\]"):
        datasets.load_mnist(tmp_path)


@pytest.mark.skipif("PYRO_SIG_DATA" not in os.environ, reason="PYRO_SIG_DATA is not set")
@pytest.mark.parametrize(("split", "n"), [("train", 60_000), ("test", 10_000)])
def test_real_mnist(split, n):
    root = Path(os.environ["PYRO_SIG_DATA"]) / "mnist"
    if not root.is_dir():
        pytest.skip(f"no folder {root}")
    images, labels = datasets.load_mnist(root, split)
    assert images.shape == (n, 28, 28)
    assert images.min() == 0 and images.max() == 255
    assert torch.bincount(labels).shape == (10,)
    first = {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4]}
    assert labels[:5].tolist() == first[split]


def test_load_digits():
    pytest.importorskip("sklearn")
    images, labels = datasets.load_digits(dtype=torch.float64)
    assert images.shape == (1797, 8, 8) and images.dtype == torch.float64
    assert images.min() == 0 and images.max() == 1
    assert labels.dtype == torch.int64 and sorted(set(labels.tolist())) == list(range(10))
    with pytest.raises(ValueError, match="`dtype` must be a floating point type"):
        datasets.load_digits(dtype=torch.uint8)


def test_load_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install pyro-sig\[examples\]"):
        datasets.load_digits()


@pytest.mark.parametrize("path", [None, 0, b"root"])
def test_what_is_no_path(path):
    for read, name in [
        (datasets.read_idx, "path"),
        (datasets.load_mnist, "root"),
        (datasets.load_cifar10, "root"),
        (datasets.load_binarized_mnist, "root"),
        (datasets.posteriordb_names, "folder"),
    ]:
        with pytest.raises(ValueError, match=f"`{name}` must be a path, was {path!r}"):
            read(path)
