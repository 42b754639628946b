"""Every registered matrix-product form against broadcasting ``log_prob``."""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import pytest
import torch
import torch.distributions as torch_dist
from torch.nn.functional import softplus

from pyro_sig.distributions import (
    Terms,
    mixture_log_prob,
    pairwise,
    pairwise_log_prob,
    pairwise_terms,
    register_pairwise,
)

# As the import of the package fills it: doctests may register more while the tests run.
REGISTERED = tuple(pairwise._REGISTRY)
EACH_CLASS = pytest.mark.parametrize(
    "cls", REGISTERED, ids=lambda c: f"{c.__module__.split('.')[0]}.{c.__name__}"
)

TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    # A few hundred roundings of numbers up to about 100.
    torch.float32: {"rtol": 2e-4, "atol": 2e-4},
}


def real(x):
    return 1.5 * x


def positive(x):
    return 0.5 + softplus(x)


def unit(x):
    return 0.02 + 0.96 * x.sigmoid()


def lower_triangular(x):
    return x.tril(-1) + torch.diag_embed(positive(x.diagonal(dim1=-2, dim2=-1)))


def positive_definite(x):
    return x @ x.mT / x.shape[-1] + 0.5 * torch.eye(x.shape[-1], dtype=x.dtype)


@dataclass
class Case:
    """How to make one distribution: its free tensors, and data of a given shape."""

    parameters: Mapping[str, tuple[Callable, tuple[int, ...]]]  # name -> (transform, event shape)
    value: Callable[[tuple[int, ...]], torch.Tensor]
    continuous: bool = True
    fixed: Mapping[str, int] | None = None
    needs_shared: str | None = None  # a parameter that must not differ between components


def normal_value(shape):
    return 2 * torch.randn(shape, dtype=torch.float64)


def normal_vector(shape):
    return normal_value((*shape, 3))


def counts(shape):
    return torch.randint(0, 9, shape).double()


def binary(shape):
    return torch.randint(0, 2, shape).double()


def category(shape):
    return torch.randint(0, 4, shape)


def one_hot(shape):
    return torch.nn.functional.one_hot(category(shape), 4).double()


def seven_counts(shape):
    return one_hot((*shape, 7)).sum(-2)


def positive_value(shape):
    return normal_value(shape).exp() + 0.01


def unit_value(shape):
    return unit(normal_value(shape))


def simplex(shape):
    return normal_vector(shape).softmax(-1)


DISCRETE = {"continuous": False}
CASES = {
    "Normal": [Case({"loc": (real, ()), "scale": (positive, ())}, normal_value)],
    "LogNormal": [Case({"loc": (real, ()), "scale": (positive, ())}, positive_value)],
    "MultivariateNormal": [
        Case({"loc": (real, (3,)), "scale_tril": (lower_triangular, (3, 3))}, normal_vector),
        Case(
            {"loc": (real, (3,)), "covariance_matrix": (positive_definite, (3, 3))}, normal_vector
        ),
        Case({"loc": (real, (3,)), "precision_matrix": (positive_definite, (3, 3))}, normal_vector),
    ],
    "Bernoulli": [
        Case({"logits": (real, ())}, binary, **DISCRETE),
        Case({"probs": (unit, ())}, binary, **DISCRETE),
    ],
    "Poisson": [Case({"rate": (positive, ())}, counts, **DISCRETE)],
    "NegativeBinomial": [
        Case(
            {name: (transform, ()), "total_count": (positive, ())},
            counts,
            **DISCRETE,
            needs_shared="total_count",
        )
        for name, transform in {"logits": real, "probs": unit}.items()
    ],
    "Categorical": [
        Case({"logits": (real, (4,))}, category, **DISCRETE),
        Case({"probs": (positive, (4,))}, category, **DISCRETE),
    ],
    "OneHotCategorical": [
        Case({"logits": (real, (4,))}, one_hot, **DISCRETE),
        Case({"probs": (positive, (4,))}, one_hot, **DISCRETE),
    ],
    "Multinomial": [
        Case({"logits": (real, (4,))}, seven_counts, **DISCRETE, fixed={"total_count": 7}),
        Case({"probs": (positive, (4,))}, seven_counts, **DISCRETE, fixed={"total_count": 7}),
    ],
    "Exponential": [Case({"rate": (positive, ())}, positive_value)],
    "Gamma": [Case({"concentration": (positive, ()), "rate": (positive, ())}, positive_value)],
    "Beta": [
        Case({"concentration1": (positive, ()), "concentration0": (positive, ())}, unit_value)
    ],
    "Dirichlet": [Case({"concentration": (positive, (3,))}, simplex)],
}

