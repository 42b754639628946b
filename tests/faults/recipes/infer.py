"""Valid calls of `pyro_sig.infer`."""

import math
import os
import tempfile

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_sig.distributions import Implicit, ParticleMixing, SemiImplicit
from pyro_sig.infer import (
    AISIVI,
    DIVI,
    KSIVI,
    PVI,
    SIG_ELBO,
    SIVISM,
    UIVI,
    AutoLocalSemiImplicit,
    AutoSemiImplicit,
    DenoisingScore,
    History,
    HMCScore,
    ImportanceScore,
    MixtureScore,
    PathGradient_ELBO,
    ScoreEstimator,
    find_scale,
    fit,
    gradient_noise,
    mixing_gap,
    no_guide,
    train,
)
from tests.faults.recipes import Recipe


def data():
    return torch.linspace(-1.0, 1.0, 10).reshape(5, 2)


def rows(x):
    """A program measures its data before the library meets them, and Pyro wants rows in a plate."""
    if not isinstance(x, torch.Tensor) or not x.dim() or not len(x):
        raise ValueError("`x` must be a tensor with rows")


def generator(x=None):
    """A program with one implicit site."""
    rows(x)
    loc = pyro.param("loc", torch.zeros(2))
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pyro.plate("data", len(x)):
        psi = pyro.sample("psi", Implicit(lambda e: loc + e, noise, event_shape=2))
        pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)


def coefficients(x):
    """A program whose rows share a latent, scored by Pyro alone."""
    rows(x)
    if not x.is_floating_point() or x.is_meta:
        raise ValueError("`x` must be real numbers in memory")
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def latent():
    """A program with a latent alone, which may be run for several particles at once."""
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def semi_implicit():
    """A guide of that program."""
    shift = pyro.param("shift", torch.zeros(2))
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    mixing = Implicit(lambda e: shift + e, noise, event_shape=2)
    law = SemiImplicit(mixing, lambda psi: dist.Normal(psi, scale).to_event(1), 4)
    pyro.sample("z", law)


def adam():
    return pyro.optim.Adam({"lr": 1e-3})


def step_of_sig(x, **settings):
    svi = SVI(generator, no_guide, adam(), SIG_ELBO(**settings))
    return svi.step(x)


def posterior_of_sig(x, **settings):
    elbo = SIG_ELBO(**settings)
    return elbo.psi_posterior(generator, no_guide, x)["psi"].mean


def step(elbo, **_):
    """Takes two steps, of which the second meets what the first has made."""
    svi = SVI(latent, semi_implicit, adam(), elbo)
    svi.step()
    return svi.step()


def step_of_score(score, **_):
    return step(PathGradient_ELBO(score, num_particles=4))


def step_of_particles(elbo, **_):
    particles = torch.randn(6, 2).requires_grad_()

    def guide():
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        mixing = ParticleMixing(particles)
        pyro.sample("z", SemiImplicit(mixing, lambda psi: dist.Normal(psi, scale).to_event(1), 6))

    svi = SVI(latent, guide, adam(), elbo)
    svi.step()
    return svi.step()


def step_of_guide(guide, **_):
    svi = SVI(coefficients, guide, adam(), Trace_ELBO())
    svi.step(data())
    guide.median(data())
    return svi.step(data())


def step_of_local_guide(guide, **_):
    svi = SVI(local_model, guide, adam(), Trace_ELBO())
    svi.step(data())
    return svi.step(data())


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def is_float(loss, **_):
    assert isinstance(loss, float), loss


def is_finite(loss, x, **_):
    is_float(loss)
    assert math.isfinite(loss) or not x.isfinite().all(), loss


def particles(number=4):
    return {"num_particles": number, "vectorize_particles": True, "max_plate_nesting": 0}


def run(inference, batches, num_steps, **options):
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:  # a checkpoint may go anywhere
        os.chdir(folder)
        try:
            return train(inference, batches, num_steps, **options)
        finally:
            os.chdir(before)


def has_steps(history, num_steps, **_):
    assert history.num_steps <= num_steps
    assert all(len(losses) == history.num_steps for losses in history.values())


