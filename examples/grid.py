"""The 5 x 5 grid of Gaussians: Table 1 of the SIG paper, and samples beside data.

    python examples/grid.py --methods gan,unrolled,sig,gan-si,wgan-gp,rpgan-r1r2 --out out/grid

Protocol (VEEGAN's, which the paper follows; the spacing of 2 is assumed): 25 equal Gaussians of
std 0.05, a generator with two hidden layers of 100 ReLU units, 50,000 samples. A sample has high
quality (HQ) within 3 std of a centre, a mode is captured with more than 1000 of them. KL is from
the samples to the truth over 26 cells. A perfect sampler scores 25, 0.9889 and 0.

All methods train the same generator, the adversaries against the same critic (one layer of 100).
GAN-SI shows its critic the psi; its samples, as those of SIG, are x given psi.

Every (method, seed) is kept in the output folder: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _kept import kept
from _modes import score
from _schedules import conditional_std, rate_factor
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_sig import datasets
from pyro_sig.adversarial import GAN, objectives, penalties
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import no_guide, train
from pyro_sig.nn import MLP

NUM_SAMPLES = 50_000
FIGURES = ("modes", "hq", "kl", "seconds")
# Mean and SD over five trials, as printed in Table 1.
PAPER = {
    "gan": {"modes": (4.0, 3.08), "hq": (0.36, 0.16), "kl": (2.87, 0.78)},
    "unrolled": {"modes": (6.2, 8.6), "hq": (0.42, 0.13), "kl": (1.97, 0.60)},
    "sig": {"modes": (25, 0), "hq": (0.91, 0.04), "kl": (0.14, 0.07)},
}


# ------------------------------------------------------------------------- what the methods share


def make_generator(args: argparse.Namespace) -> tuple[MLP, dist.Distribution]:
    """The network that all methods train, and its noise: uniform, of mean 0 and variance 1."""
    bound = torch.full((2,), math.sqrt(3.0), device=args.device)
    return MLP(2, [100, 100], 2, device=args.device), dist.Uniform(-bound, bound).to_event(1)


# -------------------------------------------------------------------------------------------- SIG


class SemiImplicitProgram:
    """The program of SIG and of GAN-SI, ``model(x, std)``."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.net, self.noise = make_generator(args)
        self.num_mixing = args.num_mixing

    def generator(self, std: float) -> SemiImplicit:
        """The law of x, with the std of its conditional."""
        return SemiImplicit(
            Implicit(self.net, self.noise, event_shape=2),
            lambda psi: dist.Normal(psi, std).to_event(1),
            num_mixing=self.num_mixing,
        )

    def __call__(self, x: Tensor, std: float) -> None:
        """Runs the program."""
        pyro.module("generator", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.generator(std), obs=x)

    def batches(
        self, toy: datasets.Toy, args: argparse.Namespace
    ) -> Callable[[int], tuple[Tensor, float]]:
        """Fresh data and the std of a step."""
        steps = args.num_steps
        return lambda step: (
            toy.sample(args.batch_size),
            conditional_std(step / steps, toy.mode_std),
        )


def fit_sig(toy: datasets.Toy, args: argparse.Namespace) -> Callable[[tuple[int]], Tensor]:
    """Trains SIG by plain SVI; returns a sampler of x."""
    program, steps = SemiImplicitProgram(args), args.num_steps
    optim = pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            # The loss is a sum over the batch; Adam does not see its scale.
            "optim_args": {"lr": args.learning_rate, "betas": (0.95, 0.999)},
            "lr_lambda": lambda step: rate_factor(step / steps),
        }
    )
    svi = SVI(program, no_guide, optim, Trace_ELBO(max_plate_nesting=1))
    train(svi, program.batches(toy, args), steps, description="SIG")
    with torch.no_grad():
        return program.generator(toy.mode_std).sample


# ----------------------------------------------------------------------------------- adversaries


def fit_gan_si(toy: datasets.Toy, args: argparse.Namespace) -> Callable[[tuple[int]], Tensor]:
    """Trains SIG against a critic of its psi; returns a sampler of x."""
    program, steps = SemiImplicitProgram(args), args.num_steps
    critic = MLP(2, [100], 1, device=args.device)
    optim = torch.optim.Adam(program.net.parameters(), lr=args.learning_rate, betas=(0.95, 0.999))
    critic_optim = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
    gan = GAN(
        program,
        critic,
        optim,
        critic_optim,
        elbo=Trace_ELBO(max_plate_nesting=1),
        elbo_weight=args.elbo_weight,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: rate_factor(step / steps))
    train(
        gan,
        program.batches(toy, args),
        steps,
        callbacks=[schedule],
        description="GAN-SI",
    )
    with torch.no_grad():
        return program.generator(toy.mode_std).sample


