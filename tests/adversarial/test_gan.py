"""What the trainer does beside the contract of all trainers: gradients, draws, weights, errors."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import softplus

from pyro_sig.adversarial import GAN, Balance, PsiView, View, objectives, penalties
from pyro_sig.adversarial._elbo_term import ElboTerm
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, train
from pyro_sig.nn import MLP
from tests.adversarial.programs import (
    Batched,
    LatentPsi,
    Location,
    PushForward,
    SemiImplicitModel,
    make_gan,
)
from tests.adversarial.states import assert_equal


def sgd(params, lr=1.0):
    return torch.optim.SGD(params, lr=lr)


class Recorder(nn.Module):
    """A critic that remembers what it saw."""

    def __init__(self, features=2, dtype=None):
        super().__init__()
        self.net = MLP(features, [8], 1, nn.Tanh, dtype=dtype)
        self.seen = []

    def forward(self, *values):
        self.seen.append(values)
        return self.net(torch.cat(values, -1))


# ------------------------------------------------------------------------------------ the gradient


def generator_gradient(gan, x):
    """Gradient of the program's loss in a step, read off an optimiser with learning rate 1."""
    before = [p.detach().clone() for p in gan.model.net.parameters()]
    gan.step(x)
    return [b - p.detach() for b, p in zip(before, gan.model.net.parameters(), strict=True)]


@pytest.mark.parametrize("num_steps", [1, 3])
def test_unrolled_gradient_is_the_finite_difference_through_the_updates(num_steps):
    double = torch.float64
    model = PushForward(double, noise_dim=2)
    critic = MLP(2, [6], 1, nn.Tanh, dtype=double)
    x, noise = torch.randn(5, 2, dtype=double), torch.randn(5, 2, dtype=double)
    rate = 0.3
    weights = [p.detach().clone() for p in critic.parameters()]
    theta = [p.detach().clone() for p in model.net.parameters()]

    def loss(generator):
        """K plain updates of a copy of the critic on one batch, then the minimax loss."""
        moved = MLP(2, [6], 1, nn.Tanh, dtype=double)
        with torch.no_grad():
            for p, value in zip(moved.parameters(), weights, strict=True):
                p.copy_(value)
            for p, value in zip(model.net.parameters(), generator, strict=True):
                p.copy_(value)
            fake = model.net(noise)
        optim = sgd(moved.parameters(), rate)
        for _ in range(num_steps):
            optim.zero_grad()
            (softplus(-moved(x)).mean() + softplus(moved(fake)).mean()).backward()
            optim.step()
        return -softplus(moved(fake)).mean().item()

    step, expected = 1e-5, []
    for i, value in enumerate(theta):
        column = torch.zeros_like(value)
        for index in range(value.numel()):
            ends = []
            for sign in (1, -1):
                shifted = [t.clone() for t in theta]
                shifted[i].view(-1)[index] += sign * step
                ends.append(loss(shifted))
            column.view(-1)[index] = (ends[0] - ends[1]) / (2 * step)
        expected.append(column)
    loss(theta)  # puts theta back

    class Fixed(dist.Normal):
        def rsample(self, sample_shape=()):
            return noise

    model.noise = Fixed(torch.zeros(2, dtype=double), 1.0).to_event(1)
    gan = GAN(
        model,
        critic,
        sgd(model.net.parameters()),
        sgd(critic.parameters(), rate),
        objectives.Minimax(),
        unroll=num_steps,
    )
    for found, column in zip(generator_gradient(gan, x), expected, strict=True):
        assert torch.allclose(found, column, rtol=1e-6, atol=1e-9)
    # The critic itself took one step, on the draws from before.
    fresh = [p.detach() for p in critic.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(weights[:-1], fresh[:-1], strict=True))


