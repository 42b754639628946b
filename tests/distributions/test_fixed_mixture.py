"""FixedMixture: an exact, repeatable density over a fixed set of psi."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model

from pyro_sig.distributions import FixedMixture


def unit_normal(psi):
    """A conditional that pickle can find by its name."""
    return dist.Normal(psi, 1.0)


def normal_vector(psi):
    return dist.Normal(psi, 0.5).to_event(1)


def positive(psi):
    return dist.Gamma(psi, psi)


# --------------------------------------------------------------------------------------- density


def test_density_of_two_normals():
    p = FixedMixture(torch.tensor([-1.0, 2.0], dtype=torch.float64), unit_normal)
    x = torch.linspace(-4, 5, 13, dtype=torch.float64)
    expected = sum((-0.5 * (x - psi) ** 2).exp() for psi in (-1.0, 2.0))
    expected = expected / (2 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(p.log_prob(x).exp(), expected, rtol=1e-12, atol=0)
    assert p.num_mixing == 2


def test_density_integrates_to_one():
    p = FixedMixture(torch.tensor([1.0, 2.0, 8.0], dtype=torch.float64), positive)
    x = torch.linspace(0, 40, 200_001, dtype=torch.float64)[1:]
    # Exponential tails and a bounded slope: the rule is right to about its step squared.
    assert abs(torch.trapezoid(p.log_prob(x).exp(), x).item() - 1) < 3e-4


def test_log_prob_is_repeatable():
    p = FixedMixture(torch.randn(7), unit_normal)
    x = torch.randn(5)
    assert torch.equal(p.log_prob(x), p.log_prob(x))


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 100])
def test_chunks_do_not_change_the_density(chunk_size):
    psi, x = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    p = FixedMixture(psi, normal_vector, 1, chunk_size=chunk_size)
    expected = normal_vector(psi).log_prob(x.unsqueeze(1)).logsumexp(1) - math.log(7)
    torch.testing.assert_close(p.log_prob(x), expected)
    torch.testing.assert_close(p.expand([2, 5]).log_prob(x), expected.expand(2, 5))


def test_gradients_reach_psi_and_the_conditional():
    psi = torch.randn(7, requires_grad=True)
    net = torch.nn.Linear(1, 1)
    p = FixedMixture(psi, lambda psi: dist.Normal(net(psi.unsqueeze(-1)).squeeze(-1), 1.0))
    p.log_prob(torch.randn(5)).sum().backward()
    assert (psi.grad != 0).all()
    assert net.weight.grad is not None


# ---------------------------------------------------------------------------------------- shapes

SHAPES = [  # batch shape of psi, expanded batch shape
    ((), ()),
    ((), (4,)),
    ((3,), (3,)),
    ((3,), (4, 3)),
    ((3,), (2, 4, 3)),
    ((2, 3), (2, 3)),
    ((1, 3), (2, 3)),
    ((2, 1), (2, 3)),
]


@pytest.mark.parametrize("sample_shape", [(), (6,), (5, 6)])
@pytest.mark.parametrize("own, batch_shape", SHAPES)
def test_shapes(own, batch_shape, sample_shape):
    psi = torch.randn(7, *own, 2)
    p = FixedMixture(psi, normal_vector, 1).expand(batch_shape)
    x = p.sample(sample_shape)
    assert p.batch_shape == batch_shape
    assert p.event_shape == (2,)
    assert x.shape == (*sample_shape, *batch_shape, 2)
    assert p.mean.shape == p.variance.shape == (*batch_shape, 2)
    log_prob = p.log_prob(x)
    assert log_prob.shape == (*sample_shape, *batch_shape)
    atoms = psi.reshape(7, *(1,) * (x.dim() - 1 - len(own)), *own, 2)
    expected = normal_vector(atoms).log_prob(x).logsumexp(0) - math.log(7)
    torch.testing.assert_close(log_prob, expected)

    event = p.to_event(len(batch_shape))
    assert event.sample(sample_shape).shape == x.shape
    summed = log_prob.reshape(*sample_shape, -1).sum(-1)
    torch.testing.assert_close(event.log_prob(x), summed)


def test_expand_must_broadcast():
    with pytest.raises(ValueError, match="`batch_shape` must be one that"):
        FixedMixture(torch.randn(7, 3), unit_normal).expand([4])


# -------------------------------------------------------------------------------------- sampling


def test_every_atom_is_drawn_equally_often():
    """Three frequencies, each within 5 standard errors: fails once in 5e5 (2 million / 3)."""
    n = 30_000
    psi = torch.tensor([0.0, 100.0, 200.0])
    x = FixedMixture(psi, unit_normal).sample((n,))
    counts = (x.unsqueeze(-1) - psi).abs().argmin(-1).bincount(minlength=3)
    error = 5 * math.sqrt(n * (1 / 3) * (2 / 3))
    assert ((counts - n / 3).abs() < error).all()


def test_rows_draw_their_own_atoms():
    psi = torch.tensor([[0.0, 1000.0], [100.0, 1100.0]])  # [K, B]
    x = FixedMixture(psi, unit_normal).expand([50, 2]).sample((20,))
    atoms = (x / 100).round()
    assert set(atoms[..., 0].unique().tolist()) == {0.0, 1.0}
    assert set(atoms[..., 1].unique().tolist()) == {10.0, 11.0}
    # Independent along the expansion and between the columns: all four pairs occur among 1000
    # (all but one of four: probability 4 * 0.75^1000).
    pairs = {tuple(pair) for pair in atoms.reshape(-1, 2).tolist()}
    assert len(pairs) == 4


@pytest.mark.parametrize(
    "psi, conditional",
    [
        (torch.tensor([-3.0, 0.0, 2.0]), unit_normal),
        (torch.tensor([1.0, 4.0, 9.0]), positive),
        (torch.tensor([1.0, 4.0, 9.0]), lambda psi: dist.Poisson(psi)),
    ],
    ids=["normal", "gamma", "poisson"],
)
def test_moments_are_those_of_the_samples(psi, conditional):
    """Mean and variance within 5 standard errors: fails once in a million."""
    p = FixedMixture(psi, conditional)
    x = p.sample((20_000,)).double()
    assert (x.mean() - p.mean).abs() < 5 * x.std() / math.sqrt(len(x))
    squares = (x - p.mean).square()
    assert (squares.mean() - p.variance).abs() < 5 * squares.std() / math.sqrt(len(x))


# --------------------------------------------------------------------------------------- support


def test_support_is_the_conditionals():
    p = FixedMixture(torch.tensor([1.0, 2.0]), positive)
    assert p.support.check(torch.tensor([1.0, -1.0])).tolist() == [True, False]
    with pytest.raises(ValueError, match="must lie in the conditional's support"):
        p.log_prob(torch.tensor(-1.0))
    with pytest.raises(ValueError, match="must lie in the conditional's support"):
        FixedMixture(torch.zeros(2), unit_normal).log_prob(torch.tensor(torch.nan))


def test_ends_that_are_psi():
    """No component allows every value; the mixture does."""
    p = FixedMixture(torch.tensor([1.0, 2.0]), lambda psi: dist.Uniform(torch.zeros_like(psi), psi))
    actual = p.log_prob(torch.tensor([0.5, 1.5, 2.5])).exp()
    torch.testing.assert_close(actual, torch.tensor([0.75, 0.25, 0.0]))


def run_nuts(model):
    mcmc = MCMC(NUTS(model), num_samples=50, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["z"]


def potential(model, z):
    """What NUTS integrates, at unconstrained values, and its slope."""
    _, potential_fn, _, _ = initialize_model(model)
    z = z.clone().requires_grad_()
    energy = potential_fn({"z": z})
    return energy.detach(), torch.autograd.grad(energy, z)[0]


def test_nuts_with_a_bimodal_prior():
    prior = FixedMixture(torch.tensor([-2.0, 2.0]), unit_normal)

    def model():
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    z = torch.tensor([-3.0, 0.3, 4.0], requires_grad=True)
    density = 0.5 * ((-0.5 * (z + 2) ** 2).exp() + (-0.5 * (z - 2) ** 2).exp())
    expected = -density.log() + 0.5 * (z - 2) ** 2 + math.log(2 * math.pi)
    (slopes,) = torch.autograd.grad(expected.sum(), z)
    for point, value, slope in zip(z.detach(), expected.detach(), slopes, strict=True):
        torch.testing.assert_close(potential(model, point), (value, slope))

    z = run_nuts(model)
    # Posterior: N(2, 1/2) with weight 1 / (1 + e^-4), else N(0, 1/2): within 10 standard
    # deviations, with no failure to be expected. A chain that sticks repeats one value.
    assert ((z > -7) & (z < 9)).all()
    assert z.unique().numel() > 5


def test_nuts_with_a_positive_conditional():
    atoms = torch.tensor([2.0, 20.0])
    prior = FixedMixture(atoms, positive)
    counts = torch.tensor([0.0, 1.0, 3.0])

    def model():
        with pyro.plate("rows", 3):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Poisson(z), obs=counts)

    log_z = torch.tensor([-1.0, 0.1, 1.0], requires_grad=True)
    z = log_z.exp()  # NUTS moves log z: the density carries the Jacobian z
    log_prior = positive(atoms).log_prob(z.unsqueeze(-1)).logsumexp(-1) - math.log(2)
    expected = -(log_prior + log_z + dist.Poisson(z).log_prob(counts)).sum()
    (slope,) = torch.autograd.grad(expected, log_z)
    torch.testing.assert_close(potential(model, log_z.detach()), (expected.detach(), slope))

    z = run_nuts(model)
    assert z.shape == (50, 3)
    assert (z > 0).all()
    assert z[:, 0].unique().numel() > 5


# ---------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize(
    "copier", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies(copier):
    p = FixedMixture(torch.randn(7, 3), unit_normal, chunk_size=2).expand([4, 3])
    copied = copier(p)
    x = p.sample()
    assert copied.batch_shape == (4, 3)
    assert torch.equal(copied.log_prob(x), p.log_prob(x))
    assert copied.sample().shape == (4, 3)


def test_copies_drop_the_graph():
    net = torch.nn.Linear(2, 2)
    p = FixedMixture(net(torch.randn(7, 2)), lambda psi: normal_vector(net(psi)), 1)
    x = torch.randn(5, 2)
    copied = copy.deepcopy(p)
    assert not copied.psi.requires_grad
    torch.testing.assert_close(copied.log_prob(x), p.log_prob(x))


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("shape, event_dim", [((), 0), ((3,), 1), ((0,), 0), ((0, 3), 1)])
def test_no_atoms(shape, event_dim):
    with pytest.raises(ValueError, match=r"`psi` must have shape \[K, \*batch_shape\]"):
        FixedMixture(torch.zeros(shape), unit_normal, event_dim)


def test_forgotten_to_event():
    with pytest.raises(ValueError, match=r"end the conditional with \.to_event\(1\)"):
        FixedMixture(torch.zeros(7, 2), unit_normal, 1)


def test_wrong_event_shape():
    p = FixedMixture(torch.zeros(7, 2), normal_vector, 1)
    with pytest.raises(ValueError, match="must end in event_shape"):
        p.log_prob(torch.zeros(5, 3))
    unchecked = FixedMixture(torch.zeros(7, 2), normal_vector, 1, validate_args=False)
    with pytest.raises(ValueError, match=r"`value` must end in event_shape \(2,\)"):
        unchecked.log_prob(torch.zeros(5, 3))


@pytest.mark.parametrize("own", [(), (3,), (1,)])
@pytest.mark.parametrize("event", [(), (2,)])
def test_vmap_and_its_gradient_equal_a_loop(own, event):
    """Programs that hold a frozen prior are mapped over many points at once."""

    def conditional(psi):
        return dist.Normal(psi, 0.5).to_event(len(event))

    p = FixedMixture(torch.randn(20, *own, *event), conditional, len(event), validate_args=True)
    points = torch.randn(5, 4, 3, *event)

    def score(x):
        return p.log_prob(x).sum()

    torch.testing.assert_close(
        torch.func.vmap(score)(points), torch.stack([score(x) for x in points])
    )
    gradients = torch.func.vmap(torch.func.grad(score))(points)
    leaves = points.clone().requires_grad_()
    expected = torch.autograd.grad(sum(score(x) for x in leaves), leaves)[0]
    torch.testing.assert_close(gradients, expected)
