"""Implicit: shapes, gradients and what it refuses."""

import copy
import pickle
from functools import partial

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


THROUGH_INPUTS = "what it depends on besides the noise goes through `inputs`"
LABELS = torch.arange(6) % 2  # a global that transforms name
NET = torch.nn.Linear(4, 2)


def given_global_labels(noise):
    return noise + LABELS.unsqueeze(-1)


def adds(rows):
    """The rows are closed over by a function that the transform calls."""

    def add(noise):
        return noise + rows

    return lambda noise: add(noise)


def pairings(rows):
    table = torch.randn(3, 2)
    embedded = torch.nn.Linear(2, 2)(rows)  # with a graph, and still no parameter
    columns, chosen = rows.mT.contiguous(), torch.arange(len(rows)) % 3
    return {
        "added": lambda e: e + rows,
        "joined": lambda e: NET(torch.cat([e, rows], -1)),
        "default": lambda e, x=rows: e + x,
        "keyword": partial(add_row, row=rows),
        "embedded": lambda e: e * embedded,
        "in a function": adds(rows),
        "transposed": lambda e: e + columns.mT,
        "chosen": lambda e: e + table[chosen],
    }


@pytest.mark.parametrize("num_draws", [2, 3, 6])
@pytest.mark.parametrize("name", pairings(torch.zeros(6, 2)))
def test_a_closure_over_rows_is_noticed(name, num_draws):
    transform = pairings(torch.zeros(num_draws, 2))[name]
    law = Implicit(transform, standard(2), 2)
    with pytest.raises(ValueError, match=f"pairs {num_draws} draws with.*{THROUGH_INPUTS}"):
        law.rsample((num_draws,))
    with pytest.raises(ValueError, match="`transform` must"):
        law.rsample((num_draws + 1,))
    with pytest.raises(ValueError, match=f"but raised: .*: {THROUGH_INPUTS}"):
        law.rsample((3, num_draws + 1))
    with pytest.raises(ValueError, match=f"`transform` must.* {THROUGH_INPUTS}"):
        law.rsample()


def test_a_closure_over_rows_is_noticed_in_any_sample_dimension():
    rows = torch.zeros(4, 1, 2)
    with pytest.raises(ValueError, match="pairs 4 draws"):
        Implicit(lambda e: e + rows, standard(2), 2).rsample((4, 5))
    with pytest.raises(ValueError, match="pairs 4 draws"):
        Implicit(lambda e: e + rows, standard(2), 2).expand([5]).rsample((4,))


def test_a_closure_over_a_global_is_noticed():
    with pytest.raises(ValueError, match=r"6 rows of a tensor of shape \(6,\) that it closes"):
        Implicit(given_global_labels, standard(2), 2).rsample((6,))


def test_a_closure_over_the_rows_of_a_plate_is_left_alone():
    """Each row has a draw of its own there, with which it is to be paired."""
    rows = 100.0 * torch.arange(6.0).unsqueeze(-1)
    law = Implicit(lambda e: e + rows, standard(2), 2)
    with pyro.plate("rows", 6):
        psi = pyro.sample("psi", law)
    assert ((psi - rows).abs() < 50).all()
    assert law.expand([6]).rsample((6,)).shape == (6, 6, 2)


def legitimate(size):
    constant, weight, square = torch.ones(2), torch.randn(size, 2), torch.randn(size, size)
    features, order = torch.tensor([1, 0]), torch.randperm(size)
    atoms = torch.nn.Parameter(torch.zeros(size, 2))
    scales = pyro.param("scales", torch.ones(size, 2), constraint=constraints.positive)
    norm = torch.nn.BatchNorm1d(2)

    def whitened(e):
        centred = e - e.mean(-2, keepdim=True)
        chol = torch.linalg.cholesky(centred.mT @ centred)
        return torch.linalg.solve_triangular(chol, centred.mT, upper=False).mT * weight.mean()

    def by_score(e):
        e = e.detach().requires_grad_()
        return torch.autograd.grad((e @ weight.mT).square().sum(), e)[0]

    def not_yet_assigned(e):
        return later(e)

    found = {
        "constant": lambda e: e + constant,
        "weight": lambda e: (e @ weight.mT) @ weight,
        "square": lambda e: (e @ weight.mT) @ square @ weight,
        "index of features": lambda e: e[..., features] + weight.sum(),
        "index of draws": lambda e: e[order],
        "slice of atoms": lambda e: weight[: len(e)],
        "mean over rows": lambda e: e + weight.mean(0),
        "all pairs": lambda e: (e.unsqueeze(-2) - weight).logsumexp(-2),
        "parameter": lambda e: e + atoms,
        "Pyro's parameter": lambda e: e * scales,
        "batch norm": lambda e: norm(e) + weight.sum(),
        "statistic": whitened,
        "score": by_score,
        "module": torch.nn.Linear(2, 2),
        "builtin": torch.exp,
    }
    if size == 6:
        found["assigned later"] = not_yet_assigned
    later = torch.exp
    return found


