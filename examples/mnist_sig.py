"""Does SIG average modes on images, and does a large M cure it? The M-curve of the SIG paper.

    python examples/mnist_sig.py --data-dir data
    python examples/mnist_sig.py --data-dir data --data stacked --num-mixing 1000,10000

psi = net(noise), x ~ Normal(psi, std) with a learned std, trained by the SIG bound alone: no
critic. Every M gets the same wall time; the largest ones (`--warm`) start from the end of the one
before. Beyond `--exact` psi, the backward pass goes through those alone that explain a datum.

`--data` is mnist, stacked (three digits as colours, 1000 countable modes) or cifar10 (sheets).
The table has, for each M: steps, the learned std, the bound of the log-density of held-out images
(nats for each image, all with the same large M), and, with the features of a small classifier of
digits, Frechet distance, precision and recall, the share of samples that it names with probability
above 0.7; and a check against memorising, the mean distance from a sample to the nearest of
10,000 training images, divided by that to as many held-out ones: below 1, samples are copies.
The output folder gets `metrics.json` and `mnist_sig.png` (`stacked_sig.png`, `cifar10_sig.png`)
with samples and curves. Every fit is kept, and goes on where it was killed.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _digit_classifier import NUM_STEPS, DigitClassifier, digit_classifier
from _images import add_image_flags, check_device, draw_sheet, fail, read_images, read_mnist
from _kept import kept
from _resume import GradientSteps, train_resumable
from _tables import print_columns
from torch import Tensor, nn

from pyro_sig.datasets import StackedDigits, load_cifar10
from pyro_sig.diagnostics import (
    class_coverage,
    frechet_distance,
    precision_recall_density_coverage,
)
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, no_guide
from pyro_sig.nn import MLP

NOISE_DIM = 64
HIDDEN = [256, 256]
BATCH_SIZE = 200
RATE = 1e-3
CHUNK_SIZE = 4096
NUM_SAMPLES = 10_000
NUM_SCORED = 5000  # for precision and recall, which compare all pairs
NUM_HELD_OUT = 2000  # for the bound
SHAPES = {"mnist": (1, 28, 28), "stacked": (3, 28, 28), "cifar10": (3, 32, 32)}


class Program(nn.Module):
    """psi = tanh(net(noise)), x ~ Normal(psi, std), on flat images with pixels in [-1, 1]."""

    def __init__(self, num_pixels: int, device: str) -> None:
        super().__init__()
        self.net = nn.Sequential(MLP(NOISE_DIM, HIDDEN, num_pixels, device=device), nn.Tanh())
        self.log_std = nn.Parameter(torch.tensor(-0.7, device=device))
        self.num_pixels = num_pixels

    @property
    def mixing(self) -> Implicit:
        """The law of psi."""
        noise = dist.Normal(self.log_std.new_zeros(NOISE_DIM), 1.0).to_event(1)
        return Implicit(self.net, noise, event_shape=self.num_pixels)

    def conditional(self, psi: Tensor) -> dist.TorchDistribution:
        """The law of an image given psi."""
        return dist.Normal(psi, self.log_std.exp()).to_event(1)

    def forward(self, x: Tensor) -> None:
        """Runs the program."""
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", self.mixing)
            pyro.sample("x", self.conditional(psi), obs=x)

    @torch.no_grad()
    def draw(self, num_samples: int) -> Tensor:
        """Draws psi, the means of images."""
        return self.mixing.sample((num_samples,))

    @torch.no_grad()
    def log_prob(self, x: Tensor, num_mixing: int) -> Tensor:
        """Bounds the log-density of each image from below."""
        law = SemiImplicit(self.mixing, self.conditional, num_mixing, chunk_size=CHUNK_SIZE)
        return law.log_prob(x)


# ----------------------------------------------------------------------------------------- one fit


class Data:
    """Training batches and held-out images of one data set.

    :param splits: images and labels, uint8, of "train" and "test".
    :param str name: the data set.
    :param int seed: seed of stacked digits.
    """

    def __init__(self, splits: dict[str, tuple[Tensor, Tensor]], name: str, seed: int) -> None:
        self.splits = splits
        self.name = name
        self.seed = seed
        if name == "stacked":
            self._stacked = StackedDigits(*splits["train"], BATCH_SIZE, seed)

    def __call__(self, step: int) -> Tensor:
        """Returns the flat images of a step."""
        if self.name == "stacked":
            return self._stacked(step).flatten(1)
        images, _ = self.splits["train"]
        rows = torch.randint(len(images), (BATCH_SIZE,), device=images.device)
        return self._pixels(images[rows])

    def images(self, split: str, num: int) -> Tensor:
        """Returns flat images of a split."""
        images, labels = self.splits[split]
        if self.name == "stacked":
            return StackedDigits(images, labels, num, self.seed)(0).flatten(1)
        return self._pixels(images[:num])

    def _pixels(self, images: Tensor) -> Tensor:
        return images.flatten(1).to(torch.get_default_dtype()) / 127.5 - 1


def fit(
    num_mixing: int, data: Data, start: Path | None, path: Path, args: argparse.Namespace
) -> tuple[Program, int, float]:
    """Trains the program; returns it with the number of steps and the seconds."""
    pyro.set_rng_seed(args.seed)
    program = Program(math.prod(SHAPES[args.data]), args.device)
    if start is not None:
        program.load_state_dict(torch.load(start, weights_only=True)["program"])
    large = num_mixing > args.exact
    elbo = SIG_ELBO(
        num_mixing,
        chunk_size=CHUNK_SIZE if large else None,
        backward="responsibility" if large else "exact",
        max_plate_nesting=1,
    )
    optim = torch.optim.Adam(program.parameters(), lr=RATE, betas=(0.9, 0.99))

    def loss(x: Tensor) -> Tensor:
        return elbo.differentiable_loss(program, no_guide, x) / len(x)

    def set_rate(done: float) -> None:
        # The last fifth of the time lets the weights settle.
        optim.param_groups[0]["lr"] = RATE * min(1.0, 5 * (1 - done) + 0.01)

    steps, seconds = train_resumable(
        path.with_suffix(".checkpoints"),
        {"num_mixing": num_mixing, "seconds": args.seconds, "seed": args.seed},
        GradientSteps(loss, {"program": program}, optim),
        data,
        20 if args.smoke else 10**6,
        seconds=args.seconds,
        on_progress=set_rate,
        every=max(1, 10**6 // num_mixing),
        progress=args.progress,
        description=f"M = {num_mixing}",
    )
    return program, steps, seconds


def score(
    program: Program, data: Data, classifier: DigitClassifier | None, args: argparse.Namespace
) -> dict[str, float]:
    """Computes the columns of the table."""
    num = 1000 if args.smoke else NUM_SAMPLES
    psi = program.draw(num)
    held_out = data.images("test", num)
    known = data.images("train", len(held_out))
    law = program.log_prob(held_out[:NUM_HELD_OUT], 1000 if args.smoke else args.num_scored)
    found = {
        "std": program.log_std.exp().item(),
        "log_prob": law.mean().item(),
        "log_prob_error": (law.std() / math.sqrt(len(law))).item(),
        "copies": (_nearest(psi, known) / _nearest(psi, held_out)).item(),
    }
    if classifier is None:
        return found
    return found | of_features(psi, held_out, classifier, data.name)


def of_features(
    samples: Tensor, held_out: Tensor, classifier: DigitClassifier, name: str
) -> dict[str, float]:
    """Computes what the classifier of digits sees in samples."""

    def digits(x: Tensor) -> Tensor:
        return x.reshape(-1, 1, 28, 28)

    def features(x: Tensor) -> Tensor:
        return classifier.features(digits(x)).reshape(len(x), -1)

    fake, real = features(samples), features(held_out)
    pairs = precision_recall_density_coverage(real[:NUM_SCORED], fake[:NUM_SCORED])
    probabilities = classifier.probabilities(digits(samples))
    sure, named = probabilities.max(-1)
    if name == "stacked":
        red, green, blue = named.reshape(-1, 3).unbind(-1)
        coverage = class_coverage(100 * red + 10 * green + blue, StackedDigits.num_classes)
    else:
        coverage = class_coverage(named, 10)
    return {
        "frechet": frechet_distance(real, fake).item(),
        "precision": pairs.precision,
        "recall": pairs.recall,
        "sure": (sure > 0.7).double().mean().item(),
        "modes": coverage.covered,
        "kl": coverage.kl,
        "floor": coverage.floor,
    }


def _nearest(x: Tensor, among: Tensor, num: int = 1000) -> Tensor:
    """Mean distance from the first images to the nearest of others."""
    return torch.cdist(x[:num], among).amin(-1).mean()


def beside_nearest(samples: Tensor, known: Tensor, columns: int = 8) -> Tensor:
    """Lays rows of samples over rows of the images nearest to them, for a sheet."""
    samples = samples[: 4 * columns].to(known)
    nearest = known[torch.cdist(samples, known).argmin(-1)]
    rows = torch.stack([samples.unflatten(0, (4, columns)), nearest.unflatten(0, (4, columns))], 1)
    return rows.flatten(0, 2)


# ------------------------------------------------------------------------------- table and picture

COLUMNS = {
    "steps": ("steps", "8.0f"),
    "seconds": ("seconds", "9.0f"),
    "std": ("std", "7.3f"),
    "log_prob": ("log p", "9.1f"),
    "frechet": ("FID", "8.2f"),
    "precision": ("prec.", "7.3f"),
    "recall": ("recall", "8.3f"),
    "sure": ("p > .7", "8.3f"),
    "modes": ("modes", "7.0f"),
    "kl": ("KL", "7.3f"),
    "copies": ("copies", "8.3f"),
}


def draw(
    rows: dict[str, dict[str, Any]], sheets: dict[str, Tensor], shape: tuple[int, ...], path: Path
) -> None:
    """Draws samples for each M, the training images nearest to some, and the curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(max(11, 2.6 * len(sheets)), 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.35, 1), squeeze=False)[:, 0]
    panels = above.subplots(1, len(sheets), squeeze=False)[0]
    for axis, (label, images) in zip(panels, sheets.items(), strict=True):
        draw_sheet(axis, images.reshape(-1, *shape), 8, label)
    names = [key for key in ("log_prob", "frechet", "recall", "sure") if key in rows[min(rows)]]
    mixing = [label for label in rows if label.isdigit()]
    floor = rows.get("held-out images", {})
    for axis, name in zip(below.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axis.plot([int(m) for m in mixing], [rows[m][name] for m in mixing], "o-", ms=4)
        if name == "recall":
            values = [rows[m]["precision"] for m in mixing]
            axis.plot([int(m) for m in mixing], values, "s--", ms=4, color="tab:orange")
        if name in floor:
            axis.axhline(floor[name], color="0.6", lw=1, ls=":")
        axis.set(xscale="log", xlabel="M", title=TITLES[name])
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


TITLES = {
    "log_prob": "bound on held-out log p(x), nats",
    "frechet": "Frechet distance of features",
    "recall": "recall (dots), precision (squares)",
    "sure": "classified with p > 0.7",
}


# --------------------------------------------------------------------------------------- all of it


def read(args: argparse.Namespace) -> dict[str, tuple[Tensor, Tensor]]:
    """Reads the images."""
    if args.data != "cifar10":
        return read_mnist(args.data_dir, args.device)
    images, labels = read_images(args.data_dir, "cifar10", partial(load_cifar10, batches=(1,)))
    images, labels = images.to(args.device), labels.to(args.device)
    last = len(images) - 1000
    return {"train": (images[:last], labels[:last]), "test": (images[last:], labels[last:])}


def run(num_mixing: int, start: Path | None, data: Data, judge: Any, args: Any) -> dict[str, Any]:
    """Trains and scores one M, or reads what an earlier run left."""
    path = args.out / "cache" / f"{args.data}-{num_mixing}-{args.seed}.pt"
    settings = {"smoke": args.smoke, "seconds": args.seconds, "warm": start is not None}

    def one() -> dict[str, Any]:
        program, steps, seconds = fit(num_mixing, data, start, path, args)
        figures = score(program, data, judge, args)
        samples = program.draw(64).cpu()
        state = {name: value.cpu() for name, value in program.state_dict().items()}
        return {
            "steps": steps,
            "seconds": seconds,
            **figures,
            "samples": samples,
            "program": state,
        }

    return kept(path, settings, one)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Runs every M; writes metrics.json and a picture."""
    check_device(args.device)
    try:
        sizes = sorted(int(m) for m in args.num_mixing.split(","))
    except ValueError:
        fail(f"`num_mixing` must be a comma list of integers, was {args.num_mixing!r}")
    splits = read(args)
    args.out.mkdir(parents=True, exist_ok=True)
    data = Data(splits, args.data, args.seed)
    judge = None
    if args.data != "cifar10":
        steps = 60 if args.smoke else NUM_STEPS
        file = args.out / "cache" / "classifier.pt"
        judge, accuracy = digit_classifier(file, splits, steps, progress=args.progress)
        print(f"classifier: {100 * accuracy:.2f} % of the test digits")
    rows: dict[str, dict[str, Any]] = {}
    start: Path | None = None
    for num_mixing in sizes:
        begin = start if num_mixing > args.warm else None
        rows[str(num_mixing)] = run(num_mixing, begin, data, judge, args)
        start = args.out / "cache" / f"{args.data}-{num_mixing}-{args.seed}.pt"
        print(f"M = {num_mixing}: {rows[str(num_mixing)]['steps']} steps", flush=True)
    sheets = {f"M = {m}": row.pop("samples") for m, row in rows.items()}
    known = data.images("train", 1000 if args.smoke else NUM_SAMPLES)
    last = f"M = {sizes[-1]}"
    sheets[f"{last}, over nearest data"] = beside_nearest(sheets[last], known)
    sheets["held-out images"] = data.images("test", 64)
    if judge is not None:
        real = of_features(known, data.images("test", len(known)), judge, args.data)
        rows["training images"] = real
    print_columns("M", COLUMNS, rows)
    keys = (*COLUMNS, "log_prob_error", "floor")
    metrics = {m: {k: row[k] for k in keys if k in row} for m, row in rows.items()}
    (args.out / "metrics.json").write_text(json.dumps({args.data: metrics}, indent=1))
    draw(rows, sheets, SHAPES[args.data], args.out / f"{args.data}_sig.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="mnist", choices=SHAPES)
    parser.add_argument("--num-mixing", default="100,1000,10000,100000", help="comma list of M")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training for each M")
    parser.add_argument("--exact", type=int, default=1000, help="largest M with exact gradients")
    parser.add_argument(
        "--warm", type=int, default=10_000, help="larger M go on from the one before"
    )
    parser.add_argument("--num-scored", type=int, default=100_000, help="psi of the held-out bound")
    add_image_flags(parser, "out/mnist_sig")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
