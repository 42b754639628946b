"""The streaming logsumexp against torch's own, with its derivatives."""

import importlib

import pytest
import torch

from pyro_sig.distributions import log_mixture

# The package re-exports the function under the module's name.
MODULE = importlib.import_module("pyro_sig.distributions.log_mixture")
CHUNKS = [None, 11, 50, 4, 3, 1]  # 4 and 3 do not divide 11


def problem(num_features=3, dtype=torch.float64, num_data=7, num_components=11):
    shapes = [(num_data, num_features), (num_components, num_features), (num_components,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def reference(statistics, natural, log_normalizer):
    return (statistics @ natural.mT - log_normalizer).logsumexp(-1)


@pytest.mark.parametrize("num_features", [1, 3, 40], ids=["one", "thin", "wide"])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_equals_logsumexp(chunk_size, num_features):
    inputs = problem(num_features)
    actual, expected = log_mixture(*inputs, chunk_size), reference(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(7, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(actual @ weights, inputs),
        torch.autograd.grad(expected @ weights, inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_features", [3, 40], ids=["thin", "wide"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_derivatives(chunk_size, num_features):
    inputs = problem(num_features, num_data=3, num_components=5)

    def function(*x):
        return log_mixture(*x, chunk_size)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_gradients_to_some_inputs_only(chunk_size, needed):
    inputs = problem()
    expected = torch.autograd.grad(reference(*inputs).sum(), inputs)
    inputs = [x.detach().requires_grad_(i in needed) for i, x in enumerate(inputs)]
    log_mixture(*inputs, chunk_size).sum().backward()
    for i, x in enumerate(inputs):
        if i in needed:
            torch.testing.assert_close(x.grad, expected[i], rtol=1e-12, atol=1e-12)
        else:
            assert x.grad is None


def test_default_chunks_depend_on_the_number_of_pairs(monkeypatch):
    inputs = problem()
    expected = reference(*inputs)
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    sizes = []
    original = MODULE._LogMixture.apply
    monkeypatch.setattr(MODULE._LogMixture, "apply", lambda *x: sizes.append(x[3]) or original(*x))
    for kept, streamed in [(77, 10), (76, 28), (76, 10), (1, 1)]:
        monkeypatch.setattr(MODULE, "_KEPT_PAIRS", kept)
        monkeypatch.setattr(MODULE, "_STREAMED_PAIRS", streamed)
        actual = log_mixture(*inputs)
        torch.testing.assert_close(actual, expected)
        grads = torch.autograd.grad(actual.sum(), inputs)
        for a, b in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(a, b)
    assert sizes == [11, 4, 1, 1]


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("shift", [1e4, -1e4, 1e30, -1e30])
def test_extreme_scores_do_not_overflow(shift, chunk_size):
    statistics, natural, log_normalizer = problem(dtype=torch.float32)
    shifted = (log_normalizer + shift).detach().requires_grad_()
    actual = log_mixture(statistics, natural, shifted, chunk_size)
    torch.testing.assert_close(actual, reference(statistics, natural, shifted))
    grads = torch.autograd.grad(actual.sum(), (statistics, natural, shifted))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_one_score_far_above_the_others(chunk_size):
    log_normalizer = torch.tensor([0.0, 500.0, -500.0, 200.0], requires_grad=True)
    statistics, natural = torch.zeros(3, 1), torch.zeros(4, 1)
    actual = log_mixture(statistics, natural, log_normalizer, chunk_size)
    torch.testing.assert_close(actual, torch.full((3,), 500.0))
    actual.sum().backward()
    torch.testing.assert_close(log_normalizer.grad, torch.tensor([0.0, 0.0, -3.0, 0.0]))


@pytest.mark.parametrize("chunk_size", [None, 2, 1])
def test_components_without_weight(chunk_size):
    """An infinite log normaliser leaves a component out, also a whole chunk of them."""
    statistics, natural, _ = problem(num_components=5)
    log_normalizer = torch.tensor([torch.inf, torch.inf, 0.0, torch.inf, 1.0], dtype=torch.float64)
    log_normalizer.requires_grad_()
    inputs = (statistics, natural, log_normalizer)
    actual, expected = log_mixture(*inputs, chunk_size), reference(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(
        torch.autograd.grad(actual.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_no_density_at_all(chunk_size, create_graph):
    statistics, natural, _ = problem(num_components=5)
    log_normalizer = torch.full((5,), torch.inf, dtype=torch.float64, requires_grad=True)
    inputs = (statistics, natural, log_normalizer)
    actual = log_mixture(*inputs, chunk_size)
    assert (actual == -torch.inf).all()
    for grad in torch.autograd.grad(actual.sum(), inputs, create_graph=create_graph):
        assert (grad == 0).all()


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_functional_gradient(chunk_size):
    inputs = problem()
    expected = torch.autograd.grad(reference(*inputs).sum(), inputs)
    actual = torch.func.grad(lambda *x: log_mixture(*x, chunk_size).sum(), argnums=(0, 1, 2))(
        *(x.detach() for x in inputs)
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_one_component_and_one_datum():
    inputs = problem(num_data=1, num_components=1)
    torch.testing.assert_close(log_mixture(*inputs), reference(*inputs))


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_no_data(chunk_size):
    inputs = problem(num_data=0)
    actual = log_mixture(*inputs, chunk_size)
    assert actual.shape == (0,)
    actual.sum().backward()
    assert all((x.grad == 0).all() for x in inputs)


@pytest.mark.parametrize(
    "shapes", [((7, 3), (11, 2)), ((7,), (11, 3)), ((7, 3), (3,)), ((2, 7, 3), (11, 3))]
)
def test_shapes_that_disagree(shapes):
    with pytest.raises(ValueError, match=r"`statistics` and `natural` must have shapes \[N, F\]"):
        log_mixture(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.zeros(11))


@pytest.mark.parametrize("shape", [(), (7,), (11, 1)])
def test_log_normalizer_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"`log_normalizer` must have shape \[M\] = \(11,\)"):
        log_mixture(torch.zeros(7, 3), torch.zeros(11, 3), torch.zeros(shape))


def test_no_component():
    with pytest.raises(ValueError, match="`natural` must have at least one row"):
        log_mixture(torch.zeros(7, 3), torch.zeros(0, 3), torch.zeros(0))


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_chunk_size_must_be_positive(chunk_size):
    with pytest.raises(ValueError, match=f"`chunk_size` must be a positive .* was {chunk_size}"):
        log_mixture(*problem(), chunk_size)


def test_nan_is_not_taken_for_density_zero():
    statistics = torch.tensor([[0.0], [torch.nan]])
    log_sum = log_mixture(statistics, torch.zeros(3, 1), torch.zeros(3))
    assert log_sum.isnan().tolist() == [False, True]
