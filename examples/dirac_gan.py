"""The Dirac-GAN: which objectives and penalties let the simplest of all GANs come to rest.

Data are one point at 0, the generator is one point at theta, the critic is D(x) = psi x + c, with
c the score at which an objective takes both for equal. The solution is theta = psi = 0. Near to it
the eigenvalues of the map from one training step to the next decide: training comes to rest if both
are inside of the unit circle, |lambda| < 1, circles for |lambda| = 1, and is driven away for
|lambda| > 1. The output folder gets `metrics.json` and `dirac_gan.png`, with the path of
(theta, psi) in each game.

    python examples/dirac_gan.py --out out/dirac_gan

Without a penalty nothing comes to rest: simultaneous steps are driven off, alternating ones circle.
Where the generator does not minimise what the critic maximises, paths from afar come nearer, though
ever more slowly. The zero-centred penalty and unrolling turn circles into spirals to the solution.
The gradient penalty draws the critic's slope to 1, so that theta never stops, and clipping only
cuts the circle. After L. Mescheder, A. Geiger and S. Nowozin, "Which Training Methods for GANs do
actually Converge?", 2018, https://arxiv.org/abs/1801.04406.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_sig.adversarial.objectives import (
    LeastSquares,
    Minimax,
    NonSaturating,
    Objective,
    Wasserstein,
)
from pyro_sig.adversarial.penalties import (
    R1,
    GradientPenalty,
    Penalty,
    WeightClipping,
    penalize,
)
from pyro_sig.adversarial.unrolling import unrolled

START = (1.0, 0.0)  # theta and psi
STEP = 0.1  # learning rate of both
DTYPE = torch.double  # eigenvalues differ from 1 by little


@dataclass(frozen=True)
class Game:
    """An objective, and the score that it gives where data and samples are equal."""

    title: str
    objective: Objective
    level: float = 0.0


@dataclass(frozen=True)
class Method:
    """How a step is made."""

    title: str
    alternating: bool = True  # whether the generator sees the critic after its step
    unrolled: int = 0  # steps of the critic that the generator looks ahead
    penalties: tuple[Penalty, ...] = ()
    smooth: bool = True  # whether the step has a derivative at the solution


GAMES = [
    Game("minimax", Minimax()),
    Game("non-saturating", NonSaturating()),
    Game("least squares", LeastSquares(), level=0.5),
    Game("Wasserstein", Wasserstein()),
]
METHODS = [
    Method("simultaneous", alternating=False),
    Method("alternating"),
    Method("clipping", penalties=(WeightClipping(0.5),)),
    Method("gradient penalty", penalties=(GradientPenalty(0.1),), smooth=False),
    Method("unrolled, 5 steps", alternating=False, unrolled=5),
    Method("R1", penalties=(R1(0.5),)),
]


def make_players(theta: float, psi: float, level: float, device: str) -> tuple[nn.Linear, Tensor]:
    """Return a critic of slope psi, and the generator's point."""
    critic = nn.Linear(1, 1, device=device, dtype=DTYPE)
    with torch.no_grad():
        critic.weight.fill_(psi)
        critic.bias.fill_(level)
    critic.bias.requires_grad_(False)
    return critic, nn.Parameter(torch.full((1, 1), theta, device=device, dtype=DTYPE))


def train_step(
    game: Game,
    method: Method,
    critic: nn.Linear,
    theta: Tensor,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
) -> None:
    """Make one step of the critic and one of the generator."""
    real = torch.zeros_like(theta)

    def critic_loss(d: Callable[[Tensor], Tensor], fake: Tensor) -> Tensor:
        loss = game.objective.critic_loss(d(real), d(fake))
        return loss + penalize(d, method.penalties, real, fake)

    def step_critic() -> None:
        optimizers[0].step()
        for penalty in method.penalties:
            penalty.constrain(critic)

    optimizers[0].zero_grad()
    critic_loss(critic, theta.detach()).backward()
    if method.alternating:
        step_critic()
    d: Callable[[Tensor], Tensor] = critic
    if method.unrolled:
        d = unrolled(critic, lambda d: critic_loss(d, theta), optimizers[0], method.unrolled)
    (theta.grad,) = torch.autograd.grad(game.objective.generator_loss(d(real), d(theta)), theta)
    if not method.alternating:
        step_critic()
    optimizers[1].step()


