"""One program under six trainers: SVI, SIG, GAN, WGAN-GP, VAE/GAN and GAN-SI.

The program pushes noise z through a network to psi, and adds Gaussian noise of known scale to make
points of the plane. Its data are eight Gaussians on a ring. Only the trainer changes, and with it
whether z has a site of its own (SVI and VAE/GAN infer it, and need a guide) or stays inside of an
Implicit site (SIG and GAN-SI sum psi out). The output folder gets `metrics.json` and
`swapping.png`, with the samples of each.

    python examples/swapping.py --out out/swapping

All take the same steps on fresh data, so that no method may memorise any, with the same network and
learning rate; the adversaries have the same critic. The samples of GAN, WGAN-GP, VAE/GAN and GAN-SI
are those of the running average of the parameters, without which a game ends wherever it was.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _modes import centres, mode_std
from _quiet import add_quiet
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_sig import datasets
from pyro_sig.adversarial import GAN, objectives, penalties
from pyro_sig.datasets import Toy
from pyro_sig.diagnostics import energy_distance, mode_coverage
from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO, no_guide, train
from pyro_sig.nn import MLP, Encoder

NUM_STEPS = 4000
BATCH_SIZE = 256
NUM_MIXING = 512
NOISE_DIM = 2
STD = 0.2  # of each Gaussian, and of the noise of the program
RATE = 2e-3
CRITIC_RATE = 4e-3
NUM_DRAWS = 10_000
NUM_PLOTTED = 3000


class Explicit(PyroModule):
    """The program with a site for the noise, which has a density."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.net = MLP(NOISE_DIM, [64, 64], 2, device=like.device)
        self.noise = dist.Normal(like.new_zeros(NOISE_DIM), 1.0).to_event(1)

    def psi(self) -> Tensor:
        """Draw what the network makes of the noise."""
        return self.net(pyro.sample("z", self.noise))

    def forward(self, x: Tensor) -> Tensor:
        """Observe points."""
        with pyro.plate("data", len(x)):
            return pyro.sample("x", dist.Normal(self.psi(), STD).to_event(1), obs=x)


class GuideFree(Explicit):
    """The same program with noise and network in one site, which has no density."""

    def psi(self) -> Tensor:
        """Draw psi."""
        return pyro.sample("psi", Implicit(self.net, self.noise, event_shape=2))


class Guide(PyroModule):
    """An amortised normal law of z."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.encoder = Encoder(2, [64, 64], NOISE_DIM).to(like.device)

    def forward(self, x: Tensor) -> None:
        """Draw z."""
        loc, scale = self.encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def gan(model: nn.Module, like: Tensor, *losses: Any, **options: Any) -> GAN:
    """Put a program against a critic."""
    critic = MLP(2, [64, 64], 1, device=like.device)
    betas = (0.5, 0.99)
    optim = pyro.optim.Adam({"lr": RATE, "betas": betas})
    critic_optim = torch.optim.Adam(critic.parameters(), lr=CRITIC_RATE, betas=betas)
    losses = losses or (objectives.NonSaturating(), penalties.R1(0.1))
    return GAN(model, critic, optim, critic_optim, *losses, ema=0.995, **options)


def svi(like: Tensor) -> SVI:
    """Return SVI with a guide of z."""
    return SVI(Explicit(like), Guide(like), pyro.optim.Adam({"lr": RATE}), Trace_ELBO())


def sig(like: Tensor) -> SVI:
    """Return SVI with psi summed out."""
    optim = pyro.optim.Adam({"lr": RATE})
    return SVI(GuideFree(like), no_guide, optim, SIG_ELBO(NUM_MIXING))


def plain_gan(like: Tensor) -> GAN:
    """Return a GAN with R1."""
    return gan(Explicit(like), like)


def wgan_gp(like: Tensor) -> GAN:
    """Return a GAN of the Wasserstein distance."""
    losses = objectives.Wasserstein(), penalties.GradientPenalty(0.1)
    return gan(Explicit(like), like, *losses, critic_steps=5)


def vae_gan(like: Tensor) -> GAN:
    """Return a GAN beside the bound of SVI."""
    options: dict[str, Any] = {"elbo": Trace_ELBO(), "guide": Guide(like), "elbo_weight": "balance"}
    return gan(Explicit(like), like, **options)


def gan_si(like: Tensor) -> GAN:
    """Return a GAN beside the bound of SIG, both on the same psi."""
    return gan(GuideFree(like), like, elbo=SIG_ELBO(NUM_MIXING), elbo_weight="balance")


METHODS: dict[str, Callable[[Tensor], SVI | GAN]] = {
    "SVI": svi,
    "SIG": sig,
    "GAN": plain_gan,
    "WGAN-GP": wgan_gp,
    "VAE/GAN": vae_gan,
    "GAN-SI": gan_si,
}


def fit(name: str, toy: Toy, num_steps: int, progress: bool | None) -> tuple[Tensor, float]:
    """Train by a method; return draws of the program and the seconds that it took."""
    pyro.clear_param_store()
    like = toy.sample(1)
    inference = METHODS[name](like)
    history = train(
        inference,
        lambda step: toy.sample(BATCH_SIZE),
        num_steps,
        progress=progress,
        description=f"{name:8}",
    )
    averaged = inference.averaged() if isinstance(inference, GAN) else nullcontext()
    with torch.no_grad(), averaged:
        samples = pyro.poutine.uncondition(inference.model)(like.new_zeros(NUM_DRAWS, 2))
    return samples, history.seconds


def evaluate(samples: Tensor, toy: Toy) -> dict[str, float]:
    """Compare draws with the law of the data."""
    found = mode_coverage(samples, centres(toy), mode_std(toy))
    shares = found.counts / NUM_DRAWS * len(centres(toy))
    return {
        "modes": found.captured,
        "high_quality": found.high_quality,
        "least_relative_share": float(shares.min()),
        "kl": found.kl,
        "energy": float(energy_distance(samples, toy.sample(NUM_DRAWS), unbiased=True)),
    }


def draw(panels: Sequence[tuple[str, Tensor]], toy: Toy, path: Path) -> None:
    """Write a figure with a panel for the data and one for each method."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.4 * len(panels), 2.7), layout="constrained"
    )
    for ax, (title, points) in zip(axes, panels, strict=True):
        colour = "0.4" if title == "data" else "tab:blue"
        ax.scatter(*points[:NUM_PLOTTED].cpu().T, s=3, alpha=0.4, linewidths=0, color=colour)
        ax.scatter(*centres(toy).cpu().T, s=30, marker="+", color="black", linewidths=0.8)
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[], title=title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(args: argparse.Namespace) -> None:
    """Train by every method, print what came out, and write the picture."""
    args.out.mkdir(parents=True, exist_ok=True)
    toy = datasets.ring_of_gaussians(std=STD, device=args.device)
    results, panels = {}, [("data", toy.sample(NUM_PLOTTED))]
    for name in METHODS:
        pyro.set_rng_seed(args.seed)
        num_steps = 50 if args.smoke else NUM_STEPS
        samples, seconds = fit(name, toy, num_steps, args.progress)
        results[name] = {**evaluate(samples, toy), "seconds": seconds}
        print("  ".join(f"{key} {value:.3g}" for key, value in results[name].items()))
        panels.append((name, samples))
    draw(panels, toy, args.out / "swapping.png")
    metrics = {"seed": args.seed, "smoke": args.smoke, "methods": results}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print(f"\nwrote metrics.json and swapping.png to {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--out", type=Path, default=Path("out/swapping"))
    add_quiet(parser)
    main(parser.parse_args())
