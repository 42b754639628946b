"""Valid calls of `pyro_sig.adversarial`."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_sig.adversarial import (
    AVB,
    GAN,
    LBT,
    VEEGAN,
    Balance,
    BiGAN,
    CycleGAN,
    ImagePool,
    ObservedView,
    PsiView,
    View,
    critic_features,
    linear_decay,
    objectives,
    optimal_critic,
    penalties,
    unrolled,
)
from pyro_sig.distributions import Implicit
from pyro_sig.nn import MLP, Joint
from tests.faults.recipes import Recipe

ROWS = 3  # as many as most spoilers have, so that their types and devices are met


def data():
    return torch.linspace(-1.0, 1.0, 2 * ROWS).reshape(ROWS, 2)


def decode(z):
    weight = pyro.param("weight", torch.ones(2))
    return weight * z


def prior():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def model(x):
    """A program that leaves its data to the library."""
    with pyro.plate("data", ROWS):
        z = pyro.sample("z", prior())
        pyro.sample("x", dist.Normal(decode(z), 0.5).to_event(1), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", ROWS):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def generator(x):
    """A program without a latent beside its psi."""
    with pyro.plate("data", ROWS):
        psi = pyro.sample("psi", Implicit(decode, prior(), event_shape=2))
        pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)


def scored(x):
    """Pyro's laws take data as they are, and do not score all types."""
    if isinstance(x, torch.Tensor) and (x.is_complex() or x.dtype == torch.bool):
        raise ValueError("`x` must be real numbers")


def scored_model(x):
    scored(x)
    model(x)


def student(x):
    scored(x)
    loc = pyro.param("student", torch.zeros(2))
    with pyro.plate("data", ROWS):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def adam(*modules):
    if not modules:
        return pyro.optim.Adam({"lr": 1e-3})
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=1e-3)


def game(size, critic=None):
    critic = nn.Linear(size, 1) if critic is None else critic
    return {
        "x": data(),
        "critic": critic,
        "optim": adam(),
        "critic_optim": adam(critic),
        "objective": objectives.NonSaturating(),
        "penalties": [penalties.R1(1.0)],
    }


def step(trainer, *batch):
    trainer.step(*batch)
    trainer.evaluate_loss(*batch)
    repr(trainer)
    return trainer.step(*batch)


def finite(losses, **arguments):
    assert all(isinstance(loss, float) for loss in losses), losses
    batches = [x for name, x in arguments.items() if name in ("x", "y")]
    if not arguments.get("weight", 1.0):  # no score is taken where it does not count
        return
    fine = all(isinstance(x, torch.Tensor) and x.isfinite().all() for x in batches)
    assert not fine or all(map(math.isfinite, losses)), losses


def step_of_gan(x, **settings):
    return step(GAN(**{"model": model, **settings}), x)


def step_of_avb(x, **settings):
    return step(AVB(**settings), x)


def step_of_bigan(x, **settings):
    return step(BiGAN(**settings), x)


def step_of_veegan(x, **settings):
    return step(VEEGAN(**settings), x)


def step_of_lbt(x, **settings):
    return step(LBT(**settings), x)


def step_of_cyclegan(x, y, **settings):
    return step(CycleGAN(**settings), x, y)


def gan():
    return {
        "model": model,
        **game(2),
        "view": ObservedView(),
        "conditional": False,
        "critic_steps": 1,
        "unroll": 1,
        "ema": 0.9,
        "elbo": None,
        "elbo_weight": None,
        "guide": None,
        "autocast": None,
        "compile_networks": False,
    }


def gan_with_bound():
    return {
        "model": scored_model,
        **game(2),
        "elbo": Trace_ELBO(),
        "elbo_weight": "balance",
        "guide": guide,
    }


def avb():
    return {
        "model": scored_model,
        "guide": guide,
        **game(4, Joint(nn.Linear(4, 1))),
        "contrast": None,
        "num_particles": 2,
        "max_plate_nesting": 1,
        "conditional": False,
        "critic_steps": 1,
        "ema": None,
        "autocast": None,
        "compile_networks": False,
    }


def bigan():
    return {
        "model": model,
        "guide": guide,
        **game(4, Joint(nn.Linear(4, 1))),
        "latents": ["z"],
        "conditional": False,
        "critic_steps": 1,
        "unroll": 0,
        "ema": None,
        "autocast": None,
        "compile_networks": False,
    }


def lbt():
    return {
        "model": model,
        "x": data(),
        "estimator": student,
        "optim": adam(),
        "estimator_optim": pyro.optim.Adam({"lr": 1e-3, "eps": 1e-4}),
        "inner_steps": 1,
        "commits": 1,
        "commit_rate": 1.0,
        "elbo": Trace_ELBO(),
        "weight": 1.0,
        "gan": None,
        "gan_weight": 0.1,
        "clip_norm": 1.0,
        "ema": None,
    }


