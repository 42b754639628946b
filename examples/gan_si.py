"""From a GAN to a semi-implicit generator: one program, one critic, the weight between them.

    python examples/gan_si.py --out out/gan_si

The program is psi = net(noise), x ~ Normal(psi, sigma). The critic sees psi beside data, and
the bound of SIG joins the generator's loss with a weight: at 0 this is a GAN, at inf there is no
critic and it is SIG, between them the GAN-SI. "balance" sets the weight so that both gradients
have one size. Data are eight Gaussians on a ring or 25 on a grid (`--data`); sigma shrinks to
theirs. The output folder gets `metrics.json`, and `gan_si.png` with samples of x for each weight
over the number of modes (captured: more than 2 % of the samples), the share of samples with high
quality (HQ, within 3 std of a centre) and the KL divergence from the truth over the cells of the
modes.

Every (weight, seed) is kept in the output folder: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _kept import kept
from _modes import DATA, centres, draw_samples, mode_std, score
from _quiet import add_quiet
from _schedules import conditional_std, rate_factor
from torch import Tensor

from pyro_sig import datasets
from pyro_sig.adversarial import GAN
from pyro_sig.diagnostics import mode_coverage
from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO, train
from pyro_sig.nn import MLP

BETAS = (0.5, 0.999)
NUM_SAMPLES = 20_000
NUM_PLOTTED = 3000
FIGURES = {"modes": "modes", "hq": "high quality", "kl": "KL"}


# ----------------------------------------------------------------------------------------- one fit


def fit(
    weight: float | str, toy: datasets.Toy, args: argparse.Namespace
) -> tuple[Tensor, Tensor, float]:
    """Trains the program; returns samples of x, their psi, and the weight at the end."""
    net = MLP(2, [128, 128], 2, device=args.device)
    critic = MLP(2, [128, 128], 1, device=args.device)
    noise = dist.Normal(torch.zeros(2, device=args.device), 1.0).to_event(1)

    def model(x: Tensor, std: float) -> None:
        pyro.module("generator", net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise, event_shape=2))
            pyro.sample("x", dist.Normal(psi, std).to_event(1), obs=x)

    optim = torch.optim.Adam(net.parameters(), lr=args.learning_rate, betas=BETAS)
    critic_optim = torch.optim.Adam(critic.parameters(), lr=args.learning_rate, betas=BETAS)
    gan = GAN(
        model,
        critic,
        optim,
        critic_optim,
        elbo=SIG_ELBO(args.num_mixing, max_plate_nesting=1),
        elbo_weight=weight,
    )
    steps = 50 if args.smoke else args.num_steps
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_factor(min(step / steps, 1.0)))
        for o in (optim, critic_optim)
    ]
    train(
        gan,
        lambda step: (toy.sample(args.batch_size), conditional_std(step / steps, mode_std(toy))),
        steps,
        callbacks=schedules,
        progress=args.progress,
        description=f"weight {weight}",
    )
    with torch.no_grad():
        psi = net(noise.sample((NUM_SAMPLES,)))
    used: Any = gan.elbo_weight
    last = used if isinstance(weight, float) else used.weight
    return psi + mode_std(toy) * torch.randn_like(psi), psi, last


def run(data: str, weight: float | str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains and scores one seed, or reads what an earlier run left."""
    settings = {key: getattr(args, key) for key in SETTINGS}

    def one() -> dict[str, Any]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        toy = DATA[data](device=args.device)
        start = time.perf_counter()
        x, psi, last = fit(weight, toy, args)
        seconds = time.perf_counter() - start
        return {
            **score(x, toy),
            "seconds": seconds,
            "weight": last,
            "samples": x[:NUM_PLOTTED].cpu().clone(),
            "psi": psi[:NUM_PLOTTED].cpu().clone(),
        }

    return kept(args.out / "cache" / f"{data}-{weight}-{seed}.pt", settings, one)


def num_reached(samples: Tensor, toy: datasets.Toy) -> int:
    """Counts modes with any sample of high quality, however few."""
    coverage = mode_coverage(samples, centres(toy), mode_std(toy), min_count=0)
    return int(coverage.captured)


# ------------------------------------------------------------------------------ table and picture


