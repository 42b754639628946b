"""Features of 8 x 8 digits learnt without labels: BiGAN, ALI, VEEGAN, a VAE, and a critic's own.

    python examples/bigan_digits.py --out out/bigan_digits

One model, z ~ Normal(0, I) of 8 dimensions and x ~ Normal(decoder(z), 0.1), and an encoder for its
guide. The guide is trained in four ways, and what it makes of a digit is 8 features: BiGAN
(the code is computed), ALI (the code is drawn; its mean counts), VEEGAN (the encoder only
reconstructs noise) and SVI (a VAE; the mean counts). A GAN without a guide gives the last hidden
layer of its critic, as it is and reduced by principal components. Features are judged by the label
of the nearest neighbour: 1297 of the 1797 images train, and are the neighbours of the other 500.
Beside them stand the pixels, their principal components, and means over 50 random projections of
the pixels, 50 encoders and 50 critics that were never trained.

The output folder gets `metrics.json` and `bigan_digits.png`. Every (method, seed) is kept there: a
run that was stopped goes on where it was. A seed sets the split too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from _kept import kept
from _quiet import add_quiet
from _schedules import rate_factor
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn

from pyro_sig.adversarial import GAN, VEEGAN, BiGAN, critic_features, objectives, penalties
from pyro_sig.datasets import load_digits
from pyro_sig.infer import train
from pyro_sig.nn import MLP, Encoder, Joint

NUM_TRAIN = 1297
NUM_FEATURES = 8
NUM_PIXELS = 64
NUM_RANDOM = 50  # projections, and networks that are not trained
STD = 0.1  # of the pixels, given z
WIDTH = 128  # of all hidden layers
BATCH_SIZE = 128
NUM_SHOWN = 12


# ------------------------------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Method:
    """What one method has of its own."""

    label: str
    trainer: Callable[..., Any] | None = None  # of a critic; None for SVI
    stochastic: bool = False  # whether the guide draws its codes
    rates: tuple[float, float] = (3e-4, 3e-3)  # of the programs and of the critic
    settings: dict[str, Any] = field(default_factory=dict)  # of the trainer


METHODS = {
    "bigan": Method("BiGAN", BiGAN, settings={"objective": objectives.Hinge()}),
    "ali": Method("ALI", BiGAN, stochastic=True, settings={"objective": objectives.Hinge()}),
    "veegan": Method("VEEGAN", VEEGAN, rates=(1e-3, 3e-3)),
    "vae": Method("VAE", stochastic=True, rates=(1e-3, 0.0)),
    "gan": Method("GAN", GAN, rates=(1e-3, 1e-3)),
}
# What needs no training, and the second row of a GAN.
ROWS = {
    **{name: method.label for name, method in METHODS.items()},
    "gan": f"GAN's critic, {WIDTH} features",
    "gan-pca": "GAN's critic, PCA",
    "new-critic": f"untrained critic, {WIDTH} features",
    "new-critic-pca": "untrained critic, PCA",
    "pixels": f"pixels, {NUM_PIXELS} features",
    "pca": "pixels, PCA",
    "untrained": "untrained encoder",
    "projection": "pixels, random projection",
}


class Digits(NamedTuple):
    """Images of 64 pixels and their labels, in a part to learn from and one to be judged by."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def split(seed: int, device: str) -> Digits:
    """Reads the digits and splits them."""
    images, labels = load_digits(device=device)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(device)
    images, labels = images.flatten(1)[order], labels[order]
    return Digits(images[:NUM_TRAIN], labels[:NUM_TRAIN], images[NUM_TRAIN:], labels[NUM_TRAIN:])


def accuracy(features: Callable[[Tensor], Tensor], digits: Digits) -> float:
    """Returns the share of test images whose nearest training image has their label."""
    distances = torch.cdist(features(digits.test), features(digits.train))
    found = digits.train_labels[distances.argmin(1)]
    return (found == digits.test_labels).double().mean().item()


def principal_components(values: Tensor) -> Tensor:
    """Returns the directions of largest variance, of shape ``[features, NUM_FEATURES]``."""
    centred = values - values.mean(0)
    return torch.linalg.svd(centred, full_matrices=False)[2][:NUM_FEATURES].T


def score_critic(critic: nn.Module, digits: Digits) -> tuple[float, float]:
    """Returns the accuracy of a critic's last hidden layer, as it is and reduced."""

    def features(x: Tensor) -> Tensor:
        return critic_features(critic, x)

    axes = principal_components(features(digits.train))
    return accuracy(features, digits), accuracy(lambda x: features(x) @ axes, digits)


# ----------------------------------------------------------------------------------------- one fit