def adversary(name: str, **settings: Any) -> Callable[..., Callable[[tuple[int]], Tensor]]:
    """Makes the fit of a network on noise by a critic alone.

    :param name: of the method, for the progress bar.
    :param settings: what :class:`GAN` gets beside programs and optimisers; ``betas`` are those of
        both Adams.
    """
    betas = settings.pop("betas", (0.5, 0.999))

    def fit(toy: datasets.Toy, args: argparse.Namespace) -> Callable[[tuple[int]], Tensor]:
        net, noise = make_generator(args)
        critic = MLP(2, [100], 1, device=args.device)

        def model(x: Tensor) -> None:
            pyro.module("generator", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", Implicit(net, noise, event_shape=2), obs=x)

        optim, critic_optim = (
            torch.optim.Adam(module.parameters(), lr=args.learning_rate, betas=betas)
            for module in (net, critic)
        )
        gan = GAN(model, critic, optim, critic_optim, **settings)
        train(gan, lambda step: toy.sample(args.batch_size), args.num_steps, description=name)
        with torch.no_grad():
            return Implicit(net, noise, event_shape=2).sample

    return fit


# What a run has unless a flag says otherwise. The learning rates of adversaries are the best of
# 3e-4, 1e-3 and 3e-3 for each of them.
ADVERSARY: dict[str, Any] = {"num_steps": 12_000, "batch_size": 512, "learning_rate": 3e-3}
SIG: dict[str, Any] = {"num_steps": 24_000, "learning_rate": 0.04}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gan": ADVERSARY,
    "unrolled": ADVERSARY,
    "sig": SIG | {"batch_size": 256, "num_mixing": 512},
    "gan-si": SIG | {"batch_size": 512, "num_mixing": 256, "elbo_weight": 1.0},
    "wgan-gp": ADVERSARY,
    "rpgan-r1r2": ADVERSARY,
}

FIT = {
    "gan": adversary("gan"),
    "unrolled": adversary("unrolled", unroll=5, objective=objectives.Minimax()),
    "sig": fit_sig,
    "gan-si": fit_gan_si,
    "wgan-gp": adversary(
        "wgan-gp",
        objective=objectives.Wasserstein(),
        penalties=penalties.GradientPenalty(0.1),
        critic_steps=5,
        betas=(0.5, 0.9),
    ),
    "rpgan-r1r2": adversary(
        "rpgan-r1r2",
        objective=objectives.Relativistic(),
        penalties=[penalties.R1(1e-3), penalties.R2(1e-3)],
        betas=(0.0, 0.9),
    ),
}


# ------------------------------------------------------------------------------------ one seed each


def run(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one seed, or reads what an earlier run left."""
    settings = {**DEFAULTS[method], **({"num_steps": 200} if args.smoke else {})}
    for name in settings:
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    settled = argparse.Namespace(**{**vars(args), **settings})

    def fit() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        pyro.enable_validation(False)  # it takes a tenth of a step
        toy = datasets.grid_of_gaussians(device=args.device)
        start = time.perf_counter()
        sample = FIT[method](toy, settled)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            x = sample((NUM_SAMPLES,))
        return {**score(x, toy), "seconds": seconds, "samples": x[:5000].cpu().clone()}

    return kept(args.out / "cache" / f"{method}-{seed}.pt", settings, fit)


# ------------------------------------------------------------------------------ table and picture


def print_table(metrics: dict[str, dict[str, list[float]]]) -> None:
    """Prints mean and SD over seeds (SE in brackets) beside the paper's figures."""
    print(f"\n{'':11}{'modes':>22}{'HQ':>26}{'KL':>28}{'seconds':>10}")
    for method, figures in metrics.items():
        cells = []
        for name, digits in (("modes", 1), ("hq", 4), ("kl", 4)):
            values = figures[name]
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            se = sd / math.sqrt(len(values))
            mean = statistics.fmean(values)
            cells.append(f"{mean:.{digits}f} +- {sd:.{digits}f} ({se:.{digits}f})")
        seconds = statistics.fmean(figures["seconds"])
        print(f"{method:11}{cells[0]:>22}{cells[1]:>26}{cells[2]:>28}{seconds:>10.0f}")
        if method in PAPER:
            cells = [f"{m} +- {sd}" for m, sd in PAPER[method].values()]
            print(f"{'  paper':11}{cells[0]:>22}{cells[1]:>26}{cells[2]:>28}")
    print(f"{'perfect':11}{'25':>22}{'0.9889':>26}{'0':>28}   (SD over seeds, SE in brackets)\n")


def draw(samples: dict[str, Tensor], path: Path) -> None:
    """Draws data beside the first seed's samples of each method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"data": datasets.grid_of_gaussians().sample(5000), **samples}
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.8 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, x) in zip(axes.flat, panels.items(), strict=False):
        axis.scatter(*x.T.numpy(), s=1.5, alpha=0.4, linewidths=0, color="C0")
        axis.set(title=title, aspect="equal", xlim=(-5, 5), ylim=(-5, 5))
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Runs every method and seed; writes metrics.json and grid.png."""
    args.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict[str, list[float]]] = {}
    samples = {}
    for method in args.methods.split(","):
        if method not in FIT:
            raise ValueError(f"`methods` must be among {', '.join(FIT)}, was {method!r}")
        metrics[method] = {name: [] for name in FIGURES}
        for seed in range(args.seed, args.seed + args.seeds):
            result = run(method, seed, args)
            print(
                f"{method}, seed {seed}: {result['modes']} modes, HQ {result['hq']:.4f}, "
                f"KL {result['kl']:.4f}, {result['seconds']:.0f} s"
            )
            for name in FIGURES:
                metrics[method][name].append(result[name])
            samples.setdefault(method, result["samples"])
    print_table(metrics)
    (args.out / "metrics.json").write_text(json.dumps({"methods": metrics}, indent=1))
    draw(samples, args.out / "grid.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="sig", help="comma list of: " + ", ".join(FIT))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--num-steps", type=int, help="for all methods of this run")
    parser.add_argument("--batch-size", type=int, help="for all methods of this run")
    parser.add_argument("--num-mixing", type=int, help="of SIG and GAN-SI")
    parser.add_argument("--learning-rate", type=float, help="for all methods of this run")
    parser.add_argument("--elbo-weight", type=float, help="of the SIG term in GAN-SI")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/grid"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
