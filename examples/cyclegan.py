"""Translation between two domains without pairs, by CycleGAN: a cloud of points, and digits.

    python examples/cyclegan.py --out out/cyclegan
    python examples/cyclegan.py --data points --seed 1

`points`: x is a cloud in the shape of a comma, y a turned, shifted and slightly bent cloud of
other draws. No rotation, reflection or shift leaves a comma as it is, so that among the smooth maps
near the identity, where the translators start, there is one that gives y its law.
The weight of the cycles is 0, 0.3 and the paper's 10.

`digits`: x are 8 x 8 digits, y other digits turned by 90 degrees with inverted contrast, a map that
is linear in the pixels. The translators are linear, or networks.

Pairs exist for held-out rows only, and only to score. The output folder gets `metrics.json`,
`cyclegan.png` with the points and `cyclegan_digits.png`. Fits are kept in the output folder: a run
that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from _kept import kept
from _quiet import add_quiet
from torch import Tensor, nn

from pyro_sig.adversarial import CycleGAN, linear_decay, objectives, penalties
from pyro_sig.datasets import load_digits
from pyro_sig.infer import History, train
from pyro_sig.nn import MLP

BETAS = (0.5, 0.9)
NUM_POINTS = 5000
NUM_HELD_OUT = 2000  # points; of the digits, what is left
NUM_DIGITS = 750  # in each domain
STEPS = {"points": 2000, "digits": 4000}
POINTS = {"no cycles": 0.0, "cycles, weight 0.3": 0.3, "cycles, weight 10": 10.0}
DIGITS = ("linear", "network")


class FromIdentity(nn.Module):
    """Adds a network to its input, and starts as the identity."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net
        nn.init.zeros_(net.head.weight)
        nn.init.zeros_(net.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Translates points."""
        return x + self.net(x)


def trainer(
    translators: Sequence[nn.Module],
    critics: Sequence[nn.Module],
    rate: float,
    steps: int,
    *settings: Any,
    **named: Any,
) -> tuple[CycleGAN, list[torch.optim.lr_scheduler.LambdaLR]]:
    """Makes the trainer, and schedules of both players."""
    forward, backward = translators
    critic_x, critic_y = critics
    optim, critic_optim = (
        torch.optim.Adam([p for m in players for p in m.parameters()], lr=rate, betas=BETAS)
        for players in (translators, critics)
    )
    gan = CycleGAN(forward, backward, critic_x, critic_y, optim, critic_optim, *settings, **named)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, linear_decay(steps)) for o in (optim, critic_optim)
    ]
    return gan, schedules


def quarters(cycle: list[float]) -> tuple[float, float]:
    """Averages the cycle error over the third and the last quarter of the steps."""
    n = max(len(cycle) // 4, 1)
    return statistics.fmean(cycle[-2 * n : -n]), statistics.fmean(cycle[-n:])


def translate(
    gan: CycleGAN,
    schedules: list[Any],
    data: tuple[Tensor, Tensor],
    batch_size: int,
    num_steps: int,
    test: Tensor,
    args: argparse.Namespace,
) -> tuple[History, Tensor, Tensor]:
    """Trains on batches of both domains; returns losses, and test rows there and back."""
    x, y = data

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (2, batch_size), device=x.device)
        return x[rows[0]], y[rows[1]]

    history = train(
        gan, batch, num_steps, callbacks=schedules, progress=args.progress, description="CycleGAN"
    )
    with torch.no_grad():
        there = gan.forward(test)
        return history, there, gan.backward(there)


# -------------------------------------------------------------------------------------- the points


def comma(num: int, device: str) -> Tensor:
    """Draws from an arc that is dense and thick at one end, and thin at the other."""
    t = torch.rand(num, 1, device=device).square()
    angle, radius = 0.3 + 4 * t, 1 + 0.35 * t
    arc = radius * torch.cat([angle.cos(), angle.sin()], -1)
    return arc + (0.27 - 0.22 * t) * torch.randn(num, 2, device=device)


def truth(x: Tensor) -> Tensor:
    """Turns by 60 degrees, shifts and bends."""
    c, s = math.cos(math.pi / 3), math.sin(math.pi / 3)
    turned = x @ x.new_tensor([[c, s], [-s, c]])
    return turned + x.new_tensor([3.0, -1.0]) + 0.25 * (1.5 * turned.flip(-1)).sin()


def best_point(y: Tensor) -> Tensor:
    """Finds the constant with the smallest mean distance to rows, by Weiszfeld's iteration."""
    point = y.mean(0)
    for _ in range(100):
        weight = 1 / (y - point).norm(dim=-1, keepdim=True).clamp_min(1e-6)
        point = (weight * y).sum(0) / weight.sum()
    return point


def fit_points(weight: float, args: argparse.Namespace) -> dict[str, Any]:
    """Trains on two clouds and scores on rows whose pairs are known."""
    pyro.set_rng_seed(args.seed)
    device = args.device
    x, y = comma(NUM_POINTS, device), truth(comma(NUM_POINTS, device))
    test = comma(NUM_HELD_OUT, device)
    target = truth(test)
    translators = tuple(FromIdentity(MLP(2, [64, 64], 2, device=device)) for _ in range(2))
    critics = tuple(MLP(2, [64, 64], 1, device=device) for _ in range(2))
    steps = 30 if args.smoke else STEPS["points"]
    gan, schedules = trainer(
        translators,
        critics,
        2e-3,
        steps,
        objectives.NonSaturating(),
        penalties.R1(0.1),
        cycle_weight=weight,
    )

    start = time.perf_counter()
    history, there, back = translate(gan, schedules, (x, y), 256, steps, test, args)
    third, last = quarters(history["cycle"])
    return {
        "error": float((there - target).norm(dim=-1).mean()),
        "constant": float((best_point(target) - target).norm(dim=-1).mean()),
        "cycle": float((back - test).norm(dim=-1).mean()),
        "third_quarter": third,
        "last_quarter": last,
        "seconds": time.perf_counter() - start,
        "rows": {"x": test.cpu(), "y": target.cpu(), "there": there.cpu(), "back": back.cpu()},
    }


# -------------------------------------------------------------------------------------- the digits


def turn(x: Tensor) -> Tensor:
    """Turns images in [-1, 1] by 90 degrees and inverts their contrast."""
    return -torch.rot90(x.reshape(-1, 8, 8), 1, (1, 2)).flatten(1)


class Translator(nn.Module):
    """Maps images in [-1, 1]: a linear map, or the tanh of one and a network."""

    def __init__(self, kind: str, device: str) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64, device=device)
        self.net = MLP(64, [256, 256], 64, device=device) if kind == "network" else None
        if self.net is not None:
            nn.init.zeros_(self.net.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Translates images of shape ``[B, 64]``."""
        return self.linear(x) if self.net is None else (self.linear(x) + self.net(x)).tanh()


def fit_classifier(y: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Trains a classifier of the second domain on labelled images."""
    classifier = MLP(64, [128], 10, device=y.device)
    optim = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(y), (128,), device=y.device)
        noisy = y[rows] + 0.1 * torch.randn_like(y[rows])
        loss = nn.functional.cross_entropy(classifier(noisy), labels[rows])
        optim.zero_grad()
        loss.backward()
        optim.step()
    return classifier