# Batch shape of a parameter, where M counts components and the rest are coordinates.
LAYOUTS = {
    "each": lambda lead, coordinates: (*lead, *coordinates),
    "shared": lambda lead, coordinates: coordinates,
    "per component": lambda lead, coordinates: (*lead, *(1 for _ in coordinates)),
    "scalar": lambda lead, coordinates: (),
}


def cases_of(cls):
    if cls.__name__ not in CASES:
        pytest.fail(f"add a case for {cls.__name__} to CASES: how to make one, and its data")
    return CASES[cls.__name__]


def make(cls, case, layouts, lead, coordinates, dtype):
    """Return free tensors and a distribution of batch shape [*lead, *coordinates]."""
    leaves, parameters = {}, {}
    for (name, (transform, event)), layout in zip(case.parameters.items(), layouts, strict=True):
        shape = (*LAYOUTS[layout](lead, coordinates), *event)
        leaves[name] = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
        parameters[name] = transform(leaves[name])
    d = cls(**parameters, **(case.fixed or {}))
    if d.batch_shape != (*lead, *coordinates):
        d = d.expand((*lead, *coordinates))
    return leaves, d


def independent(d, num_dims):
    if num_dims == 0:
        return d
    family = dist if isinstance(d, dist.TorchDistribution) else torch_dist
    return family.Independent(d, num_dims)


def gradients(output, inputs):
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
    loss = (weights * output).sum()
    return torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)


def assert_same(actual, expected, inputs, tolerance):
    torch.testing.assert_close(actual, expected, **tolerance)
    for a, b in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("coordinates", [(), (3,), (2, 3)], ids=["event0", "event1", "event2"])
@EACH_CLASS
def test_equals_broadcasting(cls, coordinates, dtype):
    for case in cases_of(cls):
        all_layouts = itertools.product(LAYOUTS, repeat=len(case.parameters))
        sizes = itertools.cycle([(4, 6), (5, 5), (1, 3)])  # 5 and 5: nothing is paired
        for layouts, (m, n) in zip(all_layouts, sizes, strict=False):
            leaves, d = make(cls, case, layouts, (m,), coordinates, dtype)
            d = independent(d, len(coordinates))
            value = case.value((n, *coordinates))
            if value.is_floating_point():
                value = value.to(dtype).requires_grad_(case.continuous)
            inputs = [*leaves.values(), *([value] if case.continuous else [])]
            expected = d.log_prob(value.unsqueeze(1))

            terms = pairwise_terms(d, value)
            layout_of = dict(zip(case.parameters, layouts, strict=True))
            differs = layout_of.get(case.needs_shared) in ("each", "per component") and m > 1
            assert isinstance(terms, str if differs else Terms)

            actual = pairwise_log_prob(d, value)
            assert actual.shape == (m, n)
            assert actual.dtype == dtype
            assert_same(actual, expected.mT, inputs, TOLERANCE[dtype])

            actual = mixture_log_prob(d, value)
            assert actual.shape == (n,)
            assert actual.dtype == dtype
            assert_same(actual, expected.logsumexp(1), inputs, TOLERANCE[dtype])


