"""SemiImplicit as a distribution: closed-form marginals, bounds, shapes, memory, bad input."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.inspect import get_model_relations
from scipy import stats
from torch import nn
from torch.distributions import constraints

from pyro_sig.distributions import (
    FixedMixture,
    Implicit,
    LowRankAffine,
    ParticleMixing,
    Responsibility,
    SemiImplicit,
)
from pyro_sig.nn import MLP

# Every statistical tolerance is 5 standard errors: it fails one run in 1.7 million.
SIGMAS = 5.0


def normal_normal(num_mixing=10, mixing_std=1.5, std=0.5, **kwargs):
    mixing = dist.Normal(torch.tensor(1.0), mixing_std)
    return SemiImplicit(mixing, lambda psi: dist.Normal(psi, std), num_mixing, **kwargs)


def within(estimates, truth):
    error = estimates.std() / math.sqrt(len(estimates))
    return abs(estimates.mean() - truth) <= SIGMAS * error


@pytest.mark.parametrize("share_draws", [True, False])
def test_a_support_that_depends_on_psi(share_draws):
    """Psi below the value give density 0, the others count."""
    torch.manual_seed(0)
    mixing = dist.Uniform(torch.tensor(1.0), 2.0)
    p = SemiImplicit(mixing, lambda psi: dist.Uniform(0 * psi, psi), 200_000, share_draws)
    value = torch.tensor([0.5, 1.5])
    # p(x) = int_max(1, x)^2 1 / psi d psi = log 2 - log max(1, x); 5 SE of the mean of 200,000.
    truth = torch.tensor([math.log(2), math.log(2 / 1.5)])
    assert torch.allclose(p.log_prob(value).exp(), truth, atol=5 * 0.4 / math.sqrt(200_000))
    drawn = p.rsample((3,))
    assert p.log_prob(drawn).isfinite().all()


# -------------------------------------------------------------------------- closed-form marginals


@pytest.mark.parametrize("name", ["normal_normal", "gamma_poisson", "beta_binomial"])
def test_log_prob_agrees_with_the_closed_form_marginal(name):
    if name == "normal_normal":
        p = normal_normal()
        truth = dist.Normal(1.0, math.hypot(1.5, 0.5))
        value = torch.linspace(-3, 5, 9)
        log_truth = truth.log_prob(value)
    elif name == "gamma_poisson":
        mixing = dist.Gamma(torch.tensor(2.0), 0.5)
        p = SemiImplicit(mixing, dist.Poisson, 10)
        value = torch.arange(9.0)
        log_truth = dist.GammaPoisson(2.0, 0.5).log_prob(value)
    else:
        mixing = dist.Beta(torch.tensor(2.0), 3.0)
        p = SemiImplicit(mixing, lambda psi: dist.Binomial(8, psi), 10)
        value = torch.arange(9.0)
        log_truth = dist.BetaBinomial(2.0, 3.0, 8).log_prob(value)
    # The mean density is unbiased: average it, and compare on the natural scale.
    psi = p.mixing.sample((200_000,))
    density = p.conditional(psi.unsqueeze(-1)).log_prob(value).exp()
    assert within(density[:, 4], log_truth[4].exp())
    fixed = p.to_mixture(200_000)
    error = density.std(0) / math.sqrt(len(density)) / log_truth.exp()
    assert ((fixed.log_prob(value) - log_truth).abs() <= SIGMAS * error + 1e-5).all()


def test_fresh_draws_bound_from_below_and_psi_0_from_above():
    torch.manual_seed(1)
    p = normal_normal(num_mixing=3)
    truth = dist.Normal(1.0, math.hypot(1.5, 0.5))
    lower, upper = [], []
    for _ in range(400):
        q = normal_normal(num_mixing=3, share_draws=False)
        value = q.rsample((50,))
        low, up = q.log_prob_bounds(value)
        lower.append((low - truth.log_prob(value)).mean())
        upper.append((up - truth.log_prob(value)).mean())
    lower, upper = torch.stack(lower), torch.stack(upper)
    assert lower.mean() + SIGMAS * lower.std() / 20 < 0
    assert upper.mean() - SIGMAS * upper.std() / 20 > 0
    value = torch.zeros(4)
    assert p.log_prob_bounds(value)[1] is None
    low, up = p.log_prob_bounds(value, psi_0=torch.zeros(4))
    assert torch.equal(up, p.log_prob(value, psi_0=torch.zeros(4)))
    assert torch.equal(low, p.log_prob(value))


def weights_of(
    num_objects, rows, share_draws, psi_0="remembered", num_draws=1, mixing_std=0.5, per_row=False
):
    """p(z) / q(z) of the joint of all rows, where p is q's exact marginal; K = 3."""
    target = dist.Normal(0.0, math.hypot(mixing_std, 0.5))
    how = {} if psi_0 == "remembered" else {"psi_0": None}
    weights = []
    for _ in range(num_objects):
        mixing = dist.Normal(torch.tensor(0.0), mixing_std)
        q = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.5), 3, share_draws=share_draws)
        q = q.expand([rows])
        z = q.rsample((num_draws,))
        log_weights = target.log_prob(z) - q.log_prob(z, **how)
        weights.append((log_weights if per_row else log_weights.sum(-1)).exp())
    return torch.cat(weights)


