import math

import pytest
import torch

from pyro_sig.distributed import all_reduce_logsumexp, rank_share, same_draws
from tests.distributed import rank_sums

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
EACH = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def check_errors(errors, dtype):
    for value_error, mean_error, sum_error in errors:
        assert value_error < TOLERANCE[dtype]
        assert mean_error < TOLERANCE[dtype]
        assert sum_error < TOLERANCE[dtype]


@EACH
@pytest.mark.parametrize("spread", [1.0, 50.0, 1e4])
def test_sum_over_two(two, dtype, spread):
    check_errors(two(rank_sums.sum_of_all, dtype, spread), dtype)


@EACH
def test_sum_over_four(four, dtype):
    check_errors(four(rank_sums.sum_of_all, dtype, 3.0), dtype)


def test_nothing_to_add(two):
    # Row 0: rank 1 has nothing; row 1: nobody has; row 2: rank 0 has infinity.
    for rank, (values, gradient) in enumerate(two(rank_sums.infinities)):
        assert values == [1.0, -math.inf, math.inf]
        assert gradient[:2] == [[1.0, 0.0], [0.0, 0.0]][rank]


def test_no_second_derivative(two):
    for message in two(rank_sums.second_derivative):
        assert message.startswith("`all_reduce_logsumexp` has no second derivative")


def test_bound_of_a_mixture(four):
    """Draws shared out, a mixture over all, and gradients of a network by the mean."""
    for value_error, gradient_error, size in four(rank_sums.mixture_bound):
        assert value_error < 1e-12
        assert gradient_error < 1e-12
        assert size > 0.1


def test_data_and_mixing_groups(four):
    """Two groups with rows of their own, each of two processes with draws of their own."""
    for loss_error, error in four(rank_sums.data_and_mixing):
        assert loss_error < 1e-10
        assert error < 1e-10


def test_shares(four):
    assert four(rank_sums.shares, 10) == [3, 3, 2, 2]
    assert four(rank_sums.shares, 4) == [1, 1, 1, 1]
    for kind, message in four.answers(rank_sums.shares, 3):
        assert kind == "raised"
        assert message.startswith("ValueError: `number` must be an integer of at least 4")


def test_draws_are_the_same_inside_only(two):
    (inside, before, after), (inside_1, before_1, after_1) = two(rank_sums.draws)
    assert inside == inside_1
    assert len({*inside, before, before_1, after, after_1}) == len(inside) + 4


def test_rows_that_differ_are_found_by_all(two):
    two(rank_sums.same, "nothing")
    for what in ("rows", "number"):
        for kind, message in two.answers(rank_sums.same, what):
            assert kind == "raised"
            assert message.startswith("ValueError: `x` must be the same in every process")


def test_without_a_process_group():
    for call in (lambda: all_reduce_logsumexp(torch.zeros(2)), lambda: rank_share(3)):
        with pytest.raises(ValueError, match="`group` must be a process group"):
            call()
    with pytest.raises(ValueError, match="`group` must be a process group"), same_draws():
        pass


def test_arguments(two):
    for kind, message in two.answers(rank_sums.wrong_reduction):
        assert kind == "raised"
        assert message.startswith("ValueError: `reduction` must be one of 'mean', 'sum', was 'max'")
    answers = two.answers(rank_sums.outside_of_the_group)
    assert answers[0] == ("done", None)
    assert answers[1][1].startswith("ValueError: `group` must hold this process, but rank 1")
