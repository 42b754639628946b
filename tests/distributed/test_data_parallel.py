import time

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_sig.distributed import check_equal, data_parallel, seed_ranks
from tests.adversarial.test_trainers import TRAINERS
from tests.distributed import checks

# ----------------------------------------------------------------------------------- the same steps


@pytest.mark.parametrize("name", checks.MEANS)
def test_steps_are_those_of_one_process_on_all_rows(two, name):
    for error, loss_error, moved in two(checks.one_process_means, name):
        assert error < 1e-10
        assert loss_error < 1e-10
        assert moved > 1e-3


@pytest.mark.parametrize("name", ["SVI", "GAN, R1", "BiGAN"])
def test_steps_of_four(four, name):
    for error, loss_error, _ in four(checks.one_process_means, name):
        assert error < 1e-10
        assert loss_error < 1e-10


def test_sum(two):
    for error, loss_error, moved in two(checks.one_process_sum):
        assert error < 1e-10
        assert loss_error < 1e-10
        assert moved > 1e-3


# -------------------------------------------------------------------------------- all stay together


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_stay_equal(two, name):
    first, second = two(checks.trainer_stays_equal, name, 3)
    assert repr(first) == repr(second)  # losses too


@pytest.mark.parametrize("name", checks.SVIS)
def test_svi_stays_equal(two, name):
    first, second = two(checks.svi_stays_equal, name, 3)
    assert first == second


def test_parameters_in_any_order(two):
    two(checks.any_order)


def test_all_stop_at_the_same_step(two):
    (losses, step), (losses_1, step_1) = two(checks.stops)
    assert losses == losses_1
    assert step == step_1 == 2


@pytest.mark.parametrize("what", ["parameter", "state", "buffer"])
def test_a_difference_is_found_by_all(two, what):
    for kind, message in two.answers(checks.check_finds, what):
        assert kind == "raised"
        assert "1 tensors of rank 1 differ from those of rank 0" in message


def test_apart_they_differ(two):
    first, second = two(checks.learned_apart, "default")
    assert first != second


# ---------------------------------------------------------------------------------- what may differ


def test_gradients_of_some_processes_only(two):
    # "a" has a gradient of 1 at first, then one of half of the processes: 1 + (1 + 1/2 + 1/2).
    assert two(checks.some_gradients_missing) == [(3.0, 4.0)] * 2


def test_gradients_of_some_processes_only_in_torch(two):
    values = [0.0, 0.5, 1.0, 0.0]
    losses = {"loss": (6 + 4) / 2, "rank": 0.5}
    assert two(checks.torch_gradients_missing) == [(values, losses)] * 2


def test_a_parameter_that_comes_late(two):
    two(checks.late_parameter, True)


def test_one_optimiser_of_two_inferences(two):
    two(checks.two_inferences_with_one_optimiser)


def test_a_state_that_all_load(two):
    assert two(checks.loaded_everywhere) == [2, 2]


@pytest.mark.parametrize("name", ["SVI", "GAN-SI, SIG_ELBO", "LBT, average, clipped"])
def test_a_killed_run_goes_on(two, name, tmp_path):
    two(checks.killed_and_resumed, tmp_path, name)


@pytest.mark.parametrize("name", ["SVI", "GAN-SI, SIG_ELBO"])
def test_a_complete_run_is_read_and_compared(two, name, tmp_path):
    two(checks.complete_run_read, tmp_path, name, False)
    for message in raised_by_all(two, checks.complete_run_read, tmp_path, name, True):
        assert "tensors of rank 1 differ from those of rank 0" in message


def raised_by_all(ranks, function, *args):
    start = time.perf_counter()
    answers = ranks.answers(function, *args)
    assert time.perf_counter() - start < 10
    assert [kind for kind, _ in answers] == ["raised"] * ranks.size
    return [message for _, message in answers]


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("name", "'loc0' is (2,), torch.float32 on rank 0 and missing on rank 1"),
        ("shape", "'loc' is (1,), torch.float32 on rank 0 and (2,), torch.float32 on rank 1"),
        ("number", "'more' is missing on rank 0 and (1,), torch.float32 on rank 1"),
    ],
)
def test_other_programs(two, what, problem):
    for message in raised_by_all(two, checks.other_programs, what):
        assert message.startswith("ValueError: `inference` must train the same parameters")
        assert problem in message


def test_a_first_step_that_fails_in_one_process(two):
    first, second = raised_by_all(two, checks.other_programs, "raises")
    assert first.startswith(
        "ValueError: `inference` must take its step in every process, but rank 1"
    )
    assert second.startswith("RuntimeError: out of rows")


def test_a_late_parameter_of_one_process(two):
    for message in raised_by_all(two, checks.late_parameter, False):
        assert "'a' is (2,), torch.float32 on rank 0 and missing on rank 1" in message


def test_a_state_that_one_loads(two):
    for message in raised_by_all(two, checks.loaded_on_one_rank):
        assert "missing on rank 1" in message


def test_a_closure_is_refused(two):
    for message in raised_by_all(two, checks.with_closure):
        assert "must step its LBFGS without a closure" in message


def test_seeds(two):
    (a, b), (c, d) = two(checks.seeds)
    assert len({a, b, c, d}) == 4


# -------------------------------------------------------------------------------------- one process


def make_svi():
    def model():
        pyro.factor("f", pyro.param("w", torch.ones(2)).sum())

    return SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def test_without_a_process_group():
    with pytest.raises(ValueError, match="`group` must be a process group, but none is init"):
        data_parallel(make_svi())
    with pytest.raises(ValueError, match="`group` must be a process group"):
        seed_ranks(0)
    with pytest.raises(ValueError, match="`inference` must be data parallel"):
        check_equal(make_svi())


@pytest.fixture
def alone(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_arguments(alone):
    with pytest.raises(
        ValueError, match="`inference` must be an object with a method `step`, was 3"
    ):
        data_parallel(3)
    with pytest.raises(ValueError, match="`reduction` must be one of 'mean', 'sum', was 'max'"):
        data_parallel(make_svi(), reduction="max")
    with pytest.raises(ValueError, match="must not be data parallel already"):
        data_parallel(data_parallel(make_svi()))
    with pytest.raises(ValueError, match="have taken a step"):
        check_equal(data_parallel(make_svi()))
    with pytest.raises(ValueError, match="`seed` must be an integer of at least 0, was -1"):
        seed_ranks(-1)

    class Loop:
        def step(self):
            pass

    with pytest.raises(ValueError, match="`inference` must hold its optimisers"):
        data_parallel(Loop())


def test_one_process_steps_as_without(alone):
    case = TRAINERS["GAN-SI"]
    losses = []
    for wrap in (lambda gan: gan, data_parallel):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        gan, batch = wrap(case.make()), case.batch()
        losses.append([gan.step(*batch) for _ in range(3)])
    assert losses[0] == losses[1]