def play(game: Game, method: Method, start: Tensor, num_steps: int, device: str) -> Tensor:
    """Return the path of (theta, psi), with shape ``[num_steps + 1, 2]``."""
    critic, theta = make_players(float(start[0]), float(start[1]), game.level, device)
    optimizers = torch.optim.SGD([critic.weight], lr=STEP), torch.optim.SGD([theta], lr=STEP)
    points = [start]
    for _ in range(num_steps):
        train_step(game, method, critic, theta, optimizers)
        points.append(torch.stack([theta, critic.weight]).detach().flatten().cpu())
    return torch.stack(points)


def largest_eigenvalue(game: Game, method: Method, device: str) -> float | None:
    """Return the largest modulus of the eigenvalues at the solution; None without a derivative."""
    if not method.smooth:
        return None
    width = 1e-4
    ends = [
        [play(game, method, sign * width * e, 1, device)[-1] for e in torch.eye(2, dtype=DTYPE)]
        for sign in (1, -1)
    ]
    columns = [(above - below) / (2 * width) for above, below in zip(*ends, strict=True)]
    return float(torch.linalg.eigvals(torch.stack(columns, -1)).abs().max())


def draw(paths: dict[tuple[str, str], tuple[Tensor, float | None]], path: Path) -> None:
    """Write a figure with a row for each objective and a column for each method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (2.1 * len(METHODS) + 0.6, 2.35 * len(GAMES) + 0.7)
    figure, axes = plt.subplots(
        len(GAMES), len(METHODS), figsize=size, sharex=True, sharey=True, layout="constrained"
    )
    for row, game in zip(axes, GAMES, strict=True):
        for ax, method in zip(row, METHODS, strict=True):
            points, largest = paths[game.title, method.title]
            ax.axhline(0, color="0.85", lw=0.8, zorder=0)
            ax.axvline(0, color="0.85", lw=0.8, zorder=0)
            ax.plot(*points.T, color="tab:blue", lw=0.9)
            (start,) = ax.plot(*points[0], "o", color="white", mec="black", ms=6, ls="none")
            (end,) = ax.plot(*points[-1], "s", color="tab:red", ms=5, ls="none")
            modulus = "no derivative at 0" if largest is None else rf"$|\lambda|$ = {largest:.4f}"
            ax.text(
                *(0.5, 0.97, modulus),
                fontsize=9,
                ha="center",
                va="top",
                transform=ax.transAxes,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
            ax.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), aspect="equal")
            ax.set_xticks([-1, 0, 1])
            ax.set_yticks([-1, 0, 1])
        row[0].set_ylabel(f"{game.title}\n" + r"$\psi$")
    for ax, method in zip(axes[0], METHODS, strict=True):
        ax.set_title(method.title, fontsize=11, fontweight="bold")
    for ax in axes[-1]:
        ax.set_xlabel(r"$\theta$")
    figure.legend(
        [start, end], ["start", "end"], loc="outside lower center", ncols=2, frameon=False
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(args: argparse.Namespace) -> None:
    """Play every game by every method, print where it ends, and draw the paths."""
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    num_steps = 20 if args.smoke else args.num_steps
    paths: dict[tuple[str, str], tuple[Tensor, float | None]] = {}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    print(f"{'objective':16}{'method':20}{'|lambda|':>10}{'distance from the solution':>30}")
    print(f"{'':46}{'least, greatest of the last fifth':>36}")
    for game in GAMES:
        for method in METHODS:
            start = torch.tensor(START, dtype=DTYPE)
            points = play(game, method, start, num_steps, args.device)
            largest = largest_eigenvalue(game, method, args.device)
            late = points[-len(points) // 5 :].norm(dim=-1)
            paths[game.title, method.title] = points, largest
            results.setdefault(game.title, {})[method.title] = {
                "largest_eigenvalue": largest,
                "least_late_distance": float(late.min()),
                "greatest_late_distance": float(late.max()),
            }
            modulus = "-" if largest is None else f"{largest:.4f}"
            distances = f"{float(late.min()):.2g}, {float(late.max()):.2g}"
            print(f"{game.title:16}{method.title:20}{modulus:>10}{distances:>30}")
    draw(paths, args.out / "dirac_gan.png")
    metrics = {"seed": args.seed, "smoke": args.smoke, "num_steps": num_steps, "games": results}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print(f"\nwrote metrics.json and dirac_gan.png to {args.out}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--out", type=Path, default=Path("out/dirac_gan"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
