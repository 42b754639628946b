"""One adversarial step: this library, and the loop that one writes by hand."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch.nn.functional import softplus

from pyro_sig import datasets
from pyro_sig.adversarial import GAN, objectives, penalties
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.nn import MLP, DCGANCritic, DCGANGenerator
from tests.bench.measure import alternate, table

BETAS = (0.5, 0.999)
STD = 0.2


class Toy:
    """The 100-unit networks of the SIG paper's grid."""

    batch_size, num_mixing, noise_dim, event_shape = 512, 256, 2, (2,)
    rate = 1e-3

    def networks(self):
        return MLP(2, [100, 100], 2), MLP(2, [100], 1)

    def data(self):
        return datasets.grid_of_gaussians().sample(self.batch_size)


class Images:
    """The DCGAN pair on 32 x 32 colour images."""

    batch_size, noise_dim, event_shape = 64, 100, (3, 32, 32)
    rate = 2e-4

    def networks(self):
        return DCGANGenerator(100, 3, 32), DCGANCritic(3, 32)

    def data(self):
        return torch.randn(self.batch_size, *self.event_shape)


def optimizers(case, net, critic):
    return [torch.optim.Adam(m.parameters(), lr=case.rate, betas=BETAS) for m in (net, critic)]


def by_hand(case):
    """Alternating updates on one set of draws, without this library and without Pyro."""
    net, critic = case.networks()
    optim, critic_optim = optimizers(case, net, critic)
    x = case.data()
    params = list(net.parameters())

    def step():
        fake = net(torch.randn(case.batch_size, case.noise_dim))
        critic_optim.zero_grad()
        critic_loss = softplus(-critic(x)).mean() + softplus(critic(fake.detach())).mean()
        critic_loss.backward()
        critic_optim.step()
        optim.zero_grad()
        loss = softplus(-critic(fake)).mean()
        loss.backward(inputs=params)  # without the gradients of the critic's weights
        optim.step()
        return critic_loss.item(), loss.item()

    return step


def gan(case, name, semi_implicit=False, **settings):
    """The same by this library; with ``semi_implicit`` the GAN-SI."""
    net, critic = case.networks()
    optim, critic_optim = optimizers(case, net, critic)
    x = case.data()
    noise = dist.Normal(torch.zeros(case.noise_dim), 1.0).to_event(1)

    def model(x):
        pyro.module(f"{type(case).__name__}, {name}", net)
        law = Implicit(net, noise, case.event_shape)
        if semi_implicit:
            law = SemiImplicit(law, lambda psi: dist.Normal(psi, STD).to_event(1), case.num_mixing)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    if semi_implicit:
        settings["elbo"] = Trace_ELBO(max_plate_nesting=1)
    trainer = GAN(model, critic, optim, critic_optim, **settings)
    return lambda: trainer.step(x)


@pyro.validation_enabled(False)  # as in examples/grid.py
def run(repeats: int) -> dict[str, dict[str, float]]:
    """Times the steps, prints them, and returns their ratios."""
    toy, images = Toy(), Images()
    results: dict[str, dict[str, float]] = {}
    pyro.clear_param_store()
    times = alternate(
        {
            "by hand": by_hand(toy),
            "GAN": gan(toy, "gan"),
            "GAN-SI": gan(toy, "gan-si", semi_implicit=True, elbo_weight=1.0),
            "WGAN-GP, 1 critic step": gan(
                toy,
                "wgan-gp",
                objective=objectives.Wasserstein(),
                penalties=penalties.GradientPenalty(0.1),
            ),
            "relativistic, R1 and R2": gan(
                toy,
                "rpgan",
                objective=objectives.Relativistic(),
                penalties=[penalties.R1(0.1), penalties.R2(0.1)],
            ),
            "Unrolled, K = 5": gan(toy, "unrolled", unroll=5, objective=objectives.Minimax()),
        },
        repeats,
    )
    results |= _print("GAN step, 100-unit networks, batch 512, M = 256", times, "toy")
    times = alternate({"by hand": by_hand(images), "GAN": gan(images, "gan")}, repeats)
    results |= _print("GAN step, DCGAN pair, 3 x 32 x 32, batch 64", times, "dcgan")
    return results


def _print(title: str, times: dict[str, float], key: str) -> dict[str, float]:
    rows = [
        (name, f"{seconds * 1e3:.2f} ms", f"{seconds / times['by hand']:.2f} x by hand")
        for name, seconds in times.items()
    ]
    table(title, rows)
    ratios = {f"{key}_gan_over_hand": times["GAN"] / times["by hand"]}
    names = {
        "GAN-SI": "gan_si",
        "GAN-SI, SIG every other step": "gan_si_2",
        "Unrolled, K = 5": "unrolled",
    }
    for name, short in names.items():
        if name in times:
            ratios[f"{key}_{short}_over_gan"] = times[name] / times["GAN"]
    return ratios
