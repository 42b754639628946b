"""The reader of static binarised MNIST against made files, and the real one where it is."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_sig.datasets import load_binarized_mnist

PACKED = "binarized_mnist_packed.npz"
SIZES = {"train": 5, "valid": 3, "test": 2}


def made_images():
    rng = np.random.default_rng(0)
    return {split: rng.integers(0, 2, (n, 784)).astype(np.uint8) for split, n in SIZES.items()}


def as_text(images, end="\n"):
    return "".join(" ".join(map(str, row)) + end for row in images).encode()


def check(root, split, images):
    loaded = load_binarized_mnist(str(root), split)
    assert loaded.dtype == torch.uint8
    assert np.array_equal(loaded, images.reshape(-1, 28, 28))
    loaded += 1  # its memory is its own, and can be written


def test_packed(tmp_path):
    made = made_images()
    packed = {split: np.packbits(images, axis=1) for split, images in made.items()}
    np.savez_compressed(tmp_path / PACKED, **packed)
    for split, images in made.items():
        check(tmp_path, split, images)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("end", ["\n", " \r\n"])
def test_text(tmp_path, suffix, end):
    for split, images in made_images().items():
        data = as_text(images, end)
        path = tmp_path / f"binarized_mnist_{split}.amat{suffix}"
        path.write_bytes(gzip.compress(data) if suffix else data)
        check(tmp_path, split, images)


def test_text_without_a_last_newline(tmp_path):
    images = made_images()["test"]
    (tmp_path / "binarized_mnist_test.amat").write_bytes(as_text(images)[:-1])
    check(tmp_path, "test", images)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_binarized_mnist(tmp_path, "valid")
    message = str(caught.value)
    assert PACKED in message and "binarized_mnist_valid.amat" in message
    assert "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/" in message
    with pytest.raises(
        ValueError, match="`split` must be one of 'train', 'valid', 'test', was 'all'"
    ):
        load_binarized_mnist(tmp_path, "all")


ROWS = as_text(made_images()["test"])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "holds something else"),
        (ROWS.replace(b"1", b"2", 1), "holds something else"),
        (b"0.0 " + ROWS, "holds something else"),
        (ROWS[2:], r"784 numbers in each line, line 1 of .* has others"),
        (ROWS[:-5], r"784 numbers in each line, line 2 of .* has others"),
        (ROWS[:-5] + b"\n", r"784 numbers in each line, line 2 of"),
        # As many numbers as two whole lines have, broken elsewhere.
        (ROWS[: 2 * 700] + b"\n" + ROWS[2 * 700 :].replace(b"\n", b" ", 1), r"line 1 of"),
        (gzip.compress(ROWS)[:-9], "corrupt gzip"),
    ],
)
def test_damaged_text_is_refused(tmp_path, data, match):
    path = tmp_path / "binarized_mnist_test.amat"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        load_binarized_mnist(tmp_path, "test")
    assert str(path) in str(caught.value)


def test_damaged_packed_is_refused(tmp_path):
    path = tmp_path / PACKED
    np.savez_compressed(path, train=np.zeros((2, 97), np.uint8), valid=np.zeros((2, 98), np.int64))
    with pytest.raises(ValueError, match=r"uint8 of shape \[N, 98\], had uint8 of shape \[2, 97\]"):
        load_binarized_mnist(tmp_path, "train")
    with pytest.raises(ValueError, match=r"had int64 of shape \[2, 98\]"):
        load_binarized_mnist(tmp_path, "valid")
    with pytest.raises(ValueError, match="an array 'test'"):
        load_binarized_mnist(tmp_path, "test")
    whole = path.read_bytes()
    alone = tmp_path / "array.npy"
    np.save(alone, np.zeros((2, 98), np.uint8))
    for data in (whole[:-30], b"text", b"", alone.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="must hold an npz file with an array 'train'"):
            load_binarized_mnist(tmp_path, "train")


@pytest.mark.parametrize(("split", "num"), [("train", 50_000), ("valid", 10_000), ("test", 10_000)])
def test_real_file(split, num):
    root = Path(os.environ.get("PYRO_SIG_DATA", "nowhere"))
    if not (root / PACKED).is_file():
        pytest.skip(f"PYRO_SIG_DATA has no {PACKED}")
    images = load_binarized_mnist(root, split)
    assert images.shape == (num, 28, 28)
    assert images.max() == 1
    # About 13 of 100 pixels are ink, and none at the edge.
    assert abs(images.float().mean() - 0.13) < 0.01
    assert images[:, 0].float().mean() < 1e-3
