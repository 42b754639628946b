"""A variational auto-encoder with a semi-implicit encoder, beside one with a Gaussian encoder.

    z ~ Normal(0, I),   x | z ~ Bernoulli(logits = decoder(z)),   static binarised MNIST

Both have the same decoder, the same number of steps and batches, and two learning rates to choose
from (by validation images). The Gaussian encoder gives z a location and a scale. The
semi-implicit one feeds noise to the layers after its trunk: given x, q(z | x) is a mixture of
Gaussians over that noise. The trunk sees each image once, the noise layers K times.

Judged is log p(x) of the 10,000 test images, estimated from below by importance sampling with
1,000 draws of each encoder, and compared image by image. By default z has two dimensions: log p(x)
is then known by quadrature too, and the picture shows all of a posterior. With ten, so short a
training shows no clear difference.

    python examples/semi_implicit_vae.py --data-dir data --out out/semi_implicit_vae

The output folder gets `metrics.json` and `semi_implicit_vae.png`. Runs and evaluations are kept
there, and training is saved on the way: what was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from _images import add_image_flags, check_device, read_images, sheet
from _kept import kept
from _resume import GradientSteps, train_resumable
from _schedules import rate_factor
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_sig.datasets import load_binarized_mnist, load_digits
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.nn import MLP, Encoder

DECODER = (200, 200)  # hidden units, in the order from z to x
TRUNK = (200, 200)  # of the semi-implicit encoder
GAUSSIAN_ENCODER = (260, 260)  # wider, so that it has the most parameters
NOISE_WIDTH, NOISE_DIM = 100, 20  # of each layer that is fed noise
SMALLEST_SCALE = 1e-4
TEST_MIXING = 50  # psi in the density of the semi-implicit encoder, where it is judged
VALIDATION_IMAGES, VALIDATION_DRAWS = 2000, 100  # to choose a learning rate by
BLOCK = 20  # images at once, where log p(x) is estimated: tensors that fit into a cache
PART = 1000  # images whose estimates are kept together
NUM_SHOWN = 40  # draws of each decoder in the picture
COLOURS = {"truth": "0.6", "q": "tab:blue"}

Program = Callable[..., Any]


@dataclass(frozen=True)
class Method:
    """What one encoder has of its own; num_mixing = 0 is the Gaussian."""

    label: str
    num_mixing: int = 0  # fresh psi in the bound
    layers: int = 2  # that are fed noise
    directions: bool = False  # whether x says along which directions noise moves the location


METHODS = {
    "gaussian": Method("Gaussian"),
    "si": Method("semi-implicit", 10),
    "si-directions": Method("semi-implicit, directions", 10, layers=1, directions=True),
    "si-k25": Method("semi-implicit, directions, K = 25", 25, layers=1, directions=True),
}


# ---------------------------------------------------------------------------------------- networks


class GaussianEncoder(nn.Module):
    """Maps an image to a Gaussian of independent coordinates."""

    def __init__(self, num_pixels: int, num_latents: int) -> None:
        super().__init__()
        self.net = Encoder(num_pixels, GAUSSIAN_ENCODER, num_latents, nn.ELU)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Returns q(z | x)."""
        return dist.Normal(*self.net(x)).to_event(1)


