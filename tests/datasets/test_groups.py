"""Ragged groups as a rectangle: every row once, in order, and the likelihood unchanged."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_sig.datasets import pad_groups
from pyro_sig.distributions import Implicit
from pyro_sig.infer import SIG_ELBO, no_guide


def test_every_row_is_there_once_and_in_order():
    groups = torch.randint(0, 7, (50,))
    groups[-1] = 6
    x, y = torch.randn(50), torch.randn(50, 2, 3)
    mask, padded_x, padded_y = pad_groups(groups, x, y, fill=9.0)
    assert mask.shape == padded_x.shape == padded_y.shape[:2] == (groups.bincount().max(), 7)
    for g in range(7):
        assert torch.equal(padded_x[mask[:, g], g], x[groups == g])
        assert torch.equal(padded_y[mask[:, g], g], y[groups == g])
    assert (padded_x[~mask] == 9).all() and (padded_y[~mask] == 9).all()


def test_a_group_may_be_empty():
    mask, x = pad_groups(torch.tensor([0, 2, 2]), torch.tensor([1, 2, 3]))
    assert torch.equal(mask.sum(0), torch.tensor([1, 0, 2]))
    assert x.dtype == torch.int64


def test_the_bound_is_that_of_a_loop_over_groups():
    groups, y = torch.tensor([0, 1, 1, 2, 2, 2]), torch.randn(6, dtype=torch.float64)
    mask, padded = pad_groups(groups, y)
    noise = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)

    def model():
        with pyro.plate("groups", 3, dim=-1):
            psi = pyro.sample("psi", Implicit(lambda e: 2 * e, noise))
            with pyro.plate("data", 3, dim=-2), poutine.mask(mask=mask):
                pyro.sample("y", dist.Normal(psi, 0.5), obs=padded)

    torch.manual_seed(0)
    loss = SIG_ELBO(10, max_plate_nesting=2).loss(model, no_guide)
    torch.manual_seed(0)
    psi = 2 * torch.randn(10, dtype=torch.float64)
    scores = dist.Normal(psi.unsqueeze(-1), 0.5).log_prob(y)
    by_group = torch.stack([scores[:, groups == g].sum(-1) for g in range(3)])
    expected = -(by_group.logsumexp(-1) - torch.tensor(10.0).log()).sum()
    assert loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("groups", "values", "problem"),
    [
        (torch.tensor([0.0]), [torch.zeros(1)], "`groups` must hold integers"),
        (torch.zeros(2, 2, dtype=torch.long), [], "`groups` must hold integers"),
        (torch.tensor([], dtype=torch.long), [], "`groups` must hold integers"),
        ([0, 1], [], r"`groups` must be a dense tensor of real numbers, was \[0, 1\]"),
        (
            torch.tensor([0, 1]),
            [[1.0, 2.0]],
            r"`values` must be dense tensors on cpu, was \[1\.0, 2\.0\]",
        ),
        (torch.tensor([-1, 0]), [torch.zeros(2)], "`groups` must not be negative, was -1"),
        (torch.tensor([0, 1]), [torch.zeros(3)], r"`values` must have 2 rows, had shapes \[\(3,"),
    ],
)
def test_bad_input_raises(groups, values, problem):
    with pytest.raises(ValueError, match=problem):
        pad_groups(groups, *values)


@pytest.mark.parametrize(("fill", "problem"), [("x", "a number"), (0.5, "an integer where")])
def test_bad_fill(fill, problem):
    with pytest.raises(ValueError, match=f"`fill` must be {problem}"):
        pad_groups(torch.tensor([0, 1]), torch.arange(2), fill=fill)
