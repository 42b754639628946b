"""One step of every trainer over that of a plain GAN."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_sig.adversarial import AVB, GAN, LBT, VEEGAN, BiGAN, CycleGAN, objectives, penalties
from pyro_sig.distributions import FixedMixture, Implicit
from pyro_sig.infer import SIG_ELBO, no_guide
from pyro_sig.nn import MLP, Encoder, Joint
from tests.bench.measure import alternate, table

HIDDEN = [128, 128]
BATCH_SIZE = 256
NUM_MIXING = 512
STD = 0.2


def adam(*modules, **options):
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=1e-4, **options)


class Programs:
    """A model with a latent, the same as one implicit site, and guides; networks of its own."""

    def __init__(self, name):
        self.name = name
        self.noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        self.decoder, self.encoder = MLP(2, HIDDEN, 2), Encoder(2, HIDDEN, 2)
        self.noisy_encoder = MLP(4, HIDDEN, 2)

    def model(self, x):
        pyro.module(f"{self.name}, decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.noise)
            pyro.sample("x", dist.Normal(self.decoder(z), STD).to_event(1), obs=x)

    def implicit(self, x):
        pyro.module(f"{self.name}, decoder", self.decoder)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(self.decoder, self.noise, event_shape=2))
            pyro.sample("x", dist.Normal(psi, STD).to_event(1), obs=x)

    def draws(self, x):
        pyro.module(f"{self.name}, encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))

    def computes(self, x):
        pyro.module(f"{self.name}, encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.encoder(x)[0], event_dim=1))

    def draws_implicitly(self, x):
        pyro.module(f"{self.name}, encoder", self.noisy_encoder)
        law = Implicit(lambda eps, x: self.noisy_encoder(torch.cat([eps, x], -1)), self.noise, 2, x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", law)


class KernelDensity:
    """The student of LBT that fits itself."""

    def fit(self, x):
        law = FixedMixture(x, lambda psi: dist.Normal(psi, STD).to_event(1), psi_event_dim=1)

        def score(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", law, obs=x)

        return score


def gan(name, implicit=False, **settings):
    programs, critic = Programs(name), MLP(2, HIDDEN, 1)
    model = programs.implicit if implicit else programs.model
    return GAN(model, critic, adam(programs.decoder), adam(critic), **settings)


def sig_term():
    return SIG_ELBO(NUM_MIXING, max_plate_nesting=1)


def svi(name, sig=False):
    programs, optim = Programs(name), pyro.optim.Adam({"lr": 1e-4})
    if sig:
        return SVI(programs.implicit, no_guide, optim, sig_term())
    return SVI(programs.model, programs.draws, optim, Trace_ELBO(max_plate_nesting=1))


def joint(kind, name, guide):
    programs, critic = Programs(name), Joint(MLP(4, HIDDEN, 1))
    players = [programs.decoder, programs.encoder]
    if guide == "draws_implicitly":
        players[1] = programs.noisy_encoder
    return kind(programs.model, getattr(programs, guide), critic, adam(*players), adam(critic))


def cyclegan():
    forward, backward = MLP(2, HIDDEN, 2), MLP(2, HIDDEN, 2)
    critics = MLP(2, HIDDEN, 1), MLP(2, HIDDEN, 1)
    return CycleGAN(forward, backward, *critics, adam(forward, backward), adam(*critics))


def lbt(name, adversarial=False, fits=False):
    teacher, student = Programs(name), Programs(f"{name}, student")
    optim, against = adam(teacher.decoder), None
    if adversarial:
        critic = MLP(2, HIDDEN, 1)
        against = GAN(teacher.model, critic, optim, adam(critic))
    if fits:
        return LBT(teacher.model, KernelDensity(), optim, gan=against)
    student_optim = adam(student.decoder, student.encoder, betas=(0.5, 0.999), eps=1e-4)
    pair = student.model, student.draws
    return LBT(teacher.model, pair, optim, student_optim, gan=against)


@pyro.validation_enabled(False)
def run(repeats: int) -> dict[str, dict[str, float]]:
    """Times the steps, prints them, and returns their ratios."""
    pyro.clear_param_store()
    pair_penalties = [penalties.R1(0.1), penalties.R2(0.1)]
    wasserstein = {
        "objective": objectives.Wasserstein(),
        "penalties": penalties.GradientPenalty(0.1),
        "critic_steps": 5,
    }
    trainers = {
        "GAN": gan("gan"),
        "GAN, R1": gan("r1", penalties=penalties.R1(0.1)),
        "GAN, relativistic, R1 and R2": gan(
            "rp", objective=objectives.Relativistic(), penalties=pair_penalties
        ),
        "WGAN-GP, 5 critic steps": gan("wgan", **wasserstein),
        "GAN, unrolled by 5": gan("unrolled", unroll=5),
        "SVI": svi("svi"),
        "SIG, M = 512": svi("sig", sig=True),
        "GAN-SI, M = 512": gan("si", implicit=True, elbo=sig_term(), elbo_weight=1.0),
        "GAN-SI, balance": gan("balance", implicit=True, elbo=sig_term(), elbo_weight="balance"),
        "BiGAN": joint(BiGAN, "bigan", "computes"),
        "ALI": joint(BiGAN, "ali", "draws"),
        "VEEGAN": joint(VEEGAN, "veegan", "computes"),
        "AVB": joint(AVB, "avb", "draws_implicitly"),
        "LBT": lbt("lbt"),
        "LBT-GAN": lbt("lbt-gan", adversarial=True),
        "LBT, student fits itself": lbt("fit", fits=True),
    }
    x, y = torch.randn(2, BATCH_SIZE, 2)
    steps = {name: partial(trainer.step, x) for name, trainer in trainers.items()}
    two_domains = cyclegan()
    steps["CycleGAN"] = partial(two_domains.step, x, y)
    times = alternate(steps, repeats)
    rows = [
        (name, f"{seconds * 1e3:.2f} ms", f"{seconds / times['GAN']:.1f} x the GAN")
        for name, seconds in times.items()
    ]
    table(f"step of every trainer, two layers of 128, batch {BATCH_SIZE}", rows)
    return {"trainers_over_gan": {name: s / times["GAN"] for name, s in times.items()}}