@pytest.mark.parametrize("rows", [1, 20])
def test_mean_importance_weight_is_one_with_own_draws(rows):
    torch.manual_seed(2)
    assert within(weights_of(20, rows, share_draws=False, num_draws=5000), 1.0)


def test_the_weight_is_biased_without_psi_0():
    torch.manual_seed(3)
    weights = weights_of(10, 1, False, psi_0=None, num_draws=5000, mixing_std=0.25)
    assert weights.mean() - SIGMAS * weights.std() / math.sqrt(len(weights)) > 1


def test_shared_draws_bias_the_joint_weight_of_several_rows():
    """Given the shared psi, rows are independent with mean weight g: the joint mean is E[g^N]."""
    torch.manual_seed(3)
    given_psi = weights_of(300, 20_000, share_draws=True, mixing_std=0.25, per_row=True)
    given_psi = given_psi.reshape(300, -1)
    g = given_psi.mean(-1)
    assert within(g, 1.0)  # one row: no bias
    # Where g varies beyond sampling error, E[g^N] > 1 for N > 1 by Jensen.
    assert g.var() > 10 * (given_psi.var(-1) / given_psi.shape[-1]).mean()
    own = weights_of(300, 1000, share_draws=False, mixing_std=0.25, per_row=True)
    own = own.reshape(300, -1)
    assert own.mean(-1).var() < 2 * (own.var(-1) / own.shape[-1]).mean()


# ------------------------------------------------------------------------------------ shapes, psi


def net_mixing(event_shape=3):
    torch.manual_seed(0)
    net = MLP(2, [8], event_shape)
    return Implicit(net, dist.Normal(torch.zeros(2), 1.0).to_event(1), event_shape)


def gaussian(psi):
    return dist.Normal(psi, 0.3).to_event(1)


@pytest.mark.parametrize("share_draws", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("batch_shape", [(), (5,), (4, 5)])
@pytest.mark.parametrize("sample_shape", [(), (6,), (2, 6)])
def test_shapes(share_draws, chunk_size, batch_shape, sample_shape):
    p = SemiImplicit(net_mixing(), gaussian, 10, share_draws, chunk_size).expand(batch_shape)
    assert p.batch_shape == batch_shape and p.event_shape == (3,)
    value = p.rsample(sample_shape)
    assert value.shape == sample_shape + batch_shape + (3,)
    assert p.log_prob(value).shape == sample_shape + batch_shape
    assert p.psi(value).shape == sample_shape + batch_shape + (3,)
    assert p.log_prob(value.detach() + 1).shape == sample_shape + batch_shape
    assert p.mean.shape == p.variance.shape == batch_shape + (3,)


def test_rows_of_one_draw_have_their_own_psi():
    p = SemiImplicit(net_mixing(), gaussian, 10).expand([4])
    psi = p.psi(p.sample())
    assert len(psi.unique(dim=0)) == 4


def test_amortised_mixing_gives_each_row_its_own_law():
    x = torch.tensor([[-100.0], [0.0], [100.0]])
    noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    mixing = Implicit(lambda eps, x: x + eps, noise, 1, inputs=x)
    p = SemiImplicit(mixing, gaussian, 50)
    assert p.batch_shape == (3,)
    assert (p.log_prob(x) > -10).all()
    assert (p.log_prob(x.flip(0))[[0, 2]] < -1000).all()
    value = p.expand([7, 3]).rsample((2,))
    assert value.shape == (2, 7, 3, 1)
    assert p.expand([7, 3]).log_prob(value.detach() + 0.1).shape == (2, 7, 3)


def test_expand_shares_draws_and_agrees():
    p = SemiImplicit(net_mixing(), gaussian, 20)
    value = torch.randn(5, 3)
    assert torch.allclose(p.expand([5]).log_prob(value), p.log_prob(value))
    assert torch.allclose(p.expand([1]).expand([5]).log_prob(value), p.log_prob(value))


def test_to_event_and_mask():
    p = SemiImplicit(net_mixing(), gaussian, 20).expand([5])
    value = torch.randn(5, 3)
    rows = p.log_prob(value)
    assert torch.allclose(p.to_event(1).log_prob(value), rows.sum())
    mask = torch.tensor([True, False, True, True, False])
    assert torch.allclose(p.mask(mask).log_prob(value), rows * mask)
    z = p.to_event(1).rsample()
    assert p.to_event(1).log_prob(z).shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_parameters(dtype):
    net = MLP(2, [8], 3, dtype=dtype)
    mixing = Implicit(net, dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1), 3)
    p = SemiImplicit(mixing, gaussian, 10)
    value = p.rsample((4,))
    assert value.dtype == dtype and p.log_prob(value).dtype == dtype


