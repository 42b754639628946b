"""Implicit: shapes, gradients and what it refuses."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_sig.distributions import Implicit


def add_row(noise, row):
    """A transform that pickle can find by its name."""
    return noise + row


def standard(*shape):
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


@pytest.mark.parametrize("sample_shape", [(), (5,), (4, 5)])
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
def test_shapes(batch_shape, sample_shape):
    psi = Implicit(torch.nn.Linear(2, 4), standard(2), event_shape=4)
    assert psi.batch_shape == ()
    assert psi.event_shape == (4,)
    expanded = psi.expand(batch_shape)
    assert expanded.batch_shape == batch_shape
    assert expanded.rsample(sample_shape).shape == (*sample_shape, *batch_shape, 4)
    assert expanded.sample(sample_shape).shape == (*sample_shape, *batch_shape, 4)
    assert not expanded.sample(sample_shape).requires_grad
    event = expanded.to_event(len(batch_shape))
    assert event.rsample(sample_shape).shape == (*sample_shape, *batch_shape, 4)
    assert event.event_shape == (*batch_shape, 4)
    assert event.has_rsample


def test_scalar_and_matrix_events():
    scalar = Implicit(torch.exp, dist.Normal(torch.zeros(3), 1.0))
    assert scalar.batch_shape == (3,)
    assert scalar.event_shape == ()
    assert scalar((7,)).shape == (7, 3)
    matrix = Implicit(lambda e: e.unsqueeze(-1).expand(*e.shape, 2), standard(5), (5, 2))
    assert matrix().shape == (5, 2)
    assert matrix.support.event_dim == 2


def test_expanded_draws_are_independent():
    draws = Implicit(torch.exp, dist.Normal(0.0, 1.0)).expand([4]).sample((3,))
    assert draws.unique().numel() == 12


def test_expand_must_broadcast():
    psi = Implicit(add_row, standard(2), 2, inputs=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="`batch_shape` must be one that"):
        psi.expand([4])
    assert psi.expand([4, 3]).own_batch_shape == (3,)


@pytest.mark.parametrize("num_draws", [1, 3, 4], ids=["one draw", "M = N", "M = N + 1"])
def test_inputs_are_rows_not_draws(num_draws):
    """With M = N draws, a closure would pair draw i with row i; inputs do not."""
    rows = 100.0 * torch.arange(3.0).reshape(3, 1)
    psi = Implicit(add_row, standard(1), 1, inputs=rows)
    assert psi.batch_shape == (3,)
    draws = psi.rsample((num_draws,))
    assert draws.shape == (num_draws, 3, 1)
    # Twelve standard normal draws beyond 50: probability below 1e-500.
    assert ((draws - rows).abs() < 50).all()
    assert (draws - rows).unique().numel() == 3 * num_draws


def test_several_inputs_broadcast():
    x, y = torch.randn(4, 1, 2), torch.randn(3, 5)
    seen = []

    def transform(noise, x, y):
        seen.append((noise.shape, x.shape, y.shape))
        return noise + x.sum(-1, keepdim=True) + y.sum(-1, keepdim=True)

    psi = Implicit(transform, standard(1), 1, inputs=(x, y))
    assert psi.batch_shape == (4, 3)
    assert psi.expand([6, 4, 3]).rsample((7,)).shape == (7, 6, 4, 3, 1)
    assert seen == [((7, 6, 4, 3, 1), (7, 6, 4, 3, 2), (7, 6, 4, 3, 5))]


def test_inputs_without_features():
    psi = Implicit(
        lambda e, x: e * x, dist.Normal(0.0, 1.0), inputs=torch.ones(3), inputs_event_dim=0
    )
    assert psi.batch_shape == (3,)
    assert psi.rsample((2,)).shape == (2, 3)


def test_gradients():
    net = torch.nn.Linear(2, 3)
    scale = torch.tensor(0.5, requires_grad=True)
    rows = torch.randn(4, 2, requires_grad=True)
    noise = dist.Normal(torch.zeros(2), scale).to_event(1)
    psi = Implicit(lambda e, x: net(e + x), noise, 3, inputs=rows)
    psi.rsample((5,)).square().sum().backward()
    for x in (*net.parameters(), scale, rows):
        assert x.grad is not None
        assert (x.grad != 0).any()


def test_gradient_value():
    """E (a e)^2 = a^2 has derivative 2 a; of n draws the estimate is 2 a mean e^2 exactly."""
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    noise = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    draws = Implicit(lambda e: a * e, noise).rsample((100,))
    draws.square().mean().backward()
    torch.testing.assert_close(a.grad, 2 * draws.square().mean().detach() / a.detach())


def test_discrete_noise_trains_the_transform():
    net = torch.nn.Linear(1, 1)
    psi = Implicit(net, dist.Bernoulli(torch.tensor([0.5])).to_event(1), 1)
    assert psi.has_rsample
    psi.rsample((20,)).sum().backward()
    assert net.weight.grad is not None


def discrete_noises():
    probs = torch.tensor([0.3, 0.7], requires_grad=True)
    concentration = torch.ones(2, 2, requires_grad=True)
    return {
        "bare": dist.Bernoulli(probs),
        "Independent": dist.Bernoulli(probs).to_event(1),
        "expanded": dist.Bernoulli(probs).expand([3, 2]).to_event(2),
        "hidden": dist.OneHotCategorical(probs),
        "mixture": dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Poisson(concentration[0])
        ),
    }


@pytest.mark.parametrize("name", discrete_noises())
def test_discrete_noise_with_trainable_parameters(name):
    with pytest.raises(ValueError, match="`noise` must have rsample or parameters that need no"):
        Implicit(torch.exp, discrete_noises()[name], 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    noise = dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1)
    psi = Implicit(torch.nn.Linear(2, 3, dtype=dtype), noise, 3)
    assert psi.rsample((4,)).dtype == dtype


def test_support():
    assert Implicit(torch.nn.Linear(2, 3), standard(2), 3).support.event_dim == 1
    simplex = Implicit(lambda e: e.softmax(-1), standard(3), 3, support=constraints.simplex)
    assert simplex.support is constraints.simplex
    assert simplex.expand([5]).support is constraints.simplex
    assert simplex.support.check(simplex((4,))).all()


def test_in_a_plate():
    psi = Implicit(torch.nn.Linear(2, 3), standard(2), 3)

    def model():
        with pyro.plate("rows", 5):
            return pyro.sample("psi", psi)

    assert model().shape == (5, 3)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "transform, was",
    [
        (lambda e: e[..., 0], r"\(5, 3\)"),
        (lambda e: e.sum(0), r"\(3, 2\)"),
        (lambda e: e.unsqueeze(0), r"\(1, 5, 3, 2\)"),
        (lambda e: 1.0, "float"),
    ],
)
def test_psi_of_the_wrong_shape(transform, was):
    psi = Implicit(transform, standard(2), 2).expand([3])
    with pytest.raises(
        ValueError, match=rf"`transform` must return psi of shape \(5, 3, 2\).*{was}"
    ):
        psi.rsample((5,))
    with pytest.raises(ValueError, match="`transform` must return psi of shape"):
        psi.sample((5,))


def test_psi_of_another_event_shape_says_which_to_pass():
    psi = Implicit(torch.nn.Linear(2, 1), standard(2)).expand([3])
    with pytest.raises(ValueError, match=r"\(5, 3, 1\): pass event_shape=\(1,\), or .*squeeze"):
        psi.sample((5,))
    psi = Implicit(torch.nn.Linear(2, 4), standard(2), 2)
    with pytest.raises(ValueError, match=r"pass event_shape=\(4,\)$"):
        psi.sample((5,))


def test_a_closure_over_rows_is_noticed_unless_the_sizes_agree():
    rows = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="`transform` must return psi of shape"):
        Implicit(lambda e: e + rows, standard(2), 2).rsample()


@pytest.mark.parametrize(
    "change, match",
    [
        ({"transform": 3}, "`transform` must be a callable noise -> psi, was 3"),
        ({"noise": torch.zeros(2)}, "`noise` must be a Distribution, was a torch.float32 tensor"),
        (
            {"inputs": torch.tensor(1.0)},
            r"`inputs` must be dense .* of at least 1 dimensions, was a .* of shape \(\) on",
        ),
        ({"inputs": ([1.0],)}, r"`inputs` must be dense tensors .*, was \[1\.0\]"),
    ],
)
def test_bad_arguments(change, match):
    arguments = {"transform": torch.exp, "noise": standard(2), "event_shape": 2, **change}
    with pytest.raises(ValueError, match=match):
        Implicit(**arguments)


def test_log_prob_says_what_to_do():
    psi = Implicit(torch.exp, standard(2), 2)
    with pytest.raises(NotImplementedError, match="SIG_ELBO.*SemiImplicit"):
        psi.log_prob(torch.zeros(2))


# ---------------------------------------------------------------------------------------- copies


def test_deepcopy_with_inputs_that_carry_a_graph():
    rows = torch.nn.Linear(2, 2)(torch.randn(3, 2))
    psi = Implicit(add_row, standard(2), 2, inputs=rows).expand([4, 3])
    copied = copy.deepcopy(psi)
    assert copied.batch_shape == (4, 3)
    pyro.set_rng_seed(1)
    expected = psi.rsample((5,))
    pyro.set_rng_seed(1)
    torch.testing.assert_close(copied.rsample((5,)), expected)


def test_deepcopy_copies_the_transform():
    net = torch.nn.Linear(2, 2)
    copied = copy.deepcopy(Implicit(net, standard(2), 2))
    assert copied.transform is not net
    copied.rsample().sum().backward()
    assert net.weight.grad is None


@pytest.mark.parametrize(
    "transform", [add_row, torch.nn.Bilinear(2, 2, 2)], ids=["function", "module"]
)
def test_pickle(transform):
    psi = Implicit(transform, standard(2), 2, inputs=torch.randn(3, 2))
    loaded = pickle.loads(pickle.dumps(psi))
    pyro.set_rng_seed(1)
    expected = psi.rsample((5,))
    pyro.set_rng_seed(1)
    torch.testing.assert_close(loaded.rsample((5,)), expected)