def test_rows_that_a_critic_may_compare_are_not_mixed():
    class Spread(nn.Module):
        """Shows the standard deviation of the batch to a linear score."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.sizes = []

        def forward(self, x):
            self.sizes.append(len(x))
            return self.linear(torch.cat([x, x.std().expand(len(x), 1)], -1))

    critic = Spread()
    make_gan(PushForward(), critic=critic).step(torch.randn(6, 2))
    assert critic.sizes == [6, 6, 6]


def test_a_step_is_that_of_a_loop_by_hand():
    x = torch.randn(6, 2)
    gan = make_gan(PushForward(), "torch")
    net, critic = MLP(3, [8], 2, nn.Tanh), MLP(2, [8], 1)
    net.load_state_dict(gan.model.net.state_dict())
    critic.load_state_dict(gan.critic.state_dict())
    optim = torch.optim.Adam(net.parameters(), lr=0.05)
    critic_optim = torch.optim.Adam(critic.parameters(), lr=0.05)
    torch.manual_seed(5)
    losses = [gan.step(x) for _ in range(3)]
    torch.manual_seed(5)
    for expected in losses:
        fake = net(torch.randn(6, 3))
        critic_optim.zero_grad()
        critic_loss = softplus(-critic(x)).mean() + softplus(critic(fake.detach())).mean()
        critic_loss.backward()
        critic_optim.step()
        optim.zero_grad()
        loss = softplus(-critic(fake)).mean()
        loss.backward()
        optim.step()
        assert expected == pytest.approx((critic_loss.item(), loss.item()), rel=1e-5)


def test_maximum_likelihood_with_an_ideal_critic_is_the_cross_entropy():
    # Data N(1, 0.8^2), model N(loc, scale^2): the trainer with the ideal critic in place of a
    # trained one moves loc and scale along the gradient of -E log p.
    class Ideal(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            data = dist.Normal(1.0, 0.8).log_prob(x[:, 0])
            return data - dist.Normal(0.6, 1.0).log_prob(x[:, 0]) + 0 * self.weight

    n = 200_000
    nodes = dist.Normal(0.0, 1.0).icdf((torch.arange(n) + 0.5) / n).unsqueeze(-1)

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.6))
        scale = pyro.param("scale", torch.tensor(1.0))
        law = Implicit(lambda z: loc + scale * z, dist.Delta(nodes).to_event(1), event_shape=1)
        with pyro.plate("data", n):
            pyro.sample("x", law, obs=x)

    critic = Ideal()
    gan = GAN(
        model,
        critic,
        pyro.optim.SGD({"lr": 1.0}),
        sgd(critic.parameters()),
        objectives.MaximumLikelihood(),
    )
    gan.step(1 + 0.8 * nodes)
    # d/dloc = (loc - 1) / scale^2; d/dscale = 1 / scale - ((loc - 1)^2 + 0.8^2) / scale^3.
    found = torch.stack([0.6 - pyro.param("loc"), 1.0 - pyro.param("scale")]).detach()
    assert torch.allclose(found, torch.tensor([-0.4, 1 - 0.16 - 0.64]), atol=2e-3)


# ----------------------------------------------------------------------------------------- GAN-SI


class RecordedNoise:
    """A law of noise that keeps what it drew."""

    def __init__(self, law):
        self.drawn = []
        draw = law.rsample

        def rsample(sample_shape=()):
            self.drawn.append(draw(sample_shape))
            return self.drawn[-1]

        law.rsample = rsample


def gan_si(kind, weight, critic, optim, num_mixing=16):
    double = torch.float64
    model = (SemiImplicitModel if kind == "SemiImplicit" else LatentPsi)(double)
    model.num_mixing = num_mixing
    one = kind == "SemiImplicit"
    elbo = Trace_ELBO() if one else SIG_ELBO(num_mixing, max_plate_nesting=1)
    return GAN(model, critic, optim, sgd(critic.parameters(), 0.0), elbo=elbo, elbo_weight=weight)


@pytest.mark.parametrize("kind", ["SemiImplicit", "SIG_ELBO"])
def test_critic_and_bound_meet_the_same_psi(kind):
    critic = Recorder(dtype=torch.float64)
    gan = gan_si(kind, 0.7, critic, pyro.optim.SGD({"lr": 1.0}))
    model = gan.model
    x = torch.randn(6, 2, dtype=torch.float64)
    gan.values(x)  # the first run
    critic.seen.clear()
    noise = RecordedNoise(model.noise)
    theta = [p.detach().clone() for p in model.net.parameters()]
    scale = pyro.param("scale").item() if kind == "SemiImplicit" else 0.5
    _, _, bound = gan.step(x)
    moved = [t - p.detach() for t, p in zip(theta, model.net.parameters(), strict=True)]
    (real,), (fake,), (again,) = critic.seen
    (drawn,) = noise.drawn
    assert torch.equal(real, x)
    assert torch.equal(fake, again)

    # By hand: the bound over all 16 psi, the critic on the first 6 of them.
    net = MLP(3, [8], 2, nn.Tanh, dtype=torch.float64)
    with torch.no_grad():
        for p, value in zip(net.parameters(), theta, strict=True):
            p.copy_(value)
    psi = net(drawn.reshape(16, 3))
    assert torch.equal(psi[:6], again)
    scores = dist.Normal(psi.unsqueeze(1), scale).log_prob(x).sum(-1)
    by_hand = -(scores.logsumexp(0) - math.log(16)).sum()
    assert bound == pytest.approx(by_hand.item(), rel=1e-9)
    loss = softplus(-critic.net(psi[:6])).mean() + 0.7 * by_hand / 6
    grads = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(moved, grads, strict=True))


def test_fewer_psi_than_data():
    critic, x = Recorder(dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    gan = gan_si("SemiImplicit", 1.0, critic, pyro.optim.SGD({"lr": 0.1}), num_mixing=4)
    gan.step(x)
    assert [values[0].shape for values in critic.seen] == [(6, 2), (4, 2), (4, 2)]
    gan = gan_si("SemiImplicit", 1.0, critic, pyro.optim.SGD({"lr": 0.1}), num_mixing=4)
    gan._critic.objective = objectives.Relativistic()
    with pytest.raises(
        ValueError,
        match=r"`view` must show as many draws as data where Relativistic\(\).*num_mixing",
    ):
        gan.step(x)


def test_without_a_bound_the_critic_sees_the_data_and_with_one_the_psi():
    x = torch.randn(6, 2)
    for settings, view in [
        ({}, "ObservedView()"),
        ({"elbo": Trace_ELBO(), "elbo_weight": 1.0}, "PsiView('x')"),
    ]:
        pyro.clear_param_store()
        gan = make_gan(SemiImplicitModel(), **settings)
        gan.step(x)
        assert repr(gan.view) == view


def test_own_psi_of_each_row_are_not_shared():
    noise = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    net = MLP(3, [8], 2)

    def model(x):
        pyro.module("net", net)
        psi = Implicit(net, noise, event_shape=2)
        law = SemiImplicit(psi, lambda p: dist.Normal(p, 0.5).to_event(1), 4, share_draws=False)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    gan = make_gan(model, elbo=Trace_ELBO(), elbo_weight=1.0)
    assert len(gan.step(torch.randn(6, 2))) == 3
    assert gan._runs._shared is None


@pytest.mark.parametrize("backward", ["exact", "responsibility", "top"])
@pytest.mark.parametrize("kind", ["latent", "observed"])
def test_the_critic_moves_the_program_whatever_psi_the_bound_differentiates(kind, backward):
    model = LatentPsi()
    elbo = SIG_ELBO(2000, backward=backward, max_plate_nesting=1)
    if kind == "observed":
        model, elbo = SemiImplicitModel(), Trace_ELBO()
        law = model.law
        model.law = lambda: SemiImplicit(law().mixing, law().conditional, 2000, backward=backward)
    gan = make_gan(model, elbo=elbo, elbo_weight=0.0)
    before = [p.detach().clone() for p in model.net.parameters()]
    gan.step(torch.randn(6, 2))
    for old, new in zip(before, model.net.parameters(), strict=True):
        assert not torch.equal(old, new)


# ------------------------------------------------------------------------------- bounds and weights


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceGraph_ELBO(), RenyiELBO(num_particles=1)])
@pytest.mark.parametrize("weight", [0.7, lambda step: 0.7, math.inf])
def test_weighted_sum_of_gradients(elbo, weight):
    # x ~ N(loc, scale): the bound is exact, and its gradient known.
    x = torch.randn(6, 2) + 1
    critic = Recorder()
    model, optim = Location(), pyro.optim.SGD({"lr": 1.0})
    gan = GAN(model, critic, optim, sgd(critic.parameters(), 0.0), elbo=elbo, elbo_weight=weight)
    gan.step(x)
    fake = critic.seen[-1][0].detach()
    noise = fake  # at loc = 0 and scale = 1 the draw is the noise
    loc, log_scale = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    adversarial = softplus(-critic.net(loc + log_scale.exp() * noise)).mean()
    bound = -dist.Normal(loc, log_scale.exp()).log_prob(x).sum() / 6
    loss = bound if weight == math.inf else adversarial + 0.7 * bound
    grads = torch.autograd.grad(loss, [loc, log_scale])
    store = pyro.get_param_store()._params
    assert torch.allclose(-store["loc"], grads[0], atol=1e-6)
    assert torch.allclose(-store["scale"], grads[1], atol=1e-6)


def test_subsample_counts_its_data():
    # The bound is scaled to all 30 rows: for each datum it is as large as without subsampling.
    x = torch.randn(30, 2)

    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", 30, subsample_size=5) as index:
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[index])

    critic = Recorder()
    settings = {"elbo": TraceGraph_ELBO(), "elbo_weight": math.inf}
    gan = GAN(model, critic, pyro.optim.SGD({"lr": 1.0}), sgd(critic.parameters()), **settings)
    gan.step(x)
    assert critic.seen[0][0].shape == (5, 2)
    # The gradient for each datum is minus the mean of five of them.
    rows = torch.combinations(torch.arange(30), 5)
    sums = x[rows].mean(1)
    assert (sums - pyro.param("loc").detach()).abs().sum(-1).min() < 1e-5


def test_no_bound_is_computed_where_its_schedule_is_zero():
    x, calls = torch.randn(6, 2), []

    class Counted(Trace_ELBO):
        def differentiable_loss(self, *args):
            calls.append(None)
            return super().differentiable_loss(*args)

    gan = make_gan(
        SemiImplicitModel(), elbo=Counted(), elbo_weight=lambda step: 2.0 * (step % 2 == 0)
    )
    bounds = [gan.step(x)[2] for _ in range(4)]
    assert len(calls) == 2
    assert bounds[0] == bounds[1] != bounds[2] == bounds[3]


def test_bound_of_a_program_without_latents_is_that_of_trace_elbo():
    x = torch.randn(30, 2)
    mask = torch.rand(5) < 0.5

    def model(x):
        scale = pyro.param("scale", torch.ones(2))
        pyro.factor("prior", -scale.sum())
        with pyro.plate("data", 30, subsample_size=5) as index, pyro.poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(0.0, scale).to_event(1), obs=x[index])
            pyro.sample("y", dist.Normal(0.0, scale[0]), obs=x[index, 0])

    def with_latent(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        model(x)

    for program, one_run in [(model, True), (with_latent, False)]:
        term = ElboTerm(Trace_ELBO(), 1.0, None)
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the empty guide lacks a site
            found = term(program, (x,), {})
            if one_run:
                torch.manual_seed(1)
                expected = Trace_ELBO().differentiable_loss(program, lambda x: None, x)
                assert torch.allclose(found, expected)
                grads = [
                    torch.autograd.grad(loss, pyro.param("scale")) for loss in (found, expected)
                ]
                assert torch.allclose(grads[0][0], grads[1][0])
        assert term._one_run is one_run


def test_balance_keeps_the_gradients_in_proportion():
    balance = Balance(ratio=2.0, decay=0.75)
    assert math.isnan(balance.weight)
    a, b = [torch.tensor([3.0, 4.0]), None], [torch.tensor([0.0, 10.0]), torch.ones(1)]
    assert balance.update(a, b) == pytest.approx(1.0)
    # Running means: (3 * 5 + 15) / 4 over (3 * 10 + 2) / 4.
    assert balance.update([torch.tensor([15.0])], [torch.tensor([2.0])]) == pytest.approx(15 / 8)
    assert balance.weight == pytest.approx(15 / 8)

    x = torch.randn(6, 2)
    gan = make_gan(SemiImplicitModel(), "torch", elbo=Trace_ELBO(), elbo_weight="balance")
    with pytest.raises(ValueError, match=r"would never train: \['scale'\]"):
        gan.step(x)
    pyro.clear_param_store()
    gan = make_gan(LatentPsi(), "torch", elbo=SIG_ELBO(16), elbo_weight=Balance(decay=0.0))
    gan.values(x)
    draw = gan._runs.draw((x,), {})
    params = list(gan._program.params.values())
    loss = gan._program_loss(gan.critic, draw, (x,), {})
    sides = [
        torch.autograd.grad(value, params, retain_graph=True) for value in (loss, draw.bound / 6)
    ]
    norms = [torch.cat([g.flatten() for g in side]).norm() for side in sides]
    gan._add_gradients(draw._replace(weight=gan.elbo_weight), loss)
    assert gan.elbo_weight.weight == pytest.approx(float(norms[0] / norms[1]), rel=1e-5)
    for param, a, b in zip(params, *sides, strict=True):
        assert torch.allclose(param.grad, a + b * norms[0] / norms[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"ratio": 0.0}, {"ratio": math.inf}, {"decay": 1.0}])
def test_balance_out_of_range(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        Balance(**settings)


def test_objective_with_networks_of_its_own_trains_them():
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    gan = make_gan(model, elbo=Trace_ELBO(), elbo_weight=lambda step: float(step < 2))
    history = train(gan, torch.randn(6, 2), 4, progress=False)
    assert history.num_steps == 4


def test_vae_gan():
    """A guide with a density beside the critic: both networks of the pair train."""
    decoder, encoder = MLP(1, [8], 2), MLP(2, [8], 2)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.3).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(raw)).to_event(1))

    before = [p.detach().clone() for p in (*decoder.parameters(), *encoder.parameters())]
    gan = make_gan(model, elbo=Trace_ELBO(), elbo_weight=0.5, guide=guide)
    gan.step(torch.randn(6, 2))
    after = [*decoder.parameters(), *encoder.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(ValueError, match="`guide` must be None without an `elbo`"):
        make_gan(model, guide=guide)


# --------------------------------------------------------------------- units, views, conditional


def seen_by(model, *args, features=2, **settings):
    critic = Recorder(features)
    gan = make_gan(model, critic=critic, **settings)
    gan.step(*args)
    return critic.seen


def test_group_of_rows_that_share_a_latent_is_one_unit():
    x = torch.arange(12.0).reshape(3, 4)  # 3 rows in each of 4 groups

    class Flat(Recorder):
        def forward(self, groups):
            return super().forward(groups.flatten(1))

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("group", 4, dim=-1):
            mean = pyro.sample("mean", dist.Normal(loc, 1.0))
            with pyro.plate("row", 3, dim=-2):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    critic = Flat(features=3)
    make_gan(model, critic=critic).step(x)
    (real,), (fake,) = critic.seen[:2]
    assert torch.equal(real, x.T)
    assert fake.shape == (4, 3)

    def masked(x):
        with pyro.poutine.mask(
            mask=torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
        ):
            model(x)

    critic = Flat(features=3)
    make_gan(masked, critic=critic).step(x)
    (real,), (fake,) = critic.seen[:2]
    expected = torch.tensor([[0.0, 4.0, 8.0], [1.0, 5.0, 0.0], [2.0, 0.0, 0.0]])
    assert torch.equal(real, expected)
    assert torch.equal(fake == 0, torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]]).bool())


def test_plates_whose_rows_share_nothing_make_units_of_all_rows():
    x = torch.randn(3, 4, 2)

    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("a", 4, dim=-1), pyro.plate("b", 3, dim=-2):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    (real,), (fake,) = seen_by(model, x)[:2]
    assert torch.equal(real, x.flatten(0, 1))
    assert fake.shape == (12, 2)


def test_without_plates_rows_are_those_of_the_distribution():
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([6, 2]).to_event(1), obs=x)

    assert seen_by(model, torch.randn(6, 2))[1][0].shape == (6, 2)

    def one(x):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1), obs=x)

    assert seen_by(one, torch.randn(2))[1][0].shape == (1, 2)


def test_single_numbers_have_a_last_dimension():
    net = MLP(2, [4], 1)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(x):
        pyro.module("net", net)
        law = Implicit(lambda z: net(z).squeeze(-1).exp(), noise)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(pyro.sample("rate", law)), obs=x)

    x = torch.ones(6)
    (real,), (fake,) = seen_by(model, x, features=1, elbo=SIG_ELBO(8), elbo_weight=1.0)[:2]
    assert real.shape == fake.shape == (6, 1)
    assert seen_by(model, x, features=1, view=PsiView("rate"))[1][0].shape == (6, 1)


def test_latent_of_the_shape_of_the_data_is_no_psi():
    decoder, noise = MLP(2, [4], 2), dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Implicit(nn.Identity(), noise, event_shape=2))
            pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)

    gan = make_gan(model, elbo=SIG_ELBO(8), elbo_weight=1.0)
    gan.step(torch.randn(6, 2))
    assert repr(gan.view) == "ObservedView()"


def test_psi_of_a_group_is_not_shown_beside_its_rows():
    net = MLP(2, [4], 1)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(x):
        pyro.module("net", net)
        law = Implicit(lambda z: net(z).squeeze(-1), noise)
        with pyro.plate("group", 4, dim=-1):
            psi = pyro.sample("psi", law)
            with pyro.plate("row", 3, dim=-2):
                pyro.sample("x", dist.Normal(psi, 1.0), obs=x)

    seen = seen_by(model, torch.randn(3, 4), features=3, elbo=SIG_ELBO(8), elbo_weight=1.0)
    assert [values[0].shape for values in seen] == [(4, 3)] * 3


def test_masked_rows_are_left_out():
    x = torch.randn(6, 2)
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).bool()

    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    (real,), (fake,) = seen_by(model, x)[:2]
    assert torch.equal(real, x[mask])
    assert fake.shape == (4, 2)


def test_subsample_pairs_data_and_draws():
    x = torch.arange(20.0).unsqueeze(-1)

    def model(x):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", 20, subsample_size=4) as index:
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[index])

    critic = Recorder(1)
    gan = make_gan(model, critic=critic, critic_steps=2)
    gan.step(x)
    first, second = (set(critic.seen[i][0].flatten().tolist()) for i in (0, 2))
    assert len(first) == len(second) == 4
    assert first != second, "each update of the critic has data of its own"


def test_several_observed_sites_are_several_arguments():
    x, y = torch.randn(6, 2), torch.randn(6, 1)

    def model(x, y):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
            pyro.deterministic("half", loc.expand(6, 2) / 2, event_dim=1)
            pyro.factor("nothing", torch.zeros(6))
            pyro.sample("y", dist.Normal(loc[:1], 1.0).to_event(1), obs=y)

    seen = seen_by(model, x, y, features=3)
    assert torch.equal(seen[0][0], x)
    assert torch.equal(seen[0][1], y)
    assert [v.shape for v in seen[1]] == [(6, 2), (6, 1)]


def test_view_and_conditional_critic():
    x, label = torch.randn(6, 2), torch.eye(6, 3)
    net = MLP(4, [8], 2)

    def model(x, label):
        pyro.module("net", net)
        noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        law = Implicit(lambda z, c: net(torch.cat([z, c], -1)), noise, 2, inputs=label)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    def with_label(trace):
        site = trace.nodes["x"]
        return (site["infer"]["obs"], label), (site["value"], label)

    seen = seen_by(model, x, label, features=5, view=with_label)
    assert torch.equal(seen[1][1], label)

    class Conditional(Recorder):
        def forward(self, value, x, label):
            return super().forward(value, label)

    critic = Conditional(5)
    gan = make_gan(model, critic=critic, conditional=True, penalties=penalties.R1(1.0))
    gan.step(x, label=label)
    assert torch.equal(critic.seen[0][1], label)

    critic = Recorder(5)
    gan = make_gan(model, critic=critic, conditional=lambda x, label: label, unroll=1)
    gan.step(x, label)
    assert all(torch.equal(values[1], label) for values in critic.seen)
    with pytest.raises(ValueError, match="`view` must return .* pair"):
        seen_by(model, x, label, view=lambda trace: trace.nodes["x"]["value"])


# -------------------------------------------------------------------------------- keeping apart


def test_pyro_module_critic_is_refused():
    class Critic(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

    with pytest.raises(ValueError, match="`critic` must be a plain torch module"):
        make_gan(PushForward(), critic=Critic())
    with pytest.raises(ValueError, match="`critic` must be a plain torch module"):
        make_gan(PushForward(), critic=nn.Sequential(PyroModule[nn.Linear](2, 1)))


def test_shared_tensors_are_refused():
    model = PushForward()
    critic = MLP(2, [8], 1, nn.Tanh)
    critic.hidden[0].bias = model.net.hidden[0].bias
    with pytest.raises(ValueError, match="`critic` must share no tensor"):
        make_gan(model, critic=critic).step(torch.randn(6, 2))
    pyro.clear_param_store()
    model, critic = PushForward(), MLP(2, [8], 1)

    def registers_the_critic(x):
        pyro.module("critic", critic)
        model(x)

    with pytest.raises(ValueError, match="`critic` must share no tensor"):
        make_gan(registers_the_critic, critic=critic).step(torch.randn(6, 2))
    pyro.clear_param_store()
    # A frozen part may not be shared either: it would drift with the critic's buffers or clipping.
    body = nn.Linear(2, 2).requires_grad_(False)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def uses_a_part(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Implicit(lambda z: body(z) + loc, noise, 2), obs=x)

    with pytest.raises(ValueError, match="`critic` must share no tensor"):
        make_gan(uses_a_part, critic=nn.Sequential(body, nn.Linear(2, 1))).step(torch.randn(6, 2))


def test_equal_names_do_not_mix():
    # A plain critic has the very names of the generator's parameters.
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.net = PyroModule[nn.Linear](2, 2)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x):
            return self.net(x)

    model, critic = Model(), Critic()
    gan = make_gan(model, critic=critic)
    gan.step(torch.randn(6, 2))
    assert set(gan._program.params) == {"net.weight", "net.bias"}
    held = {id(p) for p in gan.critic_optim.state}
    assert held <= {id(p) for p in critic.parameters()}
    assert {id(p) for p in gan.optim.optim_objs} == {id(p) for p in model.net.parameters()}


def test_optimisers_must_hold_the_right_parameters():
    model, critic = PushForward(), MLP(2, [8], 1)
    with pytest.raises(ValueError, match=r"`critic_optim` must .* lacked \['head.bias'\]"):
        GAN(model, critic, pyro.optim.Adam({}), sgd(list(critic.parameters())[:-1]))
    both = [*critic.parameters(), *model.net.parameters()]
    with pytest.raises(ValueError, match="`critic_optim` must .* held 4 others"):
        GAN(model, critic, pyro.optim.Adam({}), sgd(both))
    with pytest.raises(ValueError, match="`critic_optim` must be a torch optimiser"):
        GAN(model, critic, pyro.optim.Adam({}), pyro.optim.Adam({}))
    with pytest.raises(ValueError, match="`optim` must be an optimiser"):
        GAN(model, critic, torch.optim.Adam, sgd(critic.parameters()))
    gan = GAN(model, critic, sgd([model.net.head.weight]), sgd(critic.parameters()))
    with pytest.raises(ValueError, match="these would never train: .*head.bias"):
        gan.step(torch.randn(6, 2))


def test_gradients_of_other_losses_do_not_enter():
    x = torch.randn(6, 2)
    for settings in ({}, {"elbo": RenyiELBO(num_particles=1), "elbo_weight": 1.0}):
        moved = []
        for stale in (None, 100.0):
            pyro.clear_param_store()
            torch.manual_seed(0)
            gan = make_gan(Location(), pyro.optim.SGD({"lr": 1.0}), **settings)
            gan.values(x)
            if stale is not None:
                for param in pyro.get_param_store()._params.values():
                    param.grad = torch.full_like(param, stale)
            gan.step(x)
            moved.append(pyro.param("loc").detach().clone())
        assert torch.equal(*moved)


def test_evaluation_leaves_the_buffers():
    critic = penalties.spectral_norm(MLP(2, [8], 1))
    gan = make_gan(Batched(), "torch", critic=critic)
    x = torch.randn(6, 2)
    gan.step(x)
    modules = (critic, gan.model.net)
    before = [b.clone() for module in modules for b in module.buffers()]
    gan.evaluate_loss(x)
    gan.scores(x)
    after = [b for module in modules for b in module.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# ----------------------------------------------------------------------------------------- average


def test_average_of_the_parameters():
    gan = make_gan(Location(), ema=0.5)
    x, seen = torch.randn(6, 2), []
    for _ in range(3):
        gan.step(x)
        seen.append(pyro.param("loc").detach().clone())
    # The first steps weigh more than a decay of 0.5 lets them: 2 / 11, then 3 / 12.
    expected = (seen[0] * 2 / 11 + seen[1] * 9 / 11) / 4 + seen[2] * 3 / 4
    now = pyro.param("loc").detach().clone()
    with gan.averaged():
        assert torch.allclose(pyro.param("loc"), expected)
    assert torch.equal(pyro.param("loc"), now)
    with pytest.raises(RuntimeError), gan.averaged():
        raise RuntimeError
    assert torch.equal(pyro.param("loc"), now)
    with pytest.raises(ValueError, match="`ema` must be a decay"):
        make_gan(Location()).averaged().__enter__()


def test_nothing_is_lost_inside_of_an_average():
    gan = make_gan(Location(), ema=0.5)
    x = torch.randn(6, 2)
    for _ in range(3):
        gan.step(x)
    state, now = gan.state_dict(), pyro.param("loc").detach().clone()
    with gan.averaged():
        average = pyro.param("loc").detach().clone()
        assert not torch.equal(average, now)
        assert_equal(gan.state_dict(), state)  # the parameters are still those that train
        with gan.averaged():
            assert torch.equal(pyro.param("loc"), average)
        assert torch.equal(pyro.param("loc"), average)
        gan.evaluate_loss(x)
        with pytest.raises(ValueError, match=r"`step` must be called outside of averaged\(\)"):
            gan.step(x)
        with pytest.raises(ValueError, match=r"`load_state_dict` .* outside of averaged\(\)"):
            gan.load_state_dict(state)
    assert torch.equal(pyro.param("loc"), now)
    assert_equal(gan.state_dict(), state)
    gan.step(x)


def test_an_average_that_waits_for_its_networks():
    one = make_gan(PushForward(), ema=0.5)
    x = torch.randn(6, 2)
    one.step(x)
    other = make_gan(PushForward(), ema=0.5)
    other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match=r"`averaged` needs .* prepare\(\*args\)"):
        other.averaged().__enter__()
    other.prepare(x)
    with other.averaged():
        pass


# --------------------------------------------------------------------------------------- bad input


def observed(law):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", law(), obs=x)

    return model


def test_no_observed_site():
    def model(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
        pyro.deterministic("twice", torch.ones(2))

    with pytest.raises(ValueError, match=r"`model` must have an observed site.*\['z', 'twice'\]"):
        make_gan(model).step(torch.randn(6, 2))


def test_draws_without_a_gradient():
    rate = lambda: dist.Poisson(pyro.param("rate", torch.ones(2))).to_event(1)  # noqa: E731
    with pytest.raises(ValueError, match="`model` must draw .* with a gradient .*PsiView"):
        make_gan(observed(rate)).step(torch.ones(6, 2))
    # It reads a parameter, which the draws do not depend on.
    fixed = lambda: dist.Normal(0 * pyro.param("loc", torch.ones(2)).detach(), 1.0).to_event(1)  # noqa: E731
    with pytest.raises(ValueError, match="`model` must draw .* with a gradient"):
        make_gan(observed(fixed)).step(torch.ones(6, 2))


def test_a_model_without_parameters():
    fixed = lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1)  # noqa: E731
    net = torch.nn.Linear(2, 2)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    forgotten = lambda: Implicit(net, noise, event_shape=2)  # noqa: E731
    for law in (fixed, forgotten):
        with pytest.raises(ValueError, match="`model` must read parameters .*pyro.module"):
            make_gan(observed(law)).step(torch.ones(6, 2))


def test_an_optimiser_of_both_players():
    model, critic = PushForward(), MLP(2, [8], 1)
    both = torch.optim.Adam([*model.net.parameters(), *critic.parameters()])
    with pytest.raises(ValueError, match="`optim` must hold no parameter of the critic, held 4"):
        make_gan(model, both, critic).step(torch.randn(6, 2))


def test_rows_that_share_a_draw_without_a_plate():
    scale = lambda: pyro.param("scale", torch.ones(()))  # noqa: E731

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, scale()))
        pyro.sample("x", dist.Normal(z.expand(len(x), 2), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"once for each row .* \(6,\).*'z': \(\).*pyro.plate"):
        make_gan(model).step(torch.randn(6, 2))

    def one_datum(x):  # says that all of x is one
        z = pyro.sample("z", dist.Normal(0.0, scale()))
        pyro.sample("x", dist.Normal(z.expand(2), 1.0).to_event(1), obs=x)

    make_gan(one_datum).step(torch.randn(2))


def test_plates_without_an_exchangeable_unit():
    def crossed(x):
        loc = pyro.param("loc", torch.zeros(()))
        rows, columns = pyro.plate("row", 3, dim=-2), pyro.plate("column", 4, dim=-1)
        with rows:
            u = pyro.sample("u", dist.Normal(loc, 1.0))
        with columns:
            v = pyro.sample("v", dist.Normal(loc, 1.0))
        with rows, columns:
            pyro.sample("x", dist.Normal(u + v, 1.0), obs=x)

    with pytest.raises(ValueError, match="`model` must have a plate .* 'u' in .* Give `view`"):
        make_gan(crossed).step(torch.randn(3, 4))


def test_data_of_another_size_than_the_plate():
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"`obs` of site 'x' must have the shape \(4, 2\)"):
        make_gan(model).step(torch.randn(6, 2))


@pytest.mark.parametrize(
    "critic", [MLP(2, [4], 3), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0, -1), nn.Linear(6, 2))]
)
def test_critic_whose_output_does_not_match_the_batch(critic):
    with pytest.raises(
        ValueError, match=r"`critic` must return scores of shape \(6,\) or \(6, 1\)"
    ):
        make_gan(PushForward(), critic=critic).step(torch.randn(6, 2))


def test_penalties_on_integer_data():
    loc = lambda: dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1)  # noqa: E731

    class Cast(Recorder):
        def forward(self, x):
            return super().forward(x.float())

    for penalty in (penalties.R1(1.0), penalties.GradientPenalty()):
        gan = make_gan(observed(loc), critic=Cast(), penalties=penalty)
        with pytest.raises(ValueError, match="floating point"):
            gan.step(torch.ones(6, 2, dtype=torch.long))


def test_wasserstein_without_a_bounded_slope_warns():
    with pytest.warns(UserWarning, match="Wasserstein.* needs a critic with a bounded slope"):
        make_gan(PushForward(), objective=objectives.Wasserstein())
    normalized = penalties.spectral_norm(MLP(2, [8], 1))
    make_gan(PushForward(), objective=objectives.Wasserstein(), critic=normalized)  # warns not


def test_batch_normalised_critic_warns():
    critic = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for settings in ({"penalties": penalties.R1(1.0)}, {"objective": objectives.Relativistic()}):
        with pytest.warns(UserWarning, match="`critic` has batch normalisation"):
            make_gan(PushForward(), critic=critic, **settings)


def squashed():
    return nn.Sequential(MLP(2, [8], 1), nn.Sequential(nn.Identity(), nn.Sigmoid()))


@pytest.mark.parametrize(
    "objective",
    [objectives.NonSaturating(), objectives.Hinge(), objectives.Relativistic()],
    ids=repr,
)
def test_a_critic_that_ends_in_a_sigmoid_warns(objective):
    with pytest.warns(UserWarning, match=f"nn.Sigmoid.*{type(objective).__name__}") as caught:
        make_gan(PushForward(), objective=objective, critic=squashed())
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="nn.Sigmoid"):  # no score is best at each point
        settings = {"objective": objectives.Wasserstein(), "penalties": penalties.WeightClipping()}
        make_gan(PushForward(), critic=squashed(), **settings)


def test_a_sigmoid_where_it_is_meant_does_not_warn():
    class Probabilities(objectives.Objective):
        def _critic_loss(self, real, fake):
            return -(real.log().mean() + (1 - fake).log().mean())

        def _generator_loss(self, real, fake):
            return -fake.log().mean()

        def optimal_score(self, log_ratio):
            return log_ratio.sigmoid()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for objective in (objectives.LeastSquares(), Probabilities()):
            make_gan(PushForward(), objective=objective, critic=squashed())
        make_gan(PushForward(), critic=MLP(2, [8], 1, nn.Sigmoid))  # within


def test_penalties_from_an_iterator():
    gan = make_gan(PushForward(), penalties=iter([penalties.R1(1.0)]))
    assert [repr(penalty) for penalty in gan.penalties] == ["R1(gamma=1.0)"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_steps": 0}, "`critic_steps` must be a positive integer"),
        ({"critic_steps": True}, "`critic_steps` must be a positive integer, was True"),
        ({"unroll": -1}, "`unroll` must be an integer of at least 0"),
        ({"ema": 1.0}, "`ema` must be None or a decay"),
        ({"objective": "hinge"}, "`objective` must be an Objective"),
        ({"penalties": ["r1"]}, "`penalties` must be a sequence.* entry 0 is no Penalty, was 'r1'"),
        ({"penalties": "r1"}, "`penalties` must be a sequence .*, was 'r1'"),
        ({"penalties": [penalties.R1(1.0), len]}, "its entry 1 is no Penalty"),
        ({"penalties": penalties.GradientPenalty}, "`penalties` must be a sequence"),
        ({"elbo": Trace_ELBO, "elbo_weight": 1.0}, "`elbo` must be an ELBO"),
        ({"elbo": Trace_ELBO(), "elbo_weight": Balance}, "`elbo_weight` must be a number"),
        ({"elbo": Trace_ELBO()}, "`elbo_weight` must say how much"),
        ({"elbo_weight": 1.0}, "`elbo_weight` must be None without an `elbo`"),
        ({"elbo": Trace_ELBO(), "elbo_weight": -1.0}, "`elbo_weight` must be a number"),
        ({"elbo": Trace_ELBO(), "elbo_weight": "auto"}, "`elbo_weight` must be a number"),
        ({"elbo": Trace_ELBO(), "elbo_weight": math.nan}, "`elbo_weight` must be a number"),
        ({"elbo": "elbo", "elbo_weight": 1.0}, "`elbo` must be an ELBO"),
        ({"view": "psi"}, "`view` must be a function or a module, or None, was 'psi'"),
        ({"view": View}, "`view` must be a function or a module, or None, was the class View"),
        ({"conditional": "label"}, "`conditional` must be True, False or a function"),
        ({"compile_networks": None}, "`compile_networks` must be True or False"),
        ({"penalties": torch.zeros(())}, "`penalties` must be a sequence"),
        ({"elbo": Trace_ELBO(), "elbo_weight": nn.Identity()}, "`elbo_weight` must be a number"),
        ({"autocast": "bfloat16"}, "`autocast` must be torch.bfloat16, torch.float16 or None"),
        ({"autocast": torch.float64}, "`autocast` must be .*, was torch.float64"),
        ({"compile_networks": True, "unroll": 1}, "`compile_networks` must be False"),
        ({"critic": lambda x: x}, "`critic` must be a torch module"),
        ({"critic": nn.ReLU()}, "`critic` must have parameters"),
    ],
)
def test_bad_arguments(settings, message):
    settings = {"critic": MLP(2, [8], 1), **settings}
    critic = settings.pop("critic")
    params = list(critic.parameters()) if isinstance(critic, nn.Module) else []
    optim = sgd(params or [nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=message):
        GAN(PushForward(), critic, pyro.optim.Adam({}), optim, **settings)


def fixed_rows(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("text", "must be a tensor or numbers, was 'text'"),
        (torch.zeros(3, 2, device="meta"), "must be a dense tensor on cpu.*on meta"),
        (torch.eye(3).to_sparse(), "must be a dense tensor on cpu.*sparse"),
        (torch.zeros(0, 2), r"must have the shape \(3, 2\).*was \(0, 2\)"),
    ],
)
def test_data_that_a_critic_cannot_compare(x, message):
    with pytest.raises(ValueError, match=f"`obs` of site 'x' {message}"):
        make_gan(fixed_rows).step(x)


def test_a_type_that_the_critic_does_not_take_is_said_whenever_it_comes():
    gan = make_gan(fixed_rows)
    gan.step(torch.zeros(3, 2))
    for method in (gan.step, gan.evaluate_loss):
        with pytest.raises(ValueError, match="`critic` must take 1 values of shape"):
            method(torch.zeros(3, 2, dtype=torch.float64))


def test_a_view_of_other_arguments():
    gan = make_gan(fixed_rows, view=lambda real, fake: (real, fake))
    with pytest.raises(ValueError, match="`view` must take Trace, but raised: .*missing 1"):
        gan.step(torch.zeros(3, 2))


def test_schedule_that_returns_no_weight():
    gan = make_gan(Location(), elbo=Trace_ELBO(), elbo_weight=lambda step: None)
    with pytest.raises(
        ValueError,
        match="`elbo_weight` must be a number of at least 0 at every step, at step 0, was None",
    ):
        gan.step(torch.randn(6, 2))


def test_state_of_another_program():
    x = torch.randn(6, 2)
    gan = make_gan(Location())
    gan.step(x)
    state = gan.state_dict()
    pyro.clear_param_store()
    other = make_gan(PushForward())
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"`state_dict` must hold the params \['net"):
        other.step(x)
    with pytest.raises(ValueError, match="`state_dict` must hold"):
        gan.load_state_dict({})
