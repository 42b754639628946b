"""Semi-implicit generators of the toys in figures 1 and 3 a of "Semi-Implicit Generative Model".

Counts are x ~ Poisson(psi), points of the plane are x ~ Normal(psi, sigma^2 I). The law of psi is
implicit: a network with two hidden layers pushes noise forward. Pyro's own SVI trains it on
fresh data, since every toy can be sampled. The output folder gets `metrics.json`, and `figure1.png`
and `figure3a.png` with data, samples and psi side by side.

    python examples/toys.py --out out/toys

Points need a trick: sigma starts wide and shrinks to the noise of the toy. With the small one from
the start, most data have no psi near enough to draw to them. It shrinks linearly: while sigma is
wide, psi still move from mode to mode, and what share each mode has by then, it keeps.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _quiet import add_quiet
from matplotlib.axes import Axes
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_sig import datasets
from pyro_sig.datasets import Toy
from pyro_sig.diagnostics import energy_test, mode_coverage
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import no_guide, train
from pyro_sig.nn import MLP

NUM_MIXING = 512  # psi in each step, shared by the batch
BATCH_SIZE = 512
BETAS = (0.95, 0.999)
START_SIGMA = 1.0  # the points have coordinates of this order
ANNEALED = 0.9  # share of the steps in which sigma shrinks
WARM_UP = 0.1  # share of the steps in which the learning rate grows

MAX_COUNT = 300  # the toys' counts exceed it less than once in a billion draws
NUM_TEST = 2000  # data, and samples, of the two-sample test
NUM_DRAWS = 50_000  # samples behind frequencies and shares
NUM_PLOTTED = 5000  # points in a scatter plot
DATA, SAMPLES, PSI = "0.4", "tab:blue", "tab:orange"


@dataclass(frozen=True)
class Task:
    """A toy, how it is trained, and where the paper shows it."""

    title: str
    make_toy: Callable[..., Toy]
    noise_dim: int  # 10 in the paper; points of the plane get 2
    num_steps: int
    rate: float
    figure: str = "figure1"
    num_psi: int = 1_000_000  # for the masses of counts


TASKS = {
    task.make_toy.__name__: task
    for task in [
        Task("negative binomial", datasets.negative_binomial, 10, 3000, 0.01),
        Task("Poisson + negative binomial", datasets.poisson_negative_binomial, 10, 4000, 0.01),
        Task("ring + noise", datasets.noisy_ring, 2, 4000, 0.02),
        Task("8 Gaussians on a ring", datasets.ring_of_gaussians, 2, 6000, 0.02),
        Task("uneven grid", datasets.uneven_grid_of_gaussians, 2, 10_000, 0.03, "figure3a"),
    ]
}


# ----------------------------------------------------------------------------------------- training


class Generator(PyroModule):
    """The program of independent data from a semi-implicit law."""

    def __init__(self, toy: Toy, noise_dim: int) -> None:
        super().__init__()
        mean = toy.distribution.mean
        self.net = MLP(noise_dim, [100, 100], mean.numel(), device=mean.device)
        zeros = mean.new_zeros(noise_dim)
        if toy.mixing is None:  # bounded noise leaves fewer psi between the modes of points
            self.noise = dist.Uniform(zeros - 3**0.5, zeros + 3**0.5).to_event(1)
        else:
            self.noise = dist.Normal(zeros, 1.0).to_event(1)

    def law(self, sigma: float | None) -> SemiImplicit:
        """Return the law of a point with noise sigma, or of a count if that is None."""
        if sigma is None:
            rate = Implicit(self.rate, self.noise, support=constraints.positive)
            return SemiImplicit(rate, dist.Poisson, NUM_MIXING)
        centre = Implicit(self.net, self.noise, event_shape=2)
        return SemiImplicit(centre, lambda psi: dist.Normal(psi, sigma).to_event(1), NUM_MIXING)

    def rate(self, noise: Tensor) -> Tensor:
        """Map noise to the positive mean of a count."""
        return nn.functional.softplus(self.net(noise).squeeze(-1))

    def forward(self, data: Tensor, sigma: float | None) -> Tensor:
        """Observe the data."""
        law = self.law(sigma)
        with pyro.plate("data", len(data)):
            return pyro.sample("x", law, obs=data)


def noise_of(toy: Toy) -> float | None:
    """Return the standard deviation of the Gaussian noise in a toy; None for counts."""
    if toy.mixing is not None:
        return None
    return float(toy.distribution.std) if toy.mode_std is None else toy.mode_std


def sigma_at(progress: float, final: float | None) -> float | None:
    """Shrink sigma linearly, then hold it; counts have none."""
    if final is None:
        return None
    return START_SIGMA + (final - START_SIGMA) * min(1.0, progress / ANNEALED)


def relative_rate(progress: float) -> float:
    """Raise the learning rate linearly while it falls to zero along a cosine."""
    return min(1.0, progress / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2


def fit(task: Task, toy: Toy, progress: bool | None) -> tuple[SemiImplicit, float]:
    """Train a generator; return its law of the data and the seconds that it took."""
    pyro.clear_param_store()
    generator = Generator(toy, task.noise_dim)
    schedule = {
        "optimizer": torch.optim.Adam,
        "optim_args": {"lr": task.rate, "betas": BETAS},
        "lr_lambda": lambda step: relative_rate((step + 1) / task.num_steps),
    }
    svi = SVI(generator, no_guide, pyro.optim.LambdaLR(schedule), Trace_ELBO())
    sigma = noise_of(toy)

    def batch(step: int) -> tuple[Tensor, float | None]:
        return toy.sample(BATCH_SIZE), sigma_at(step / task.num_steps, sigma)

    history = train(svi, batch, task.num_steps, progress=progress, description=task.title)
    with torch.no_grad():
        return generator.law(sigma), history.seconds


# --------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(task: Task, toy: Toy, law: SemiImplicit) -> dict[str, float]:
    """Compare a trained law with the toy's."""
    return evaluate_points(toy, law) if toy.mixing is None else evaluate_counts(task, toy, law)


