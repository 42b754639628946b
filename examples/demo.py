"""Fits semi-implicit generative models to real data: 8 x 8 digits, and accident counts.

Two ways to one objective. The digits have an observed `SemiImplicit` site, which Pyro's own
`Trace_ELBO` trains; the rates of the accident counts are an `Implicit` site that `SIG_ELBO`
marginalises. Pictures, a table (`metrics.json`) and ArviZ files go to the output folder.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import CosineAnnealingLR
from sklearn.base import BaseEstimator, clone
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from pyro_sig.datasets import accident_counts, load_digits
from pyro_sig.diagnostics import draws_to_inference_data, to_inference_data
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, no_guide, train
from pyro_sig.nn import MLP


class Settings(NamedTuple):
    """Sizes of both parts."""

    digit_steps: int = 1500
    digit_batch: int = 500
    digit_mixing: int = 2000
    test_mixing: int = 200_000
    count_steps: int = 5000
    count_mixing: int = 1000
    pmf_mixing: int = 1_000_000
    posterior_atoms: int = 200_000
    em_steps: int = 20_000


SMOKE = Settings(20, 100, 50, 1000, 20, 50, 10_000, 2000, 200)

COLOURS = {"Robbins": "black", "SIG": "tab:red", "gamma": "tab:blue", "NPMLE": "tab:green"}


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
        self.sigma = PyroParam(torch.full((pixels,), self.END), constraints.positive)
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
    train(svi, batches, settings.digit_steps, callbacks=[anneal], description="digits")
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


# ----------------------------------------------------------------------------- the accident counts


class AccidentRates(PyroModule):
    """Makes counts by x ~ Poisson(psi), psi = exp(network(noise))."""

    def __init__(self, start: float, noise_dim: int = 10) -> None:
        super().__init__()
        self.network = MLP(noise_dim, [64, 64], 1)
        nn.init.constant_(self.network.head.bias, np.log(start))
        self.register_buffer("zeros", torch.zeros(noise_dim))

    def mixing(self) -> Implicit:
        """Builds the law of one driver's rate."""
        noise = dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
        network = self.network  # read here, in the program, so that it is trained
        return Implicit(lambda e: network(e).squeeze(-1).exp(), noise, support=constraints.positive)

    def forward(self, counts: Tensor, drivers: Tensor | float = 1.0) -> Tensor:
        """Observes each count as often as there are drivers with it."""
        with pyro.plate("count", len(counts)), pyro.poutine.scale(scale=drivers):
            psi = pyro.sample("psi", self.mixing())
            return pyro.sample("x", dist.Poisson(psi), obs=counts)


def fit_rates(counts: Tensor, drivers: Tensor, settings: Settings) -> AccidentRates:
    """Trains the mixing law by SIG_ELBO; eight weighted rows are the whole likelihood."""
    mean = (counts @ drivers / drivers.sum()).item()
    rates = AccidentRates(mean).to(counts)
    elbo = SIG_ELBO(settings.count_mixing, max_plate_nesting=1)
    svi = SVI(rates, no_guide, cosine_adam(3e-3, settings.count_steps), elbo)
    train(svi, (counts, drivers), settings.count_steps, description="accidents")
    return rates