def test_support_and_moments():
    p = SemiImplicit(dist.Gamma(torch.tensor(3.0), 2.0), dist.Poisson, 10)
    assert p.support is constraints.nonnegative_integer
    assert p.support.is_discrete and not p.has_rsample
    q = normal_normal(num_mixing=100_000)
    assert abs(q.mean - 1.0) < SIGMAS * 1.5 / math.sqrt(100_000)
    # Var of a sample variance of a normal: 2 sigma^4 / n.
    assert abs(q.variance - 2.5) < SIGMAS * 1.5**2 * math.sqrt(2 / 100_000)


# ----------------------------------------------------------------------------------------- memory


def test_a_drawn_value_keeps_its_psi_0():
    p = normal_normal(num_mixing=1, mixing_std=100.0)
    z = p.rsample((5,))
    # One fresh psi of a very wide law is far away: only psi_0 explains the value.
    assert (p.log_prob(z) > -5).all()
    assert (p.log_prob(z, psi_0=None) < -20).any()
    assert torch.allclose(p.log_prob(z.clone(), psi_0=p.psi(z)), p.log_prob(z))


def test_memory_survives_expansion_later_draws_and_two_sites():
    """With psi_0 a value lies 5.6 sd off (below -18) once in 5e7 draws; without, a thousand."""
    p = normal_normal(num_mixing=1, mixing_std=1000.0)
    first = p.rsample()
    second = p.rsample((3,))
    assert p.log_prob(first) > -18 and (p.log_prob(second) > -18).all()
    assert (p.expand([3]).log_prob(second) > -18).all()
    sibling_one, sibling_two = p.expand([3]), p.expand([3])
    z = sibling_one.rsample()
    assert (sibling_one.log_prob(z) > -18).all()
    # One object as guide and prior of a plate: the prior's reading counts no psi_0.
    assert (sibling_two.log_prob(z) < -20).any()


def test_values_are_forgotten_with_the_value():
    p = normal_normal()
    z = p.rsample((3,))
    assert len(p._lineage._memories[0].origins) == 1
    del z
    assert len(p._lineage._memories[0].origins) == 0


def test_a_copy_of_a_drawn_value_raises():
    p = normal_normal()
    z = p.rsample((3,))
    with pytest.raises(ValueError, match="copy of it .* lost its psi_0"):
        p.log_prob(z.detach())
    with pytest.raises(ValueError, match="copy of it"):
        p.log_prob(z.clone())
    with pytest.raises(ValueError, match="copy of it"):
        p.expand([3]).log_prob(z.detach())
    p.log_prob(z.detach(), psi_0=None)
    p.log_prob(z.detach() + 1e-3)


def test_psi_of_a_foreign_value_raises():
    p = normal_normal()
    with pytest.raises(ValueError, match="must be a tensor drawn from this distribution"):
        p.psi(torch.zeros(()))


def test_draws_are_renewed_after_a_backward_pass():
    p = SemiImplicit(net_mixing(), gaussian, 10)
    value = torch.zeros(2, 3)
    first = p.log_prob(value)
    assert torch.equal(first, p.log_prob(value))
    first.sum().backward()
    second = p.log_prob(value)  # the old graph is gone
    assert not torch.equal(first, second)
    second.sum().backward()