def lbt_with_gan():
    optim, critic = adam(), nn.Linear(2, 1)
    return {
        "model": model,
        "x": data(),
        "estimator": (student, None),
        "optim": optim,
        "estimator_optim": pyro.optim.SGD({"lr": 0.1}),
        "inner_steps": 1,
        "gan": GAN(model, critic, optim, adam(critic)),
        "gan_weight": 0.1,
    }


def cyclegan():
    forward, backward = nn.Linear(2, 2), nn.Linear(2, 2)
    critics = nn.Linear(2, 1), nn.Linear(2, 1)
    return {
        "x": data(),
        "y": data() + 1,
        "forward": forward,
        "backward": backward,
        "critic_x": critics[0],
        "critic_y": critics[1],
        "optim": adam(forward, backward),
        "critic_optim": adam(*critics),
        "objective": objectives.LeastSquares(),
        "penalties": [],
        "cycle_weight": 10.0,
        "identity_weight": 0.5,
        "cycle_distance": None,
        "pool_size": 2,
        "critic_steps": 1,
        "ema": None,
        "autocast": None,
    }


def weigh(balance, **_):
    balance.update([torch.ones(2), None], [torch.ones(2), torch.ones(1)])
    return float(balance.update([torch.ones(2)], [torch.ones(2)]))


def is_positive(weight, **_):
    assert weight > 0 and math.isfinite(weight)


def balanced(adversarial, bound):
    return float(Balance().update(adversarial, bound))


def pool(size, x):
    kept = ImagePool(size)
    kept(x)
    return kept(x)


def same_shape(shown, x, **_):
    assert shown.shape == x.shape


def features(critic, x):
    return critic_features(critic, x)


def has_rows(found, x, **_):
    assert len(found) == len(x) and found.dim() == 2


def decay(factor, num_steps, **_):
    rates = [factor(0), factor(1), factor(num_steps)]
    assert all(0 <= rate <= 1 for rate in rates)


def score(critic, **_):
    return critic(torch.linspace(-1.0, 1.0, 5))


def has_scores(scores, **_):
    assert scores.shape == (5,)


def show(x, view):
    critic = nn.Linear(2, 1)
    trained = GAN(generator, critic, adam(), adam(critic), view=view)
    return trained.values(x)


def show_psi(x, site):
    return show(x, PsiView(site))


def show_observed(x):
    return show(x, ObservedView())


def show_own(x):
    class First(View):
        def __call__(self, trace):
            site = trace.nodes["x"]
            if "obs" not in site["infer"]:
                raise ValueError("`x` must be observed")
            return site["infer"]["obs"], site["value"]

    return show(x, First())


def two_tables(values, **_):
    assert [part.shape for part in values] == [(ROWS, 2), (ROWS, 2)]


def ahead(module, loss, optimizer, num_steps):
    return unrolled(module, loss, optimizer, num_steps)(data())


def unrolling():
    module = nn.Linear(2, 1)
    return {
        "module": module,
        "loss": lambda critic: critic(data()).mean(),
        "optimizer": torch.optim.SGD(module.parameters(), lr=0.1),
        "num_steps": 2,
    }


def losses_of(kind):
    def losses(real, fake, **settings):
        objective = kind(**settings)
        repr(objective)
        return (
            objective.critic_loss(real, fake),
            objective.generator_loss(real, fake),
            objective.joint_loss(real, fake),
        )

    return losses


def scalars(losses, **_):
    assert all(loss.shape == () for loss in losses)


def objective(kind, **settings):
    return Recipe(
        losses_of(kind),
        lambda: {"real": torch.zeros(3), "fake": torch.ones(3), **settings},
        check=scalars,
    )


class Exponential(objectives.Objective):
    """An objective of a user's."""

    def _critic_loss(self, real, fake):
        return (-real).exp().mean() + fake.exp().mean()

    def _generator_loss(self, real, fake):
        return (-fake).exp().mean()

    def optimal_score(self, log_ratio):
        return log_ratio / 2


def penalty_of(kind):
    def penalty(critic, real, fake, **settings):
        return kind(**settings)(critic, real, fake)

    return penalty


def penalty(kind, **settings):
    return Recipe(
        penalty_of(kind),
        lambda: {
            "critic": nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)),
            "real": torch.ones(3, 2),
            "fake": torch.zeros(3, 2),
            **settings,
        },
        check=lambda value, **_: _scalar(value),
    )


def _scalar(value):
    assert value.shape == ()


