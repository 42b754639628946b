"""One program and one guide go through every loss and trainer of the library."""

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    ELBO,
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn
from torch.distributions import constraints

import pyro_sig.infer
from pyro_sig.adversarial import GAN, Balance, ObservedView, PsiView, objectives, penalties
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, train

ROWS, NOISE_DIM, DIM = 16, 3, 2


class Program:
    """A latent z through a decoder, an observed x in a plate, an amortised guide of z."""

    def __init__(self):
        self.decoder = nn.Sequential(nn.Linear(NOISE_DIM, 8), nn.Tanh(), nn.Linear(8, DIM))
        self.encoder = nn.Sequential(
            nn.Linear(1 + DIM, 8), nn.Tanh(), nn.Linear(8, 2 * NOISE_DIM)
        )
        self.critic = nn.Sequential(
            # No last bias: an objective of differences of scores would not train it.
            nn.Linear(DIM, 8), nn.Softplus(), nn.Linear(8, 1, bias=False)
        )
        self.noise = dist.Normal(torch.zeros(NOISE_DIM), 1.0).to_event(1)
        self.x = torch.randn(ROWS, DIM) + torch.tensor([1.0, -1.0])

    def emit(self, psi, x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        return pyro.sample("x", dist.Normal(psi, scale).to_event(1), obs=x)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            return self.emit(self.decoder(pyro.sample("z", self.noise)), x)

    def guide_free(self, x):
        """The same law of x: the noise and the decoder are one site without a density."""
        pyro.module("decoder", self.decoder)
        psi = Implicit(self.decoder, self.noise, event_shape=DIM)
        with pyro.plate("data", len(x)):
            return self.emit(pyro.sample("psi", psi), x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        mixing = Implicit(
            lambda eps, rows: self.encoder(torch.cat([eps, rows], -1)),
            dist.Normal(torch.zeros(1), 1.0).to_event(1),
            event_shape=2 * NOISE_DIM,
            inputs=x,
        )

        def conditional(psi):
            loc, raw = psi.chunk(2, -1)
            return dist.Normal(loc, nn.functional.softplus(raw) + 0.1).to_event(1)

        with pyro.plate("data", len(x)):
            pyro.sample("z", SemiImplicit(mixing, conditional, 5, share_draws=False))

    def parameters(self):
        """All parameters by their part of the program."""
        scale = pyro.get_param_store()._params.get("scale")
        return {
            "model": [*self.decoder.parameters(), *([] if scale is None else [scale])],
            "guide": list(self.encoder.parameters()),
            "critic": list(self.critic.parameters()),
        }

    def gan(self, model=None, optim=None, **options):
        optim = pyro.optim.Adam({"lr": 1e-2}) if optim is None else optim
        critic_optim = torch.optim.Adam(self.critic.parameters(), lr=1e-2, betas=(0.5, 0.9))
        return GAN(model or self.model, self.critic, optim, critic_optim, **options)


@pytest.fixture
def program():
    return Program()


def contract(program, inference, trains):
    """Checks a loss or a trainer, and which parts of the program train.

    :param inference: anything with ``step`` and ``evaluate_loss``.
    :param trains: names of parts; the others must not move.
    """
    x = program.x
    first = inference.step(x)  # the parameter store is filled by it
    before = {k: [p.detach().clone() for p in ps] for k, ps in program.parameters().items()}
    check_losses(first)
    check_losses(inference.step(x))
    after = program.parameters()
    for part, values in before.items():
        for old, new in zip(values, after[part], strict=True):
            assert new.isfinite().all()
            assert torch.equal(old, new) != (part in trains), part

    before = {k: [p.detach().clone() for p in ps] for k, ps in program.parameters().items()}
    losses = inference.evaluate_loss(x)
    check_losses(losses)
    assert type(losses) is type(first)
    for part, values in before.items():
        assert all(map(torch.equal, values, program.parameters()[part]))

    # The loop looks for networks that take part without training.
    history = train(inference, x, 2, progress=False)
    assert history.num_steps == 2
    number = len(first) if isinstance(first, tuple) else 1
    assert len(history) == number


def check_losses(losses):
    # A plain tuple: SVI and its callers break subclasses.
    assert type(losses) in (float, tuple)
    for loss in losses if isinstance(losses, tuple) else (losses,):
        assert type(loss) is float and math.isfinite(loss)


def required(cls, values):
    """Gives a class the arguments that it cannot do without."""
    parameters = inspect.signature(cls).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    lacking = [p.name for p in parameters if p.default is p.empty and p.kind in kinds]
    return {name: values.get(name, 1.0) for name in lacking}


# ---------------------------------------------------------------------------- evidence bounds: SVI

PYRO_ELBOS = {
    "Trace_ELBO": Trace_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "RenyiELBO": lambda **options: RenyiELBO(alpha=0, **options),
}
OWN_ELBOS = {
    name: getattr(pyro_sig.infer, name)
    for name in pyro_sig.infer.__all__
    if inspect.isclass(getattr(pyro_sig.infer, name))
    and issubclass(getattr(pyro_sig.infer, name), ELBO)
    and name != "SIG_ELBO"
}
# What the amortised guide does not suit, and what is said about it.
REFUSED = {
    "AISIVI": "must have rows of one law.*amortised guide",
    "DIVI": "must have rows of one law.*amortised guide",
    "PVI": "ParticleMixing",
}


def own_elbo(name, **options):
    cls = OWN_ELBOS[name]
    return cls(**required(cls, {}), num_particles=4, **options)


def svi(program, model, guide, elbo):
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)


@pytest.mark.parametrize("name", PYRO_ELBOS)
def test_bounds_of_pyro(program, name):
    elbo = PYRO_ELBOS[name](num_particles=2)
    contract(program, svi(program, program.model, program.guide, elbo), {"model", "guide"})


@pytest.mark.parametrize("name", [name for name in OWN_ELBOS if name not in REFUSED])
def test_semi_implicit_objectives(program, name):
    contract(
        program, svi(program, program.model, program.guide, own_elbo(name)), {"model", "guide"}
    )


@pytest.mark.parametrize("name", REFUSED)
def test_objectives_that_this_guide_does_not_suit_say_so(program, name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        svi(program, program.model, program.guide, own_elbo(name)).step(program.x)


def test_sig(program):
    inference = svi(program, program.guide_free, lambda x: None, SIG_ELBO(num_mixing=8))
    contract(program, inference, {"model"})


def test_a_bound_of_psi_refuses_a_guide_of_psi(program):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("psi", dist.Normal(x, 1.0).to_event(1))

    with pytest.raises(ValueError, match="psi"):
        svi(program, program.guide_free, guide, SIG_ELBO(num_mixing=8)).step(program.x)


def test_an_implicit_site_refuses_the_evidence_bound(program):
    with pytest.raises(Exception, match="psi"):
        svi(program, program.guide_free, lambda x: None, Trace_ELBO()).step(program.x)


# --------------------------------------------------------------------------------- adversaries: GAN

FAMILIES = {"alpha": {"alpha": 0.5}, "jensen_shannon_weighted": {"pi": 0.3}}
DIVERGENCES = {
    f"FDivergence {name}{' heuristic' if heuristic else ''}": objectives.FDivergence(
        name, **FAMILIES.get(name, {}), heuristic=heuristic
    )
    for name in objectives.FDivergence.names()
    for heuristic in (False, True)
}
OBJECTIVES = DIVERGENCES | {
    name: getattr(objectives, name)(**required(getattr(objectives, name), {}))
    for name in objectives.__all__
    if name not in ("FDivergence", "Objective")
}
PENALTIES = {
    name: getattr(penalties, name)(**required(getattr(penalties, name), {}))
    for name in penalties.__all__
    if inspect.isclass(getattr(penalties, name)) and name != "Penalty"
}
LIPSCHITZ = penalties.GradientPenalty()


def suited(objective):
    """Every penalty goes with every objective, but Wasserstein warns without one."""
    return [LIPSCHITZ] if objective.needs_lipschitz else []


@pytest.mark.parametrize("guide_free", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_adversarial_objectives(program, name, guide_free):
    objective = OBJECTIVES[name]
    model = program.guide_free if guide_free else program.model
    gan = program.gan(model, objective=objective, penalties=suited(objective))
    contract(program, gan, {"model", "critic"})


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(program, name):
    gan = program.gan(objective=objectives.Wasserstein(), penalties=[PENALTIES[name], LIPSCHITZ])
    contract(program, gan, {"model", "critic"})


def test_spectral_norm(program):
    penalties.spectral_norm(program.critic)
    contract(program, program.gan(objective=objectives.Hinge()), {"model", "critic"})


@pytest.mark.parametrize("name", ["Minimax", "NonSaturating", "Relativistic", "Wasserstein"])
def test_unrolling(program, name):
    objective = OBJECTIVES[name]
    gan = program.gan(objective=objective, penalties=suited(objective), unroll=2)
    contract(program, gan, {"model", "critic"})


def test_wgan_gp(program):
    gan = program.gan(
        objective=objectives.Wasserstein(), penalties=penalties.GradientPenalty(), critic_steps=3
    )
    contract(program, gan, {"model", "critic"})


OPTIONS = {
    "ema": {"ema": 0.9},
    "bfloat16": {"autocast": torch.bfloat16},
    "view": {"view": ObservedView()},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(program, name):
    contract(program, program.gan(**OPTIONS[name]), {"model", "critic"})


# ------------------------------------------------------------------------ both: the bound and critic

WEIGHTS = {
    "number": 0.1,
    "schedule": lambda step: 1.0 / (1 + step),
    "balance": "balance",
    "other balance": Balance(ratio=2.0, decay=0.5),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_vae_gan(program, name):
    gan = program.gan(elbo=Trace_ELBO(), guide=program.guide, elbo_weight=WEIGHTS[name])
    contract(program, gan, {"model", "guide", "critic"})


@pytest.mark.parametrize("name", [*PYRO_ELBOS, *(n for n in OWN_ELBOS if n not in REFUSED)])
def test_any_bound_beside_the_critic(program, name):
    elbo = PYRO_ELBOS[name](num_particles=2) if name in PYRO_ELBOS else own_elbo(name)
    gan = program.gan(elbo=elbo, guide=program.guide, elbo_weight=0.1)
    contract(program, gan, {"model", "guide", "critic"})


@pytest.mark.parametrize("options", [{}, {"unroll": 1}, {"critic_steps": 2}], ids=str)
@pytest.mark.parametrize("view", [None, ObservedView(), PsiView("psi")], ids=repr)
@pytest.mark.parametrize("name", WEIGHTS)
def test_gan_si(program, name, view, options):
    gan = program.gan(
        program.guide_free,
        elbo=SIG_ELBO(num_mixing=ROWS),
        elbo_weight=WEIGHTS[name],
        view=view,
        **options,
    )
    contract(program, gan, {"model", "critic"})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_adversarial_objectives_beside_sig(program, name):
    objective = OBJECTIVES[name]
    gan = program.gan(
        program.guide_free,
        objective=objective,
        penalties=suited(objective),
        elbo=SIG_ELBO(num_mixing=ROWS),
        elbo_weight=0.1,
    )
    contract(program, gan, {"model", "critic"})


def test_the_bound_alone_is_svi(program):
    """An infinite weight leaves the critic out of the program's gradient."""
    gan = program.gan(program.guide_free, elbo=SIG_ELBO(num_mixing=ROWS), elbo_weight=math.inf)
    contract(program, gan, {"model", "critic"})