class Likelihood(torch.nn.Module):
    def forward(self, psi):
        return gaussian(psi)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_and_pickles_without_draws(copier):
    p = SemiImplicit(net_mixing(), Likelihood(), 10)
    z = p.rsample((4,))
    p.log_prob(z)
    q = copier(p)
    assert q.batch_shape == p.batch_shape and q.event_shape == p.event_shape
    assert q.log_prob(torch.zeros(4, 3)).shape == (4,)
    with pytest.raises(ValueError, match="must be a tensor drawn"):
        q.psi(z)


# -------------------------------------------------------------------------------------- gradients


def test_gradient_against_finite_differences():
    """Same psi draws by common random numbers; double precision."""
    loc = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    value = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def objective(loc, log_std, value):
        torch.manual_seed(7)
        mixing = dist.Normal(loc, 1.0).to_event(1)
        p = SemiImplicit(mixing, lambda psi: dist.Normal(psi, log_std.exp()).to_event(1), 20)
        return p.log_prob(value).sum()

    assert torch.autograd.gradcheck(objective, (loc, log_std, value))
    assert torch.autograd.gradgradcheck(objective, (loc, log_std, value))


@pytest.mark.parametrize("chunk_size", [1, 7, 20, 100])
def test_chunks_give_the_same_value_and_gradient(chunk_size):
    net = MLP(2, [8], 3).double()
    noise = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    value = torch.randn(4, 3, dtype=torch.float64)
    p = SemiImplicit(Implicit(net, noise, 3), gaussian, 20, chunk_size=chunk_size)
    torch.manual_seed(0)
    p = SemiImplicit(Implicit(net, noise, 3), gaussian, 20, chunk_size=chunk_size)
    total = p.log_prob(value).sum()
    total.backward()
    grads = [w.grad.clone() for w in net.parameters()]
    net.zero_grad()
    torch.manual_seed(0)
    sizes = [min(chunk_size, 20 - i) for i in range(0, 20, chunk_size)]
    eps = torch.cat([noise.sample((size,)) for size in sizes])
    scores = gaussian(net(eps).unsqueeze(1)).log_prob(value)
    direct = (scores.logsumexp(0) - math.log(20)).sum()
    direct.backward()
    assert torch.allclose(total, direct)
    for grad, w in zip(grads, net.parameters(), strict=True):
        assert torch.allclose(grad, w.grad)


def test_discrete_mixing_gets_a_score_gradient():
    """The gradient of the expected bound, against the exact one by enumerating all draws."""
    logits = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    atoms = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
    value = torch.tensor([0.1, 1.0], dtype=torch.float64)
    num_mixing = 2

    def conditional(psi):
        return dist.Normal(atoms[psi.long()], 0.7)

    exact = 0.0
    for i in range(3):
        for j in range(3):
            scores = dist.Normal(atoms[[i, j]].unsqueeze(-1), 0.7).log_prob(value)
            bound = (scores.logsumexp(0) - math.log(num_mixing)).sum()
            probs = logits.softmax(-1)
            exact = exact + probs[i] * probs[j] * bound
    (truth,) = torch.autograd.grad(exact, logits)
    torch.manual_seed(4)
    grads = []
    for _ in range(4000):
        p = SemiImplicit(dist.Categorical(logits=logits), conditional, num_mixing)
        assert not p.has_rsample
        grads.append(torch.autograd.grad(p.log_prob(value).sum(), logits)[0])
    grads = torch.stack(grads)
    error = grads.std(0) / math.sqrt(len(grads))
    assert ((grads.mean(0) - truth).abs() <= SIGMAS * error).all()
    assert (truth.abs() > 10 * error).any()  # the test could fail


# ------------------------------------------------------------------------------------ two samples


def test_samples_follow_the_marginal():
    torch.manual_seed(5)
    draws = normal_normal().sample((5000,))
    truth = stats.norm(1.0, math.hypot(1.5, 0.5))
    assert stats.kstest(draws.numpy(), truth.cdf).pvalue > 1e-6


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("num_mixing", [0, -1, 2.5, None, True])
def test_num_mixing_must_be_positive(num_mixing):
    with pytest.raises(ValueError, match="`num_mixing` must be a positive integer, was"):
        SemiImplicit(net_mixing(), gaussian, num_mixing)


