"""Students of learning by teaching that tests share, and their teacher."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_sig.adversarial import GAN, LBT
from pyro_sig.distributions import FixedMixture, Implicit, SemiImplicit
from pyro_sig.nn import MLP
from tests.adversarial.programs import PushForward

# As the paper has it; derivatives through Adam want the large eps.
ADAM = {"lr": 0.05, "betas": (0.5, 0.999), "eps": 1e-4}


class GaussianStudent:
    """A Normal law: the student whose optimum is known."""

    def __init__(self, dim=2, dtype=None):
        self.start = torch.zeros(dim, dtype=dtype)

    def __call__(self, x):
        loc = pyro.param("student_loc", self.start)
        scale = pyro.param("student_scale", self.start + 1, dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


class VAE:
    """A student with a latent, a decoder and an encoder."""

    def __init__(self, norm=False):
        layers = [nn.Linear(3, 8), nn.BatchNorm1d(8)] if norm else [nn.Linear(3, 8)]
        self.decoder = nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 2))
        self.encoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))

    def model(self, x):
        pyro.module("student_decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("student_encoder", self.encoder)
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class SemiImplicitVAE(VAE):
    """The same with a guide that is a mixture by a network on noise."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def guide(self, x):
        pyro.module("student_encoder", self.encoder)
        mixing = Implicit(
            lambda eps, rows: self.encoder(torch.cat([eps, rows], -1)),
            dist.Normal(torch.zeros(1), 1.0).to_event(1),
            event_shape=3,
            inputs=x,
        )
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                SemiImplicit(
                    mixing, lambda psi: dist.Normal(psi, 0.3).to_event(1), 5, share_draws=False
                ),
            )


class Mixture:
    """A Gaussian mixture, or with fixed weights and one width a kernel density."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.start = torch.randn(6, 2)

    def __call__(self, x):
        centres = pyro.param("centres", self.start)
        width = pyro.param("width", torch.tensor(0.5), dist.constraints.positive)
        logits = torch.zeros(6)
        if not self.kernel:
            logits = pyro.param("logits", logits)
        law = dist.MixtureSameFamily(
            dist.Categorical(logits=logits), dist.Normal(centres, width).to_event(1)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)


class SIGStudent(PushForward):
    """A semi-implicit law as the student."""

    def __call__(self, x):
        pyro.module("student_net", self.net)
        law = SemiImplicit(
            Implicit(self.net, self.noise, event_shape=2),
            lambda psi: dist.Normal(psi, 0.5).to_event(1),
            16,
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)


class ModuleStudent(PyroModule):
    """A student that is a PyroModule, with a constrained parameter and a network."""

    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Linear](2, 2)
        self.width = PyroParam(torch.tensor(0.5), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc = self.net(torch.ones(len(x), 2))
            pyro.sample("x", dist.Normal(loc, self.width).to_event(1), obs=x)


class KernelDensity:
    """A student that fits itself: the draws and a width."""

    def fit(self, x):
        law = FixedMixture(x, lambda psi: dist.Normal(psi, 0.5).to_event(1), psi_event_dim=1)

        def score(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", law, obs=x)

        return score


class Moments:
    """The same with the Normal law that has the moments of the draws."""

    def fit(self, x):
        law = dist.Normal(x.mean(0), x.std(0, correction=0)).to_event(1)

        def score(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", law, obs=x)

        return score


def vae(**options):
    student = VAE(**options)
    return student.model, student.guide


def semi_implicit_vae():
    student = SemiImplicitVAE()
    return student.model, student.guide


STUDENTS = {
    "exact": GaussianStudent,
    "VAE": vae,
    "VAE, batch statistics": lambda: vae(norm=True),
    "semi-implicit VAE": semi_implicit_vae,
    "kernel density": lambda: Mixture(kernel=True),
    "Gaussian mixture": lambda: Mixture(kernel=False),
    "SIG": SIGStudent,
    "PyroModule": ModuleStudent,
}


def make_lbt(student=None, model=None, optim=None, estimator_optim=None, **settings):
    """An LBT of a small network with a student; `gan` is the settings of a GAN."""
    model = PushForward() if model is None else model
    optim = pyro.optim.Adam({"lr": 0.05}) if optim is None else optim
    student = GaussianStudent() if student is None else student
    if estimator_optim is None and not hasattr(student, "fit"):
        estimator_optim = pyro.optim.Adam(ADAM)
    if "gan" in settings:
        critic = MLP(2, [8], 1)
        critic_optim = torch.optim.Adam(critic.parameters(), lr=0.05)
        settings["gan"] = GAN(model, critic, optim, critic_optim, **settings["gan"])
    return LBT(
        model,
        student,
        optim,
        estimator_optim,
        **settings,
    )
