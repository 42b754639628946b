"""Inference for a latent-variable model whose posterior is known: four steps on one small problem.

    z ~ Normal(0, I),   x | z ~ Normal(f(z), 0.3),   f(z) = (slope |z_1|, z_2 + tilt z_1)

The absolute value (smoothed) forgets the sign of z_1, so most data have a posterior with two modes,
whose masses depend on x. z has two dimensions: log p(x) and p(z | x) come from a grid, and every
method below is compared with them.

1. log p(x) by sampling: draws from the prior against draws from a fitted q, with weights.
2. Normal q: parameters of its own for each datum against one encoder for all, and what each loses.
3. Score function, with and without a baseline, against reparameterisation: gradient variance.
4. A semi-implicit q(z | x): an encoder that is also fed noise, and so can have both modes.

    python examples/latent_variable_vi.py --out out/latent_variable_vi
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import train
from pyro_sig.nn import MLP, Encoder

SLOPE, TILT, NOISE = 1.5, 0.5, 0.3  # of the model; the data come from these
START_NOISE = 1.5  # where a fit begins: the posterior is then about as wide as the prior
RATE, OWN_RATE, SLOPE_RATE = 0.015, 0.2, 0.01  # encoders, each datum's own, model
START_SLOPE = 1.0  # where the slope is learned
GRID_END, GRID_STEP = 4.8, 0.08  # about three nodes per standard deviation of the posterior
NUM_MIXING = 40  # psi in the semi-implicit bound
SHOWN = (2.2, 0.15)  # the datum of the pictures
NEAR = 1.0  # a draw this close to a mode is counted there
BASELINE = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.95}}

Program = Callable[..., Any]
Metrics = dict[str, dict[str, Any]]


# ------------------------------------------------------------------------- the model, and the truth


def decode(z: Tensor, slope: Tensor | float = SLOPE) -> Tensor:
    """Returns the mean of x given z."""
    smooth_abs = (z[..., 0] ** 2 + 0.02).sqrt()
    return torch.stack([slope * smooth_abs, z[..., 1] + TILT * z[..., 0]], -1)


def model(x: Tensor, run: str | None = None, noise: float = NOISE) -> None:
    """The model with its slope known or, in a run that has a name, learned."""
    slope = SLOPE if run is None else pyro.param(f"{run}.slope", x.new_tensor(START_SLOPE))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(z, slope), noise).to_event(1), obs=x)


def make_data(num: int, device: str) -> Tensor:
    """Draws data from the model."""
    z = torch.randn(num, 2, device=device)
    return decode(z) + NOISE * torch.randn_like(z)


def quadrature(x: Tensor, slope: Tensor | float = SLOPE) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log p(x) [N], the nodes of a grid [G, 2] and the posterior's masses there [G, N]."""
    axis = torch.arange(-GRID_END, GRID_END, GRID_STEP, device=x.device)
    z = torch.cartesian_prod(axis, axis)
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
    mean = decode(z, slope)
    terms = [dist.Normal(mean[:, i : i + 1], NOISE).log_prob(x[:, i]) for i in (0, 1)]
    log_mass = log_prior + terms[0] + terms[1] + 2 * torch.tensor(GRID_STEP).log()
    log_evidence = log_mass.logsumexp(0)
    return log_evidence, z, (log_mass - log_evidence).exp()


