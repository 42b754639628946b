"""The methods of Table 1 on the grid of Gaussians: programs, guides, and how each is trained.

Every fit takes the data's law and settings, and returns a sampler of x.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _modes import mode_std
from _schedules import conditional_std, instance_noise_std, rate_factor
from _teaching import teach
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_sig import datasets
from pyro_sig.adversarial import GAN, VEEGAN, BiGAN, linear_decay, objectives, penalties
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import no_guide, train
from pyro_sig.nn import MLP, Encoder, Joint

__all__ = ["DEFAULTS", "FIT"]

Sampler = Callable[[tuple[int]], Tensor]


# ------------------------------------------------------------------------- what the methods share


def make_generator(args: argparse.Namespace) -> tuple[MLP, dist.TorchDistribution]:
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


def annealed_batches(
    toy: datasets.Toy, args: argparse.Namespace
) -> Callable[[int], tuple[Tensor, float]]:
    """Fresh data and the conditional's std of a step."""
    steps = args.num_steps
    return lambda step: (
        toy.sample(args.batch_size),
        conditional_std(step / steps, mode_std(toy)),
    )


def fit_by_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    toy: datasets.Toy,
    args: argparse.Namespace,
    name: str,
    **options: Any,
) -> None:
    """Trains a program by plain SVI and a scheduled Adam, which gets the options."""
    optim = pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            # The loss is a sum over the batch; Adam does not see its scale.
            "optim_args": {"lr": args.learning_rate, **options},
            "lr_lambda": lambda step: rate_factor(step / args.num_steps),
        }
    )
    svi = SVI(model, guide, optim, Trace_ELBO(max_plate_nesting=1))
    train(
        svi,
        annealed_batches(toy, args),
        args.num_steps,
        progress=args.progress,
        description=name,
    )


def fit_sig(toy: datasets.Toy, args: argparse.Namespace) -> Sampler:
    """Trains SIG by plain SVI; returns a sampler of x."""
    program = SemiImplicitProgram(args)
    fit_by_svi(program, no_guide, toy, args, "SIG", betas=(0.95, 0.999))
    with torch.no_grad():
        return program.generator(mode_std(toy)).sample


# ----------------------------------------------------------------------------------- adversaries


def fit_gan_si(toy: datasets.Toy, args: argparse.Namespace) -> Sampler:
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
        annealed_batches(toy, args),
        steps,
        callbacks=[schedule],
        progress=args.progress,
        description="GAN-SI",
    )
    with torch.no_grad():
        return program.generator(mode_std(toy)).sample


def adversary(name: str, **settings: Any) -> Callable[..., Sampler]:
    """Makes the fit of a network on noise by a critic alone.

    :param name: of the method, for the progress bar.
    :param settings: what :class:`GAN` gets beside programs and optimisers; ``betas`` are those of
        both Adams.
    """
    betas = settings.pop("betas", (0.5, 0.999))

    def fit(toy: datasets.Toy, args: argparse.Namespace) -> Sampler:
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
        train(
            gan,
            lambda step: toy.sample(args.batch_size),
            args.num_steps,
            progress=args.progress,
            description=name,
        )
        with torch.no_grad():
            return Implicit(net, noise, event_shape=2).sample

    return fit


# ------------------------------------------------------------- two networks: latents and a guide