def test_bad_values_raise():
    p = SemiImplicit(net_mixing(), gaussian, 10).expand([5])
    with pytest.raises(ValueError, match=r"`value` must end in event_shape \(3,\), was of shape"):
        p.log_prob(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"broadcast with batch_shape \(5,\), was of shape"):
        p.log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="`value` must be finite, was NaN"):
        p.log_prob(torch.full((5, 3), math.nan))
    with pytest.raises(
        ValueError, match=r"`value` must be a dense tensor of real numbers, was \[1\.0\]"
    ):
        p.log_prob([1.0])
    counts = SemiImplicit(dist.Gamma(torch.tensor(1.0), 1.0), dist.Poisson, 10)
    with pytest.raises(ValueError, match=r"support .*, was \[-1.0\] in some entries"):
        counts.log_prob(torch.tensor([1.0, -1.0]))


def test_bad_parts_raise():
    with pytest.raises(ValueError, match="`mixing` must be a Distribution, was MLP"):
        SemiImplicit(MLP(1, [2], 1), gaussian, 5)
    with pytest.raises(ValueError, match="`conditional` must be a callable"):
        SemiImplicit(net_mixing(), dist.Normal(0.0, 1.0), 5)
    with pytest.raises(
        ValueError, match="`conditional` must return a Distribution, returned a .* tensor"
    ):
        SemiImplicit(net_mixing(), lambda psi: psi, 5)
    with pytest.raises(ValueError, match=r"end the conditional with .to_event\(1\)"):
        SemiImplicit(net_mixing(), lambda psi: dist.Normal(psi, 1.0), 5)
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"`transform` must return psi of shape \(5, 4\)"):
        SemiImplicit(Implicit(MLP(2, [3], 3), noise, 4), gaussian, 5)
    with pytest.raises(ValueError, match="`chunk_size` must be a positive integer, was 0"):
        SemiImplicit(net_mixing(), gaussian, 5, chunk_size=0)
    with pytest.raises(NotImplementedError, match="must both have rsample"):
        SemiImplicit(dist.Gamma(torch.tensor(1.0), 1.0), dist.Poisson, 5).rsample()


def test_with_draws_is_the_same_law_and_knows_its_values():
    p = SemiImplicit(dist.Normal(torch.zeros(4), 1.0), lambda psi: dist.Normal(psi, 1.0), 3)
    x = p.sample()
    many = p.with_draws(5000, share_draws=False)
    assert (many.num_mixing, many.share_draws, many.batch_shape) == (5000, False, (4,))
    assert (p.num_mixing, p.share_draws) == (3, True)
    assert torch.equal(many.psi(x), p.psi(x))
    # The estimate at 5000 psi has a relative error of about 0.01: 5 of them.
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert (many.log_prob(x) - truth).abs().max() < 0.1
    with pytest.raises(ValueError, match="`num_mixing` must be a positive integer"):
        p.with_draws(0)


def test_with_draws_leaves_particles_and_proposals_alone():
    particles = ParticleMixing(torch.tensor([-1.0, 1.0]))
    p = SemiImplicit(particles, lambda psi: dist.Normal(psi, 1.0), 1).with_draws(10, False)
    assert p.num_mixing == 2 and p.share_draws
    p = SemiImplicit(
        dist.Normal(0.0, 1.0),
        lambda psi: dist.Normal(psi, 1.0),
        3,
        proposal=lambda x: dist.Normal(x / 2, 1.0),
    ).with_draws(7, share_draws=True)
    assert p.num_mixing == 7 and not p.share_draws


def test_a_semi_implicit_prior_under_vmap():
    """One draw of psi for all points, as in a loop that starts from the same random state."""
    x = torch.randn(6, 3)

    def score(x):
        prior = SemiImplicit(dist.Normal(0.0, 1.0), lambda psi: dist.Normal(psi, 0.5), 20)
        return prior.log_prob(x).sum()

    torch.manual_seed(0)
    mapped = torch.func.vmap(score, randomness="same")(x)
    expected = []
    for row in x:
        torch.manual_seed(0)
        expected.append(score(row))
    torch.testing.assert_close(mapped, torch.stack(expected))


