"""A folder keeps the last checkpoints of one run."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from pyro_sig.checkpoint import CheckpointError, CheckpointFolder, CheckpointWarning


def test_the_last_are_kept(tmp_path):
    with CheckpointFolder(tmp_path, keep=2) as folder:
        assert folder.newest() is None
        for step in (5, 10, 15):
            assert folder.write(step, {"a": step})
        assert folder.steps() == [10, 15]
        assert folder.newest() == (15, {"a": 15})
        assert repr(folder) == f"CheckpointFolder({str(tmp_path)!r}, steps=[10, 15])"


def of_processes(monkeypatch, rank, size):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)


@pytest.mark.parametrize(
    ("before", "now", "had"),
    [(1, 2, "1 process;"), (2, 1, "2 processes;"), (2, 3, "2 processes;"), (12, 2, "12 processes")],
)
def test_another_number_of_processes(before, now, had, tmp_path, monkeypatch):
    of_processes(monkeypatch, 0, before)
    CheckpointFolder(tmp_path).close()
    of_processes(monkeypatch, 0, now)
    CheckpointFolder(tmp_path).close()  # killed before its first checkpoint
    of_processes(monkeypatch, 0, before)
    with CheckpointFolder(tmp_path) as folder:
        folder.write(5, {"a": 5})
    with CheckpointFolder(tmp_path) as folder:
        assert folder.steps() == [5]
    for rank in range(now):
        of_processes(monkeypatch, rank, now)
        with pytest.raises(
            ValueError, match=f"as many processes as there are, {now}, .* has checkpoints of {had}"
        ):
            CheckpointFolder(tmp_path)


@pytest.mark.parametrize("keep", [0, -1, True, 1.5])
def test_keep_is_a_positive_integer(keep, tmp_path):
    with pytest.raises(ValueError, match="`keep` must be a positive integer"):
        CheckpointFolder(tmp_path, keep)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "a").write_text("a")
    with pytest.raises(ValueError, match="must be a folder that can be written, but .* was not"):
        CheckpointFolder(tmp_path / "a")


def test_one_process_at_a_time(tmp_path):
    program = """
        import sys
        from pyro_sig.checkpoint import CheckpointFolder
        try:
            CheckpointFolder(sys.argv[1])
        except ValueError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]

    def message():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with CheckpointFolder(tmp_path):
        assert "no other process uses" in message()
    assert message() == ""


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    program = """
        import os, signal, sys
        from pyro_sig.checkpoint import CheckpointFolder
        folder = CheckpointFolder(sys.argv[1])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    CheckpointFolder(tmp_path).close()


def test_what_a_killed_write_left_is_removed(tmp_path):
    (tmp_path / ".step-000000005.ckpt.123.partial").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of the user")
    CheckpointFolder(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt"]


def test_a_failed_write_is_a_warning(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with CheckpointFolder(tmp_path) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.warns(CheckpointWarning, match=r"step 3 could .* there is none so far"):
                assert not folder.write(3, {"a": 1})
        folder.write(4, {"a": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.warns(CheckpointWarning, match=r"No space left.*is that of step 4"):
                folder.write(5, {"a": 2})
        assert folder.newest() == (4, {"a": 1})


def test_damaged_files_are_passed_over(tmp_path):
    with CheckpointFolder(tmp_path) as folder:
        for step in (1, 2, 3):
            folder.write(step, {"a": torch.tensor(step)})
        for step in (2, 3):
            folder.file(step).write_bytes(folder.file(step).read_bytes()[:-1])
        with pytest.warns(CheckpointWarning) as warnings:
            assert folder.newest() == (1, {"a": torch.tensor(1)})
        assert len(warnings) == 2
        assert folder.steps() == [1]
        assert sorted(p.name for p in tmp_path.glob("*.unreadable")) == [
            "step-000000002.unreadable",
            "step-000000003.unreadable",
        ]


def test_nothing_but_damaged_files(tmp_path):
    with CheckpointFolder(tmp_path) as folder:
        folder.file(1).write_bytes(b"x")
        with (
            pytest.warns(CheckpointWarning),
            pytest.raises(CheckpointError, match="but .* had none: .*must be a checkpoint of pyro"),
        ):
            folder.newest()


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="`path` must be a path, was 0"):
        CheckpointFolder(0)
    with CheckpointFolder(tmp_path) as folder:
        with pytest.raises(ValueError, match="`step` must be an integer of at least 0, was 0.5"):
            folder.write(0.5, {})
        with pytest.raises(ValueError, match=r"`state` must be a dict, was \[\]"):
            folder.write(0, [])
        with pytest.raises(ValueError, match=r"`state\['a'\]` must be a dense tensor with data"):
            folder.write(0, {"a": torch.zeros(2, device="meta")})


@pytest.mark.parametrize("map_location", ["nowhere", 0.5, lambda storage: storage])
def test_a_bad_place_puts_no_file_aside(map_location, tmp_path):
    with CheckpointFolder(tmp_path) as folder:
        folder.write(1, {"a": torch.zeros(2)})
        with pytest.raises(ValueError, match="`map_location` must be"):
            folder.newest(map_location)
        assert folder.steps() == [1]
