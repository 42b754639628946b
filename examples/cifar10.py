"""CIFAR-10: DCGAN, DCGAN-SI, WGAN-GP and WGAN-GP-SI, Table 3 of the SIG paper.

    python examples/cifar10.py --data-dir data --batches 1,2,3,4,5 --num-steps 100000 --device cuda
    python examples/cifar10.py --data-dir data --features my_inception:features

The published table is of inception scores, whose network is a download that users bring:
`--features module:function` names a function of uint8 images, shape [N, 3, 32, 32], that returns
features [N, F] and class probabilities [N, C]. Without one, a small classifier is trained on the
labels of the very images, and its scores compare the rows of one table alone.

The output folder gets `metrics.json` and `cifar10.png` with samples of every method. Each
(method, seed) is kept, and training goes on where it was killed.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from _image_gans import BATCH_SIZE, NOISE_DIM, draw_images, make_gan, methods
from _images import add_image_flags, check_device, draw_sheet, fail, read_images
from _kept import kept
from _resume import GradientSteps, train_resumable
from _tables import means, print_columns
from torch import Tensor, nn

from pyro_sig.datasets import load_cifar10
from pyro_sig.diagnostics import (
    frechet_distance,
    inception_score,
    precision_recall_density_coverage,
)
from pyro_sig.nn import DCGANCritic, DCGANGenerator

METHODS = ("dcgan", "dcgan-si", "wgan-gp", "wgan-gp-si")
SHAPE = (3, 32, 32)
NUM_SAMPLES = 5000
CLASSIFIER_STEPS = 2000

Features = Callable[[Tensor], tuple[Tensor, Tensor]]


def to_pixels(images: Tensor) -> Tensor:
    """Returns uint8 images with pixels in [-1, 1]."""
    return images.to(torch.get_default_dtype()) / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Returns pixels in [-1, 1] as uint8 images."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------------------- features


class Classifier(nn.Module):
    """A small convolutional classifier of the ten labels."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = DCGANCritic(3, 32, 32)
        self.head = nn.Linear(self.hidden.head.in_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits."""
        return self.head(self.hidden.features(x))

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features, their mean over places, and probabilities of uint8 images."""
        hidden = torch.cat([self.hidden.features(to_pixels(x)) for x in images.split(500)])
        return hidden.unflatten(-1, (-1, 16)).mean(-1), self.head(hidden).softmax(-1)


def own_features(images: Tensor, labels: Tensor, args: argparse.Namespace) -> Features:
    """Trains a classifier on the images, or reads what an earlier run left."""
    steps = 20 if args.smoke else CLASSIFIER_STEPS

    def fit() -> dict[str, Any]:
        pyro.set_rng_seed(0)
        net = Classifier().to(args.device)

        def loss(rows: Tensor) -> Tensor:
            x = to_pixels(images[rows])
            flip = torch.rand(len(rows), 1, 1, 1, device=x.device) < 0.5
            return nn.functional.cross_entropy(net(torch.where(flip, x.flip(-1), x)), labels[rows])

        optim = torch.optim.Adam(net.parameters(), lr=1e-3)
        train_resumable(
            args.out / "cache" / "classifier.checkpoints",
            {"steps": steps},
            GradientSteps(loss, {"net": net}, optim),
            lambda step: torch.randint(len(images), (BATCH_SIZE,), device=args.device),
            steps,
            progress=args.progress,
            description="classifier",
        )
        return {"net": net.cpu().state_dict()}

    path = args.out / "cache" / "classifier.pt"
    net = Classifier()
    net.load_state_dict(kept(path, {"steps": steps, "images": len(images)}, fit)["net"])
    return net.to(args.device).eval().features


def plugged_features(name: str) -> Features:
    """Imports a function that somebody brings."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        fail(f"`features` must be module:function that can be imported, was {name!r}: {error}")


def score(images: Tensor, real: Tensor, features: Features) -> dict[str, float]:
    """Compares uint8 images with as many real ones."""
    fake, probabilities = features(images)
    true, _ = features(real)
    pairs = precision_recall_density_coverage(true, fake)
    quality = inception_score(probabilities.double(), num_splits=1 if len(images) < 5000 else 10)
    return {
        "inception_score": quality.mean,
        "frechet": frechet_distance(true, fake).item(),
        "precision": pairs.precision,
        "recall": pairs.recall,
        "coverage": pairs.coverage,
    }


# ----------------------------------------------------------------------------------------- one fit


def run(
    name: str, seed: int, images: Tensor, held_out: Tensor, features: Features, args: Any
) -> dict[str, Any]:
    """Trains and scores one seed, or reads what an earlier run left."""
    method = methods(args.weight)[name]
    steps = 10 if args.smoke else args.num_steps
    keys = ("smoke", "num_steps", "width", "std", "bf16", "features")
    settings = {key: getattr(args, key) for key in keys}
    settings |= {"method": repr(method), "seed": seed, "images": len(images)}
    path = args.out / "cache" / f"{name}-{seed}.pt"

    def fit() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        net = DCGANGenerator(NOISE_DIM, 3, 32, args.width, device=args.device)
        norm = nn.BatchNorm2d if method.norm else None
        critic = DCGANCritic(3, 32, args.width, norm, device=args.device)
        gan = make_gan(method, net, critic, SHAPE, args.std, args.bf16)

        def batch(step: int) -> Tensor:
            return to_pixels(images[torch.randint(len(images), (BATCH_SIZE,), device=args.device)])

        _, seconds = train_resumable(
            path.with_suffix(".checkpoints"),
            settings,
            gan,
            batch,
            steps,
            progress=args.progress,
            description=f"{name} {seed}",
        )
        samples = to_bytes(draw_images(gan, net, method.averaged, len(held_out)))
        return {
            **score(samples, held_out, features),
            "seconds": seconds,
            "images": samples[:64].cpu().clone(),
        }

    return kept(path, settings, fit)


# ------------------------------------------------------------------------------- table and picture

COLUMNS = {
    "seeds": ("seeds", "6.0f"),
    "inception_score": ("score", "8.2f"),
    "frechet": ("FID", "9.3f"),
    "precision": ("prec.", "7.3f"),
    "recall": ("recall", "8.3f"),
    "coverage": ("coverage", "10.3f"),
    "seconds": ("seconds", "9.0f"),
}


def draw(rows: dict[str, list[dict[str, Any]]], real: Tensor, path: Path) -> None:
    """Draws samples of the first seed of every method beside real images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sheets = {methods()[name].label: found[0]["images"] for name, found in rows.items()}
    sheets["images"] = real[:64]
    figure, axes = plt.subplots(
        1, len(sheets), figsize=(2.8 * len(sheets), 3.0), layout="constrained", squeeze=False
    )
    for axis, (label, images) in zip(axes[0], sheets.items(), strict=True):
        draw_sheet(axis, to_pixels(images), 8, label)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Runs every method and seed; writes metrics.json and cifar10.png."""
    names = args.methods.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        fail(f"`methods` must be among {', '.join(METHODS)}, was {unknown}")
    try:
        batches = tuple(int(b) for b in args.batches.split(","))
    except ValueError:
        fail(f"`batches` must be a comma list of 1 to 5, was {args.batches!r}")
    check_device(args.device)
    features = plugged_features(args.features) if args.features else None
    reader = partial(load_cifar10, batches=batches)
    images, labels = read_images(args.data_dir, "cifar10", reader)
    images, labels = images.to(args.device), labels.to(args.device)
    # Half of the held-out images, at most: with one batch there is no other way to have any.
    num = min(200 if args.smoke else NUM_SAMPLES, len(images) // 5)
    held_out, images, labels = images[-num:], images[:-num], labels[:-num]
    args.out.mkdir(parents=True, exist_ok=True)
    features = features or own_features(images, labels, args)
    real = score(images[:num], held_out, features)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for seed in range(args.seed, args.seed + args.seeds):
            rows.setdefault(name, []).append(run(name, seed, images, held_out, features, args))
            print(f"{name}, seed {seed}: {rows[name][-1]['seconds']:.0f} s", flush=True)
    table = {methods()[name].label: means(found, COLUMNS) for name, found in rows.items()}
    print_columns("method", COLUMNS, {**table, "training images": real})
    metrics: dict[str, Any] = {
        n: {key: [r[key] for r in found] for key in list(COLUMNS)[1:]} for n, found in rows.items()
    }
    metrics["training images"] = real
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    draw(rows, held_out, args.out / "cifar10.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma list")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--batches", default="1", help="files of the training set, 1 to 5")
    parser.add_argument("--width", type=int, default=64, help="maps of the critic's first layer")
    parser.add_argument("--weight", type=float, default=0.5, help="of the bound")
    parser.add_argument("--std", type=float, default=1.0, help="of the conditional")
    parser.add_argument("--features", help="module:function; by default, a small classifier")
    parser.add_argument("--bf16", action="store_true", help="networks in bfloat16")
    add_image_flags(parser, "out/cifar10")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