class Pair:
    """The model and its guide, the very pair that every trainer takes.

    :param bool stochastic: whether the guide draws its codes.
    :param device: of the networks.
    """

    def __init__(self, stochastic: bool, device: str) -> None:
        def leaky() -> nn.Module:
            return nn.LeakyReLU(0.2)

        hidden = [WIDTH, WIDTH]
        pixels = MLP(NUM_FEATURES, hidden, NUM_PIXELS, leaky, device=device)
        self.decoder = nn.Sequential(pixels, nn.Sigmoid())
        kind = Encoder if stochastic else MLP
        self.encoder = kind(NUM_PIXELS, hidden, NUM_FEATURES, leaky, device=device)
        self.prior = dist.Normal(torch.zeros(NUM_FEATURES, device=device), 1.0).to_event(1)
        self.stochastic = stochastic
        self.leaky = leaky

    def model(self, x: Tensor) -> None:
        """Noise to image."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.decoder(z), STD).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Image to code."""
        pyro.module("encoder", self.encoder)
        code = self.encoder(x)
        with pyro.plate("data", len(x)):
            if self.stochastic:
                pyro.sample("z", dist.Normal(*code).to_event(1))
            else:
                pyro.sample("z", dist.Delta(code, event_dim=1))

    def features(self, x: Tensor) -> Tensor:
        """Returns what the guide makes of images; the mean of what it draws."""
        code = self.encoder(x)
        return code[0] if self.stochastic else code

    def critic(self, of_pairs: bool) -> nn.Module:
        """Makes a critic of images, or of images and codes."""
        size = NUM_PIXELS + NUM_FEATURES * of_pairs
        device = next(self.decoder.parameters()).device
        net = MLP(size, [WIDTH, WIDTH], 1, self.leaky, device=device)
        return Joint(net) if of_pairs else net