def normal_of_vectors(mixing=None, **options):
    mixing = mixing or dist.Normal(torch.zeros(2), 1.0).to_event(1)
    return SemiImplicit(mixing, lambda psi: dist.Normal(psi, 1.0).to_event(1), 4, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_draws": False},
        {"backward": "top"},
        {"proposal": lambda x: dist.Normal(x, 1.0).to_event(1)},
        {"mixing": dist.Poisson(torch.ones(2)).to_event(1), "share_draws": False},
        {"mixing": ParticleMixing(torch.zeros(3, 2))},
    ],
)
def test_an_empty_batch_has_no_scores(options):
    assert normal_of_vectors(**options).log_prob(torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda p: p.sample(3), "`sample_shape` must be a sequence of sizes, was 3"),
        (lambda p: p.sample(b"ab"), "`sample_shape` must be a sequence of sizes"),
        (lambda p: p.sample((-1,)), "`sample_shape` must be a sequence of sizes"),
        (lambda p: p.expand("ab"), "`batch_shape` must be a sequence of sizes, was 'ab'"),
        (lambda p: p.psi(None), "`value` must be a dense tensor of real numbers, was None"),
        (lambda p: p.log_prob(torch.zeros(3, 2, device="meta")), "`value` must be a dense tensor"),
        (lambda p: p.log_prob(torch.eye(2).to_sparse()), "`value` must be a dense tensor"),
        (
            lambda p: p.log_prob(torch.zeros(2, dtype=torch.cfloat)),
            "`value` must be a dense tensor",
        ),
        (lambda p: p.log_prob(torch.zeros(3, 2), torch.zeros(4, 2)), r"`psi_0` .* \(3, 2\)"),
        (lambda p: p.with_draws(3, torch.zeros(2)), "`share_draws` must be True or False"),
        (
            lambda p: p.to_event("all"),
            "`reinterpreted_batch_ndims` must be an integer of at .*, was 'all'",
        ),
    ],
)
def test_what_methods_refuse(call, match):
    with pytest.raises(ValueError, match=match):
        call(normal_of_vectors(validate_args=True))


# ------------------------------------------------------------------- constants of rows in a closure


NUM_ROWS = 7


def scalar_mixing():
    return dist.Normal(0.0, 1.0)


@pytest.mark.parametrize("num_mixing", [NUM_ROWS, 5])
@pytest.mark.parametrize("options", [{}, {"chunk_size": NUM_ROWS}, {"backward": Responsibility(3)}])
def test_constants_of_rows_are_not_paired_with_psi(num_mixing, options):
    scale = torch.linspace(0.5, 2.0, NUM_ROWS)
    wide = torch.linspace(0.5, 2.0, 2 * NUM_ROWS).reshape(NUM_ROWS, 2)
    conditionals = [
        lambda psi: dist.Normal(psi, scale),
        lambda psi: dist.Normal(psi.unsqueeze(-1), wide).to_event(1),
        lambda psi, constants=scale: dist.Normal(psi, constants),
    ]
    for conditional in conditionals:
        with pytest.raises(ValueError, match="`conditional` must .*Implicit.inputs=.*SIG_ELBO"):
            mixture = SemiImplicit(scalar_mixing(), conditional, num_mixing, **options)
            mixture.log_prob(torch.zeros(NUM_ROWS))


def test_rows_seen_as_an_event_get_a_hint():
    scale = torch.linspace(0.5, 2.0, NUM_ROWS)
    with pytest.raises(ValueError, match=r"to_event\(1\), unless they are rows.*Implicit.inputs="):
        SemiImplicit(scalar_mixing(), lambda psi: dist.Normal(psi.unsqueeze(-1), scale), 5)


def test_fixed_mixture_notices_constants_of_rows_too():
    scale = torch.linspace(0.5, 2.0, NUM_ROWS)
    with pytest.raises(ValueError, match="`conditional` must take any number of draws"):
        FixedMixture(torch.zeros(NUM_ROWS), lambda psi: dist.Normal(psi, scale))


def test_other_closures_of_a_conditional_are_left_alone():
    weight = torch.linspace(-1.0, 1.0, NUM_ROWS * NUM_ROWS).reshape(NUM_ROWS, NUM_ROWS)
    scale = torch.linspace(0.5, 2.0, NUM_ROWS)
    mixing = dist.Normal(torch.zeros(NUM_ROWS), 1.0).to_event(1)
    conditionals = [
        lambda psi: dist.Normal(psi @ weight, scale).to_event(1),
        lambda psi: dist.MultivariateNormal(psi, scale_tril=torch.eye(NUM_ROWS) + weight.tril(-1)),
        lambda psi: dist.Normal(psi + weight[2], scale.mean()).to_event(1),
    ]
    for conditional in conditionals:
        mixture = SemiImplicit(mixing, conditional, NUM_ROWS)
        assert mixture.log_prob(mixture.sample((4,))).shape == (4,)