class SemiImplicitEncoder(nn.Module):
    """Maps an image and noise to psi, the location and scale of a Gaussian, and mixes over it."""

    def __init__(self, num_pixels: int, num_latents: int, method: Method) -> None:
        super().__init__()
        self.num_latents, self.num_mixing = num_latents, method.num_mixing
        self.layers = method.layers
        self.trunk = nn.Sequential(MLP(num_pixels, TRUNK[:-1], TRUNK[-1], nn.ELU), nn.ELU())
        self.centre = nn.Linear(TRUNK[-1], 2 * num_latents)
        # What each noisy layer knows of x, of its noise, and of the layer before.
        self.of_x = nn.Linear(TRUNK[-1], self.layers * NOISE_WIDTH)
        self.of_noise = self.linears(NOISE_DIM, self.layers)
        self.of_layer = self.linears(NOISE_WIDTH, self.layers - 1)
        self.move = nn.Linear(NOISE_WIDTH, NOISE_DIM if method.directions else num_latents)
        self.directions = (
            nn.Linear(TRUNK[-1], num_latents * NOISE_DIM) if method.directions else None
        )

    def linears(self, size: int, count: int) -> nn.ModuleList:
        """Linear maps into a layer, whose bias depends on x and is not theirs."""
        return nn.ModuleList(nn.Linear(size, NOISE_WIDTH, bias=False) for _ in range(count))

    def psi(
        self, noise: Tensor, of_x: Tensor, centre: Tensor, directions: Tensor | None = None
    ) -> Tensor:
        """Moves the location by what a small network makes of the noise, given x."""
        of_x, noise = of_x.split(NOISE_WIDTH, -1), noise.split(NOISE_DIM, -1)
        hidden = nn.functional.elu(of_x[0] + self.of_noise[0](noise[0]))
        for i in range(1, self.layers):
            hidden = self.of_layer[i - 1](hidden) + self.of_noise[i](noise[i])
            hidden = nn.functional.elu(of_x[i] + hidden)
        move = self.move(hidden)
        if (
            directions is not None
        ):  # the noise itself is added: a covariance is there from the start
            matrix = directions.unflatten(-1, (self.num_latents, NOISE_DIM)) / NOISE_DIM**0.5
            move = (matrix @ (move + noise[0]).unsqueeze(-1)).squeeze(-1)
        loc, raw_scale = centre.chunk(2, -1)
        return torch.cat([loc + move, raw_scale], -1)

    def conditional(self, psi: Tensor) -> dist.TorchDistribution:
        """The Gaussian that psi stands for."""
        loc, raw = psi.chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(raw) + SMALLEST_SCALE).to_event(1)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Returns q(z | x)."""
        features = self.trunk(x)
        noise = dist.Normal(x.new_zeros(self.layers * NOISE_DIM), 1.0).to_event(1)
        # Features go through `inputs`: each row has noise of its own, and the trunk runs once.
        inputs = [self.of_x(features), self.centre(features)]
        if self.directions is not None:
            inputs.append(self.directions(features))
        mixing = Implicit(self.psi, noise, 2 * self.num_latents, inputs)
        return SemiImplicit(mixing, self.conditional, self.num_mixing)


class VAE(nn.Module):
    """Holds encoder and decoder; its methods are the two Pyro programs."""

    pixel_means: Tensor

    def __init__(self, encoder: nn.Module, pixel_means: Tensor, num_latents: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = MLP(num_latents, DECODER, len(pixel_means), nn.ELU)
        self.num_latents = num_latents
        self.register_buffer("pixel_means", pixel_means)
        with torch.no_grad():  # begin with the mean image, which the first epochs else learn
            self.decoder.head.bias.copy_(pixel_means.clamp(0.003, 0.997).logit())

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        """Returns p(x | z)."""
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)

    def model(self, x: Tensor, particles: int = 1) -> None:
        """Latents from the prior, images from the decoder."""
        prior = dist.Normal(x.new_zeros(self.num_latents), 1.0).to_event(1)
        with pyro.plate("particles", particles, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor, particles: int = 1) -> None:
        """Latents from the encoder."""
        q = self.encoder(x - self.pixel_means)
        with pyro.plate("particles", particles, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)


def make_vae(method: Method, pixel_means: Tensor, num_latents: int) -> VAE:
    """Returns an untrained VAE."""
    sizes = (len(pixel_means), num_latents)
    encoder = SemiImplicitEncoder(*sizes, method) if method.num_mixing else GaussianEncoder(*sizes)
    return VAE(encoder, pixel_means, num_latents).to(pixel_means.device)


# ------------------------------------------------------------------------------------------- judge


@torch.no_grad()
def log_weights(vae: VAE, x: Tensor, num: int, block: int = 100) -> tuple[Tensor, Tensor]:
    r"""Returns log p(x, z) - log q(z | x) [num, N] and z [num, N, D], for draws of the guide.

    The mean of the weights has expectation p(x), also for the semi-implicit q: given all K + 1 psi,
    each is as likely to have made z as any other, so that their mixture is the density of z. All
    draws of an image in a block meet the same K fresh psi, which ties weights together but leaves
    the expectation of each.
    """
    weights: list[Any] = []
    draws: list[Any] = []
    for start in range(0, num, block):
        size = min(block, num - start)
        q = poutine.trace(vae.guide).get_trace(x, size)
        p = poutine.trace(poutine.replay(vae.model, trace=q)).get_trace(x, size)
        q.compute_log_prob()
        p.compute_log_prob()
        log_joint = p.nodes["z"]["log_prob"] + p.nodes["x"]["log_prob"]
        weights.append(log_joint - q.nodes["z"]["log_prob"])
        draws.append(q.nodes["z"]["value"])
    return torch.cat(weights), torch.cat(draws)


@torch.no_grad()
def exact_log_p(vae: VAE, x: Tensor, end: float = 6.0, spacing: float = 0.03) -> Tensor:
    """Returns log p(x) [N] of a model with two latents, by a grid that all images share."""
    found = x.new_full((len(x),), -math.inf)
    for z in grid(end, spacing, x).split(2000):
        for start in range(0, len(x), PART):
            rows = slice(start, start + PART)
            found[rows] = torch.logaddexp(found[rows], log_joint(vae, x[rows], z).logsumexp(-1))
    return (found + 2 * math.log(spacing)).cpu()


def grid(end: float, spacing: float, like: Tensor) -> Tensor:
    """Returns points of the plane."""
    axis = torch.arange(-end, end, spacing).to(like)
    return torch.cartesian_prod(axis, axis)


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Returns log p(x, z) [N, Z] of all pairs, where a pixel adds x logit - softplus(logit)."""
    logits = vae.decoder(z)
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return torch.addmm(log_prior - nn.functional.softplus(logits).sum(-1), x, logits.T)