def svi_of_sig():
    svi = SVI(generator, no_guide, adam(), SIG_ELBO(4))
    svi.step(data())
    return svi


def gap(svi, x, factor):
    return mixing_gap(svi, x, factor=factor)


def noise_of(loss_fn, parameters, num_repeats, exact):
    return gradient_noise(loss_fn, parameters, num_repeats, exact)


def weights():
    w = torch.ones(3, requires_grad=True)
    return {
        "loss_fn": lambda: (w * torch.randn(3)).sum(),
        "parameters": [w],
        "num_repeats": 4,
        "exact": [torch.ones(3)],
    }


def history_of(losses):
    history = History()
    history.append({"loss": 1.0})
    history.append(losses)
    repr(history)
    copy = History()
    copy.load_state_dict(history.state_dict())
    return copy


def same_length(history, **_):
    assert history.num_steps == 2
    assert all(len(losses) == 2 for losses in history.values())


def finds(result, init_loc, **_):
    loc, tril, _ = result
    assert loc.shape == init_loc.shape[-1:]
    assert tril.shape == 2 * init_loc.shape[-1:]


def short_fit(model, x, **options):
    return fit(model, x, **options)


class FirstOfMixture(ScoreEstimator):
    """A score by the base class' words: the draw's own component."""

    def __call__(self, draw, train):
        return draw.conditional_score.detach()