def clip(critic, bound):
    penalties.WeightClipping(bound).constrain(critic)


def normalise(module, n_power_iterations):
    return penalties.spectral_norm(module, n_power_iterations)


# A compiler takes seconds.
NO_COMPILER = frozenset({"compile_networks"})

RECIPES: dict[str, Recipe] = {
    "adversarial.GAN": Recipe(step_of_gan, gan, check=finite, keep=NO_COMPILER),
    "adversarial.GAN, with a bound": Recipe(step_of_gan, gan_with_bound, check=finite),
    "adversarial.AVB": Recipe(step_of_avb, avb, check=finite, keep=NO_COMPILER),
    "adversarial.BiGAN": Recipe(step_of_bigan, bigan, check=finite, keep=NO_COMPILER),
    "adversarial.VEEGAN": Recipe(
        step_of_veegan,
        lambda: bigan() | {"weight": 1.0, "distance": None},
        check=finite,
        keep=NO_COMPILER,
    ),
    "adversarial.LBT": Recipe(step_of_lbt, lbt, check=finite),
    "adversarial.LBT, with a GAN": Recipe(step_of_lbt, lbt_with_gan, check=finite),
    "adversarial.CycleGAN": Recipe(step_of_cyclegan, cyclegan, check=finite),
    "adversarial.Balance": Recipe(
        Balance, lambda: {"ratio": 1.0, "decay": 0.9}, then=weigh, check=is_positive
    ),
    "adversarial.Balance, update": Recipe(
        balanced, lambda: {"adversarial": [torch.ones(2)], "bound": [torch.ones(2)]}
    ),
    "adversarial.ImagePool": Recipe(pool, lambda: {"size": 2, "x": data()}, check=same_shape),
    "adversarial.ObservedView": Recipe(show_observed, lambda: {"x": data()}, check=two_tables),
    "adversarial.PsiView": Recipe(show_psi, lambda: {"x": data(), "site": "psi"}, check=two_tables),
    "adversarial.View": Recipe(show_own, lambda: {"x": data()}),
    "adversarial.critic_features": Recipe(
        features, lambda: {"critic": MLP(2, [4], 1), "x": data()}, check=has_rows
    ),
    "adversarial.linear_decay": Recipe(
        linear_decay, lambda: {"num_steps": 10, "constant": 0.5}, check=decay
    ),
    "adversarial.optimal_critic": Recipe(
        optimal_critic,
        lambda: {
            "objective": objectives.Minimax(),
            "data": dist.Normal(0.0, 1.0),
            "model": dist.Normal(1.0, 1.0),
        },
        then=score,
        check=has_scores,
    ),
    "adversarial.optimal_critic, Wasserstein": Recipe(
        optimal_critic,
        lambda: {
            "objective": objectives.Wasserstein(),
            "data": dist.Normal(0.0, 1.0),
            "model": dist.Normal(1.0, 1.0),
        },
        then=score,
        check=has_scores,
        keep=frozenset({"objective"}),  # spoiled above
    ),
    "adversarial.unrolled": Recipe(ahead, unrolling),
    "adversarial.GAN, objective FDivergence": objective(
        objectives.FDivergence, name="kl", alpha=None, pi=None, heuristic=False
    ),
    "adversarial.GAN, objective FDivergence alpha": objective(
        objectives.FDivergence, name="alpha", alpha=0.5
    ),
    "adversarial.GAN, objective FDivergence pi": objective(
        objectives.FDivergence, name="jensen_shannon_weighted", pi=0.5
    ),
    "adversarial.GAN, objective MaximumLikelihood": objective(
        objectives.MaximumLikelihood, max_score=20.0
    ),
    **{
        f"adversarial.GAN, objective {kind.__name__}": objective(kind)
        for kind in (
            Exponential,
            objectives.Hinge,
            objectives.LeastSquares,
            objectives.Minimax,
            objectives.NonSaturating,
            objectives.Relativistic,
            objectives.ReverseKL,
            objectives.Wasserstein,
        )
    },
    "adversarial.GAN, penalty R1": penalty(penalties.R1, gamma=1.0),
    "adversarial.GAN, penalty R2": penalty(penalties.R2, gamma=1.0),
    "adversarial.GAN, penalty GradientPenalty": penalty(
        penalties.GradientPenalty, weight=10.0, target=1.0, one_sided=False
    ),
    "adversarial.GAN, penalty WeightClipping": Recipe(
        clip, lambda: {"critic": nn.Linear(2, 1), "bound": 0.01}
    ),
    "adversarial.GAN, spectral_norm": Recipe(
        normalise, lambda: {"module": nn.Linear(2, 1), "n_power_iterations": 1}
    ),
}
