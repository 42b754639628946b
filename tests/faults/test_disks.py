"""A disk that is full, or a folder that is read-only, in the middle of a run: nothing is lost."""

import os
import subprocess
import traceback
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyro_sig.checkpoint import CheckpointFolder, CheckpointWarning
from tests.faults.algorithms import ALGORITHMS, EVERY, NUM_STEPS, run
from tests.faults.counts import COUNTS

pytestmark = pytest.mark.faults


@contextmanager
def disk(path, num_bytes):
    """Mounts a small file system."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield path / "run"
    finally:
        subprocess.run(["umount", str(path)], check=True)


def newest(folder):
    with CheckpointFolder(folder) as found:
        return found.newest()[0]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_full_disk_loses_nothing(name, tmp_path):
    whole = run(name, 1, tmp_path / "whole")
    size = max(path.stat().st_size for path in (tmp_path / "whole").glob("step-*"))
    with disk(tmp_path / "small", int(2.5 * size) + 8192) as folder:
        with pytest.warns(CheckpointWarning, match="No space left"):
            assert run(name, 1, folder) == whole
        # The files that found room are whole, and nothing of the others is left.
        with CheckpointFolder(folder) as found:
            steps = found.steps()
            assert found.newest()[0] == steps[-1] < NUM_STEPS
        assert len(list(folder.glob("step-*"))) == len(steps)
        # A second process goes on from them, on a disk that is still full.
        with pytest.warns(CheckpointWarning, match="No space left"):
            assert run(name, 2, folder) == whole
        subprocess.run(["mount", "-o", "remount,size=100%", folder.parent], check=True)
        assert run(name, 2, folder) == whole
        assert newest(folder) == NUM_STEPS
    COUNTS[f"full disk, {name}"] = "nothing lost"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_folder_that_turns_read_only_loses_nothing(name):
    whole = run(name, 1)
    with TemporaryDirectory() as place:  # pytest's own nobody but root may enter
        os.chmod(place, 0o777)
        check_read_only(name, Path(place) / "run", whole)
    COUNTS[f"read-only folder, {name}"] = "nothing lost"


def check_read_only(name, folder, whole):
    def fail(step, *_):
        if step == 10 * EVERY + 1:
            folder.chmod(0o555)

    assert as_nobody(lambda: run(name, 1, folder, [fail]), "Permission denied") == whole
    assert newest(folder) == 10 * EVERY
    assert as_nobody(lambda: run(name, 2, folder), "Permission denied") == whole
    assert newest(folder) == 10 * EVERY
    folder.chmod(0o777)
    assert run(name, 2, folder) == whole
    assert newest(folder) == NUM_STEPS


def as_nobody(train, warning):
    """Trains in a process that modes of files hold for, and returns its digest."""
    source, sink = os.pipe()
    if not os.fork():
        try:
            if not os.geteuid():
                os.setuid(65534)
            with pytest.warns(CheckpointWarning, match=warning):
                digest = train()
            os.write(sink, digest.encode())
        except BaseException:  # pytest of the parent must not go on in this process
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(sink)
    with os.fdopen(source) as answer:
        digest = answer.read()
    os.wait()
    return digest
