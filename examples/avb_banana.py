"""Two posteriors without a closed density on the banana: adversarial and semi-implicit.

Adversarial variational Bayes (AVB) fits a network on noise, whose log ratio to a normal contrast a
critic learns; semi-implicit variational inference (SIVI) fits a mixture over noise by its bound.
The density is known, and each method reports its own KL(q || p): AVB by the critic (the gap of the
estimated ELBO), SIVI by 50,000 psi. The former is no bound, and a critic that lags by 0.02 hides
as much: the divergences of both from exact draws, and of one from the other, are also estimated
from nearest neighbours of 20,000 draws. Pairs of exact samples show the noise of that estimate.

The posteriors agree if the divergence of one from the other is no more than the sum of their own,
the larger of the two estimates each, and five standard errors. The output folder gets
`metrics.json` and `avb_banana.png`.

    python examples/avb_banana.py --out out/avb_banana
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _quiet import add_quiet
from pyro.infer import Trace_ELBO
from sivi_toys import NOISE_DIM, NUM_MIXING, TARGETS, divergence, draw, model_of
from torch import Tensor, nn

from pyro_sig.adversarial import AVB
from pyro_sig.distributions import Implicit
from pyro_sig.infer import AutoSemiImplicit, fit, train
from pyro_sig.nn import MLP

TARGET = TARGETS["banana"]
NUM_STEPS = 4000
NUM_PARTICLES = 512
CRITIC_STEPS = 3
SCALE = [1.0, 2.0]  # of what the critic sees
LAST_RATE = 0.03  # of the first learning rate, at the last step
NUM_DRAWS = 20_000
NUM_NEIGHBOURS = 10
NUM_REPEATS = 8  # pairs of exact samples, for the noise


# ------------------------------------------------------------------------------------------ methods


class Critic(nn.Module):
    """A network on z and its squares: log ratios to a normal law grow like these."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.net = MLP(4, [64, 64], 1, nn.SiLU, device=device)

    def forward(self, z: Tensor) -> Tensor:
        """Score values of shape ``[N, 2]``."""
        z = z / z.new_tensor(SCALE)
        return self.net(torch.cat([z, z.square()], -1))


class Banana:
    """An implicit guide of z, which starts as standard normal, and its normal contrast."""

    def __init__(self, device: str) -> None:
        self.net = MLP(NOISE_DIM, [64, 64], 2, nn.SiLU, device=device)
        self.noise = dist.Normal(torch.zeros(NOISE_DIM, device=device), 1.0).to_event(1)
        self.device = device

    def transform(self, noise: Tensor) -> Tensor:
        """Map noise of shape ``[*, NOISE_DIM]`` to z."""
        return noise[..., :2] + self.net(noise)

    def guide(self) -> None:
        """Draw z from a network on noise."""
        pyro.module("net", self.net)
        pyro.sample("z", Implicit(self.transform, self.noise, event_shape=2))

    def contrast(self) -> None:
        """Draw z from the normal law that follows the guide."""
        loc = pyro.param("loc", torch.zeros(2, device=self.device))
        scale = pyro.param(
            "scale_tril", torch.eye(2, device=self.device), dist.constraints.lower_cholesky
        )
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale))

    @torch.no_grad()
    def sample(self, num_draws: int) -> Tensor:
        """Return draws of shape ``[num_draws, 2]``."""
        return self.transform(self.noise.sample((num_draws,)))


def fit_avb(args: argparse.Namespace) -> tuple[Tensor, dict[str, float]]:
    """Fit by AVB; return draws, and what the method says of itself."""
    banana = Banana(args.device)
    critic = Critic(args.device)
    num_steps = 30 if args.smoke else NUM_STEPS
    decay = LAST_RATE ** (1 / num_steps)
    critic_optim = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.99))

    def options(name: str) -> dict[str, object]:
        # The contrast has to keep up with the guide.
        return {"lr": 1e-3 if name.startswith("net") else 2e-2, "betas": (0.5, 0.99)}

    optim = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": options, "gamma": decay}
    )
    avb = AVB(
        model_of(TARGET, args.device),
        banana.guide,
        critic,
        optim,
        critic_optim,
        contrast=banana.contrast,
        num_particles=NUM_PARTICLES,
        critic_steps=CRITIC_STEPS,
        ema=0.995,
    )
    start = time.perf_counter()
    train(avb, (), num_steps, progress=args.progress)
    seconds = time.perf_counter() - start
    with avb.averaged():
        # The target is normalised: minus the ELBO is the divergence.
        repeats = torch.tensor([-avb.evaluate_elbo() for _ in range(40)])
        draws = banana.sample(args.draws)
    reported = {
        "kl_reported": float(repeats.mean()),
        "se_reported": float(repeats.std()) / len(repeats) ** 0.5,
        "steps": num_steps,
        "seconds": seconds,
    }
    return draws, reported


def fit_sivi(args: argparse.Namespace) -> tuple[Tensor, dict[str, float]]:
    """Fit by SIVI; return draws, and what the method says of itself."""
    model = model_of(TARGET, args.device)
    guide = AutoSemiImplicit(model, noise_dim=NOISE_DIM, num_mixing=NUM_MIXING)
    loss = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=0)
    start = time.perf_counter()
    result = fit(
        model,
        guide=guide,
        loss=loss,
        budget=60 if args.smoke else None,
        max_seconds=None if args.smoke else args.seconds,
        progress=args.progress,
    )
    seconds = time.perf_counter() - start
    kl, error = divergence(guide, TARGET, args.smoke)
    reported = {
        "kl_reported": kl,
        "se_reported": error,
        "steps": result.history.num_steps,
        "seconds": seconds,
    }
    return guide.sample_posterior(args.draws)["z"].detach(), reported