def evaluate_counts(task: Task, toy: Toy, law: SemiImplicit) -> dict[str, float]:
    """Compare the masses of counts, and the law of psi with the one that made the data."""
    assert toy.mixing is not None
    mixture = law.to_mixture(task.num_psi)
    k = torch.arange(MAX_COUNT + 1.0, device=mixture.psi.device)
    masses, truth = mixture.log_prob(k).exp().double(), toy.pmf(k).double()
    beyond = (truth.sum() - masses.sum()).abs()
    x, step = cdf_grid(mixture.psi.device)
    distance = (empirical_cdf(mixture.psi, x) - toy.mixing.cdf(x)).abs().sum() * step
    return {
        "total_variation": float((masses - truth).abs().sum() + beyond) / 2,
        "wasserstein_mixing": float(distance),
        "mean_psi": float(mixture.psi.mean()),
        "sd_psi": float(mixture.psi.std()),
        "true_mean_psi": float(toy.mixing.mean),
        "true_sd_psi": float(toy.mixing.variance) ** 0.5,
    }


def evaluate_points(toy: Toy, law: SemiImplicit) -> dict[str, float]:
    """Test whether samples and data have one law, and look for the modes."""
    test = energy_test(law.sample((NUM_TEST,)), toy.sample(NUM_TEST))
    metrics = {"energy": test.statistic, "p_value": test.p_value}
    if toy.modes is not None:
        assert toy.mode_std is not None and toy.mode_weights is not None
        samples = law.sample((NUM_DRAWS,))
        expected = NUM_DRAWS * toy.mode_weights
        found = mode_coverage(
            samples,
            toy.modes,
            toy.mode_std,
            min_count=float(expected.min()) / 2,
            weights=toy.mode_weights,
        )
        shares = found.counts / expected
        metrics |= {
            "modes": found.captured,
            "high_quality": found.high_quality,
            "kl": found.kl,
            "least_relative_share": float(shares.min()),
            "largest_relative_share": float(shares.max()),
        }
    return metrics


def cdf_grid(device: torch.device) -> tuple[Tensor, float]:
    """Return the middles of small steps over the values of psi, and the step."""
    step = 0.01
    return torch.arange(step / 2, MAX_COUNT, step, device=device), step


def empirical_cdf(psi: Tensor, x: Tensor) -> Tensor:
    """Return the share of the psi that do not exceed each x."""
    return torch.searchsorted(psi.sort().values, x, right=True) / len(psi)


# ----------------------------------------------------------------------------------------- pictures


