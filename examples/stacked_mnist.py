"""Stacked MNIST, 1000 modes: Table 2 of the SIG paper, at three sizes of its networks.

    python examples/stacked_mnist.py --data-dir data --size s --seeds 2
    python examples/stacked_mnist.py --methods wgan-gp,wgan-gp-si,dcgan-r1,dcgan-r1-si
    python examples/stacked_mnist.py --networks dcgan --methods dcgan,rpgan-r1r2,rpgan-si

Three random digits are the colours of one image; a classifier names the digits of 26,000 samples.
"-si" adds the bound of SIG to the generator: psi = net(noise), x ~ Normal(psi, std), and the very
psi that the bound has drawn are shown to the critic. Networks are those of the paper, which
collapse with most objectives, or a DCGAN pair, which does not. The output folder gets
`metrics.json` and `stacked_mnist.png` with samples of every method, and the table goes to the
terminal: modes reached of 1000, KL divergence from equal shares (a perfect sampler scores the
floor that is printed), and of the single digits the inception score, the share that the classifier
names with probability above 0.7, and the two factors of the inception score.

Every (method, size, seed) is kept, and training saves its state on the way: a run that was killed
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import pyro
from _digit_classifier import NUM_STEPS, DigitClassifier, digit_classifier
from _image_gans import BATCH_SIZE, NOISE_DIM, draw_images, make_gan, methods
from _images import add_image_flags, check_device, draw_sheet, fail, read_mnist
from _kept import kept
from _resume import train_resumable
from _tables import means, print_columns
from torch import Tensor, nn

from pyro_sig.datasets import StackedDigits
from pyro_sig.diagnostics import class_coverage, inception_score
from pyro_sig.nn import (
    DCGANCritic,
    DCGANGenerator,
    StackedDigitsCritic,
    StackedDigitsGenerator,
)

NUM_SAMPLES = 26_000
WIDTHS = {"s": 1, "m": 2, "l": 4}
SHAPE = (3, 28, 28)


# ----------------------------------------------------------------------------------------- one fit


def make_networks(name: str, width: int, norm: bool, device: str) -> tuple[nn.Module, nn.Module]:
    """Makes a generator and a critic, with `norm` in the critic or without."""
    critic_norm = nn.BatchNorm2d if norm else None
    if name == "paper":
        net: nn.Module = StackedDigitsGenerator(NOISE_DIM, width, device=device)
        return net, StackedDigitsCritic(width, critic_norm, device=device)
    net = DCGANGenerator(NOISE_DIM, 3, 28, 16 * width, device=device)
    return net, DCGANCritic(3, 28, 16 * width, critic_norm, device=device)


def score(images: Tensor, classifier: DigitClassifier) -> dict[str, float]:
    """Computes the columns of Table 2."""
    probabilities = classifier.probabilities(images.reshape(-1, 1, 28, 28))
    sure, digits = probabilities.max(-1)
    red, green, blue = digits.reshape(-1, 3).unbind(-1)
    coverage = class_coverage(100 * red + 10 * green + blue, StackedDigits.num_classes)
    quality = inception_score(probabilities.double(), num_splits=1)
    return {
        "modes": coverage.covered,
        "kl": coverage.kl,
        "floor": coverage.floor,
        "floor_std": coverage.floor_std,
        "inception_score": quality.mean,
        "sure": (sure > 0.7).double().mean().item(),
        "conditional": quality.exp_conditional_entropy,
        "marginal": quality.exp_marginal_entropy,
    }


SETTINGS = ("smoke", "networks", "size", "num_steps", "std", "bf16")


def run(
    name: str,
    seed: int,
    splits: dict[str, tuple[Tensor, Tensor]],
    classifier: DigitClassifier,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Trains and scores one seed, or reads what an earlier run left."""
    method = methods(args.weight)[name]
    steps = 30 if args.smoke else args.num_steps
    settings = {key: getattr(args, key) for key in SETTINGS}
    settings |= {"method": repr(method), "seed": seed}
    path = args.out / "cache" / f"{name}-{args.networks}-{args.size}-{seed}.pt"

    def fit() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        net, critic = make_networks(args.networks, WIDTHS[args.size], method.norm, args.device)
        gan = make_gan(method, net, critic, SHAPE, args.std, args.bf16)
        batches = StackedDigits(*splits["train"], BATCH_SIZE, seed)
        _, seconds = train_resumable(
            path.with_suffix(".checkpoints"),
            settings,
            gan,
            batches,
            steps,
            progress=args.progress,
            description=f"{name} {args.size} {seed}",
        )
        images = draw_images(gan, net, method.averaged, 500 if args.smoke else NUM_SAMPLES)
        parameters = [sum(p.numel() for p in n.parameters()) for n in (net, gan.critic)]
        return {
            **score(images, classifier),
            "seconds": seconds,
            "parameters": parameters,
            "images": images[:100].cpu().clone(),
        }

    return kept(path, settings, fit)