def test_constants_of_rows_of_a_batch_belong_to_their_rows():
    scale = torch.linspace(0.5, 2.0, NUM_ROWS)
    mixing = dist.Normal(torch.linspace(-1.0, 1.0, NUM_ROWS), 1.0)  # a law for each row
    mixture = SemiImplicit(mixing, lambda psi: dist.Normal(psi, scale), NUM_ROWS, False)
    assert mixture.log_prob(mixture.sample((3,))).shape == (3, NUM_ROWS)
    assert mixture.rsample().shape == (NUM_ROWS,)


@pytest.mark.parametrize(
    "conditional",
    [
        lambda psi: dist.ZeroInflatedPoisson(psi[..., 0].exp(), gate_logits=psi[..., 1]),
        lambda psi: dist.ZeroInflatedNegativeBinomial(
            3.0, logits=psi[..., 0], gate=torch.tensor(0.3)
        ),
        lambda psi: dist.ZeroInflatedDistribution(
            dist.Poisson(psi[..., 0].exp()), gate_logits=psi[..., 1]
        ),
    ],
)
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_a_zero_inflated_conditional(conditional, chunk_size):
    """Their batch shape is a plain tuple."""
    torch.manual_seed(0)
    particles = torch.randn(20, 2)
    value = torch.tensor([0.0, 1.0, 5.0])
    scores = conditional(particles.unsqueeze(1).expand(20, 3, 2)).log_prob(value)
    direct = scores.logsumexp(0) - math.log(20)
    law = SemiImplicit(ParticleMixing(particles), conditional, 20)
    assert torch.allclose(law.log_prob(value), direct, atol=1e-5)
    mixture = FixedMixture(particles, conditional, psi_event_dim=1)
    assert torch.allclose(mixture.log_prob(value), direct, atol=1e-5)
    mixing = Implicit(nn.Identity(), dist.Normal(torch.zeros(2), 1.0).to_event(1), 2)
    law = SemiImplicit(mixing, conditional, 20, chunk_size=chunk_size, share_draws=True)
    if chunk_size is None:
        scores = conditional(law.shared_psi.unsqueeze(1).expand(20, 3, 2)).log_prob(value)
        direct = scores.logsumexp(0) - math.log(20)
        assert torch.allclose(law.log_prob(value), direct, atol=1e-5)
    assert law.log_prob(value).shape == (3,)


def test_zero_inflated_noise_and_mixing():
    noise = dist.ZeroInflatedPoisson(torch.ones(3), gate=torch.tensor(0.5))
    for mixing in (noise, Implicit(nn.Identity(), noise)):
        law = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 1.0), 5)
        assert isinstance(law.batch_shape, torch.Size)
        assert isinstance(mixing.expand((4, 3)).sample(), torch.Tensor)
        assert law.log_prob(torch.zeros(4, 3)).shape == (4, 3)


@pytest.mark.parametrize("settings", [{}, {"chunk_size": 5}, {"backward": "responsibility"}])
@pytest.mark.parametrize(
    "family",
    [
        lambda loc: dist.Normal(loc, 1.0).to_event(1),
        lambda loc: dist.Cauchy(loc, 1.0).to_event(1),
        lambda loc: dist.MultivariateNormal(loc, torch.eye(2)),
        lambda loc: dist.TransformedDistribution(
            dist.Normal(loc, 1.0).to_event(1),
            [LowRankAffine(torch.zeros(2), torch.ones(2), torch.ones(2, 1))],
        ),
    ],
)
def test_pyro_finds_what_a_mixture_depends_on(family, settings):
    """The shapes of a tensor whose provenance is tracked are plain tuples."""
    mixing = Implicit(nn.Identity(), dist.Normal(torch.zeros(2), 1.0).to_event(1), 2)

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            law = SemiImplicit(mixing, lambda psi: family(psi + z), 20, **settings)
            pyro.sample("x", law, obs=x)

    found = get_model_relations(model, (torch.zeros(8, 2),))
    assert found["sample_sample"] == {"z": [], "x": ["z"]}
    assert found["sample_dist"]["x"] == "SemiImplicit"