def print_table(data: str, rows: dict[str, dict[str, list[float]]]) -> None:
    """Prints means over seeds."""
    toy = DATA[data]()
    print(f"\n{data}, {len(centres(toy))} modes")
    print(f"{'weight':16}{'modes':>7}{'reached':>9}{'HQ':>8}{'KL':>8}{'seconds':>9}")
    for label, figures in rows.items():
        modes, reached, hq, kl, seconds = (
            statistics.fmean(figures[name]) for name in ("modes", "reached", "hq", "kl", "seconds")
        )
        print(f"{label:16}{modes:7.1f}{reached:9.1f}{hq:8.3f}{kl:8.3f}{seconds:9.0f}")
    best = len(centres(toy))
    print(f"{'perfect':16}{best:7.1f}{best:9.1f}{0.9889:8.3f}{0:8.3f}")


def title(label: str, result: dict[str, Any]) -> str:
    """Says what a weight is."""
    if label == "balance":
        return f"balance (ends at {result['weight']:.2g})"
    return {"0.0": "0: GAN", "inf": "inf: SIG"}.get(label, f"{float(label):g}")


def draw(data: str, results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws the first seed's samples of x for each weight, and figures against the weight."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    toy = DATA[data]()
    columns = len(results)
    figure = plt.figure(figsize=(2.1 * columns, 5.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.05), squeeze=False)[:, 0]
    above.suptitle(f"{data}: samples of x by the weight of SIG beside the critic")
    panels = above.subplots(1, columns, squeeze=False)[0]
    for axis, (label, found) in zip(panels, results.items(), strict=True):
        draw_samples(axis, found[0]["samples"], toy)
        axis.set_title(title(label, found[0]), fontsize=10)
    best = {"modes": len(centres(toy)), "hq": 0.9889, "kl": 0.0}
    places = range(columns)
    ticks = [label.removesuffix(".0") for label in results]
    # "balance" is no point of the path between the two ends.
    on_path = [i for i, tick in zip(places, ticks, strict=True) if tick != "balance"]

    def plot(axis: Any, name: str, color: str, label: str | None = None) -> None:
        means = [statistics.fmean(result[name] for result in found) for found in results.values()]
        axis.plot(on_path, [means[i] for i in on_path], color=color, lw=1)
        axis.plot(places, means, "o", color=color, ms=5, label=label)

    for axis, (name, label) in zip(below.subplots(1, 3), FIGURES.items(), strict=True):
        axis.axhline(best[name], color="0.7", lw=1, ls="--")
        if name == "modes":
            plot(axis, "reached", "tab:orange", "any sample")
            plot(axis, name, "tab:blue", "more than 2 % of the samples")
            axis.legend(frameon=False, loc="lower right", fontsize=8)
        else:
            plot(axis, name, "tab:blue")
        axis.set(xticks=list(places), xlabel="weight", title=label)
        axis.set_xticklabels(ticks, fontsize=8)
        axis.set_ylim(bottom=-0.03 * axis.get_ylim()[1])
    figure.savefig(path, dpi=90)
    plt.close(figure)


SETTINGS = ("smoke", "num_steps", "batch_size", "num_mixing", "learning_rate")


def read_weights(text: str) -> list[float | str]:
    """Reads the comma list of weights."""
    try:
        return [word if word == "balance" else float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f'`weights` must be numbers or "balance", was {text!r}') from None


def main(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Runs every weight and seed; writes metrics.json and gan_si.png."""
    if args.data not in DATA:
        raise ValueError(f"`data` must be among {', '.join(DATA)}, was {args.data!r}")
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for weight in read_weights(args.weights):
        for seed in range(args.seed, args.seed + args.seeds):
            result = run(args.data, weight, seed, args)
            result["reached"] = num_reached(result["samples"], DATA[args.data]())
            results.setdefault(str(weight), []).append(result)
            print(
                f"weight {weight}, seed {seed}: {result['modes']} modes, HQ {result['hq']:.3f}, "
                f"KL {result['kl']:.3f}, {result['seconds']:.0f} s",
                flush=True,
            )
    names = (*FIGURES, "reached", "seconds", "weight")
    metrics = {
        label: {name: [result[name] for result in found] for name in names}
        for label, found in results.items()
    }
    print_table(args.data, metrics)
    (args.out / "metrics.json").write_text(
        json.dumps({"data": args.data, "weights": metrics}, indent=1)
    )
    draw(args.data, results, args.out / "gan_si.png")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="grid", help="one of: " + ", ".join(DATA))
    parser.add_argument(
        "--weights", default="0,0.01,0.1,1,10,inf,balance", help='comma list; also "balance"'
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--num-steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-mixing", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of both players")
    parser.add_argument("--device", default="cpu")
    add_quiet(parser)
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/gan_si"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
