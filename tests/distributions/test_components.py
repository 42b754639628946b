"""The conditional run on many psi at once: what is refused, support and moments."""

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_sig.distributions.components import (
    component_log_prob,
    mixture_moments,
    mixture_support,
    run_conditional,
)

# ------------------------------------------------------------------------------------- bad input


def test_conditional_keeps_the_leading_dimensions():
    psi = torch.zeros(5, 2, 3)
    components = run_conditional(lambda psi: dist.Normal(psi, 1.0).to_event(1), psi, 1)
    assert components.batch_shape == (5, 2)
    assert components.event_shape == (3,)


@pytest.mark.parametrize("extra", [1, 2])
def test_forgotten_to_event(extra):
    psi = torch.zeros(5, *(3, 2)[:extra])
    with pytest.raises(ValueError, match=rf"product of marginals; .* \.to_event\({extra}\)"):
        run_conditional(lambda psi: dist.Normal(psi, 1.0), psi, extra)


@pytest.mark.parametrize(
    "conditional, was",
    [
        (lambda psi: dist.Normal(0.0, 1.0), r"\(\)"),
        (lambda psi: dist.Normal(psi.sum(0), 1.0).to_event(1), r"\(\)"),
        (lambda psi: dist.Normal(psi, 1.0).to_event(2), r"\(\)"),
        (lambda psi: dist.Normal(psi.mT, 1.0).to_event(1), r"\(3,\)"),
    ],
)
def test_wrong_batch_shape_without_a_hint(conditional, was):
    with pytest.raises(ValueError, match=rf"batch_shape \(5,\) for psi of .*, was {was}$"):
        run_conditional(conditional, torch.zeros(5, 3), 1)


def test_conditional_that_is_no_distribution():
    with pytest.raises(
        ValueError, match="`conditional` must return a Distribution, returned a .* tensor"
    ):
        run_conditional(lambda psi: psi, torch.zeros(5), 0)


# --------------------------------------------------------------------------------------- support


def test_support_without_parameters_is_kept():
    d = dist.Gamma(torch.ones(3), 1.0)
    assert mixture_support(d) is d.support
    assert mixture_support(dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)).event_dim == 1


def test_support_with_equal_bounds_loses_the_component_dimension():
    support = mixture_support(dist.Uniform(torch.zeros(3), 2 * torch.ones(3)))
    assert support.lower_bound.shape == support.upper_bound.shape == ()
    value = torch.tensor([-1.0, 0.5, 1.5, 3.0])
    assert support.check(value).tolist() == [False, True, True, False]


def test_support_with_bounds_that_differ_is_dropped():
    ends = torch.tensor([1.0, 2.0, 3.0])
    assert mixture_support(dist.Uniform(0.0, ends)) is constraints.real
    independent = mixture_support(dist.Uniform(0.0, ends.reshape(3, 1)).to_event(1))
    assert independent.event_dim == 1
    assert independent.base_constraint is constraints.real
    assert mixture_support(dist.Pareto(ends, 1.0)) is constraints.real


def test_support_of_counts_with_a_total():
    probs = torch.full((4,), 0.5)
    support = mixture_support(dist.Binomial(torch.tensor(3.0), probs))
    assert support.is_discrete
    assert support.check(torch.tensor([0.0, 3.0, 4.0, 1.5])).tolist() == [True, True, False, False]
    rows = mixture_support(dist.Binomial(3, probs.reshape(4, 1)).expand([4, 2]).to_event(1))
    assert rows.check(torch.tensor([[0.0, 3.0], [0.0, 4.0]])).tolist() == [True, False]

    differs = mixture_support(dist.Binomial(torch.tensor([1.0, 2.0, 3.0, 4.0]), probs))
    assert differs is constraints.integer
    assert differs.is_discrete


# --------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("validate", [True, False])
def test_scores_are_zero_density_outside_a_component(validate):
    components = dist.Uniform(
        torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), validate_args=validate
    ).to_event(1)
    log_prob = component_log_prob(components, torch.tensor([[0.5], [1.5], [3.0]]).unsqueeze(1))
    expected = torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]])
    torch.testing.assert_close(log_prob.exp(), expected)
    if validate:  # the components themselves still refuse
        with pytest.raises(ValueError, match="within the support"):
            components.log_prob(torch.tensor([1.5]))


def test_a_shared_support_is_still_validated():
    with pytest.raises(ValueError, match="within the support"):
        component_log_prob(dist.Gamma(torch.ones(3), 1.0), torch.tensor(-1.0))


class Unbounded(dist.TorchDistribution):
    """A distribution that does not say where it lives."""

    arg_constraints = {}

    def log_prob(self, value):
        return -value


def test_a_distribution_without_support():
    assert component_log_prob(Unbounded(validate_args=False), torch.tensor(2.0)) == -2


# --------------------------------------------------------------------------------------- moments


def test_moments_of_two_normals():
    loc = torch.tensor([[-1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    scale = torch.tensor([[1.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    mean, variance = mixture_moments(dist.Normal(loc, scale).to_event(1))
    torch.testing.assert_close(mean, torch.tensor([1.0, 0.0], dtype=torch.float64))
    # mean of sigma^2 plus variance of mu: (1 + 4) / 2 + 4, and 4 + 0.
    torch.testing.assert_close(variance, torch.tensor([6.5, 4.0], dtype=torch.float64))


def test_moments_far_from_the_origin():
    """The law of total variance, not E x^2 - (E x)^2."""
    mean, variance = mixture_moments(dist.Normal(torch.tensor([1e6 - 1, 1e6 + 1]), 1.0))
    assert mean == 1e6
    assert variance == 2.0


def test_moments_of_one_component():
    mean, variance = mixture_moments(dist.Poisson(torch.tensor([[3.0, 4.0]])))
    torch.testing.assert_close(mean, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(variance, torch.tensor([3.0, 4.0]))


class TwoArguments(torch.nn.Module):
    def forward(self, psi, x):
        return dist.Normal(psi, x)


@pytest.mark.parametrize("conditional", [lambda: None, TwoArguments(), torch.nn.Linear])
def test_conditional_of_other_arguments(conditional):
    with pytest.raises(ValueError, match=r"`conditional` must be callable with \(a value\)"):
        run_conditional(conditional, torch.zeros(3), 0)


def test_what_a_conditional_raises_is_left_alone():
    def conditional(psi):
        return dist.Normal(psi, None + psi)

    with pytest.raises(TypeError, match="unsupported operand"):
        run_conditional(conditional, torch.zeros(3), 0)