# --------------------------------------------------------------------------------------- comparison


def exact(num_draws: int) -> Tensor:
    """Draw from the banana itself."""
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    v = dist.MultivariateNormal(torch.zeros(2), cov).sample((num_draws,))
    return torch.stack([v[:, 0], v[:, 1] - v[:, 0].square() - 1], -1)


def straightened(z: Tensor) -> Tensor:
    """Undo the bend, a map that keeps every divergence, so that neighbours are near."""
    v = torch.stack([z[:, 0], z[:, 1] + z[:, 0].square() + 1], -1)
    cov = v.new_tensor([[1.0, 0.9], [0.9, 1.0]])
    return torch.linalg.solve_triangular(torch.linalg.cholesky(cov), v.T, upper=False).T


def neighbour_kl(x: Tensor, y: Tensor) -> float:
    """Estimate KL(x || y) from draws: d E log(distance to y / distance to x), k-th neighbours.

    Wang, Kulkarni and Verdu (2009), "Divergence Estimation for Multidimensional Densities".
    """
    from sklearn.neighbors import NearestNeighbors

    x, y = straightened(x.cpu().double()), straightened(y.cpu().double())
    k = min(NUM_NEIGHBOURS, len(x) - 1)
    other = NearestNeighbors(n_neighbors=k).fit(y).kneighbors(x)[0][:, -1]
    own = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1]
    log_ratio = torch.as_tensor(other).log() - torch.as_tensor(own).log()
    return float(x.shape[1] * log_ratio.mean()) + math.log(len(y) / (len(x) - 1))


def moments(z: Tensor) -> dict[str, list[float]]:
    """Return means and standard deviations."""
    return {"mean": z.mean(0).tolist(), "sd": z.std(0).tolist()}


# --------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> None:
    """Fit the banana by both methods, compare the posteriors, and draw them."""
    args.out.mkdir(parents=True, exist_ok=True)
    draws: dict[str, Tensor] = {}
    metrics: dict[str, dict[str, Any]] = {}
    for name, method in (("avb", fit_avb), ("sivi", fit_sivi)):
        pyro.set_rng_seed(args.seed)
        pyro.clear_param_store()
        draws[name], metrics[name] = method(args)
    pyro.set_rng_seed(args.seed)
    truth = exact(args.draws)
    noise = torch.tensor(
        [neighbour_kl(exact(args.draws), exact(args.draws)) for _ in range(NUM_REPEATS)]
    )
    metrics["exact"] = moments(truth)
    for name, z in draws.items():
        metrics[name] |= {"kl_neighbours": neighbour_kl(z, truth), **moments(z)}
    # Five standard deviations: of the estimate between equal laws, and of what is reported.
    errors = [float(noise.std()), *(metrics[name]["se_reported"] for name in draws)]
    tolerance = abs(float(noise.mean())) + 5 * math.hypot(*errors)
    own = sum(max(metrics[n]["kl_reported"], metrics[n]["kl_neighbours"]) for n in draws)
    between = {
        "avb_to_sivi": neighbour_kl(draws["avb"], draws["sivi"]),
        "sivi_to_avb": neighbour_kl(draws["sivi"], draws["avb"]),
        "sum_of_own": own,
        "noise": tolerance,
    }
    worst = max(between["avb_to_sivi"], between["sivi_to_avb"])
    metrics["between"] = {**between, "agree": worst <= own + tolerance}

    print(
        f"{'':5} {'KL reported':>11} {'SE':>8} {'neighbours':>13} {'steps':>6} {'s':>4}  mean, sd"
    )
    for name in draws:
        line = metrics[name]
        shown = ", ".join(f"{v:.2f}" for v in (*line["mean"], *line["sd"]))
        print(
            f"{name:5} {line['kl_reported']:11.4f} {line['se_reported']:8.4f} "
            f"{line['kl_neighbours']:13.4f} {line['steps']:6} {line['seconds']:4.0f}  {shown}"
        )
    shown = ", ".join(f"{v:.2f}" for v in (*metrics["exact"]["mean"], *metrics["exact"]["sd"]))
    print(f"{'exact':5} {'':11} {'':8} {float(noise.mean()):13.4f} {'':6} {'':4}  {shown}")
    print(
        f"between: KL(avb || sivi) {between['avb_to_sivi']:.4f}, "
        f"KL(sivi || avb) {between['sivi_to_avb']:.4f}; "
        f"their own together {own:.4f}, five standard errors {tolerance:.4f}"
    )
    print("the posteriors agree" if metrics["between"]["agree"] else "the posteriors differ")

    figure, axes = plt.subplots(1, 2, figsize=(7, 3.8), layout="constrained", sharey=True)
    for ax, (name, z) in zip(axes, draws.items(), strict=True):
        draw(ax, TARGET, z[:4000])
        ax.set_title(f"{name.upper()}: KL {metrics[name]['kl_neighbours']:.3f} by neighbours")
    figure.savefig(args.out / "avb_banana.png", dpi=130)
    plt.close(figure)
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print(f"wrote metrics.json and avb_banana.png to {args.out}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--out", type=Path, default=Path("out/avb_banana"))
    parser.add_argument("--seconds", type=float, default=45.0, help="of the SIVI fit")
    add_quiet(parser)
    args = parser.parse_args(arguments)
    args.draws = 500 if args.smoke else NUM_DRAWS
    return args


if __name__ == "__main__":
    main(parse())
