"""The reader of CIFAR-10 against made files, and the real one where it is."""

import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_sig.datasets import load_cifar10

RECORD = 3073


def records(num, seed=0):
    """Return the bytes of a file, with what they hold."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, num).astype(np.uint8)
    images = rng.integers(0, 256, (num, 3, 32, 32)).astype(np.uint8)
    rows = zip(labels, images, strict=True)
    return b"".join(bytes([y]) + x.tobytes() for y, x in rows), images, labels


COMPRESS = {"": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_reads_what_was_written(tmp_path, folder, suffix):
    home = tmp_path / folder
    home.mkdir(exist_ok=True)
    made = {}
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        data, *made[name] = records(i + 1, seed=i)
        (home / f"{name}.bin{suffix}").write_bytes(COMPRESS[suffix](data))
    for split, batches, names in [
        ("train", None, [f"data_batch_{i}" for i in range(1, 6)]),
        ("train", (3, 1), ["data_batch_3", "data_batch_1"]),
        ("test", None, ["test_batch"]),
    ]:
        images, labels = load_cifar10(str(tmp_path), split, batches)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(images, np.concatenate([made[name][0] for name in names]))
        assert np.array_equal(labels, np.concatenate([made[name][1] for name in names]))
        images += 1  # its memory is its own, and can be written


def test_the_content_tells_the_compression(tmp_path):
    data, images, _ = records(2)
    (tmp_path / "test_batch.bin").write_bytes(lzma.compress(data))
    assert np.array_equal(load_cifar10(tmp_path, "test")[0], images)


def test_planes_are_red_green_blue(tmp_path):
    red = bytes([1]) + bytes([255]) * 1024 + bytes(2048)
    (tmp_path / "test_batch.bin").write_bytes(red)
    image = load_cifar10(tmp_path, "test")[0][0]
    assert image.flatten(1).float().mean(-1).tolist() == [255.0, 0.0, 0.0]


def test_missing_files_are_named(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(records(1)[0])
    with pytest.raises(FileNotFoundError) as caught:
        load_cifar10(tmp_path)
    message = str(caught.value)
    assert "data_batch_2.bin, data_batch_3.bin" in message
    assert "data_batch_1.bin" not in message
    assert "`batches=`" in message and "https://www.cs.toronto.edu/~kriz/cifar.html" in message
    with pytest.raises(FileNotFoundError, match=r"no test_batch\.bin .*kriz/cifar\.html") as caught:
        load_cifar10(tmp_path, "test")
    assert "batches=" not in str(caught.value)


GOOD = records(2)[0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (GOOD[:-1], r"truncated.*records of 3073 bytes, found 1 and 3072 bytes"),
        (b"", r"truncated.*found 0 and 0 bytes"),
        (GOOD[:RECORD] + bytes([10]) + GOOD[RECORD + 1 :], r"labels 0 to 9, was 10 in record 1 of"),
        (gzip.compress(GOOD)[:-9], r"must be a CIFAR-10 file, .* is corrupt gzip"),
        (lzma.compress(GOOD)[:-40], r"must be a CIFAR-10 file, .* is corrupt xz"),
        (lzma.compress(GOOD)[:3000] + b"\x00" * 3000, r"corrupt xz"),
        (gzip.compress(GOOD[:-1]), r"truncated"),
    ],
)
def test_damaged_files_are_refused(tmp_path, data, match):
    path = tmp_path / "test_batch.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        load_cifar10(tmp_path, "test")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("split", "batches", "match"),
    [
        ("valid", None, "`split` must be one of 'train', 'test', was 'valid'"),
        ("test", (1,), r"`batches` must be None where `split` is 'test', was \(1,\)"),
        ("train", (), r"`batches` must be different numbers 1 to 5, was \(\)"),
        ("train", (1, 1), r"different numbers 1 to 5"),
        ("train", (6,), r"different numbers 1 to 5"),
        ("train", (0,), "`batches` must be a positive integer, was 0"),
        ("train", 1, "`batches` must be a sequence of positive integers, was 1"),
        ("train", "1", r"`batches` must be a sequence"),
    ],
)
def test_arguments_are_checked(tmp_path, split, batches, match):
    with pytest.raises(ValueError, match=match):
        load_cifar10(tmp_path, split, batches)


def test_real_file():
    root = Path(os.environ.get("PYRO_SIG_DATA", "nowhere")) / "cifar10"
    if not any(root.glob("data_batch_1.bin*")):
        pytest.skip("PYRO_SIG_DATA has no cifar10/data_batch_1.bin")
    images, labels = load_cifar10(root, batches=(1,))
    assert images.shape == (10_000, 3, 32, 32)
    assert images.min() == 0 and images.max() == 255
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]  # a frog, two trucks, a deer, a car
    assert labels.bincount().tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
