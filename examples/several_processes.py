"""One fit by several processes: rows shared out, or the draws of psi shared out.

    torchrun --nproc-per-node 2 examples/several_processes.py --out out/several_processes
    python examples/several_processes.py

The second line is a world of one process. The program is psi = net(noise), x ~ Normal(psi, sigma),
on eight Gaussians on a ring, or 25 on a grid
(`--data grid`, which takes 24,000 steps):

- one: the first process alone, with all rows and all psi;
- data: each process has its share of the rows, and gradients are reduced (`data_parallel`);
- mixing: each process has all rows and its share of the psi, and the mixture is over the psi of all
  (`SIG_ELBO(..., mixing_group=...)`), so that the bound is that of one process with all of them;
- gan-si: as "data", with a critic beside the bound.

The first process prints a table of the time of a step and of the modes found, and writes
`metrics.json` and `several_processes.png`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from _modes import DATA, draw_samples, mode_std, score
from _quiet import add_quiet
from _schedules import conditional_std, rate_factor
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_sig import datasets
from pyro_sig.adversarial import GAN
from pyro_sig.distributed import (
    check_equal,
    data_parallel,
    rank_share,
    same_draws,
    seed_ranks,
)
from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO, no_guide, train
from pyro_sig.nn import MLP

NUM_SAMPLES = 20_000
NUM_PLOTTED = 3000
ADAM: dict[str, Any] = {"betas": (0.9, 0.999)}


def start(device: str) -> torch.device:
    """Joins the processes that torchrun started, or makes a world of one."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if not torch.distributed.is_torchelastic_launched():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        return torch.device(device)
    if backend == "nccl":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend)
    return torch.device(device)


# ---------------------------------------------------------------------------------------- programs


class Program:
    """A generator with its noise, as programs that score rows."""

    def __init__(self, device: torch.device, num_mixing: int) -> None:
        self.net = MLP(2, [128, 128], 2, device=device)
        self.noise = dist.Normal(torch.zeros(2, device=device), 1.0).to_event(1)
        self.num_mixing = num_mixing

    def model(self, x: Tensor, std: float) -> None:
        """The generator as a program, whose psi a bound integrates out."""
        pyro.module("generator", self.net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(self.net, self.noise, event_shape=2))
            pyro.sample("x", dist.Normal(psi, std).to_event(1), obs=x)


def make_svi(model: Callable[..., Any], elbo: Any, steps: int, rate: float) -> SVI:
    """SVI with the schedule of the learning rate."""
    optim = pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": rate, **ADAM},
            "lr_lambda": lambda step: rate_factor(min(step / steps, 1.0)),
        }
    )
    return SVI(model, no_guide, optim, elbo)


def make_gan(program: Program, weight: float, steps: int, rate: float) -> tuple[GAN, list[Any]]:
    """The same program against a critic, beside the bound; and schedules."""
    device = next(program.net.parameters()).device
    critic = MLP(2, [128, 128], 1, device=device)
    optim = torch.optim.Adam(program.net.parameters(), lr=rate, **ADAM)
    critic_optim = torch.optim.Adam(critic.parameters(), lr=rate, **ADAM)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_factor(min(step / steps, 1.0)))
        for o in (optim, critic_optim)
    ]
    bound = SIG_ELBO(program.num_mixing, max_plate_nesting=1)
    gan = GAN(program.model, critic, optim, critic_optim, elbo=bound, elbo_weight=weight)
    return gan, schedules


# -------------------------------------------------------------------------------------------- fits


