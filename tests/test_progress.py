"""Bars, and where there are none."""

import sys
from types import SimpleNamespace

import pytest
import torch

from pyro_sig import _progress
from pyro_sig._progress import Progress


@pytest.fixture
def terminal(monkeypatch, capsys):
    """A standard error that is watched, and no patience; returns what has been shown since."""
    monkeypatch.setattr(_progress, "_is_terminal", lambda: True)
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    for name in ("CI", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return lambda: capsys.readouterr().err


def work(progress=None, inside=None):
    with Progress(progress, 3, "work") as bar:
        for _ in range(3):
            if inside is not None:
                inside()
            bar.update()


def test_shown_on_a_terminal(terminal):
    work()
    shown = terminal()
    assert "work" in shown and "3/3" in shown


def test_not_shown_when_it_is_over_soon(terminal, monkeypatch):
    monkeypatch.setattr(_progress, "_PATIENCE", 100.0)
    work()
    assert not terminal()
    work(True)
    assert "3/3" in terminal()


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("CI", "1"), ("RANK", "1")])
def test_not_shown_to_nobody(name, value, terminal, monkeypatch):
    monkeypatch.setenv(name, value)
    work()
    assert not terminal()
    work(True)
    assert "3/3" in terminal()


@pytest.mark.parametrize(("name", "value"), [("CI", "false"), ("CI", ""), ("RANK", "0")])
def test_values_that_say_no(name, value, terminal, monkeypatch):
    monkeypatch.setenv(name, value)
    work()
    assert "3/3" in terminal()


def test_a_file_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    monkeypatch.delenv("CI", raising=False)
    work()
    assert capsys.readouterr() == ("", "")
    work(True)
    assert "3/3" in capsys.readouterr().err


def test_what_is_a_terminal(monkeypatch):
    assert not _progress._is_terminal()  # but captured
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert _progress._is_terminal()
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    assert not _progress._is_terminal()


def test_a_notebook_is_watched(capsys, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert _progress._is_watched()
    shell.config = {}
    assert not _progress._is_watched()


def test_false_is_for_what_runs_inside(terminal):
    work(False, inside=work)
    assert not terminal()
    work(False, inside=lambda: work(True))
    assert "3/3" in terminal()


def test_the_silence_ends_with_the_call(terminal):
    def fails():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        work(False, inside=fails)
    work()
    assert "3/3" in terminal()


@pytest.mark.parametrize("wrong", [1, 0, "yes", torch.ones(1)])
def test_nothing_else(wrong):
    with pytest.raises(ValueError, match="`progress` must be True, False or None"):
        Progress(wrong, 3, "work")