def fit_digits(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Trains on two sets of digits and scores on others."""
    pyro.set_rng_seed(args.seed)
    device = args.device
    images, labels = load_digits(device=device)
    images = 2 * images.flatten(1) - 1
    order = torch.randperm(len(images), device=device)
    in_x, in_y, held_out = order.split([NUM_DIGITS, NUM_DIGITS, len(images) - 2 * NUM_DIGITS])
    x, y = images[in_x], turn(images[in_y])
    test, classes = images[held_out], labels[held_out]
    target = turn(test)
    classifier = fit_classifier(y, labels[in_y], 20 if args.smoke else 500)
    translators = tuple(Translator(kind, device) for _ in range(2))
    leaky = lambda: nn.LeakyReLU(0.2)  # noqa: E731
    critics = tuple(MLP(64, [128, 128], 1, leaky, device=device) for _ in range(2))
    steps = 30 if args.smoke else STEPS["digits"]
    gan, schedules = trainer(
        translators, critics, 1e-3, steps, None, penalties.R1(1.0), cycle_weight=1.0
    )

    start = time.perf_counter()
    history, there, back = translate(gan, schedules, (x, y), 64, steps, test, args)
    with torch.no_grad():
        read, own = classifier(there).argmax(1), classifier(target).argmax(1)
    third, last = quarters(history["cycle"])
    return {
        "error": float((there - target).abs().mean()),
        "constant": float((target.median(0).values - target).abs().mean()),
        "cycle": float((back - test).abs().mean()),
        "third_quarter": third,
        "last_quarter": last,
        "classifier": float((own == classes).double().mean()),
        **agreement(classes, read),
        "seconds": time.perf_counter() - start,
        "rows": {"x": test.cpu(), "y": target.cpu(), "there": there.cpu(), "back": back.cpu()},
        "classes": classes.cpu(),
    }


def agreement(classes: Tensor, read: Tensor) -> dict[str, Any]:
    """Compares the classes of digits with those that their translations are read as."""
    from scipy.optimize import linear_sum_assignment

    counts = torch.zeros(10, 10, dtype=torch.long)
    counts.index_put_((classes.cpu(), read.cpu()), torch.tensor(1), accumulate=True)
    _, permutation = linear_sum_assignment(-counts.numpy())
    return {
        "accuracy": float(counts.diag().sum() / counts.sum()),
        "permuted_accuracy": float(counts[range(10), permutation].sum() / counts.sum()),
        "permutation": [int(to) for to in permutation],
    }


# -------------------------------------------------------------------------------- table, pictures


def print_table(data: str, found: dict[str, dict[str, Any]]) -> None:
    """Prints the figures of all fits on one data set, and what they mean."""
    print(
        f"\n{data:22}{'error':>8}{'constant':>10}{'ratio':>7}{'cycle':>8}{'3rd / last quarter':>21}"
    )
    for name, one in found.items():
        print(
            f"{name:22}{one['error']:8.3f}{one['constant']:10.3f}"
            f"{one['error'] / one['constant']:7.2f}{one['cycle']:8.3f}"
            f"{one['third_quarter']:12.3f} /{one['last_quarter']:7.3f}"
        )
    for name, one in found.items():
        if "accuracy" not in one:
            continue
        print(
            f"{name}: a classifier (right on {one['classifier']:.2f} of real images) reads "
            f"{one['accuracy']:.2f} of the translations as their digit, "
            f"{one['permuted_accuracy']:.2f} after the best permutation of the classes."
        )
        moved = [f"{a} as {b}" for a, b in enumerate(one["permutation"]) if a != b]
        if moved:
            print(f"  Training without pairs has permuted the classes: {', '.join(moved)}.")


def draw_points(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws each fit: x, its translation, and lines from there to the true y."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    width = 3.6 * len(found)
    figure, axes = plt.subplots(
        1, len(found), figsize=(width, 3.6), layout="constrained", sharex=True, sharey=True
    )
    for axis, (name, one) in zip(axes, found.items(), strict=True):
        rows = {key: value[:300] for key, value in one["rows"].items()}
        lines = torch.stack([rows["there"], rows["y"]], 1).numpy()
        axis.add_collection(LineCollection(list(lines), colors="0.6", linewidths=0.5, zorder=0))
        for key, colour, label in (
            ("x", "tab:blue", "x"),
            ("y", "tab:green", "its true y"),
            ("there", "tab:orange", "forward(x)"),
        ):
            axis.scatter(*rows[key].T, s=5, color=colour, linewidths=0, label=label)
        ratio = one["error"] / one["constant"]
        axis.set(aspect="equal", xticks=[], yticks=[], title=f"{name}\nerror {ratio:.2f}")
    axes[0].legend(fontsize=8, markerscale=2, loc="lower left")
    figure.suptitle("Lines go to the true y; error as a share of the best constant's", fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_digits(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws a digit of each class: input, translation, back, and the truth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {"x": "x", "there": "forward(x)", "back": "and back", "y": "true y"}
    figure = plt.figure(figsize=(5.2 * len(found), 2.6), layout="constrained")
    parts = figure.subfigures(1, len(found), squeeze=False)[0]
    for part, (name, one) in zip(parts, found.items(), strict=True):
        classes = one["classes"].tolist()
        chosen = [classes.index(digit) for digit in range(10)]
        part.suptitle(
            f"{name}: {one['accuracy']:.2f} read as their digit, "
            f"{one['permuted_accuracy']:.2f} permuted",
            fontsize=9,
        )
        axes = part.subplots(4, 1)
        for axis, (key, label) in zip(axes, labels.items(), strict=True):
            strip = one["rows"][key][chosen].reshape(10, 8, 8)
            strip = nn.functional.pad(strip, (1, 1, 1, 1)).permute(1, 0, 2).reshape(10, 100)
            axis.imshow(strip, cmap="gray", vmin=-1, vmax=1)
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(args: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Runs what was asked for; writes metrics.json and the pictures."""
    args.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for data in ("points", "digits"):
        if args.data not in (data, "all"):
            continue
        found: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(POINTS if data == "points" else DIGITS):
            settings = {"data": data, "fit": name, "seed": args.seed, "smoke": args.smoke}
            settings |= {"sizes": [STEPS[data], NUM_POINTS, NUM_HELD_OUT, NUM_DIGITS]}

            def fit(data: str = data, name: str = name) -> dict[str, Any]:
                if data == "points":
                    return fit_points(POINTS[name], args)
                return fit_digits(name, args)

            path = args.out / "cache" / f"{data}-{number}-{args.seed}.pt"
            found[name] = kept(path, settings, fit)
        print_table(data, found)
        metrics[data] = {
            name: {k: v for k, v in one.items() if k not in ("rows", "classes", "settings")}
            for name, one in found.items()
        }
        if data == "points":
            draw_points(found, args.out / "cyclegan.png")
        else:
            draw_digits(found, args.out / "cyclegan_digits.png")
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="all", choices=["points", "digits", "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    add_quiet(parser)
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/cyclegan"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