@pytest.mark.parametrize("num_draws", [1, 2, 6])
@pytest.mark.parametrize("name", legitimate(6))
def test_other_closures_are_left_alone(name, num_draws):
    if num_draws < 6 and name in ("batch norm", "statistic", "assigned later"):
        num_draws = 6
    law = Implicit(legitimate(num_draws)[name], standard(2), 2)
    assert law.rsample((num_draws,)).shape == (num_draws, 2)


def test_one_draw_beside_one_row():
    row = torch.zeros(1, 2)
    assert Implicit(lambda e: e + row, standard(2), 2).rsample((1,)).shape == (1, 2)


def test_a_look_at_a_closure_leaves_no_trace():
    weight, shift = torch.randn(6, 2), torch.randn(5, 2)
    seen = []

    def run(matrix):
        pyro.set_rng_seed(0)
        norm = torch.nn.BatchNorm1d(2)

        def transform(e):
            seen.append(len(e))
            return norm(e) + torch.randn(e.shape) + 0.0 * (e @ matrix.mT).sum(-1, keepdim=True)

        law = Implicit(transform, standard(2), 2)
        psi = law.rsample((6,)) + law.rsample((6,))
        psi.square().sum().backward()  # also of a draw before the look
        return psi, norm.running_mean, norm.num_batches_tracked, torch.randn(3)

    for one, other in zip(run(weight), run(shift), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert seen == [6, 2, 6, 2, 6, 6]


def test_an_input_that_the_transform_does_not_take():
    law = Implicit(lambda e, x: e + x, standard(2), 2)
    with pytest.raises(ValueError, match=f"`transform` must be .* argument: 'x': {THROUGH_INPUTS}"):
        law.rsample((5,))
    law = Implicit(lambda e: 1 / 0, standard(2), 2)
    with pytest.raises(ZeroDivisionError):
        law.rsample((5,))


def test_errors_that_are_not_of_shapes_are_left_alone():
    def raises(error):
        def transform(noise):
            raise error

        return Implicit(transform, standard(2), 2)

    for kind in (torch.OutOfMemoryError, NotImplementedError, KeyError):
        with pytest.raises(kind, match="^'?why'?$"):
            raises(kind("why")).rsample()
    with_rows = Implicit(lambda e, x: e.reshape(3, 7), standard(2), 2, inputs=torch.ones(3, 1))
    with pytest.raises(RuntimeError, match="invalid for input of size 6$"):
        with_rows.rsample()


@pytest.mark.parametrize(
    "transform",
    [lambda e, x: torch.cat([e, x.unsqueeze(-1)], -1), lambda e, x: e + x.float().unsqueeze(-1)],
    ids=["raises", "another shape"],
)
def test_a_number_per_row_needs_inputs_event_dim_0(transform):
    law = Implicit(transform, standard(1), 1, inputs=torch.arange(5))
    match = r"an input of shape \(5,\) is one vector.* a number per row needs inputs_event_dim=0$"
    for sample_shape in ((), (5,)):
        with pytest.raises(ValueError, match=match):
            law.rsample(sample_shape)
    with pyro.plate("rows", 5), pytest.raises(ValueError, match=match):
        pyro.sample("psi", law)
    numbers = Implicit(
        lambda e, x: e + x.unsqueeze(-1), standard(1), 1, torch.arange(5), inputs_event_dim=0
    )
    assert numbers.rsample((7,)).shape == (7, 5, 1)
    vector = Implicit(lambda e, x: e + x.sum(-1, keepdim=True), standard(1), 1, torch.arange(5))
    assert vector.rsample((7,)).shape == (7, 1)


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