def bounds(vae: VAE, x: Tensor, num: int) -> dict[str, Tensor]:
    """Returns two lower bounds of log p(x) of each image: ELBO, and importance-weighted."""
    found: dict[str, list[Tensor]] = {"elbo": [], "log_p": []}
    for rows in x.split(BLOCK):
        weights = log_weights(vae, rows, num)[0]
        found["elbo"].append(weights.mean(0))
        found["log_p"].append(weights.logsumexp(0) - math.log(num))
    return {name: torch.cat(parts).cpu() for name, parts in found.items()}


def exact(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    """Returns log p(x) of each image in the same form."""
    return {"exact": exact_log_p(vae, x)}


# --------------------------------------------------------------------------------------------- fit


class Images(NamedTuple):
    """Binary images, flat, as floats."""

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor


def batches(x: Tensor, size: int, seed: int) -> Callable[[int], Tensor]:
    """Returns step -> batch, in a new order each epoch that depends on nothing but the seed."""
    per_epoch = len(x) // size
    order: dict[int, Tensor] = {}

    def batch(step: int) -> Tensor:
        epoch, i = divmod(step, per_epoch)
        if epoch not in order:
            order.clear()
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            order[epoch] = torch.randperm(len(x), generator=generator).to(x.device)
        return x[order[epoch][i * size : (i + 1) * size]]

    return batch


def fit(
    name: str, rate: float, data: Images, args: argparse.Namespace
) -> tuple[VAE, dict[str, Any], dict[str, Any]]:
    """Trains a VAE, or reads it; returns it with its settings and what was kept."""
    settings = {
        "data": data.name,
        "method": str(METHODS[name]),
        "rate": rate,
        "num_latents": args.num_latents,
        "num_steps": args.num_steps,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    pyro.set_rng_seed(args.seed)
    vae = make_vae(METHODS[name], data.train.mean(0), args.num_latents)
    path = args.out / "runs" / f"{name}-{rate:g}-{args.num_latents}-{args.seed}.pt"

    def run() -> dict[str, Any]:
        optim = torch.optim.Adam(vae.parameters(), lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optim, lambda step: rate_factor(step / args.num_steps, warm_up=0.02)
        )
        elbo = Trace_ELBO(max_plate_nesting=2)

        def loss(x: Tensor) -> Tensor:
            return elbo.differentiable_loss(vae.model, vae.guide, x) / len(x)

        seconds = train_resumable(
            path.with_suffix(".checkpoints"),
            settings,
            GradientSteps(loss, {"vae": vae}, optim),
            batches(data.train, args.batch_size, args.seed),
            args.num_steps,
            schedules=[schedule],
            progress=args.progress,
            description=f"{name}, rate {rate:g}",
        )[1]
        judged = bounds(judge(vae), data.valid[:VALIDATION_IMAGES], args.validation_draws)
        return {"vae": vae.state_dict(), "seconds": seconds, **judged}

    found = kept(path, settings, run)
    vae.load_state_dict(found["vae"])
    return judge(vae), settings, found


def judge(vae: VAE) -> VAE:
    """Gives the encoder the number of psi with which all are judged."""
    if isinstance(vae.encoder, SemiImplicitEncoder):
        vae.encoder.num_mixing = TEST_MIXING
    return vae


def on_test(
    vae: VAE, run: str, settings: dict[str, Any], x: Tensor, args: argparse.Namespace
) -> dict[str, Tensor]:
    """Returns both bounds of every test image, a part at a time, each kept."""
    parts = []
    for i, rows in enumerate(x.split(PART)):
        path = args.out / "tests" / f"{run}-{i}.pt"
        of_part = settings | {"draws": args.draws, "images": len(rows)}
        pyro.set_rng_seed(1000 * args.seed + i)
        parts.append(kept(path, of_part, partial(bounds, vae, rows, args.draws)))
    return {name: torch.cat([part[name] for part in parts]) for name in ("elbo", "log_p")}


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Returns the mean over images and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


# -------------------------------------------------------------------------------------- the picture


def resample(weights: Tensor, draws: Tensor, num: int) -> Tensor:
    """Returns draws of the posterior [num, D], chosen among those of q by their weights."""
    index = torch.multinomial((weights - weights.max()).exp(), num, replacement=True)
    return draws[index]


def grid_posterior(vae: VAE, x: Tensor, num: int, spacing: float = 0.04) -> Tensor:
    """Returns draws of the posterior of each image [N, num, 2], where there are two latents."""
    z = grid(5.0, spacing, x)
    log_joints = torch.cat([log_joint(vae, x, part) for part in z.split(10_000)], -1)
    draws = torch.stack([resample(row, z, num) for row in log_joints])
    return draws + spacing * torch.rand_like(draws)


def posteriors_and_qs(vae: VAE, x: Tensor, num: int) -> list[tuple[Tensor, Tensor, float]]:
    """Returns posterior and q of each image in two dimensions, and the share of useful draws.

    The plane holds the two directions in which the posterior varies most. Each encoder is shown
    against the posterior of its own decoder, which two latents let one draw from a grid.
    """
    weights, draws = log_weights(vae, x, num)
    shares = weights.softmax(0)
    useful = 1 / shares.square().sum(0) / num
    if vae.num_latents == 2:
        truths = grid_posterior(vae, x, 2000)
    else:
        truths = torch.stack([resample(weights[:, i], draws[:, i], 2000) for i in range(len(x))])
    found = []
    for i, truth in enumerate(truths):
        centre = truth.mean(0)
        plane = torch.linalg.svd(truth - centre, full_matrices=False).Vh[:2].T
        q = (draws[:2000, i] - centre) @ plane
        found.append(((truth - centre) @ plane, q, float(useful[i])))
    return found


@torch.no_grad()
def picture(vaes: dict[str, VAE], x: Tensor, num: int, path: Path) -> None:
    """Draws, for each method, samples of its decoder, and q over the posterior of three images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    side = math.isqrt(x.shape[-1])
    figure, axes = plt.subplots(
        len(vaes),
        2 + len(x),
        figsize=(3 * (2 + len(x)), 3 * len(vaes)),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"width_ratios": [1.5, 0.5, *[1] * len(x)]},
    )
    columns = 8
    noise = torch.randn(NUM_SHOWN, next(iter(vaes.values())).num_latents).to(x.device)
    for row, (label, vae) in zip(axes, vaes.items(), strict=True):
        means = vae.likelihood(noise).mean.reshape(-1, 1, side, side)
        row[0].imshow(sheet(means, columns).squeeze(-1).cpu(), cmap="gray_r")
        row[0].set(xticks=[], yticks=[], title=label)
        row[1].imshow(x.reshape(-1, side).cpu(), cmap="gray_r")
        row[1].set(xticks=[], yticks=[], title="x")
        panels = zip(row[2:], posteriors_and_qs(vae, x, num), strict=True)
        for i, (ax, (truth, q, useful)) in enumerate(panels):
            ax.scatter(*truth.T.cpu(), s=5, color=COLOURS["truth"], linewidths=0, label="posterior")
            ax.scatter(
                *q.T.cpu(), s=2, color=COLOURS["q"], linewidths=0, alpha=0.5, label="q(z | x)"
            )
            ax.set(xticks=[], yticks=[], title=f"x {i + 1}: {useful:.1%} of draws useful")
            reach = 1.1 * float(torch.cat([truth, q]).abs().max())
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        row[2].legend(frameon=False, markerscale=3, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


# --------------------------------------------------------------------------------------------- data


def read(args: argparse.Namespace) -> Images:
    """Reads the images; a smoke test without a data folder takes scikit-learn's digits."""
    if args.smoke and args.data_dir is None:
        digits = (load_digits(device=args.device)[0].flatten(1) > 0.5).float()
        return Images("8 x 8 digits", *digits.split([1297, 250, 250]))
    names = ("train", "valid", "test")
    splits = [
        read_images(args.data_dir, "binarized_mnist", load_binarized_mnist, split=name)
        for name in names
    ]
    if args.smoke:
        splits = [images[:200] for images in splits]
    flat = [images.flatten(1).float().to(args.device) for images in splits]
    return Images("binarised MNIST", *flat)


# --------------------------------------------------------------------------------------------- main


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, chooses rates, judges, and writes metrics.json and semi_implicit_vae.png."""
    check_device(args.device)
    data = read(args)
    args.out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    vaes: dict[str, VAE] = {}
    scores: dict[str, dict[str, Tensor]] = {}
    for name in args.methods:
        label = METHODS[name].label
        tried = {rate: fit(name, rate, data, args) for rate in args.rates}
        valid = {rate: -float(found["log_p"].mean()) for rate, (_, _, found) in tried.items()}
        rate = min(valid, key=lambda rate: valid[rate])
        vae, settings, found = tried[rate]
        run = f"{name}-{rate:g}-{args.num_latents}-{args.seed}"
        vaes[label], scores[name] = vae, on_test(vae, run, settings, data.test, args)
        metrics[name] = {
            "label": label,
            "rate": rate,
            "valid_nll": valid,
            "seconds": found["seconds"],
            "encoder_parameters": sum(p.numel() for p in vae.encoder.parameters()),
            "decoder_parameters": sum(p.numel() for p in vae.decoder.parameters()),
            "elbo": mean_and_error(scores[name]["elbo"]),
            "nll": mean_and_error(-scores[name]["log_p"]),
        }
        if args.num_latents == 2:
            scores[name]["exact"] = kept(
                args.out / "tests" / f"{run}-exact.pt",
                settings | {"images": len(data.test)},
                partial(exact, vae, data.test),
            )["exact"]
            metrics[name]["exact_nll"] = mean_and_error(-scores[name]["exact"])
        first = scores[args.methods[0]]
        for quantity in scores[name]:
            key = f"{quantity}_gain"
            metrics[name][key] = mean_and_error(scores[name][quantity] - first[quantity])
    print_table(metrics, len(data.test), args)
    # From images where the first encoder loses little to those where it loses much.
    first = scores[args.methods[0]]
    looseness = first["log_p"] - first["elbo"]
    ranks = torch.tensor([0.3, 0.6, 0.9]) * (len(looseness) - 1)
    shown = looseness.argsort()[ranks.long()]
    both = dict(list(vaes.items())[:2])
    pyro.set_rng_seed(args.seed)
    picture(both, data.test[shown], 20 * args.draws, args.out / "semi_implicit_vae.png")
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"wrote metrics.json and semi_implicit_vae.png to {args.out}")
    return metrics


def print_table(metrics: dict[str, Any], num_images: int, args: argparse.Namespace) -> None:
    """Prints a line for each method."""
    print(
        f"\n{num_images} test images, {args.num_latents} latents, {args.num_steps} steps of "
        f"{args.batch_size} images; NLL with {args.draws} draws, gain over the first, in nats (SE)"
    )
    decoder = next(iter(metrics.values()))["decoder_parameters"]
    print(f"decoder of {decoder} parameters, {DECODER[0]} and {DECODER[1]} hidden units")
    header = f"{'rate':>7}{'encoder':>9}{'seconds':>9}{'ELBO':>10}{'NLL':>16}{'gain':>16}"
    print(f"{'':38}{header}")
    for row in metrics.values():
        nll, gain = row["nll"], row["log_p_gain"]
        print(
            f"{row['label']:38}{row['rate']:>7g}{row['encoder_parameters']:>9}"
            f"{row['seconds']:>9.0f}{row['elbo'][0]:>10.2f}"
            f"{nll[0]:>9.2f} ({nll[1]:.2f}){gain[0]:>8.3f} ({gain[1]:.3f})"
        )
    if args.num_latents == 2:
        print("the same by quadrature, free of the encoder")
        for row in metrics.values():
            (nll, se), (gain, gain_se) = row["exact_nll"], row["exact_gain"]
            print(f"{row['label']:73}{nll:>9.2f} ({se:.2f}){gain:>8.3f} ({gain_se:.3f})")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", default="gaussian,si-k25", help="all, or a comma list of " + ", ".join(METHODS)
    )
    parser.add_argument("--rates", default="1e-3,3e-3", help="comma list of learning rates")
    parser.add_argument("--num-latents", type=int, default=2)
    parser.add_argument("--num-steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000, help="of z, for log p(x)")
    add_image_flags(parser, "out/semi_implicit_vae")
    args = parser.parse_args(argv)
    args.methods = list(METHODS) if args.methods == "all" else args.methods.split(",")
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        parser.error(f"--methods must be among {', '.join(METHODS)}, was with {unknown}")
    args.rates = [float(rate) for rate in args.rates.split(",")]
    args.validation_draws = VALIDATION_DRAWS
    if args.smoke:
        args.num_steps, args.draws, args.validation_draws, args.rates = 60, 50, 20, [1e-3]
    return args


if __name__ == "__main__":
    with pyro.validation_enabled(False):  # the same checks in every step
        main(parse())
