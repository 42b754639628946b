"""What the image examples share: the data folder, a device that is there, sheets of samples."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from _quiet import add_quiet
from torch import Tensor

from pyro_sig.datasets import load_mnist

# Folder of the data -> what it must hold.
HELD = {
    "mnist": "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, plain or compressed, from http://yann.lecun.com/exdb/mnist or a "
    "mirror of it such as https://ossci-datasets.s3.amazonaws.com/mnist",
    "cifar10": "data_batch_1.bin to data_batch_5.bin, plain or compressed, of the binary version "
    "in https://www.cs.toronto.edu/~kriz/cifar.html",
    "binarized_mnist": "binarized_mnist_train.amat, binarized_mnist_valid.amat and "
    "binarized_mnist_test.amat from "
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist",
}


def add_image_flags(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds the flags that all image examples have."""
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("PYRO_SIG_DATA"),
        help="where the data are; PYRO_SIG_DATA by default",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--device", default="cpu", help="as torch names it")
    add_quiet(parser)
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path(out))


def fail(message: str) -> NoReturn:
    """Ends the program with exit code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def check_device(device: str) -> str:
    """Ends the program unless the device can be used."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fail(f"`device` must be one that this machine and this torch have, was {device!r}: {error}")
    return device


def read_images(data_dir: str | None, name: str, read: Callable[..., Any], **options: Any) -> Any:
    """Reads images from a folder of the data, or from the data folder itself.

    Ends the program with what is missing and where to get it, if they are in neither.
    """
    held = f"the folder {name} there, or the folder itself, must hold {HELD[name]}"
    if data_dir is None:
        fail(f"--data-dir or PYRO_SIG_DATA must be set: {held}")
    path = Path(data_dir) / name
    try:
        return read(path if path.is_dir() else path.parent, **options)
    except FileNotFoundError as error:
        fail(f"{error}\n{held}" if path.is_dir() else f"no {path}, and {error}\n{held}")
    except ValueError as error:  # truncated, or something else
        fail(str(error))


def read_mnist(data_dir: str | None, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Reads digits and labels of both splits."""
    splits = {}
    for split in ("train", "test"):
        images, labels = read_images(data_dir, "mnist", load_mnist, split=split)
        splits[split] = images.to(device), labels.to(device)
    return splits


def sheet(images: Tensor, columns: int) -> Tensor:
    """Lays out images of shape ``[N, C, H, W]`` in rows; returns ``[rows * H, columns * W, C]``."""
    images = images[: len(images) // columns * columns]
    num, channels, height, width = images.shape
    grid = images.reshape(num // columns, columns, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)


def draw_sheet(axis: Any, images: Tensor, columns: int, title: str) -> None:
    """Draws images with pixels in [-1, 1]."""
    pixels = sheet(images.detach().cpu().float(), columns).add(1).div(2).clamp(0, 1)
    axis.imshow(pixels.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    axis.spines[:].set_visible(False)
