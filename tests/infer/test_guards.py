"""What goes wrong in a run is said, and nothing is lost by it."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_sig.distributions import Implicit
from pyro_sig.infer import (
    SIG_ELBO,
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteLossError,
    mixing_gap,
    no_guide,
    train,
)
from tests.adversarial.programs import PushForward, make_gan

# Pyro says so too.
pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")

DATA = torch.linspace(-1.0, 1.0, 10)


def model(x, bad=False):
    loc = pyro.param("loc", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(1.0), dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)
    # Infinite gradient of a finite value.
    pyro.factor("extra", (loc - loc.detach()).abs().sqrt() if bad else loc * 0.0)


def svi(program=model):
    return SVI(program, no_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def bad_at(*steps):
    return lambda step: (DATA, step in steps)


def params():
    return {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}


def test_a_bad_gradient_is_not_used():
    with pytest.raises(NonFiniteGradientError, match="gradient of 'loc' was not finite") as error:
        train(svi(), bad_at(4), 10, progress=False)
    assert (error.value.step, error.value.names) == (4, ["'loc'"])
    assert error.value.history.num_steps == 5
    found = params()
    pyro.clear_param_store()
    train(svi(), bad_at(), 4, progress=False)
    assert all(torch.equal(found[name], value) for name, value in params().items())


def test_bad_gradients_are_skipped_and_counted():
    history = train(svi(), bad_at(2, 3, 6), 10, progress=False, on_non_finite="skip")
    assert (history.num_steps, history.num_skipped) == (10, 3)
    assert [k for k, loss in enumerate(history["loss"]) if math.isnan(loss)] == [2, 3, 6]
    assert "num_skipped=3" in repr(history)
    found = params()
    pyro.clear_param_store()
    train(svi(), bad_at(), 7, progress=False)  # as if these steps had not been
    assert all(torch.equal(found[name], value) for name, value in params().items())


def test_a_run_that_only_skips_ends():
    with pytest.raises(NonFiniteGradientError) as error:
        train(svi(), bad_at(*range(500)), 500, progress=False, on_non_finite="skip")
    assert error.value.history.num_skipped == 100


def test_counts_go_on_from_a_checkpoint(tmp_path):
    options = {"progress": False, "on_non_finite": "skip", "checkpoint": tmp_path}
    train(svi(), bad_at(2), 5, **options)
    pyro.clear_param_store()
    assert train(svi(), bad_at(2, 7), 10, **options).num_skipped == 2


def test_ignored_is_ignored():
    with pyro.validation_enabled(False):
        history = train(svi(), bad_at(2), 5, progress=False, on_non_finite="ignore")
    assert math.isfinite(history["loss"][2])
    assert math.isnan(history["loss"][4])


def test_an_adversary_does_not_use_them_either():
    game = make_gan(PushForward(), "torch")
    x = DATA.unsqueeze(-1).repeat(1, 2)
    train(game, x, 2, progress=False)
    before = game.state_dict()
    with pytest.raises(NonFiniteGradientError, match="a tensor of shape"), torch.no_grad():
        with torch.enable_grad():
            train(game, x.clone().fill_(math.inf), 2, progress=False)
    after = game.state_dict()
    assert str(before["critic"]) == str(after["critic"])
    assert str(before["program"]) == str(after["program"])


def test_the_site_is_named():
    def program(x):
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("first", dist.Normal(scale, 1.0), obs=x)
            pyro.sample("second", dist.Normal(0.0, scale - 1.0), obs=x)

    with pyro.validation_enabled(False), pytest.raises(NonFiniteError) as error:
        train(svi(program), DATA, 2, progress=False)
    assert error.value.site == "the log-density of site 'second' of the model is not finite"
    assert error.value.site in str(error.value)


def test_a_datum_that_is_not_finite_is_named():
    with pyro.validation_enabled(False), pytest.raises(NonFiniteError) as error:
        train(svi(), (torch.tensor([1.0, math.nan]),), 2, progress=False)
    assert error.value.site == "a datum of site 'x' of the model is not finite"


def test_a_loss_without_a_gradient():
    class Step:
        def step(self):
            return math.inf

    with pytest.raises(NonFiniteLossError, match="'loss' was inf at step 0") as error:
        train(Step(), (), 3, progress=False)
    assert (error.value.name, error.value.value, error.value.site) == ("loss", math.inf, None)
    assert train(Step(), (), 3, progress=False, on_non_finite="skip")["loss"] == [math.inf] * 3


def test_the_word_is_one_of_three():
    with pytest.raises(
        ValueError, match="`on_non_finite` must be one of 'raise', 'skip', 'ignore'"
    ):
        train(svi(), DATA, 1, progress=False, on_non_finite="warn")


def test_sums_that_overflow_are_finite():
    weight = torch.nn.Parameter(torch.zeros(4))

    class Step:
        optim = torch.optim.SGD([weight], lr=1e-38)

        def step(self):
            weight.grad = torch.full((4,), 3e38)
            self.optim.step()
            return 0.0

    train(Step(), (), 1, progress=False)
    assert weight.isfinite().all()


# ------------------------------------------------------------------------------------------ plates


def subsampled(size):
    def program(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", size, subsample_size=4) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    return program


def test_a_plate_of_another_size_than_the_data():
    with pytest.warns(
        UserWarning, match="plate 'data' has the size 8 and draws 4 of it, but .* 10"
    ):
        train(svi(subsampled(8)), DATA, 1, progress=False)


@pytest.mark.parametrize("given", ["all", "a batch"])
def test_plates_that_fit(given):
    def batch(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", 10, subsample=torch.arange(4)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if given == "all":
            train(svi(subsampled(10)), DATA, 1, progress=False)
        else:
            train(svi(batch), DATA[:4], 1, progress=False)


# ------------------------------------------------------------------------------------- num_mixing


def fixed(std=0.1, dim=2):
    noise = dist.Normal(torch.zeros(dim), 1.0).to_event(1)

    def program(x):
        scale = pyro.param("scale", torch.tensor(std), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(lambda e: e, noise, event_shape=dim))
            pyro.sample("x", dist.Normal(psi, scale).to_event(1), obs=x)

    return program


def sig(num_mixing, program=None):
    optim = pyro.optim.Adam({"lr": 1e-4})
    return SVI(program or fixed(), no_guide, optim, SIG_ELBO(num_mixing))


def test_few_draws_are_warned_of():
    x = torch.randn(30, 2)
    with pytest.warns(UserWarning, match=r"`num_mixing` is 2, but four times as many .* nats"):
        train(sig(2), x, 100, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(sig(500), x, 100, progress=False)
        train(sig(2), x, 5, progress=False)  # a trial


def test_a_run_outlives_a_check_that_cannot_be_made():
    def program(x):
        noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        scale = pyro.param("scale", torch.tensor(0.1), dist.constraints.positive)

        def transform(eps):
            if len(eps) > 50:
                raise RuntimeError("out of memory")
            return eps

        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(transform, noise, event_shape=2))
            pyro.sample("x", dist.Normal(psi, scale).to_event(1), obs=x)

    x = torch.randn(30, 2)
    with pytest.warns(UserWarning, match=r"`num_mixing` is 50; .*not be checked.*: out of memory"):
        history = train(sig(50, program), x, 100, progress=False)
    assert history.num_steps == 100


def test_the_gap_is_below_the_true_one():
    # psi ~ N(0, I), x | psi ~ N(psi, s^2 I): log p(x) in closed form.
    pyro.set_rng_seed(1)
    x, std, num_mixing = torch.randn(400, 2), 0.3, 20
    evidence = dist.Normal(0.0, math.sqrt(1 + std**2)).log_prob(x).sum() / len(x)
    gaps, bounds = [], []
    for seed in range(30):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        svi = sig(num_mixing, fixed(std))
        gaps.append(mixing_gap(svi, x))
        bounds.append(-svi.evaluate_loss(x) / len(x))
    gap, true = torch.tensor(gaps), evidence - torch.tensor(bounds)
    error = (gap.std() + true.std()) / math.sqrt(30)
    # One-sided at 4.3 standard errors: a failure in 10^5.
    assert gap.mean() < true.mean() + 4.3 * error
    assert gap.mean() > 0.3 * true.mean()


def test_the_gap_leaves_the_random_state_and_counts_rows_of_the_whole():
    def program(x):
        noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            psi = pyro.sample("psi", Implicit(lambda e: e, noise, event_shape=1))
            pyro.sample("x", dist.Normal(psi, 0.1).to_event(1), obs=x)

    state = torch.get_rng_state()
    assert 0.0 < mixing_gap(sig(5, program), torch.zeros(3, 1)) < 10.0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: svi(), {}, "`svi` must be SVI with the loss SIG_ELBO"),
        (lambda: make_gan(PushForward(), "torch"), {}, "`svi` must be SVI with the loss SIG_ELBO"),
        (lambda: sig(5), {"factor": 1}, "`factor` must be an integer of at least 2, was 1"),
    ],
)
def test_arguments_of_the_gap(make, options, message):
    with pytest.raises(ValueError, match=message):
        mixing_gap(make(), torch.zeros(3, 2), **options)
