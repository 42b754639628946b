"""A network on noise that learns by teaching: its students, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from _schedules import conditional_std, rate_factor
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_sig import datasets
from pyro_sig.adversarial import GAN, LBT
from pyro_sig.distributions import FixedMixture, Implicit
from pyro_sig.infer import train
from pyro_sig.nn import MLP, Encoder

__all__ = ["KernelStudent", "VAEStudent", "teach"]


class KernelStudent:
    """A kernel density: the draws themselves, and a width. It has nothing to train."""

    optim = None

    def fit(self, x: Tensor, width: float) -> Callable[..., None]:
        """Returns the density of draws x, as a program."""
        law = FixedMixture(x, lambda psi: dist.Normal(psi, width).to_event(1), psi_event_dim=1)

        def score(x: Tensor, width: float) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", law, obs=x)

        return score

    @property
    def estimator(self) -> KernelStudent:
        """What LBT takes."""
        return self


class VAEStudent:
    """A VAE, the student of the paper.

    :param int latent_dim: size of its latent.
    :param hidden: sizes of the hidden layers.
    :param float learning_rate: of its Adam.
    """

    def __init__(
        self, latent_dim: int, hidden: list[int], learning_rate: float, device: str
    ) -> None:
        self.decoder = MLP(latent_dim, hidden, 2, nn.Tanh, device=device)
        self.encoder = Encoder(2, hidden, latent_dim, nn.Tanh, device=device)
        self.noise = dist.Normal(torch.zeros(latent_dim, device=device), 1.0).to_event(1)
        params = [*self.decoder.parameters(), *self.encoder.parameters()]
        self.optim = torch.optim.Adam(params, lr=learning_rate, betas=(0.5, 0.999), eps=1e-4)
        self.estimator = (self.model, self.guide)

    def model(self, x: Tensor, width: float) -> None:
        """Draws x around the decoder of z."""
        pyro.module("student_decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.noise)
            pyro.sample("x", dist.Normal(self.decoder(z), width).to_event(1), obs=x)

    def guide(self, x: Tensor, width: float) -> None:
        """Draws z around the encoder of x."""
        pyro.module("student_encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


def teach(
    toy: datasets.Toy,
    net: nn.Module,
    noise: dist.Distribution,
    student: KernelStudent | VAEStudent,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    unit: float = 1.0,
    critic: nn.Module | None = None,
    critic_rate: float = 1e-3,
    gan_weight: float = 0.1,
    commits: int = 1,
    name: str = "LBT",
) -> Callable[[tuple[int]], Tensor]:
    """Trains a network on noise by LBT, or LBT-GAN; returns a sampler of x.

    :param toy: the data's law.
    :param net: the teacher's network.
    :param noise: its noise.
    :param student: one of the two.
    :param unit: the scale of the data; the student's width falls from there to that of a mode.
    :param critic: for LBT-GAN.
    """
    law = Implicit(lambda eps: unit * net(eps), noise, event_shape=2)

    def teacher(x: Tensor, width: float) -> None:
        pyro.module("generator", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    def batch(step: int) -> tuple[Tensor, float]:
        width = unit * conditional_std(step / num_steps, toy.mode_std / unit)
        return toy.sample(batch_size), width

    optim = torch.optim.Adam(net.parameters(), lr=learning_rate, betas=(0.95, 0.999))
    gan = None
    if critic is not None:
        critic_optim = torch.optim.Adam(critic.parameters(), lr=critic_rate, betas=(0.5, 0.999))
        gan = GAN(teacher, critic, optim, critic_optim)
    lbt = LBT(
        teacher,
        student.estimator,
        optim,
        student.optim,
        commits=commits,
        elbo=Trace_ELBO(max_plate_nesting=1),
        gan=gan,
        gan_weight=gan_weight,
        clip_norm=5.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: rate_factor(step / num_steps))
    train(lbt, batch, num_steps, callbacks=[schedule], description=name)
    with torch.no_grad():
        return law.sample
