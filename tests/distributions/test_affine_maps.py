"""Shared affine maps: inverse and volume, identity, and the matrix product behind them."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions.transforms import ExpTransform

from pyro_sig.distributions import (
    LowRankAffine,
    SharedTransform,
    Terms,
    TriangularAffine,
    mixture_log_prob,
    pairwise_log_prob,
    pairwise_terms,
)

DOUBLE = {"dtype": torch.float64}
MAPS = ["triangular", "low rank", "rank 0"]


def parameters(kind, dim=4):
    torch.manual_seed(1)
    loc = torch.randn(dim, **DOUBLE)
    if kind == "triangular":
        diagonal = torch.rand(dim, **DOUBLE) + 0.5
        tril = torch.randn(dim, dim, **DOUBLE).tril(-1) + torch.diag(diagonal)
        tril[0, 0] *= -1  # a reflection has a volume as well
        return loc, tril
    rank = 2 if kind == "low rank" else 0
    return loc, torch.rand(dim, **DOUBLE) + 0.5, torch.randn(dim, rank, **DOUBLE)


def build(kind, given=None, **kwargs):
    cls = TriangularAffine if kind == "triangular" else LowRankAffine
    return cls(*(given or parameters(kind)), **kwargs)


def matrix(kind, given):
    if kind == "triangular":
        return given[1]
    _, scale, factor = given
    return scale[:, None] * (torch.eye(len(scale), **DOUBLE) + factor @ factor.mT)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("kind", MAPS)
def test_map_inverse_and_volume(kind, shape):
    f, given = build(kind), parameters(kind)
    x = torch.randn(*shape, 4, **DOUBLE)
    y = f(x)
    assert torch.allclose(y, x @ matrix(kind, given).mT + given[0], rtol=1e-12)
    assert torch.allclose(f.inv(y), x, rtol=1e-9, atol=1e-9)
    volume = f.log_abs_det_jacobian(x, y)
    jacobian = torch.autograd.functional.jacobian(f, torch.randn(4, **DOUBLE))
    assert volume.shape == shape
    assert torch.allclose(volume, torch.linalg.slogdet(jacobian)[1].expand(shape), rtol=1e-10)


@pytest.mark.parametrize("kind", MAPS)
def test_equality_hash_and_cache(kind):
    given = parameters(kind)
    f, same = build(kind, given), build(kind, [x.clone() for x in given])
    moved = build(kind, [given[0] + 1, *given[1:]])
    assert f == same and f != moved and f != ExpTransform()
    assert len({f, f, moved}) == 2
    cached = f.with_cache()
    assert cached == f and cached._cache_size == 1 and f.with_cache(0)._cache_size == 0
    x = torch.randn(3, 4, **DOUBLE)
    assert cached.inv(cached(x)) is x
    assert f.inv(f(x)) is not x
    assert isinstance(f, SharedTransform) and f.bijective


def components(given, kinds, num_components=5):
    torch.manual_seed(2)
    loc = torch.randn(num_components, 1, 4, **DOUBLE).requires_grad_()
    scale = (torch.rand(num_components, 1, 4, **DOUBLE) + 0.3).requires_grad_()
    base = dist.Normal(loc, scale).to_event(1)
    transforms = [build(kind, parts) for kind, parts in zip(kinds, given, strict=True)]
    return dist.TransformedDistribution(base, transforms), [loc, scale]


@pytest.mark.parametrize("kinds", [*([kind] for kind in MAPS), ["low rank", "triangular"]])
def test_the_matrix_product_equals_broadcasting(kinds):
    """Values, and gradients in components, map and data."""
    given = [[x.requires_grad_() for x in parameters(kind)] for kind in kinds]
    value = torch.randn(7, 4, **DOUBLE, requires_grad=True)
    law, leaves = components(given, kinds)
    assert isinstance(pairwise_terms(law, value), Terms)
    leaves = [*leaves, value, *(x for parts in given for x in parts if x.numel())]
    weights = torch.randn(5, 7, **DOUBLE)
    pairs = pairwise_log_prob(law, value)
    broadcast = law.log_prob(value)
    assert torch.allclose(pairs, broadcast, rtol=1e-10, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad((weights * pairs).sum(), leaves, retain_graph=True),
        torch.autograd.grad((weights * broadcast).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)
    mixture = mixture_log_prob(components(given, kinds)[0], value)
    assert torch.allclose(mixture, broadcast.logsumexp(0), rtol=1e-10)


@pytest.mark.parametrize("shared_too", [False, True])
def test_other_transforms_are_broadcast(shared_too):
    base = dist.Normal(torch.randn(5, 1, 4, **DOUBLE), 1.0).to_event(1)
    transforms = [build("triangular")] if shared_too else []
    law = dist.TransformedDistribution(base, [*transforms, ExpTransform()])
    value = torch.randn(7, 4, **DOUBLE).exp()
    assert isinstance(pairwise_terms(law, value), str)
    truth = law.log_prob(value)
    assert torch.allclose(pairwise_log_prob(law, value), truth, rtol=1e-12)
    assert torch.allclose(mixture_log_prob(law, value), truth.logsumexp(0), rtol=1e-12)


def test_float32_and_large_locations():
    """Data far from the origin are mapped back before the product: no digits are lost."""
    tril = torch.eye(4) * 1e-2
    far = torch.full((4,), 1e3)
    law = dist.TransformedDistribution(
        dist.Normal(torch.randn(5, 1, 4), 1.0).to_event(1), [TriangularAffine(far, tril)]
    )
    value = far + 1e-2 * torch.randn(7, 4)
    assert torch.allclose(pairwise_log_prob(law, value), law.log_prob(value), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TriangularAffine(torch.zeros(2, 2), torch.eye(2)), "`loc` must be a vector"),
        (lambda: TriangularAffine(torch.zeros(2), torch.eye(3)), "`scale_tril` must be of shape"),
        (
            lambda: LowRankAffine(torch.zeros(()), torch.ones(2), torch.ones(2, 1)),
            "`loc` must be a vector",
        ),
        (
            lambda: LowRankAffine(torch.zeros(2), torch.ones(3), torch.ones(2, 1)),
            "`scale` must be a vector of size 2",
        ),
        (
            lambda: LowRankAffine(torch.zeros(2), torch.ones(2), torch.ones(3, 1)),
            "`factor` must be of shape",
        ),
        (
            lambda: LowRankAffine(torch.zeros(2), torch.ones(2), torch.ones(2)),
            "`factor` must be of shape",
        ),
    ],
)
def test_bad_shapes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["triangular", "low rank"])
def test_autocast_does_not_round_a_map(kind):
    torch.manual_seed(0)
    loc, x = torch.randn(4), torch.randn(6, 4)
    if kind == "triangular":
        f = TriangularAffine(loc, torch.randn(4, 4).tril(-1) + torch.eye(4))
    else:
        f = LowRankAffine(loc, torch.rand(4) + 0.5, torch.randn(4, 2))
    y = f(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(f(x), y)
        torch.testing.assert_close(f.inv(y), x)
        assert f(x.bfloat16()).dtype == f.inv(y.bfloat16()).dtype == torch.float32
        volume = f.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(volume, f.log_abs_det_jacobian(x, y))