def maximum_likelihood(x: Tensor) -> Tensor:
    """Returns the slope that maximises the exact likelihood: what the bounds try to find."""
    slope = x.new_tensor(START_SLOPE).requires_grad_()
    optim = torch.optim.LBFGS([slope], max_iter=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        value = -quadrature(x, slope)[0].mean()
        value.backward()
        return value

    optim.step(loss)
    return slope.detach()


# --------------------------------------------------------------------------------------- the guides


def prior_guide(x: Tensor, run: str | None = None, *_: float) -> None:
    """The prior, whatever x."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def per_datum_guide(name: str, loc: Tensor, scale: Tensor) -> Program:
    """Each datum has its own location and scale, which start as given: parameters [N, 2]."""

    def guide(x: Tensor, run: str | None = None, *_: float) -> None:
        own_loc = pyro.param(f"{name}.loc", loc)
        own_scale = pyro.param(f"{name}.scale", scale, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(own_loc, own_scale).to_event(1))

    return guide


def amortised_guide(
    name: str,
    encoder: nn.Module,
    normal: Callable[..., dist.TorchDistribution] = dist.Normal,
    infer: Any = None,
) -> Program:
    """One network gives location and scale for any x."""

    def guide(x: Tensor, run: str | None = None, *_: float) -> None:
        pyro.module(name, encoder)
        loc, scale = encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(loc, scale).to_event(1), infer=infer)

    return guide


class NoisyEncoder(nn.Module):
    """Maps noise and a datum to a location of z and, before the softplus, its scale."""

    NOISE_DIM = 4

    def __init__(self, device: str) -> None:
        super().__init__()
        self.net = MLP(self.NOISE_DIM + 2, [50, 50], 4, device=device)

    def forward(self, eps: Tensor, x: Tensor) -> Tensor:
        """Adds noise to the location: the fit begins as wide as the prior, and meets both modes."""
        out = self.net(torch.cat([eps, x], -1))
        return torch.cat([out[..., :2] + eps[..., :2], out[..., 2:]], -1)


def semi_implicit_guide(
    name: str, encoder: NoisyEncoder, num_mixing: int, share_draws: bool = True
) -> Program:
    """The same with noise fed to the network: q(z | x) is a mixture of Normals over that noise."""

    def conditional(psi: Tensor) -> dist.TorchDistribution:
        return dist.Normal(psi[..., :2], nn.functional.softplus(psi[..., 2:]) + 1e-3).to_event(1)

    def guide(x: Tensor, run: str | None = None, *_: float) -> None:
        pyro.module(name, encoder)
        noise = dist.Normal(x.new_zeros(encoder.NOISE_DIM), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            # Data go through `inputs`: each row then has its own noise.
            psi = Implicit(encoder, noise, event_shape=4, inputs=x)
            pyro.sample("z", SemiImplicit(psi, conditional, num_mixing, share_draws))

    return guide


# --------------------------------------------------------------------------------- fit and evaluate


def fit(
    guide: Program,
    x: Tensor,
    num_steps: int,
    rate: float,
    run: str | None = None,
    num_particles: int = 1,
) -> float:
    """Trains a guide, and the slope if the run has a name; returns the seconds.

    Without a name the noise of x shrinks in the first half. With the small one from the start, the
    first steps draw all of q to one mode, and what has left the other one does not come back.
    """

    def optim_args(name: str) -> dict[str, float]:
        return {"lr": SLOPE_RATE if name.endswith(".slope") else rate}

    schedule = {
        "optimizer": torch.optim.Adam,
        "optim_args": optim_args,
        "gamma": 0.05 ** (1 / num_steps),
    }
    elbo = Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=num_particles > 1)
    svi = SVI(model, guide, pyro.optim.ExponentialLR(schedule), elbo)

    def batch(step: int) -> tuple[Tensor, str | None, float]:
        wide = START_NOISE * (NOISE / START_NOISE) ** (2 * step / num_steps)
        return x, run, NOISE if run is not None else max(NOISE, wide)

    return train(svi, batch, num_steps, progress=False).seconds


def fit_per_datum(x: Tensor, num_steps: int, num_draws: int) -> tuple[Program, float]:
    """Fits each datum from both sides, since the modes are unequal, and keeps the better fit."""
    both = x.repeat(2, 1)
    start = torch.ones_like(x)
    loc = torch.cat([start, -start]) * start.new_tensor([1.0, 0.0])
    guide = per_datum_guide("two starts", loc, torch.ones_like(both))
    # An encoder averages the noise of gradients over data; here each datum has only its own draws.
    seconds = fit(guide, both, num_steps, OWN_RATE, num_particles=10)
    elbo = log_weights(guide, both, num_draws).mean(0)
    left = (elbo[len(x) :] > elbo[: len(x)]).unsqueeze(-1)
    kept = [
        torch.where(left, value[len(x) :], value[: len(x)])
        for value in (pyro.param(f"two starts.{name}").detach() for name in ("loc", "scale"))
    ]
    return per_datum_guide("Normal per datum", *kept), seconds


def repeated(program: Program, num: int) -> Program:
    """Runs a program on the data many times at once."""

    def particles(x: Tensor) -> None:
        with pyro.plate("particles", num, dim=-2):
            program(x)

    return particles


@torch.no_grad()
def draw(guide: Program, x: Tensor, num: int) -> Tensor:
    """Returns draws of z from q(z | x), shape [num, N, 2]."""
    z: Any = poutine.trace(repeated(guide, num)).get_trace(x).nodes["z"]["value"]
    return z


@torch.no_grad()
def log_weights(guide: Program, x: Tensor, num: int, block: int = 5) -> Tensor:
    """Returns log p(x, z) - log q(z | x) for draws of z, shape [num, N], a block at a time.

    Their mean is the ELBO of each datum; the mean of the weights themselves is p(x).
    """
    found = []
    for start in range(0, num, block):
        size = min(block, num - start)
        q = poutine.trace(repeated(guide, size)).get_trace(x)
        p = poutine.trace(poutine.replay(repeated(model, size), trace=q)).get_trace(x)
        q.compute_log_prob()
        p.compute_log_prob()
        log_joint = p.nodes["z"]["log_prob"] + p.nodes["x"]["log_prob"]
        found.append(log_joint - q.nodes["z"]["log_prob"])
    return torch.cat(found)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Returns the mean over data and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def table(title: str, header: str, rows: dict[str, str]) -> None:
    """Prints a small table."""
    print(f"\n{title}\n  {'':24}{header}")
    for name, row in rows.items():
        print(f"  {name:24}{row}")


# ----------------------------------------------------------------------------- 1. log p(x) by draws


def estimate_evidence(guides: dict[str, Program], x: Tensor, repeats: int) -> Metrics:
    """Step 1: log of the mean weight, for draws from the prior and from fitted guides."""
    exact = quadrature(x)[0]
    sizes = (10, 100)
    metrics: Metrics = {}
    rows = {}
    for name, guide in guides.items():
        start = time.perf_counter()
        log_weight = log_weights(guide, x, sizes[-1] * repeats, block=50)
        row, metrics[name] = "", {}
        for size in sizes:
            groups = log_weight[: size * repeats].reshape(repeats, size, len(x))
            estimate = groups.logsumexp(1) - torch.tensor(float(size)).log()
            bias, sd = float((estimate - exact).mean()), float(estimate.std(0).mean())
            row += f"{float(estimate.mean()):10.3f}{bias:9.3f}{sd:8.3f}    "
            metrics[name] |= {f"mean_{size}": float(estimate.mean()), f"bias_{size}": bias}
            metrics[name] |= {f"sd_{size}": sd}
        metrics[name] |= {"floor": float(exact.mean()), "seconds": time.perf_counter() - start}
        rows[name] = row
    rows["quadrature"] = f"{float(exact.mean()):10.3f}"
    header = "".join(f"{f'{size} draws':>10}{'bias':>9}{'SD':>8}    " for size in sizes)
    table("1. log p(x), mean over data; SD over repeats", header, rows)
    return metrics


# ------------------------------------------------------------------ 2. own parameters or an encoder


def compare_gaps(bounds: dict[str, Tensor], seconds: dict[str, float], x: Tensor) -> Metrics:
    """Step 2: what is lost by the family of q, and what by sharing one encoder."""
    exact = quadrature(x)[0]
    metrics: Metrics = {}
    rows = {}
    for name in ("Normal per datum", "amortised Normal"):
        elbo, elbo_se = mean_and_error(bounds[name])
        gap, gap_se = mean_and_error(exact - bounds[name])
        metrics[name] = {"elbo": elbo, "elbo_se": elbo_se, "gap": gap, "gap_se": gap_se}
        metrics[name] |= {"floor": float(exact.mean()), "seconds": seconds[name]}
        rows[name] = f"{elbo:9.3f} ({elbo_se:.3f}){gap:9.3f} ({gap_se:.3f})"
    # The first gap is the family's. Both bounds are of the same data, so the difference is paired.
    lost, lost_se = mean_and_error(bounds["Normal per datum"] - bounds["amortised Normal"])
    metrics["amortised Normal"] |= {"amortisation_gap": lost, "amortisation_gap_se": lost_se}
    rows["amortised Normal"] += f"{lost:9.3f} ({lost_se:.3f})"
    rows["quadrature"] = f"{float(exact.mean()):9.3f}"
    header = f"{'ELBO (SE)':>17}{'below log p':>17}{'by sharing':>17}"
    table("2. Normal q, nats per datum", header, rows)
    return metrics


def learn_slope(fitted: dict[str, Program], x: Tensor, num_steps: int) -> Metrics:
    """Step 2, continued: the slope by each bound, judged by the exact likelihood.

    The tilt stays known: x tells it by way of the sign of z_1, which it hardly tells, and where so
    much is missing EM, and so every bound, takes very long.
    """
    best = maximum_likelihood(x)
    floor = float(quadrature(x, best)[0].mean())
    metrics: Metrics = {}
    rows = {}
    for name, guide in fitted.items():
        rate = OWN_RATE / 10 if name == "Normal per datum" else RATE
        seconds = fit(guide, x, num_steps, rate, run=name)
        slope = pyro.param(f"{name}.slope").detach()
        score = float(quadrature(x, slope)[0].mean())
        metrics[name] = {"slope": float(slope), "log_likelihood": score}
        metrics[name] |= {"floor": floor, "seconds": seconds}
        rows[name] = f"{slope:10.3f}{floor - score:16.5f}"
    rows["maximum likelihood"] = f"{best:10.3f}{0:16.5f}"
    table(f"   Slope learned with q, from {START_SLOPE}", f"{'slope':>10}{'nats lost':>16}", rows)
    return metrics


# ------------------------------------------------------------------------- 3. variance of gradients


def gradients(
    guide: Program, encoder: nn.Module, x: Tensor, repeats: int, warm_up: int = 0
) -> Tensor:
    """Returns many gradients [repeats, P] of the loss per datum, at the same parameters."""
    elbo = TraceGraph_ELBO()
    found = []
    for _ in range(warm_up + repeats):
        elbo.loss_and_grads(model, guide, x)
        grads = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        found.append(torch.cat(grads) / len(x))
        encoder.zero_grad()
    return torch.stack(found[warm_up:])


def compare_gradients(points: dict[str, dict[str, Any]], x: Tensor, repeats: int) -> Metrics:
    """Step 3: total variance of the gradient with one draw of each z, before and after the fit.

    After the fit log p(x, z) - log q(z) hardly varies near its mode, and the baseline takes away
    what is constant; reparameterised, the gradient of log q(z) itself remains, with mean zero. The
    semi-implicit guide has a network of its own: its variance compares with itself only.
    """
    metrics: Metrics = {}
    for point, encoders in points.items():
        normal, noisy = encoders["amortised Normal"], encoders["semi-implicit"]
        name = f"{point}, amortised Normal"
        score = amortised_guide(name, normal, NonreparameterizedNormal)
        with_baseline = amortised_guide(name, normal, NonreparameterizedNormal, BASELINE)
        rsample = amortised_guide(name, normal)
        semi_implicit = semi_implicit_guide(f"{point}, semi-implicit", noisy, NUM_MIXING)
        for method, guide, encoder in (
            ("reparameterised", rsample, normal),
            ("score function", score, normal),
            ("with baseline", with_baseline, normal),
            ("semi-implicit", semi_implicit, noisy),
        ):
            start = time.perf_counter()
            # The running average that is the baseline begins at zero.
            warm_up = 100 if guide is with_baseline else 0
            g = gradients(guide, encoder, x, repeats, warm_up)
            variance, mean = float(g.var(0).sum()), g.mean(0)
            row = metrics.setdefault(method, {"floor": 0.0, "seconds": 0.0})
            row["seconds"] += time.perf_counter() - start
            row[f"variance_{point}"] = variance
            if method == "reparameterised":
                reference = (variance, mean)
            elif method != "semi-implicit":  # which has parameters of its own
                # The squared distance of two means of one law has this expectation.
                expected = (variance + reference[0]) / repeats
                misfit = float((mean - reference[1]).square().sum()) / expected
                row[f"misfit_{point}"] = misfit
    rows = {
        method: "".join(f"{row[f'variance_{point}']:12.4g}" for point in points)
        + "".join(f"{row[m]:16.2f}" for point in points if (m := f"misfit_{point}") in row)
        for method, row in metrics.items()
    }
    header = "".join(f"{point:>12}" for point in points)
    header += "".join(f"{f'misfit {point}':>16}" for point in points)
    table(
        "3. Variance of the gradient; misfit is about 1, by chance up to 4, where means agree",
        header,
        rows,
    )
    return metrics


# ----------------------------------------------------------------------------- 4. a semi-implicit q


def find_modes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two modes [2, 2] of the posterior of one datum, and the exact mass near each."""
    _, z, mass = quadrature(x.unsqueeze(0))
    sides = [torch.where(side, mass[:, 0], 0.0) for side in (z[:, 0] < 0, z[:, 0] > 0)]
    modes = torch.stack([z[side.argmax()] for side in sides])
    return modes, near(z, modes).float().T @ mass[:, 0]


def near(z: Tensor, modes: Tensor) -> Tensor:
    """Tells for each z [*, 2] which of the modes it is near, shape [*, 2]."""
    return (z.unsqueeze(-2) - modes).norm(dim=-1) < NEAR


def compare_posteriors(
    guides: dict[str, Program],
    bounds: dict[str, Tensor],
    seconds: dict[str, float],
    x: Tensor,
    num_draws: int,
) -> Metrics:
    """Step 4: bounds, and where the draws of q(z | x) lie."""
    exact, z, mass = quadrature(x)
    positive = mass[z[:, 0] > 0].sum(0)
    shown = x.new_tensor(SHOWN)
    modes, masses = find_modes(shown)
    metrics: Metrics = {}
    rows = {}
    for name in ("amortised Normal", "semi-implicit"):
        elbo, elbo_se = mean_and_error(bounds[name])
        found = draw(guides[name], x, num_draws)[..., 0] > 0
        error = float((found.float().mean(0) - positive).abs().mean())
        one = draw(guides[name], shown.unsqueeze(0), num_draws)[:, 0]
        left, right = near(one, modes).float().mean(0).tolist()
        metrics[name] = {"elbo": elbo, "elbo_se": elbo_se, "sign_error": error}
        metrics[name] |= {"mass_left": left, "mass_right": right}
        metrics[name] |= {"exact_mass_left": float(masses[0]), "exact_mass_right": float(masses[1])}
        metrics[name] |= {"floor": float(exact.mean()), "seconds": seconds[name]}
        rows[name] = f"{elbo:9.3f} ({elbo_se:.3f}){error:14.3f}{left:12.3f}{right:12.3f}"
    gain, gain_se = mean_and_error(bounds["semi-implicit"] - bounds["amortised Normal"])
    metrics["semi-implicit"] |= {"gain": gain, "gain_se": gain_se, "gain_in_se": gain / gain_se}
    rows["exact"] = f"{float(exact.mean()):9.3f}{0:22.3f}{masses[0]:12.3f}{masses[1]:12.3f}"
    header = f"{'ELBO (SE)':>17}{'P(z_1>0) off':>14}{'left mode':>12}{'right mode':>12}"
    table(f"4. q(z | x) for all data, and the mass near the modes of x = {SHOWN}", header, rows)
    print(
        f"  gain in ELBO {gain:.3f} ({gain_se:.3f}), that is {gain / gain_se:.1f} standard errors"
    )
    return metrics


# ------------------------------------------------------------------------------------------ picture


def picture(metrics: dict[str, Metrics], guides: dict[str, Program], x: Tensor, path: Path) -> None:
    """Draws one panel for each step, and the posterior of one datum with draws of both q."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7.6), layout="constrained")
    colours = {"prior": "0.5", "amortised Normal": "tab:blue", "semi-implicit": "tab:orange"}

    ax = axes[0, 0]
    for i, (name, row) in enumerate(metrics["evidence"].items()):
        values, spread = [row["bias_10"], row["bias_100"]], [row["sd_10"], row["sd_100"]]
        places = [i - 1, i + 3]
        ax.errorbar(places, values, spread, fmt="o", capsize=4, color=colours[name], label=name)
    ax.axhline(0, color="black", lw=1)
    ax.set(title="1. error of log p(x) (bar: SD)", ylabel="nats", xlim=(-2, 6))
    ax.set_xticks([0, 4], ["10 draws", "100 draws"])
    ax.legend(frameon=False, loc="lower right")

    ax = axes[0, 1]
    floor = metrics["normal"]["Normal per datum"]["floor"]
    heights = {
        "Normal\nper datum": metrics["normal"]["Normal per datum"]["elbo"],
        "amortised\nNormal": metrics["normal"]["amortised Normal"]["elbo"],
        "amortised\nsemi-implicit": metrics["posterior"]["semi-implicit"]["elbo"],
    }
    gaps = [floor - elbo for elbo in heights.values()]
    ax.bar(list(heights), gaps, color=["tab:cyan", "tab:blue", "tab:orange"])
    ax.set(title="2. and 4. log p(x) - ELBO", ylabel="nats per datum")

    ax = axes[0, 2]
    methods = ["score function", "with baseline", "reparameterised", "semi-implicit"]
    for shift, point, colour in ((-0.2, "start", "0.7"), (0.2, "fitted", "tab:green")):
        values = [metrics["gradient"][m][f"variance_{point}"] for m in methods]
        ax.bar([i + shift for i in range(4)], values, width=0.4, color=colour, label=point)
    ax.set(title="3. variance of the gradient", yscale="log")
    ax.set_xticks(range(4), [m.replace(" ", "\n") for m in methods], fontsize=8)
    ax.legend(frameon=False)

    shown = x.new_tensor([SHOWN])
    _, z, mass = quadrature(shown)
    side = round(len(z) ** 0.5)
    u, v, height = (a.reshape(side, side).cpu() for a in (z[:, 0], z[:, 1], mass[:, 0]))
    for ax, name in zip(axes[1], ("amortised Normal", "semi-implicit"), strict=False):
        points = draw(guides[name], shown, 500)[:, 0].cpu()
        levels = [share * float(height.max()) for share in (0.02, 0.1, 0.3, 0.6, 0.9)]
        ax.contour(u, v, height, levels, colors="black", linewidths=0.7)
        ax.scatter(*points.T, s=5, alpha=0.5, linewidths=0, color=colours[name])
        ax.set(title=f"p(z | x), x = {SHOWN}, and {name}", xlabel="z_1", ylabel="z_2")
        ax.set(xlim=(-3, 3), ylim=(-2.5, 2.5))

    ax = axes[1, 2]
    _, z, mass = quadrature(x)
    exact = mass[z[:, 0] > 0].sum(0).cpu()
    for name in ("amortised Normal", "semi-implicit"):
        found = (draw(guides[name], x, 200)[..., 0] > 0).float().mean(0).cpu()
        ax.scatter(exact, found, s=8, alpha=0.6, linewidths=0, color=colours[name], label=name)
    ax.plot([0, 1], [0, 1], color="black", lw=1)
    ax.set(title="4. P(z_1 > 0 | x), all data", xlabel="exact", ylabel="under q")
    ax.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# --------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> dict[str, Metrics]:
    """Fits the guides, goes through the four steps, and writes metrics.json and a picture."""
    if args.smoke:
        args.num_data, args.num_steps, args.repeats = 20, 10, 6
    args.out.mkdir(parents=True, exist_ok=True)
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    x = make_data(args.num_data, args.device)

    normal = Encoder(2, [50, 50], 2, device=args.device)
    noisy = NoisyEncoder(args.device)
    start = {"amortised Normal": copy.deepcopy(normal), "semi-implicit": copy.deepcopy(noisy)}
    amortised = amortised_guide("amortised Normal", normal)
    shared = semi_implicit_guide("semi-implicit", noisy, NUM_MIXING)
    own, own_seconds = fit_per_datum(x, args.num_steps, args.repeats)
    seconds = {
        "Normal per datum": own_seconds,
        "amortised Normal": fit(amortised, x, args.num_steps, RATE),
        "semi-implicit": fit(shared, x, args.num_steps, RATE),
    }

    # Weights are averaged over draws, so that each draw needs psi of its own.
    guides = {
        "prior": prior_guide,
        "Normal per datum": own,
        "amortised Normal": amortised,
        "semi-implicit": semi_implicit_guide("semi-implicit", noisy, NUM_MIXING, share_draws=False),
    }
    repeats = args.repeats
    bounds = {name: log_weights(guides[name], x, repeats).mean(0) for name in seconds}
    sampled = {name: guides[name] for name in ("prior", "amortised Normal", "semi-implicit")}
    points = {"start": start, "fitted": {"amortised Normal": normal, "semi-implicit": noisy}}
    metrics = {
        "evidence": estimate_evidence(sampled, x[:20], repeats),
        "normal": compare_gaps(bounds, seconds, x),
        "gradient": compare_gradients(points, x, 3 * repeats),
        "posterior": compare_posteriors(guides, bounds, seconds, x, 10 * repeats),
    }
    picture(metrics, guides, x, args.out / "latent_variable_vi.png")
    # Last, since it moves the guides.
    trained = {"Normal per datum": own, "amortised Normal": amortised, "semi-implicit": shared}
    metrics["slope"] = learn_slope(trained, x, args.num_steps // 2)
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"\nwrote metrics.json and latent_variable_vi.png to {args.out}")
    return metrics


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-data", type=int, default=200)
    parser.add_argument("--num-steps", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=100, help="of every measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a short run that shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/latent_variable_vi"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