def fit_gamma(counts: Tensor, drivers: Tensor) -> dist.GammaPoisson:
    """Finds the negative binomial of maximum likelihood."""
    log_parameters = torch.zeros(2).to(counts).requires_grad_()
    optim = torch.optim.LBFGS([log_parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        log_prob = dist.GammaPoisson(*log_parameters.exp()).log_prob(counts)
        loss = -(log_prob @ drivers) / drivers.sum()
        loss.backward()
        return loss

    optim.step(loss)
    return dist.GammaPoisson(*log_parameters.detach().exp())


def fit_npmle(counts: Tensor, drivers: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Finds the mixing law of maximum likelihood on a grid of rates, by EM in float64."""
    counts, drivers = counts.double(), drivers.double()
    grid = torch.logspace(-2, 1, 200, dtype=counts.dtype, device=counts.device)
    likelihood = dist.Poisson(grid).log_prob(counts.unsqueeze(-1)).exp()
    weights = torch.full_like(grid, 1 / len(grid))
    for _ in range(num_steps):
        weights = weights * ((drivers / (likelihood @ weights)) @ likelihood) / drivers.sum()
    return grid, weights


@torch.no_grad()
def run_accidents(settings: Settings, seed: int, device: str, out: Path) -> dict[str, dict]:
    """Fits the mixing law of the accident rates, and compares it with its rivals."""
    counts, drivers = accident_counts(device=device).unique(return_counts=True)
    drivers = drivers.to(counts)
    with torch.enable_grad():
        rates = fit_rates(counts, drivers, settings)
        gamma = fit_gamma(counts, drivers)
    grid, weights = fit_npmle(counts, drivers, settings.em_steps)
    atoms = dist.Poisson(grid).log_prob(counts.double().unsqueeze(-1)).exp()

    law = SemiImplicit(rates.mixing(), dist.Poisson, settings.pmf_mixing, chunk_size=100_000)
    log_pmf = {
        "SIG": law.log_prob(counts).double(),
        "gamma": gamma.log_prob(counts).double(),
        "NPMLE": (atoms @ weights).log(),
    }
    elbo = SIG_ELBO(settings.posterior_atoms, max_plate_nesting=1)
    posterior = elbo.psi_posterior(rates, no_guide, counts)["psi"]
    means = {
        "Robbins": counts[1:] * drivers[1:] / drivers[:-1],
        "SIG": posterior.mean,
        "gamma": (gamma.concentration + counts) / (gamma.rate + 1),
        "NPMLE": (atoms * grid) @ weights / (atoms @ weights),
    }

    psi = posterior.sample((1000,))
    data = draws_to_inference_data(
        {"psi": psi},
        posterior_predictive={"next_year": dist.Poisson(psi).sample()},
        observed_data={"x": counts, "drivers": drivers},
        coords={"count": counts.long().tolist()},
        dims={name: ["count"] for name in ("psi", "next_year", "x", "drivers")},
        attrs={"seed": seed},
    )
    data.to_netcdf(str(out / "accidents.nc"))

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    psi = rates.mixing().sample((settings.pmf_mixing,))
    draw_mixing(axes[0], psi, dist.Gamma(gamma.concentration, gamma.rate), grid, weights)
    draw_fit(axes[1], drivers, log_pmf)
    for name, values in means.items():
        style = "x" if name == "Robbins" else "o-"
        axes[2].plot(values[:7].cpu().numpy(), style, color=COLOURS[name], label=name)
    axes[2].set(xlabel="accidents $x$", ylabel=r"$E[\psi\,|\,x]$", title="expected rate given $x$")
    for axis in axes:
        axis.legend()
    save(figure, out / "accidents.png")
    return {
        "log-likelihood": {k: (x @ drivers.double()).item() for k, x in log_pmf.items()},
        "posterior means": {k: dict(enumerate(x[:7].tolist())) for k, x in means.items()},
    }


def draw_mixing(axis: Axes, psi: Tensor, gamma: dist.Gamma, grid: Tensor, weights: Tensor) -> None:
    """Draws the mixing laws as densities of log psi."""
    edges = np.linspace(np.log(0.01), np.log(10), 120)
    log_psi = psi.log().cpu().numpy()
    density = np.histogram(log_psi, edges)[0] / len(log_psi) / np.diff(edges)
    axis.stairs(density, np.exp(edges), fill=True, color=COLOURS["SIG"], alpha=0.45, label="SIG")
    curves = {
        "gamma": (gamma.log_prob(grid) + grid.log()).exp(),
        "NPMLE": weights / (grid[1] / grid[0]).log(),
    }
    for name, curve in curves.items():
        axis.plot(grid.cpu().numpy(), curve.cpu().numpy(), color=COLOURS[name], label=name)
    axis.set(xscale="log", xlabel=r"accident rate $\psi$", ylabel=r"density of $\log\,\psi$")
    axis.set_title("recovered mixing law")


def draw_fit(axis: Axes, drivers: Tensor, log_pmf: dict[str, Tensor]) -> None:
    """Draws observed and expected numbers of drivers."""
    x = np.arange(len(drivers))
    axis.bar(x, drivers.cpu().numpy(), color="lightgrey", label="observed")
    for shift, (name, values) in zip((-0.2, 0.0, 0.2), log_pmf.items(), strict=True):
        axis.plot(
            x + shift,
            (values.exp() * drivers.sum()).cpu().numpy(),
            "o",
            color=COLOURS[name],
            label=name,
        )
    axis.set(yscale="log", xlabel="accidents $x$", ylabel="drivers", title="observed and expected")


# ------------------------------------------------------------------------------------ both parts


def print_table(title: str, rows: dict[str, float]) -> None:
    """Prints named numbers."""
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<52}{value:10.3f}")


def main(args: argparse.Namespace) -> dict:
    """Runs both parts and saves what they found."""
    settings = SMOKE if args.smoke else Settings()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict] = {}
    seconds = {}
    for name, run in (("digits", run_digits), ("accidents", run_accidents)):
        pyro.set_rng_seed(args.seed)
        pyro.clear_param_store()
        start = time.perf_counter()
        metrics[name] = run(settings, args.seed, args.device, out)
        seconds[name] = time.perf_counter() - start
    metrics["seconds"] = seconds
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    print_table("Digits (nats per image; distances in grey scale)", metrics["digits"])
    print_table("Accidents: log-likelihood of 9461 drivers", metrics["accidents"]["log-likelihood"])
    means = metrics["accidents"]["posterior means"]
    print("\nAccidents: E[psi | x]\n  " + " " * 10 + "".join(f"{f'x = {x}':>9}" for x in range(7)))
    for name, values in means.items():
        print(f"  {name:<10}" + "".join(f"{value:9.3f}" for value in values.values()))
    print_table("Seconds", seconds)
    print("\nWritten: " + ", ".join(str(path) for path in sorted(out.iterdir())))
    return metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small settings, for a test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="out/demo", help="output folder")
    main(parser.parse_args())