RECIPES: dict[str, Recipe] = {
    "infer.SIG_ELBO": Recipe(
        step_of_sig,
        lambda: {
            "x": data(),
            "num_mixing": 8,
            "chunk_size": None,
            "backward": "exact",
            "mixing_group": None,
            "num_particles": 2,
            "max_plate_nesting": 1,
            "vectorize_particles": False,
        },
        check=is_finite,
    ),
    "infer.SIG_ELBO, streaming": Recipe(
        step_of_sig,
        lambda: {"x": data(), "num_mixing": 8, "chunk_size": 4, "backward": "top"},
        check=is_finite,
    ),
    "infer.SIG_ELBO, enumerated": Recipe(
        step_of_sig,
        lambda: {"x": data(), "num_mixing": 8, "vectorize_particles": True, "num_particles": 2},
        check=is_finite,
    ),
    "infer.SIG_ELBO, posterior": Recipe(
        posterior_of_sig, lambda: {"x": data(), "num_mixing": 8, "chunk_size": 4}
    ),
    "infer.PathGradient_ELBO": Recipe(
        PathGradient_ELBO,
        lambda: {"score": MixtureScore(), **particles()},
        then=step,
        check=is_float,
    ),
    "infer.MixtureScore": Recipe(MixtureScore, dict, then=step_of_score, check=is_float),
    "infer.ScoreEstimator": Recipe(FirstOfMixture, dict, then=step_of_score, check=is_float),
    "infer.HMCScore": Recipe(
        HMCScore,
        lambda: {"num_burn": 1, "num_samples": 1, "num_leapfrog": 1, "step_size": 0.2},
        then=step_of_score,
        check=is_float,
    ),
    "infer.UIVI": Recipe(
        UIVI,
        lambda: {"num_burn": 1, "num_samples": 1, "num_leapfrog": 1, **particles()},
        then=step,
        check=is_float,
    ),
    "infer.ImportanceScore": Recipe(
        ImportanceScore,
        lambda: {
            "num_importance": 2,
            "hidden_dims": [3],
            "num_layers": 1,
            "inner_steps": 1,
            "learning_rate": 1e-3,
        },
        then=step_of_score,
        check=is_float,
    ),
    "infer.AISIVI": Recipe(
        AISIVI,
        lambda: {
            "num_importance": 2,
            "hidden_dims": [3],
            "inner_steps": 1,
            "learning_rate": 1e-3,
            **particles(),
        },
        then=step,
        check=is_float,
    ),
    "infer.DenoisingScore": Recipe(
        DenoisingScore,
        lambda: {"hidden_dims": [3], "inner_steps": 1, "learning_rate": 1e-3},
        then=step_of_score,
        check=is_float,
    ),
    "infer.DIVI": Recipe(
        DIVI,
        lambda: {"hidden_dims": [3], "inner_steps": 1, "learning_rate": 1e-3, **particles()},
        then=step,
        check=is_float,
    ),
    "infer.SIVISM": Recipe(
        SIVISM,
        lambda: {"hidden_dims": [3], "inner_steps": 1, "learning_rate": 1e-3, **particles()},
        then=step,
        check=is_float,
    ),
    "infer.KSIVI": Recipe(
        KSIVI,
        lambda: {"kernel": "imq", "statistic": "v", "bandwidth": 1.0, **particles()},
        then=step,
        check=is_float,
    ),
    "infer.PVI": Recipe(
        PVI,
        lambda: {"step_size": 0.05, "noise": 1e-4, **particles()},
        then=step_of_particles,
        check=is_float,
    ),
    "infer.AutoSemiImplicit": Recipe(
        AutoSemiImplicit,
        lambda: {
            "model": coefficients,
            "noise_dim": 2,
            "hidden_dims": [3],
            "num_mixing": 4,
            "covariance": "low_rank",
            "rank": 1,
            "share_draws": True,
            "init_loc_fn": pyro.infer.autoguide.init_to_median,
            "init_scale": 0.1,
            "find_scale": False,
        },
        then=step_of_guide,
        check=is_float,
    ),
    "infer.AutoLocalSemiImplicit": Recipe(
        AutoLocalSemiImplicit,
        lambda: {
            "model": local_model,
            "encoder": lambda x: x,
            "noise_dim": 2,
            "hidden_dims": [3],
            "num_mixing": 4,
            "context_dim": 2,
            "share_draws": True,
            "init_loc_fn": pyro.infer.autoguide.init_to_median,
            "init_scale": 0.5,
            "create_plates": None,
        },
        then=step_of_local_guide,
        check=is_float,
    ),
    "infer.find_scale": Recipe(
        find_scale,
        lambda: {
            "log_density": lambda z: -z.square().sum(-1) / 2,
            "init_loc": torch.ones(2, 3),
            "init_scale": 0.1,
            "num_iterations": 3,
            "num_updates": 3,
            "num_draws": 4,
            "seed": 0,
        },
        check=finds,
    ),
    "infer.fit": Recipe(
        short_fit,
        lambda: {
            "model": coefficients,
            "x": data(),
            "guide": AutoSemiImplicit(
                coefficients, hidden_dims=[3], num_mixing=4, find_scale=False
            ),
            "loss": Trace_ELBO(),
            "budget": 4,
            "max_seconds": 0.2,
            "learning_rate": 0.01,
            "annealing": 0.0,
            "progress": False,
        },
        # Text in place of a switch is true in Python, and writes to the terminal.
        keep=frozenset({"progress"}),
    ),
    "infer.train": Recipe(
        run,
        lambda: {
            "inference": SVI(generator, no_guide, adam(), SIG_ELBO(4)),
            "batches": data(),
            "num_steps": 2,
            "callbacks": (),
            "progress": False,
            "description": None,
            "check_training": True,
            "checkpoint": None,
            "every": 1,
            "keep": 1,
            "resume": "auto",
            "on_non_finite": "raise",
        },
        check=has_steps,
        keep=frozenset({"progress"}),  # as above
    ),
    "infer.train, with checkpoints": Recipe(
        run,
        lambda: {
            "inference": SVI(generator, no_guide, adam(), SIG_ELBO(4)),
            "batches": data(),
            "num_steps": 2,
            "callbacks": (),
            "progress": False,
            "checkpoint": "run",
            "every": 1,
            "keep": 1,
            "resume": "auto",
        },
        check=has_steps,
        keep=frozenset({"progress"}),
    ),
    "infer.gradient_noise": Recipe(noise_of, weights),
    "infer.History": Recipe(
        history_of, lambda: {"losses": {"loss": 2.0, "other": 1.0}}, check=same_length
    ),
    "infer.mixing_gap": Recipe(
        gap, lambda: {"svi": svi_of_sig(), "x": data(), "factor": 2}, check=is_finite
    ),
    "infer.no_guide": Recipe(no_guide, lambda: {"x": data()}),
}