def fit(
    method: str, toy: datasets.Toy, device: torch.device, args: argparse.Namespace
) -> tuple[nn.Module, float]:
    """Trains by one method; returns the generator and the median of the seconds of a step."""
    steps = 50 if args.smoke else args.num_steps
    program = Program(device, args.num_mixing)
    bound = SIG_ELBO(args.num_mixing, max_plate_nesting=1)
    rows = args.batch_size
    schedules: list[Any] = []
    inference: SVI | GAN
    if method == "mixing":
        world = torch.distributed.group.WORLD
        shared = SIG_ELBO(program.num_mixing, max_plate_nesting=1, mixing_group=world)
        inference = data_parallel(make_svi(program.model, shared, steps, args.learning_rate))
    elif method == "gan-si":
        # Its loss is the mean over rows, so that gradients are averaged: the default.
        gan, schedules = make_gan(program, args.weight, steps, args.learning_rate)
        inference = data_parallel(gan)
        rows = rank_share(rows)
    else:
        inference = make_svi(program.model, bound, steps, args.learning_rate)
        if method == "data":
            # The bound is the sum over the own rows, so that gradients are added up.
            inference = data_parallel(inference, reduction="sum")
            rows = rank_share(rows)

    def batch(step: int) -> tuple[Tensor, float]:
        std = conditional_std(step / steps, mode_std(toy))
        if method == "mixing":
            with same_draws():  # the same rows everywhere; the psi are drawn outside of it
                return toy.sample(rows), std
        return toy.sample(rows), std

    ends: list[float] = []
    train(
        inference,
        batch,
        steps,
        callbacks=[*schedules, lambda step, loss, inference: ends.append(time.perf_counter())],
        progress=args.progress,
        description=method,
    )
    if method != "one":
        check_equal(inference)
    return program.net, statistics.median(b - a for a, b in itertools.pairwise(ends))


def run(method: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any] | None:
    """Fits and scores; None in the processes that have nothing to say."""
    pyro.clear_param_store()
    seed_ranks(args.seed)
    toy = DATA[args.data](device=device)
    first = torch.distributed.get_rank() == 0
    torch.distributed.barrier()
    if method == "one" and not first:
        return None  # waits at the next barrier
    net, seconds = fit(method, toy, device, args)
    if not first:
        return None
    with torch.no_grad():
        psi = net(torch.randn(NUM_SAMPLES, 2, device=device))
    x = psi + mode_std(toy) * torch.randn_like(psi)
    return {**score(x, toy), "milliseconds": 1e3 * seconds, "samples": x[:NUM_PLOTTED].cpu()}


# ------------------------------------------------------------------------------- table and picture


def draw(results: dict[str, dict[str, Any]], toy: datasets.Toy, path: Path) -> None:
    """Draws samples of each method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (2.6 * len(results), 2.9)
    figure, axes = plt.subplots(1, len(results), squeeze=False, figsize=size, layout="constrained")
    for axis, (method, result) in zip(axes[0], results.items(), strict=True):
        draw_samples(axis, result["samples"], toy)
        axis.set_title(f"{method}: {result['milliseconds']:.1f} ms a step", fontsize=10)
    figure.savefig(path, dpi=90)
    plt.close(figure)


METHODS = ("one", "data", "mixing", "gan-si")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the methods in all processes; the first one reports."""
    methods = args.methods.split(",")
    if not set(methods) <= set(METHODS):
        raise ValueError(f"`methods` must be among {', '.join(METHODS)}, was {args.methods!r}")
    if args.data not in DATA:
        raise ValueError(f"`data` must be among {', '.join(DATA)}, was {args.data!r}")
    device = start(args.device)
    size = torch.distributed.get_world_size()
    results: dict[str, dict[str, Any]] = {}
    for method in methods:
        result = run(method, device, args)
        if result is not None:
            results[method] = result
    if torch.distributed.get_rank() == 0:
        report(results, size, args)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return results


def report(results: dict[str, dict[str, Any]], size: int, args: argparse.Namespace) -> None:
    """Prints the table; writes metrics and picture."""
    print(f"{size} processes, {torch.get_num_threads()} threads each")
    print(f"{'method':10}{'ms a step':>10}{'modes':>7}{'HQ':>8}{'KL':>8}")
    for method, result in results.items():
        figures = f"{result['modes']:7d}{result['hq']:8.3f}{result['kl']:8.3f}"
        print(f"{method:10}{result['milliseconds']:10.2f}{figures}")
    args.out.mkdir(parents=True, exist_ok=True)
    metrics = {
        method: {name: value for name, value in result.items() if name != "samples"}
        for method, result in results.items()
    }
    text = json.dumps({"processes": size, "data": args.data, "methods": metrics}, indent=1)
    (args.out / "metrics.json").write_text(text)
    draw(results, DATA[args.data](), args.out / "several_processes.png")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ring", help="one of: " + ", ".join(DATA))
    parser.add_argument("--methods", default=",".join(METHODS), help="comma list")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256, help="rows of all processes")
    parser.add_argument("--num-mixing", type=int, default=512, help="psi of all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--weight", type=float, default=1.0, help="of the bound in the GAN-SI")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: one for each process")
    add_quiet(parser)
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/several_processes"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