@pytest.mark.parametrize("lead", [(4,), (2, 3)], ids=["one index", "two indices"])
@pytest.mark.parametrize("coordinates", [(), (3,)], ids=["event0", "event1"])
@EACH_CLASS
def test_expanded_along_plates(cls, coordinates, lead):
    """Pyro's plates expand an emission to [*M, P, N]; the copies are read once."""
    plates, num_components = (2, 5), torch.Size(lead).numel()
    for case in cases_of(cls):
        for layout in ("each", "per component"):
            layouts = [
                "scalar" if name == case.needs_shared else layout for name in case.parameters
            ]
            leaves, narrow = make(cls, case, layouts, (*lead, 1, 1), coordinates, torch.float64)
            wide = narrow.expand((*lead, *plates, *coordinates))
            narrow = independent(narrow, len(coordinates))
            wide = independent(wide, len(coordinates))
            value = case.value((*plates, *coordinates))
            value = value.requires_grad_() if case.continuous else value
            rows = value.reshape(10, *value.shape[2:])
            inputs = [*leaves.values(), *([value] if case.continuous else [])]

            terms = pairwise_terms(wide, rows, len(lead))
            assert isinstance(terms, Terms)
            assert len(terms.natural) == num_components
            actual = pairwise_log_prob(wide, rows, len(lead))
            assert actual.shape == (*lead, 10)
            expected = narrow.log_prob(value)
            assert_same(actual, expected.flatten(len(lead)), inputs, TOLERANCE[torch.float64])
            if len(lead) == 1:
                actual = mixture_log_prob(wide, value)
                assert actual.shape == plates
                assert_same(actual, expected.logsumexp(0), inputs, TOLERANCE[torch.float64])


@EACH_CLASS
def test_no_data(cls):
    for case in cases_of(cls):
        for coordinates in [(), (3,)]:
            layouts = ["scalar" if n == case.needs_shared else "each" for n in case.parameters]
            leaves, d = make(cls, case, layouts, (4,), coordinates, torch.float64)
            d = independent(d, len(coordinates))
            value = case.value((0, *coordinates))
            assert pairwise_log_prob(d, value).shape == (4, 0)
            log_prob = mixture_log_prob(d, value)
            assert log_prob.shape == (0,)
            log_prob.sum().backward()
            assert all(x.grad is None or (x.grad == 0).all() for x in leaves.values())