class Autoencoder:
    """The pair of VAE, VEEGAN and BiGAN: a latent behind the generator, and an encoder's guide."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.decoder, self.noise = make_generator(args)
        self.encoder = Encoder(2, [100, 100], 2, device=args.device)

    def model(self, x: Tensor, std: float) -> None:
        """Draws z, and x around the decoder of z."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.noise)
            pyro.sample("x", dist.Normal(self.decoder(z), std).to_event(1), obs=x)

    def guide(self, x: Tensor, std: float) -> None:
        """Draws z around the encoder of x."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))

    def sampler(self, std: float) -> Sampler:
        """Returns a sampler of x."""

        def sample(shape: tuple[int]) -> Tensor:
            return dist.Normal(self.decoder(self.noise.sample(shape)), std).sample()

        return sample


def fit_vae(toy: datasets.Toy, args: argparse.Namespace) -> Sampler:
    """Trains a VAE with the conditional of SIG."""
    pair = Autoencoder(args)
    # An encoder that is Normal wants a prior that has no edge.
    pair.noise = dist.Normal(torch.zeros(2, device=args.device), 1.0).to_event(1)
    fit_by_svi(pair.model, pair.guide, toy, args, "VAE")
    return pair.sampler(mode_std(toy))


def joint_game(kind: type[BiGAN], **settings: Any) -> Callable[..., Sampler]:
    """Makes the fit of generator and encoder against a critic of pairs.

    Noise is added to data and draws alike, less and less of it, over the first 60 % of the steps;
    learning rates are constant so long, then fall linearly to 0.

    :param kind: BiGAN or VEEGAN.
    :param settings: what it gets beside programs and optimisers.
    """

    def fit(toy: datasets.Toy, args: argparse.Namespace) -> Sampler:
        pair, steps = Autoencoder(args), args.num_steps
        critic = Joint(MLP(4, [100], 1, device=args.device))
        players = [*pair.decoder.parameters(), *pair.encoder.parameters()]
        optim, critic_optim = (
            torch.optim.Adam(params, lr=args.learning_rate, betas=(0.5, 0.999))
            for params in (players, critic.parameters())
        )
        game = kind(pair.model, pair.guide, critic, optim, critic_optim, ema=0.999, **settings)
        factor = linear_decay(steps, constant=0.6)
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in (optim, critic_optim)]

        def batch(step: int) -> tuple[Tensor, float]:
            x, std = toy.sample(args.batch_size), instance_noise_std(step / steps, mode_std(toy))
            return x + math.sqrt(std**2 - mode_std(toy) ** 2) * torch.randn_like(x), std

        train(
            game,
            batch,
            steps,
            callbacks=schedules,
            progress=args.progress,
            description=kind.__name__,
        )
        with game.averaged():
            pair.decoder = copy.deepcopy(pair.decoder)
        return pair.sampler(mode_std(toy))

    return fit


# --------------------------------------------------------------------------- learning by teaching


def fit_lbt(toy: datasets.Toy, args: argparse.Namespace) -> Sampler:
    """Trains the network as the teacher of a kernel density."""
    return teach_kernel(toy, args, None)


def fit_lbt_gan(toy: datasets.Toy, args: argparse.Namespace) -> Sampler:
    """The same against a critic too."""
    return teach_kernel(toy, args, MLP(2, [100], 1, device=args.device))


def teach_kernel(toy: datasets.Toy, args: argparse.Namespace, critic: MLP | None) -> Sampler:
    """Trains the network by LBT."""
    net, noise = make_generator(args)
    return teach(
        toy,
        net,
        noise,
        num_steps=args.num_steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        critic=critic,
        name="LBT" if critic is None else "LBT-GAN",
        progress=args.progress,
    )


# What a run has unless a flag says otherwise. The learning rates of adversaries are the best of
# 3e-4, 1e-3 and 3e-3 for each of them.
ADVERSARY: dict[str, Any] = {"num_steps": 12_000, "batch_size": 512, "learning_rate": 3e-3}
SIG: dict[str, Any] = {"num_steps": 24_000, "learning_rate": 0.04}
LBT: dict[str, Any] = {"num_steps": 6_000, "batch_size": 512, "learning_rate": 0.04}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gan": ADVERSARY,
    "vae": {"num_steps": 24_000, "batch_size": 512, "learning_rate": 3e-3},
    "veegan": ADVERSARY | {"num_steps": 32_000},
    "unrolled": ADVERSARY,
    "sig": SIG | {"batch_size": 256, "num_mixing": 512},
    "lbt": LBT,
    "lbt-gan": LBT,
    "bigan": ADVERSARY,
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
    "vae": fit_vae,
    "veegan": joint_game(VEEGAN, weight=0.03),
    "bigan": joint_game(BiGAN),
    "lbt": fit_lbt,
    "lbt-gan": fit_lbt_gan,
}