# ------------------------------------------------------------------------------- table and picture

COLUMNS = {
    "seeds": ("seeds", "6.0f"),
    "modes": ("modes", "7.1f"),
    "kl": ("KL", "8.3f"),
    "inception_score": ("IS", "7.2f"),
    "sure": ("p > .7", "8.3f"),
    "conditional": ("e^H(y|x)", "10.2f"),
    "marginal": ("e^H(y)", "8.2f"),
    "seconds": ("seconds", "9.0f"),
}


def print_table(
    networks: str, size: str, rows: dict[str, list[dict[str, Any]]], real: dict[str, float]
) -> None:
    """Prints means over seeds."""
    table = {methods()[name].label: means(found, COLUMNS) for name, found in rows.items()}
    print_columns(f"{networks}, size {size}", COLUMNS, {**table, "held-out digits": real})
    print(f"a perfect sampler of equal modes: KL {real['floor']:.4f} +- {real['floor_std']:.4f}")


def draw(rows: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Draws samples of the first seed of every method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(rows), figsize=(2.9 * len(rows), 3.3), layout="constrained", squeeze=False
    )
    for axis, (name, found) in zip(axes[0], rows.items(), strict=True):
        modes, kl = (statistics.fmean(result[key] for result in found) for key in ("modes", "kl"))
        label = f"{methods()[name].label}: {modes:.0f} modes, KL {kl:.2f}"
        draw_sheet(axis, found[0]["images"][:64], 8, label)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Runs every method and seed; writes metrics.json and stacked_mnist.png."""
    names = args.methods.split(",")
    if unknown := [name for name in names if name not in methods()]:
        fail(f"`methods` must be among {', '.join(methods())}, was {unknown}")
    check_device(args.device)
    splits = read_mnist(args.data_dir, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    classifier, accuracy = digit_classifier(
        args.out / "cache" / "classifier.pt",
        splits,
        60 if args.smoke else NUM_STEPS,
        progress=args.progress,
    )
    print(f"classifier: {100 * accuracy:.2f} % of the test digits")
    held_out = StackedDigits(*splits["test"], 500 if args.smoke else NUM_SAMPLES, args.seed)
    real = score(held_out(0), classifier)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for seed in range(args.seed, args.seed + args.seeds):
            result = run(name, seed, splits, classifier, args)
            rows.setdefault(name, []).append(result)
            print(
                f"{name}, size {args.size}, seed {seed}: {result['modes']} modes, "
                f"KL {result['kl']:.3f}, {result['seconds']:.0f} s",
                flush=True,
            )
    print_table(args.networks, args.size, rows, real)
    keys = (*list(COLUMNS)[1:], "floor", "floor_std", "parameters")
    metrics = {
        "networks": args.networks,
        "size": args.size,
        "accuracy": accuracy,
        "held_out": real,
        "methods": {n: {key: [r[key] for r in found] for key in keys} for n, found in rows.items()},
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    title = f"Stacked MNIST, networks: {args.networks}, size {args.size.upper()}"
    draw(rows, title, args.out / "stacked_mnist.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="dcgan,dcgan-r1-si", help="comma list")
    parser.add_argument("--networks", default="paper", choices=("paper", "dcgan"))
    parser.add_argument("--size", default="m", choices=WIDTHS, help="of the networks")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--weight", type=float, default=0.1, help="of the bound")
    parser.add_argument("--std", type=float, default=1.0, help="of the conditional")
    parser.add_argument("--bf16", action="store_true", help="networks in bfloat16")
    add_image_flags(parser, "out/stacked_mnist")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