# --------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_single(dtype):
    loc = torch.randn(5, 3).to(dtype)
    value = torch.randn(7, 3).to(dtype)
    half = dist.Normal(loc, torch.tensor(0.5, dtype=dtype)).to_event(1)
    single = dist.Normal(loc.float(), 0.5).to_event(1)
    expected = single.log_prob(value.float().unsqueeze(1))
    for actual, reference in [
        (pairwise_log_prob(half, value), expected.mT),
        (mixture_log_prob(half, value), expected.logsumexp(1)),
    ]:
        assert actual.dtype == dtype
        # Rounded once, at the end.
        torch.testing.assert_close(actual, reference.to(dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_data(dtype):
    value = torch.arange(5, dtype=dtype)
    for d in [
        dist.Poisson(torch.tensor([0.5, 2.0])),
        dist.NegativeBinomial(3.0, logits=torch.tensor([0.5, -2.0])),
        dist.Categorical(logits=torch.randn(2, 5)),
    ]:
        actual = pairwise_log_prob(d, value)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, d.log_prob(value.unsqueeze(1)).mT)


def test_integer_parameters():
    d = dist.Poisson(torch.tensor([1, 4]))
    value = torch.tensor([0, 1, 2])
    actual = pairwise_log_prob(d, value)
    torch.testing.assert_close(actual, d.log_prob(value.unsqueeze(1)).mT)
    torch.testing.assert_close(mixture_log_prob(d, value), actual.logsumexp(0))


def test_mixed_parameter_dtypes_are_promoted():
    d = dist.Normal(torch.zeros(3), torch.ones(3, dtype=torch.float64))
    assert pairwise_log_prob(d, torch.zeros(2)).dtype == torch.float64


def test_autocast_does_not_round_the_scores():
    x = 3 * torch.randn(20, 2)
    loc = torch.randn(50, 2, requires_grad=True)
    d = dist.Normal(loc, 0.3).to_event(1)
    expected = d.log_prob(x.unsqueeze(1)).logsumexp(1)
    (expected_grad,) = torch.autograd.grad(expected.sum(), loc)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = mixture_log_prob(d, x)
        torch.testing.assert_close(pairwise_log_prob(d, x), d.log_prob(x.unsqueeze(1)).mT)
        (inside,) = torch.autograd.grad(actual.sum(), loc, retain_graph=True)
    (outside,) = torch.autograd.grad(actual.sum(), loc)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(inside, expected_grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outside, inside)


# ------------------------------------------------------------------------------------- accuracy

# (offset of data and locations, their spread, scale): where |x| and |psi| dwarf the scale, and
# just below the point where double precision takes over.
FAR = [(1e4, 3.0, 1.0), (0.0, 100.0, 0.01), (1e5, 10.0, 0.1), (10.0, 1.0, 0.05), (20.0, 1.0, 1.0)]


@pytest.mark.parametrize("family", ["normal", "multivariate", "tril each"])
@pytest.mark.parametrize("per_component", [False, True], ids=["shared", "own scale"])
@pytest.mark.parametrize("offset, spread, scale", FAR)
def test_single_precision_far_from_the_origin(offset, spread, scale, per_component, family):
    """The absolute error stays below 0.01, plus the rounding of the result itself."""
    m, n, dim = 30, 40, 4
    loc = (offset + spread * torch.randn(m, dim)).requires_grad_()
    value = (offset + spread * torch.randn(n, dim)).requires_grad_()
    # Some data close to their component, where cancellation would show most.
    value.data[:20] = loc.data[:20] + scale * torch.randn(20, dim)
    scales = scale * (1 + torch.rand(m, 1)) if per_component else torch.tensor([[scale]])

    def components(dtype):
        mean, sd = loc.to(dtype), scales.to(dtype)
        if family == "normal":
            return dist.Normal(mean, sd).to_event(1)
        tril = sd.unsqueeze(-1) * torch.eye(dim, dtype=dtype)
        if family == "tril each":
            tril = tril.expand(m, dim, dim).clone()
        else:
            tril = tril if per_component else tril.squeeze(0)
        return dist.MultivariateNormal(mean, scale_tril=tril)

    exact = components(torch.float64).log_prob(value.double().unsqueeze(1)).mT
    actual = pairwise_log_prob(components(torch.float32), value)
    eps = torch.finfo(torch.float32).eps
    assert actual.dtype == torch.float32
    assert ((actual - exact).abs() <= 1e-2 + 4 * eps * exact.abs()).all()

    exact = exact.logsumexp(0)
    actual = mixture_log_prob(components(torch.float32), value)
    assert ((actual - exact).abs() <= 1e-2 + 4 * eps * exact.abs()).all()
    for a, b in zip(gradients(actual, (loc, value)), gradients(exact, (loc, value)), strict=True):
        # Responsibilities carry the relative error exp(0.01) - 1, twice: score and log-sum.
        assert ((a - b).abs() <= 2.1e-2 * b.abs().max()).all()


def test_large_counts_in_single_precision():
    rate = torch.tensor([9.0e5, 1.0e6, 1.1e6])
    value = torch.tensor([1.0e6, 1.001e6])
    exact = dist.Poisson(rate.double()).log_prob(value.double().unsqueeze(1)).mT
    actual = pairwise_log_prob(dist.Poisson(rate), value)
    torch.testing.assert_close(actual, exact.float(), rtol=1e-6, atol=1e-2)


def test_bernoulli_with_large_logits():
    logits = torch.linspace(-60, 60, 41, dtype=torch.float64)
    d = dist.Bernoulli(logits=logits)
    value = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        pairwise_log_prob(d, value), d.log_prob(value.unsqueeze(1)).mT, rtol=0, atol=1e-13
    )


# ---------------------------------------------------------------------------------- edge values

