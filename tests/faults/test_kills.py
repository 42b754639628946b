"""kill -9 at random moments: every run ends as one that was left alone."""

import os
import random
import signal
import time

import pytest
import torch

from tests.faults.algorithms import ALGORITHMS, run
from tests.faults.counts import COUNTS

NUM_KILLS = int(os.environ.get("PYRO_SIG_KILLS", "100"))
KILLS_IN_A_RUN = 4

pytestmark = pytest.mark.faults


def start(name, seed, folder, answer):
    """Forks a process that trains and writes its digest to a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        digest = run(name, seed, folder)
        answer.with_suffix(".part").write_text(digest)
        answer.with_suffix(".part").rename(answer)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_killed_runs_end_as_others(name, tmp_path):
    rng = random.Random(name)
    began = time.perf_counter()
    os.waitpid(start(name, 1, None, tmp_path / "whole"), 0)
    duration = time.perf_counter() - began
    whole = (tmp_path / "whole").read_text()
    kills = runs = survived = 0
    while kills < NUM_KILLS:
        folder, answer, killed = tmp_path / str(runs), tmp_path / f"answer-{runs}", 0
        while True:
            child = start(name, 1 if not list(folder.glob("step-*")) else 2, folder, answer)
            if killed < min(KILLS_IN_A_RUN, NUM_KILLS - kills):
                time.sleep(rng.uniform(0.0, 0.7 * duration))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                killed += 1
                continue
            assert os.WEXITSTATUS(status) == 0
            break
        runs += 1
        kills += killed
        survived += killed * (answer.read_text() == whole)
    COUNTS[f"kills of {name}"] = (
        f"{survived} survived of {kills}, in {runs} runs of {duration:.1f} s"
    )
    assert survived == kills