def draw_frequencies(ax: Axes, counts: Tensor, truth: Tensor, colour: str) -> None:
    """Draw how often each count came, over its true mass."""
    kept = counts[counts < len(truth)].long().cpu()
    shares = torch.bincount(kept, minlength=len(truth)) / len(counts)
    ax.bar(range(len(truth)), shares.numpy(), width=1.0, color=colour, label="frequency")
    ax.plot(truth, color="black", lw=1, label="true mass")
    ax.set(xlim=(-0.5, len(truth) - 0.5), ylim=(0, 1.4 * float(truth.max())), xlabel="count")
    ax.legend(frameon=False)


def draw_mixing(ax: Axes, mixing: dist.TorchDistribution, psi: Tensor, last: int) -> None:
    """Draw the distribution functions of the recovered and of the true psi."""
    x = torch.linspace(0, last, 1000, device=psi.device)
    ax.plot(x.cpu(), empirical_cdf(psi, x).cpu(), color=PSI, lw=2, label="recovered")
    ax.plot(x.cpu(), mixing.cdf(x).cpu(), color="black", lw=1, label="true")
    ax.set(xlim=(0, last), ylim=(0, 1.02), xlabel="psi", ylabel="distribution function")
    ax.legend(frameon=False, loc="lower right")


def draw_counts(axes: Sequence[Axes], toy: Toy, law: SemiImplicit) -> None:
    """Draw a row: frequencies of data and of samples, and the laws of psi."""
    assert toy.mixing is not None
    data = toy.sample(NUM_DRAWS)
    last = int(data.max())
    truth = toy.pmf(range(last + 1)).cpu()
    draw_frequencies(axes[0], data, truth, DATA)
    draw_frequencies(axes[1], law.sample((NUM_DRAWS,)), truth, SAMPLES)
    draw_mixing(axes[2], toy.mixing, law.mixing.sample((NUM_DRAWS,)), last)


def draw_points(axes: Sequence[Axes], toy: Toy, law: SemiImplicit) -> None:
    """Draw a row: data, samples and the psi behind these, on the same axes."""
    data, samples = toy.sample(NUM_PLOTTED), law.sample((NUM_PLOTTED,))
    limit = 1.15 * float(data.abs().max())
    columns = [(data, DATA), (samples, SAMPLES), (law.psi(samples), PSI)]
    for ax, (points, colour) in zip(axes, columns, strict=True):
        x, y = points.cpu().T
        ax.scatter(x, y, s=3, alpha=0.5, linewidths=0, color=colour)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")


@torch.no_grad()
def draw(fits: Sequence[tuple[Task, Toy, SemiImplicit]], path: Path) -> None:
    """Write a figure with a row for each fit and a column for each kind of draws."""
    columns = ["data", "SIG samples", "psi"]
    size = (3.4 * len(columns), 3.2 * len(fits) + 0.4)
    figure, axes = plt.subplots(
        len(fits), len(columns), figsize=size, squeeze=False, layout="constrained"
    )
    for row, (task, toy, law) in zip(axes, fits, strict=True):
        (draw_points if toy.mixing is None else draw_counts)(row, toy, law)
        row[0].set_ylabel(task.title, fontweight="bold")
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(column)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# --------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> None:
    """Train on the chosen toys, print what came out, and write the pictures."""
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, float]] = {}
    figures: dict[str, list[tuple[Task, Toy, SemiImplicit]]] = {}
    for name in args.toys:
        task = TASKS[name]
        if args.smoke:
            task = replace(task, num_steps=100, num_psi=10_000)
        pyro.set_rng_seed(args.seed)
        toy = task.make_toy(device=args.device)
        law, seconds = fit(task, toy, args.progress)
        results[name] = {"seconds": seconds, **evaluate(task, toy, law)}
        print("\n".join(f"  {key:24} {value:.4g}" for key, value in results[name].items()))
        figures.setdefault(task.figure, []).append((task, toy, law))
    for figure, fits in figures.items():
        draw(fits, args.out / f"{figure}.png")
    metrics = {"seed": args.seed, "smoke": args.smoke, "toys": results}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print(f"\nwrote metrics.json and {', '.join(f'{f}.png' for f in figures)} to {args.out}")


def names_of_toys(text: str) -> list[str]:
    """Split a list of toys at its commas."""
    names = text.split(",")
    if unknown := set(names) - set(TASKS):
        raise argparse.ArgumentTypeError(f"unknown {sorted(unknown)}; toys are {', '.join(TASKS)}")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--out", type=Path, default=Path("out/toys"))
    parser.add_argument(
        "--toys", type=names_of_toys, default=list(TASKS), help=f"of {','.join(TASKS)}"
    )
    add_quiet(parser)
    main(parser.parse_args())
