"""A diffusion conditioned on noisy observations: its whole path as one semi-implicit latent.

100 Euler steps of 0.01 from 0 of dx = 10 x (1 - x^2) / (1 + x^2) dt + dw, observed at every 5th
step with standard deviation 0.1. (Papers print the drift without the denominator; their code, which
drew the reference by SGLD, has it.) AutoSemiImplicit and AutoMultivariateNormal get the same time.
Distances are those of 1,000 draws, as many as the reference has, averaged over 10 repeats; the
floor is that of its two halves, which have half as many.

    python examples/conditioned_diffusion.py --data-dir data --out out/conditioned_diffusion
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _guides import (
    NUM_DRAWS,
    OURS,
    add_flags,
    choice_of,
    distances,
    draw,
    mean_distances,
    read_arrays,
    seconds_of,
    trained,
)
from pyro.distributions import constraints
from torch import Tensor

GAUSSIAN = "AutoMultivariateNormal"
GUIDES = [OURS, GAUSSIAN]
ARRAYS = {
    "observations": "the 20 observations [1, 20]",
    "sgld_draws": "draws of the path [S, 100] by stochastic gradient Langevin dynamics",
}
NUM_STEPS, STEP = 100, 0.01
EVERY, NOISE = 5, 0.1
AS_GOOD = 1.1  # a distance within this factor of another is not told from it
REFERENCE, COLOUR = "0.55", "tab:blue"


def drift(x: Tensor) -> Tensor:
    """Pull to 1 and -1."""
    return 10 * x * (1 - x.square()) / (1 + x.square())


class EulerPath(dist.TorchDistribution):
    """The law of a path of Euler steps from 0, without its start; its density needs no loop.

    :param step: time of a step, with shape [*].
    :param size: number of steps.
    """

    arg_constraints = {"step": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, step: Tensor, size: int, validate_args: bool | None = None) -> None:
        self.step, self.size = step, size
        super().__init__(step.shape, torch.Size([size]), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "EulerPath":
        """Return the law with this batch shape."""
        return EulerPath(self.step.expand(torch.Size(batch_shape)), self.size, self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw paths."""
        x = self.step.new_zeros(torch.Size(sample_shape) + self.batch_shape)
        path = []
        for _ in range(self.size):
            x = x + drift(x) * self.step + self.step.sqrt() * torch.randn_like(x)
            path.append(x)
        return torch.stack(path, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score paths, all steps at once."""
        if self._validate_args:
            self._validate_sample(value)
        step = self.step.unsqueeze(-1)
        before = torch.nn.functional.pad(value[..., :-1], (1, 0))
        return dist.Normal(before + drift(before) * step, step.sqrt()).log_prob(value).sum(-1)


def diffusion(observations: Tensor) -> None:
    """Observe every 5th point of a path."""
    x = pyro.sample("x", EulerPath(observations.new_tensor(STEP), NUM_STEPS))
    law = dist.Normal(x[..., EVERY - 1 :: EVERY], NOISE).to_event(1)
    pyro.sample("y", law, obs=observations)


def picture(bands: dict[str, Tensor], observations: Tensor, path: Path) -> None:
    """Draw bands of the path, ours over SGLD's, and the observations."""
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    time = STEP * torch.arange(1, NUM_STEPS + 1)
    levels = torch.tensor([0.05, 0.5, 0.95])
    for (name, draws), colour in zip(bands.items(), (REFERENCE, COLOUR), strict=True):
        low, middle, high = draws.cpu().quantile(levels, dim=0)
        ours = name != "SGLD"
        if not ours:
            ax.fill_between(time, low, high, color=colour, alpha=0.35, linewidth=0)
        for line, style in ((low, "--"), (middle, "-"), (high, "--")):
            if ours or line is middle:
                ax.plot(time, line, style, color=colour, lw=1.3)
        ax.plot([], [], color=colour, label=f"{name}: 5, 50 and 95 %")
    ax.plot(time[EVERY - 1 :: EVERY], observations.cpu(), "k.", label="observed")
    ax.set(xlabel="time", ylabel="x", xlim=(0, STEP * NUM_STEPS))
    ax.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_table(results: dict[str, dict[str, Any]], floor: dict[str, float]) -> None:
    """Print a line for each guide and one for the halves of the reference."""
    print(f"\n{'':24}{'sliced W2':>10}{'corr. RMSE':>12}{'steps':>8}{'seconds':>9}{'k-hat':>7}")
    for name, row in results.items():
        k_hat = "" if row["k_hat"] is None else f"{row['k_hat']:.2f}"
        print(
            f"{name:24}{row['sliced_w2']:>10.4f}{row['correlation_rmse']:>12.4f}"
            f"{row['steps']:>8}{row['seconds']:>9.1f}{k_hat:>7}"
        )
    w2, rmse = floor.values()
    print(f"{'halves of SGLD (floor)':24}{w2:>10.4f}{rmse:>12.4f}\n")
    if len(results) == len(GUIDES):
        keys = ["sliced_w2", "correlation_rmse"]
        worse = [key for key in keys if results[GAUSSIAN][key] > AS_GOOD * results[OURS][key]]
        verdict = f"is worse by {' and '.join(worse)}" if worse else "does as well here"
        print(f"A Gaussian {verdict} (within {AS_GOOD - 1:.0%} counts as equal).")


def main(args: argparse.Namespace) -> None:
    """Train the guides, print their distances to SGLD, and write the picture."""
    data = read_arrays(args.data_dir, "conditioned_diffusion", ARRAYS, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    reference, observations = data["sgld_draws"], data["observations"].squeeze(0)
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
    floor = distances(*reference[order.to(reference.device)].chunk(2))
    results: dict[str, dict[str, Any]] = {}
    for name in args.guides:
        found = trained(
            name, diffusion, (observations,), seconds_of(args), args.seed, args.progress
        )
        results[name] = {
            **mean_distances(found.guide, "x", (observations,), reference),
            "floor": floor["sliced_w2"],
            "floor_correlation_rmse": floor["correlation_rmse"],
            "k_hat": found.k_hat,
            "steps": found.steps,
            "seconds": found.seconds,
        }
        if name == args.guides[0]:
            draws = draw(found.guide, (observations,), 5 * NUM_DRAWS)["x"]
            bands = {"SGLD": reference, name: draws}
            picture(bands, observations, args.out / "conditioned_diffusion.png")
    print_table(results, floor)
    (args.out / "metrics.json").write_text(json.dumps({"conditioned_diffusion": results}, indent=1))
    print(f"wrote metrics.json and conditioned_diffusion.png to {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser, seconds=75, out="out/conditioned_diffusion")
    parser.add_argument("--guides", type=choice_of(GUIDES), default=GUIDES, help=",".join(GUIDES))
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        parser.error(str(error))