EDGES = {
    "Bernoulli, probability 0 and 1": (dist.Bernoulli(torch.tensor([0.0, 0.3, 1.0])), [0.0, 1.0]),
    "Poisson, rate 0": (dist.Poisson(torch.tensor([0.0, 2.0])), [0.0]),
    "NegativeBinomial, probability 0": (
        dist.NegativeBinomial(2.0, probs=torch.tensor([0.0, 0.5])),
        [0.0, 3.0],
    ),
    "NegativeBinomial, no failures": (
        dist.NegativeBinomial(0.0, probs=torch.tensor([0.2, 0.5])),
        [0.0, 3.0],
    ),
    "Categorical, probability 0": (
        dist.Categorical(torch.tensor([[0.0, 1.0], [0.5, 0.5]])),
        [0, 1],
    ),
    "Categorical, logit -inf": (
        dist.Categorical(logits=torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]])),
        [0, 1],
    ),
    "OneHotCategorical, logit -inf": (
        dist.OneHotCategorical(logits=torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]])),
        [[1.0, 0.0], [0.0, 1.0]],
    ),
    "Multinomial, logit -inf": (
        dist.Multinomial(2, logits=torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]])),
        [[1.0, 1.0], [0.0, 2.0]],
    ),
    "Gamma at 0": (dist.Gamma(torch.tensor([0.5, 1.0, 2.0]), 1.0), [0.0, 1.0]),
    "Exponential at 0": (dist.Exponential(torch.tensor([0.5, 2.0])), [0.0]),
    "Beta at 0 and 1": (dist.Beta(torch.tensor([0.5, 1.0, 2.0]), 1.0), [0.0, 0.5, 1.0]),
    "Dirichlet on the boundary": (
        dist.Dirichlet(torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [0.5, 1.0, 1.0]])),
        [[0.0, 0.4, 0.6]],
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_edge_values(name):
    d, value = EDGES[name]
    value = torch.tensor(value)
    expected = d.log_prob(value.unsqueeze(1))
    torch.testing.assert_close(pairwise_log_prob(d, value), expected.mT)
    torch.testing.assert_close(mixture_log_prob(d, value), expected.logsumexp(1))


def test_impossible_counts_have_no_weight():
    d = dist.Poisson(torch.tensor([0.0, 2.0], requires_grad=True))
    value = torch.tensor([1.0, 5.0])
    assert (pairwise_log_prob(d, value)[0] < -80).all()
    alone = dist.Poisson(2.0).log_prob(value)
    torch.testing.assert_close(mixture_log_prob(d, value), alone)


def test_impossible_category_gets_no_gradient():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0]], requires_grad=True)
    d = dist.Categorical(logits=logits)
    log_prob = mixture_log_prob(d, torch.tensor([1, 2])).sum()
    (grad,) = torch.autograd.grad(log_prob, logits, retain_graph=True)
    expected = d.log_prob(torch.tensor([1, 2])).sum()
    torch.testing.assert_close(grad, torch.autograd.grad(expected, logits)[0])
    assert grad.isfinite().all()


# ------------------------------------------------------------------------------- without a form


def mixture_of_normals(psi):
    weights = dist.Categorical(torch.ones(*psi.shape, 2))
    means = torch.stack([psi, psi + 1], -1)
    return dist.MixtureSameFamily(weights, dist.Normal(means, 1.0))


FALLBACK = {
    "Laplace": lambda psi: dist.Laplace(psi, 1.0).to_event(1),
    "StudentT": lambda psi: dist.StudentT(3.0, psi, 1.0).to_event(1),
    "MixtureSameFamily": lambda psi: mixture_of_normals(psi).to_event(1),
    "NegativeBinomial": lambda psi: dist.NegativeBinomial(psi.exp(), logits=psi).to_event(1),
    "Binomial": lambda psi: dist.Binomial(20, logits=psi).to_event(1),
}


@pytest.mark.parametrize("elements", [2**22, 60, 1], ids=["at once", "some rows", "row by row"])
@pytest.mark.parametrize("name", FALLBACK)
def test_broadcast_in_chunks(name, elements, monkeypatch):
    monkeypatch.setattr(pairwise, "_BROADCAST_ELEMENTS", elements)
    psi = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    value = torch.randint(0, 9, (7, 3)).double()
    inputs = [psi]
    if name not in ("NegativeBinomial", "Binomial"):
        value = value.requires_grad_()
        inputs.append(value)
    components = FALLBACK[name](psi)
    reason = pairwise_terms(components, value)
    assert isinstance(reason, str)
    assert "total_count" in reason if name == "NegativeBinomial" else name in reason
    expected = components.log_prob(value.unsqueeze(1))
    actual = pairwise_log_prob(components, value)
    assert actual.shape == (5, 7)
    assert_same(actual, expected.mT, inputs, TOLERANCE[torch.float64])
    actual = mixture_log_prob(components, value)
    assert_same(actual, expected.logsumexp(1), inputs, TOLERANCE[torch.float64])


