"""Fits semi-implicit generative models to real data: 8 x 8 digits, and accident counts.

Two ways to one objective. The digits have an observed `SemiImplicit` site, which Pyro's own
`Trace_ELBO` trains; the rates of the accident counts are an `Implicit` site that `SIG_ELBO`
marginalises (`empirical_bayes.py` has that part). Pictures, a table (`metrics.json`) and ArviZ
files go to the output folder.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import empirical_bayes
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from _quiet import add_quiet
from matplotlib.figure import Figure
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import CosineAnnealingLR
from sklearn.base import BaseEstimator, clone
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from pyro_sig.datasets import load_digits
from pyro_sig.diagnostics import to_inference_data
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import no_guide, train
from pyro_sig.nn import MLP


class Settings(NamedTuple):
    """Sizes of both parts."""

    digit_steps: int = 1500
    digit_batch: int = 500
    digit_mixing: int = 2000
    test_mixing: int = 200_000
    counts: empirical_bayes.Settings = empirical_bayes.Settings()
    progress: bool | None = None


SMOKE = Settings(20, 100, 50, 1000, empirical_bayes.SMOKE)


def cosine_adam(
    learning_rate: float, num_steps: int, weight_decay: float = 0.0
) -> CosineAnnealingLR:
    """Adam whose learning rate falls to zero; only weights of networks decay."""

    def optim_args(name: str) -> dict[str, float]:
        return {"lr": learning_rate, "weight_decay": weight_decay * name.endswith("weight")}

    arguments = {"optimizer": torch.optim.AdamW, "optim_args": optim_args, "T_max": num_steps}
    return CosineAnnealingLR(arguments)


# ------------------------------------------------------------------------------------- the digits


class DigitGenerator(PyroModule):
    """Makes images by x ~ Normal(psi, sigma), psi = network(noise), with a sigma per pixel."""

    START, END = 0.5, 0.1  # of sigma: wide at first, so that every psi learns from many images

    def __init__(self, pixels: int, noise_dim: int = 10) -> None:
        super().__init__()
        self.network = nn.Sequential(MLP(noise_dim, [128, 128], pixels), nn.Sigmoid())
        self.sigma: Any = PyroParam(torch.full((pixels,), self.END), constraints.positive)
        self.register_buffer("zeros", torch.zeros(noise_dim))
        self.register_buffer("extra_variance", torch.tensor(self.START**2 - self.END**2))

    def anneal(self, progress: float) -> None:
        """Lets the variance beside the learned one fall geometrically, to zero at progress 1."""
        sigma = self.START * (self.END / self.START) ** min(progress, 1.0)
        self.extra_variance.fill_(sigma**2 - self.END**2)

    def law(self, num_mixing: int, chunk_size: int | None = None) -> SemiImplicit:
        """Builds the law of one image."""
        scale = (self.sigma**2 + self.extra_variance).sqrt()
        noise = dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
        psi = Implicit(self.network, noise, event_shape=len(scale))
        return SemiImplicit(
            psi, lambda p: dist.Normal(p, scale).to_event(1), num_mixing, True, chunk_size
        )

    def forward(self, images: Tensor, num_mixing: int, batch_size: int | None = None) -> Tensor:
        """Observes the images, or a random batch of them."""
        law = self.law(num_mixing)
        with pyro.plate("image", len(images), subsample_size=batch_size) as rows:
            return pyro.sample("x", law, obs=images[rows])


def load_images(num_test: int, device: str) -> tuple[Tensor, Tensor]:
    """Loads and splits the digits; noise within a grey level makes the pixels continuous."""
    levels = load_digits(device=device)[0].flatten(1) * 16
    images = (levels + torch.rand_like(levels)) / 17
    images = images[torch.randperm(len(images), device=device)]
    return images[num_test:], images[:num_test]


def fit_digits(images: Tensor, settings: Settings) -> DigitGenerator:
    """Trains the generator by plain SVI."""
    generator = DigitGenerator(images.shape[1]).to(images)
    optim = cosine_adam(5e-3, settings.digit_steps, weight_decay=0.1)
    svi = SVI(generator, no_guide, optim, Trace_ELBO())

    def anneal(step: int, loss: float, inference: SVI) -> None:
        generator.anneal(step / (0.6 * settings.digit_steps))

    batches = (images, settings.digit_mixing, settings.digit_batch)
    train(
        svi,
        batches,
        settings.digit_steps,
        callbacks=[anneal],
        progress=settings.progress,
        description="digits",
    )
    generator.anneal(1.0)
    return generator


def baseline_scores(train_set: Tensor, test_set: Tensor, seed: int) -> dict[str, float]:
    """Mean test log-likelihood of classical densities, tuned on a fifth of the training set."""
    everything, test = train_set.double().cpu().numpy(), test_set.double().cpu().numpy()
    fit, valid = np.split(everything, [4 * len(everything) // 5])

    def gaussians(counts: Sequence[int]) -> list[BaseEstimator]:
        ridges = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
        pairs = itertools.product(counts, ridges)
        return [GaussianMixture(k, reg_covar=r, random_state=seed) for k, r in pairs]

    families = {
        "one Gaussian": gaussians([1]),
        "Gaussian mixture": gaussians([3, 5, 10, 20]),
        "kernel density": [KernelDensity(bandwidth=h) for h in np.geomspace(0.05, 0.3, 10)],
    }
    scores = {}
    for name, candidates in families.items():
        best = max(candidates, key=lambda c: c.fit(fit).score_samples(valid).mean())
        scores[name] = clone(best).fit(everything).score_samples(test).mean().item()
    return scores


@torch.no_grad()
def run_digits(settings: Settings, seed: int, device: str, out: Path) -> dict[str, float]:
    """Fits the digits, scores and draws them."""
    train_set, test_set = load_images(297, device)
    with torch.enable_grad():
        generator = fit_digits(train_set, settings)

    law = generator.law(settings.test_mixing, chunk_size=10_000)
    scores = {"SIG": law.log_prob(test_set).mean().item()}
    scores |= baseline_scores(train_set, test_set, seed)

    samples = law.sample((1000,))
    psi = law.psi(samples)  # the mean image behind each sample
    distances = {"sample": samples, "mean of a sample": psi, "test image": test_set}
    nearest = {name: torch.cdist(x, train_set).min(-1) for name, x in distances.items()}
    metrics = {f"test log-likelihood, {name}": score for name, score in scores.items()}
    metrics["training log-likelihood, SIG"] = law.log_prob(train_set).mean().item()
    for name, found in nearest.items():
        metrics[f"distance to nearest training image, {name}"] = found.values.mean().item()

    sheets = {"data": train_set, r"generated means $\psi$": psi}
    sheets[r"generated $x \sim p(x|\psi)$"] = samples
    draw_sheets(sheets, 12, 12, out / "digits.png")
    pairs = {
        r"generated means $\psi$": psi,
        "the training image nearest to each": train_set[nearest["mean of a sample"].indices],
        "test images": test_set,
        "the training image nearest to each of these": train_set[nearest["test image"].indices],
    }
    draw_sheets(pairs, 1, 16, out / "digits_neighbours.png")
    data = to_inference_data(
        generator, no_guide, test_set, 1, num_samples=20, seed=seed, dims={"x": ["pixel"]}
    )
    data.to_netcdf(str(out / "digits.nc"))
    return metrics


def draw_sheets(sheets: dict[str, Tensor], rows: int, columns: int, path: Path) -> None:
    """Draws sheets of images: beside each other where square, else above each other."""
    layout = (1, len(sheets)) if rows == columns else (len(sheets), 1)
    size = (5 * len(sheets), 5.3) if rows == columns else (10, 1.05 * len(sheets))
    figure, axes = plt.subplots(*layout, figsize=size, layout="constrained")
    for axis, (title, images) in zip(axes, sheets.items(), strict=True):
        tiles = images[: rows * columns].view(rows, columns, 8, 8)
        tiles = nn.functional.pad(tiles, (1, 1, 1, 1), value=0.6).movedim(2, 1)
        sheet = tiles.reshape(rows * 10, columns * 10).cpu().numpy()
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a picture and frees it."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ------------------------------------------------------------------------------------ both parts


def print_table(title: str, rows: dict[str, float]) -> None:
    """Prints named numbers."""
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<52}{value:10.3f}")


def main(args: argparse.Namespace) -> dict:
    """Runs both parts and saves what they found."""
    settings = SMOKE if args.smoke else Settings()
    counts = settings.counts._replace(progress=args.progress)
    settings = settings._replace(counts=counts, progress=args.progress)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    pyro.set_rng_seed(args.seed)
    pyro.clear_param_store()
    metrics: dict[str, dict] = {"digits": run_digits(settings, args.seed, args.device, out)}
    between = time.perf_counter()
    table = ("accidents", settings.counts, args.seed, args.device, out)
    metrics["accidents"] = empirical_bayes.run(*table)
    end = time.perf_counter()
    metrics["seconds"] = {"digits": between - start, "accidents": end - between}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    print_table("Digits (nats per image; distances in grey scale)", metrics["digits"])
    empirical_bayes.print_results("accidents of 9461 drivers", metrics["accidents"])
    print_table("Seconds", metrics["seconds"])
    print("\nWritten: " + ", ".join(str(path) for path in sorted(out.iterdir())))
    return metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small settings, for a test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="out/demo", help="output folder")
    add_quiet(parser)
    main(parser.parse_args())