def fit(method: Method, digits: Digits, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one pair; returns the accuracy of its features, and pictures."""
    steps = 20 if args.smoke else args.num_steps
    pair = Pair(method.stochastic, args.device)

    def factor(step: int) -> float:
        return rate_factor(min(step / steps, 1.0))

    def batch(step: int) -> Tensor:
        # Grain like the model's: without it, the critic knows a draw by its grain.
        rows = torch.randint(len(digits.train), (BATCH_SIZE,), device=digits.train.device)
        return digits.train[rows] + STD * torch.randn(BATCH_SIZE, NUM_PIXELS, device=args.device)

    networks = [pair.decoder] if method.trainer is GAN else [pair.decoder, pair.encoder]
    params = [param for network in networks for param in network.parameters()]
    betas = (0.5, 0.999)
    schedules = []
    trainer: Any
    if method.trainer is None:
        options = {"lr": method.rates[0], "betas": betas}
        schedule = torch.optim.lr_scheduler.LambdaLR
        optim = PyroLRScheduler(
            schedule,
            {"optimizer": torch.optim.Adam, "optim_args": options, "lr_lambda": factor},
        )
        trainer = SVI(pair.model, pair.guide, optim, TraceMeanField_ELBO())
    else:
        critic = pair.critic(of_pairs=method.trainer is not GAN)
        optim = torch.optim.Adam(params, lr=method.rates[0], betas=betas)
        critic_optim = torch.optim.Adam(critic.parameters(), lr=method.rates[1], betas=betas)
        programs = [pair.model] if method.trainer is GAN else [pair.model, pair.guide]
        settings = {"penalties": penalties.R1(1.0), "ema": 0.99, **method.settings}
        trainer = method.trainer(*programs, critic, optim, critic_optim, **settings)
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in (optim, critic_optim)]
    start = time.perf_counter()
    train(
        trainer,
        batch,
        steps,
        callbacks=schedules,
        progress=args.progress,
        description=method.label,
    )
    seconds = time.perf_counter() - start

    averaged = nullcontext() if method.trainer is None else trainer.averaged()
    with torch.no_grad(), averaged:
        result = {"seconds": seconds, "samples": pair.decoder(pair.prior.sample((NUM_SHOWN,)))}
        if method.trainer is GAN:
            whole, reduced = score_critic(critic, digits)
            return {**result, "accuracy": whole, "reduced": reduced}
        codes = pair.features(digits.test)
        images = pair.decoder(codes)
        return {
            **result,
            "accuracy": accuracy(pair.features, digits),
            "error": (images - digits.test).square().mean().sqrt().item(),
            "images": images[:NUM_SHOWN].clone(),
        }


SETTINGS = ("smoke", "num_steps")


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one method on one split, or reads what an earlier run left."""

    def one() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return fit(METHODS[name], split(seed, args.device), args)

    settings = {key: getattr(args, key) for key in SETTINGS}
    return kept(args.out / "cache" / f"{name}-{seed}.pt", settings, one)


@torch.no_grad()
def without_training(seed: int, device: str) -> dict[str, float]:
    """Returns accuracies of the pixels and of what is made of them without learning."""
    pyro.set_rng_seed(seed)
    digits = split(seed, device)
    axes = principal_components(digits.train)
    num = NUM_RANDOM
    projections = torch.randn(num, NUM_PIXELS, NUM_FEATURES, device=device)
    pairs = [Pair(False, device) for _ in range(num)]
    critics = [score_critic(pair.critic(of_pairs=False), digits) for pair in pairs]

    def projected(projection: Tensor) -> float:
        return accuracy(lambda x: x @ projection, digits)

    return {
        "new-critic": statistics.fmean(whole for whole, _ in critics),
        "new-critic-pca": statistics.fmean(reduced for _, reduced in critics),
        "pixels": accuracy(lambda x: x, digits),
        "pca": accuracy(lambda x: x @ axes, digits),
        "untrained": statistics.fmean(accuracy(pair.encoder, digits) for pair in pairs),
        "projection": statistics.fmean(projected(p) for p in projections),
    }


# ------------------------------------------------------------------------------- table and picture


def spread(values: list[float]) -> str:
    """Writes a mean and a standard deviation in percent."""
    text = f"{100 * statistics.fmean(values):.1f}"
    return f"{text} +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else text


def print_table(metrics: dict[str, dict[str, list[float]]]) -> None:
    """Prints means over seeds."""
    print(f"\n{'features':32}{'accuracy, %':>14}{'rebuilt, RMSE':>15}{'seconds':>9}")
    for name, found in metrics.items():
        error = f"{statistics.fmean(found['error']):.3f}" if "error" in found else ""
        seconds = f"{statistics.fmean(found['seconds']):.0f}" if "seconds" in found else ""
        print(f"{ROWS[name]:32}{spread(found['accuracy']):>14}{error:>15}{seconds:>9}")


def draw(
    metrics: dict[str, dict[str, list[float]]],
    first: dict[str, dict[str, Any]],
    digits: Digits,
    path: Path,
) -> None:
    """Draws accuracies, and of the first seed digits, what codes keep of them, and samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11.5, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15), squeeze=False)[0]
    axis = left.subplots()
    names = sorted(metrics, key=lambda name: statistics.fmean(metrics[name]["accuracy"]))
    for place, name in enumerate(names):
        values = [100 * value for value in metrics[name]["accuracy"]]
        color = "tab:blue" if name in METHODS or name == "gan-pca" else "0.45"
        axis.plot(values, [place] * len(values), "o", color=color, ms=5, alpha=0.6)
        axis.plot(statistics.fmean(values), place, "|", color=color, ms=16, mew=2)
    axis.set(yticks=range(len(names)), xlabel="nearest neighbour has the label, %")
    axis.set_yticklabels([ROWS[name] for name in names])
    axis.grid(axis="x", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)

    rows = [("test digits", digits.test[:NUM_SHOWN])]
    rows += [
        (f"{METHODS[name].label}: rebuilt", found["images"])
        for name, found in first.items()
        if "images" in found
    ]
    rows += [(f"{METHODS[name].label}: drawn", found["samples"]) for name, found in first.items()]
    axes = right.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (label, images) in zip(axes, rows, strict=True):
        strip = nn.functional.pad(images.cpu().view(-1, 8, 8), (1, 1, 1, 1), value=0.5)
        axis.imshow(torch.cat(list(strip), 1), cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Runs every method and seed; writes metrics.json and bigan_digits.png."""
    names = args.methods.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"`methods` must be among {', '.join(METHODS)}, was {unknown}")
    args.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict[str, list[float]]] = {}
    first: dict[str, dict[str, Any]] = {}

    def note(row: str, **figures: float) -> None:
        for figure, value in figures.items():
            metrics.setdefault(row, {}).setdefault(figure, []).append(value)

    for seed in range(args.seed, args.seed + (1 if args.smoke else args.seeds)):
        for name in names:
            found = run(name, seed, args)
            first.setdefault(name, found)
            known = {key: found[key] for key in ("accuracy", "error", "seconds") if key in found}
            note(name, **known)
            if "reduced" in found:
                note("gan-pca", accuracy=found["reduced"])
            print(
                f"{METHODS[name].label}, seed {seed}: accuracy {found['accuracy']:.3f}, "
                f"{found['seconds']:.0f} s",
                flush=True,
            )
        for row, value in without_training(seed, args.device).items():
            note(row, accuracy=value)
    metrics = {row: metrics[row] for row in ROWS if row in metrics}
    print_table(metrics)
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    draw(metrics, first, split(args.seed, args.device), args.out / "bigan_digits.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma list")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--num-steps", type=int, default=2500)
    parser.add_argument("--device", default="cpu")
    add_quiet(parser)
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/bigan_digits"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