def test_checkpointing_does_not_disturb_training_without_gradients(monkeypatch):
    monkeypatch.setattr(pairwise, "_BROADCAST_ELEMENTS", 1)
    with torch.no_grad():
        components = dist.Laplace(torch.zeros(4), 1.0)
        log_prob = mixture_log_prob(components, torch.zeros(3))
    torch.testing.assert_close(log_prob, components.log_prob(torch.zeros(4)).logsumexp(0).expand(3))


@pytest.mark.parametrize("elements", [2**22, 1], ids=["at once", "row by row"])
@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_amortised_components(family, elements, monkeypatch):
    """Components [K, N] belong to their rows: nothing is shared between rows."""
    monkeypatch.setattr(pairwise, "_BROADCAST_ELEMENTS", elements)
    loc = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    components = family(loc, 1.0)
    reason = pairwise_terms(components, torch.zeros(4, dtype=torch.float64))
    assert isinstance(reason, str)
    if family is dist.Normal:
        assert "`loc` of Normal differs along a plate" in reason
    value = torch.randn(4, dtype=torch.float64, requires_grad=True)
    actual = mixture_log_prob(components, value)
    expected = components.log_prob(value).logsumexp(0)
    assert_same(actual, expected, [loc, value], TOLERANCE[torch.float64])
    several = torch.randn(3, 4, dtype=torch.float64)
    actual = mixture_log_prob(components, several)
    assert actual.shape == (3, 4)
    torch.testing.assert_close(
        actual, components.log_prob(several.unsqueeze(1)).logsumexp(1), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("elements", [2**22, 1], ids=["at once", "row by row"])
@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
@pytest.mark.parametrize("own", [(2, 1), (1, 3), (1, 1), (2, 3), (3,), (1,), (5, 1, 3), (5, 2, 1)])
def test_rows_meet_their_own_components(own, family, elements, monkeypatch):
    """Components that differ along some of the value's dimensions only: no row is swapped."""
    monkeypatch.setattr(pairwise, "_BROADCAST_ELEMENTS", elements)
    loc = torch.randn(6, *own, 4, dtype=torch.float64, requires_grad=True)
    value = torch.randn(5, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    components = family(loc, 1.0).to_event(1)
    actual = mixture_log_prob(components, value)
    assert actual.shape == (5, 2, 3)
    aligned = loc.reshape(6, *(1,) * (3 - len(own)), *own, 4)
    expected = family(aligned, 1.0).to_event(1).log_prob(value).logsumexp(0)
    assert_same(actual, expected, [loc, value], TOLERANCE[torch.float64])


def test_rows_broadcast_against_the_batch_shape():
    components = dist.Normal(torch.randn(6, 4), 1.0)
    value = torch.randn(())
    torch.testing.assert_close(
        mixture_log_prob(components, value), components.log_prob(value).logsumexp(0)
    )


@pytest.mark.parametrize("validate", [True, False])
def test_a_value_outside_one_component_is_not_refused(validate):
    """Each component may exclude a datum that the mixture allows."""
    ends = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    components = dist.Uniform(torch.zeros(3), ends, validate_args=validate)
    value = torch.tensor([0.5, 1.5, 3.0, 5.0])
    density = torch.tensor([1.75, 0.75, 0.25, 0.0])
    log_prob = mixture_log_prob(components, value)
    torch.testing.assert_close(log_prob.exp(), density)
    log_prob[:3].sum().backward()
    assert ends.grad.isfinite().all()

    components = dist.Pareto(torch.tensor([1.0, 2.0]), 1.0, validate_args=validate)
    # Density alpha x_min^alpha / x^(alpha + 1).
    actual = pairwise_log_prob(components, torch.tensor([1.5, 4.0])).exp()
    expected = torch.tensor([[1 / 1.5**2, 1 / 16], [0.0, 2 / 16]])
    torch.testing.assert_close(actual, expected)

    components = dist.Binomial(torch.tensor([2.0, 3.0]), 0.5, validate_args=validate)
    actual = pairwise_log_prob(components, torch.tensor([2.0, 3.0])).exp()
    torch.testing.assert_close(actual, torch.tensor([[1 / 4, 0.0], [3 / 8, 1 / 8]]))


# ------------------------------------------------------------------------------------- registry


class ShiftedNormal(dist.Normal):
    """Another density under a registered parent."""

    def log_prob(self, value):
        return super().log_prob(value - 1)


def test_a_subclass_is_not_covered():
    d = ShiftedNormal(torch.zeros(3), 1.0)
    value = torch.tensor([0.0, 1.0])
    assert "ShiftedNormal has no registered" in pairwise_terms(d, value)
    torch.testing.assert_close(pairwise_log_prob(d, value), d.log_prob(value.unsqueeze(1)).mT)


@pytest.fixture
def registry(monkeypatch):
    entries = copy.copy(pairwise._REGISTRY)
    monkeypatch.setattr(pairwise, "_REGISTRY", entries)
    return entries


def test_register_a_new_family(registry):
    @register_pairwise(ShiftedNormal, event_dims={"loc": 0})
    def shifted_normal(value, loc):
        terms = registry[dist.Normal].form(value - 1, loc=loc, scale=torch.ones(1, 1))
        return terms

    loc = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    d = ShiftedNormal(loc, torch.ones((), dtype=torch.float64)).to_event(1)
    value = torch.randn(3, 2, dtype=torch.float64)
    assert isinstance(pairwise_terms(d, value), Terms)
    expected = d.log_prob(value.unsqueeze(1)).mT
    assert_same(pairwise_log_prob(d, value), expected, [loc], TOLERANCE[torch.float64])


def test_register_returns_the_function_unchanged(registry):
    def form(value, loc):
        return "never"

    assert register_pairwise(ShiftedNormal, event_dims={"loc": 0})(form) is form
    assert pairwise_terms(ShiftedNormal(torch.zeros(2), 1.0), torch.zeros(3)) == "never"


def test_sparse_poisson_is_broadcast():
    d = dist.Poisson(torch.tensor([0.0, 2.0]), is_sparse=True)
    assert isinstance(pairwise_terms(d, torch.tensor([0.0])), str)


# ---------------------------------------------------------------------------------- derivatives


def test_functional_gradient():
    value = torch.randn(5, 2, dtype=torch.float64)

    def loss(loc):
        return mixture_log_prob(dist.Normal(loc, 0.5).to_event(1), value).sum()

    loc = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(loc), loc)
    torch.testing.assert_close(torch.func.grad(loss)(loc.detach()), expected)


def test_second_derivatives():
    value = torch.randn(5, 2, dtype=torch.float64)

    def loss(loc, scale):
        return mixture_log_prob(dist.Normal(loc, scale.exp()).to_event(1), value)

    loc = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    for shape in [(), (4, 2)]:
        scale = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(loss, (loc, scale))


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("shape", [(5, 3), (5,), (), (2, 5, 2)])
def test_wrong_event_shape(shape):
    d = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"`value` must have shape \[N, \*event_shape\]"):
        pairwise_terms(d, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"`value` must have shape .* event_shape \(2,\)"):
        pairwise_log_prob(d, torch.zeros(shape))
    if shape[-1:] != (2,):
        with pytest.raises(ValueError, match=r"`value` must end in event_shape \(2,\)"):
            mixture_log_prob(d, torch.zeros(shape))


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_components_that_differ_along_a_plate(family):
    d = family(torch.randn(4, 3), 1.0)
    with pytest.raises(ValueError, match=r"`components` must have batch_shape .* was \(4, 3\)"):
        pairwise_log_prob(d, torch.zeros(5))


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_bad_chunk_size(chunk_size):
    with pytest.raises(
        ValueError, match=f"`chunk_size` must be a positive integer, was {chunk_size}"
    ):
        mixture_log_prob(dist.Normal(torch.zeros(4), 1.0), torch.zeros(5), chunk_size)
