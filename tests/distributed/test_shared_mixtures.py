import pytest
import torch

from tests.distributed import shared_mixtures

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-10}
EACH = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
MODES = pytest.mark.parametrize("mode", shared_mixtures.MODES)


def check(errors, dtype):
    for value, gradient in errors:
        assert value < TOLERANCE[dtype]
        assert gradient < TOLERANCE[dtype]


@EACH
@MODES
def test_an_observed_mixture_is_that_over_the_psi_of_two(two, mode, dtype):
    check(two(shared_mixtures.observed, mode, dtype), dtype)


@EACH
@MODES
def test_the_bound_is_that_of_the_psi_of_two(two, mode, dtype):
    check(two(shared_mixtures.bound, mode, dtype), dtype)


@EACH
def test_four(four, dtype):
    check(four(shared_mixtures.observed, "chunks", dtype), dtype)
    check(four(shared_mixtures.bound, "exact", dtype), dtype)


def test_a_value_that_was_drawn_counts_its_own_psi(two):
    for error in two(shared_mixtures.drawn):
        assert error < 1e-10


@pytest.mark.parametrize("kind", ["svi", "gan-si"])
def test_training_keeps_processes_equal(two, kind):
    first, second = two(shared_mixtures.trained, kind)
    assert first == second
    assert first[0] != first[-1]


def test_a_guide_that_is_shared_out(two):
    first, second = two(shared_mixtures.semi_implicit_guide)
    assert first == second


def test_latents_of_the_guide_are_the_same(two):
    first, second = two(shared_mixtures.latents)
    assert first == second


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("few", "`num_mixing` must be at least 2"),
        ("particles", "`mixing_group` must be None with a ParticleMixing"),
        ("score", "`mixing_group` must be None where `mixing` has no rsample"),
        ("proposal", "`mixing_group` must be None with a `proposal`"),
        ("value", "`value` must be the same in every process"),
    ],
)
def test_what_cannot_be_shared_out(two, what, message):
    for kind, found in two.answers(shared_mixtures.refused, what):
        assert kind == "raised"
        assert message in found


def test_a_program_that_needs_enumeration(two):
    for kind, found in two.answers(shared_mixtures.enumerated):
        assert kind == "raised"
        assert "`mixing_group` must be None unless the program has one implicit site" in found


def test_without_processes():
    with pytest.raises(ValueError, match="none is initialised"):
        shared_mixtures.SIG_ELBO(10, mixing_group=object())
