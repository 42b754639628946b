"""A file of a checkpoint is whole or not there, and runs no code."""

import hashlib
import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pyro_sig.checkpoint import CheckpointError
from pyro_sig.checkpoint._files import read_file, write_file

STATE = {
    "tensor": torch.arange(6.0).reshape(2, 3),
    "bfloat16": torch.ones(2, dtype=torch.bfloat16),
    "nested": [1, 2.5, "text", None, True, (3, {"a": 4, 5: 6})],
}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def test_there_and_back(tmp_path):
    write_file(tmp_path / "a.ckpt", STATE)
    assert equal(read_file(tmp_path / "a.ckpt"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_other_containers_become_plain_ones(tmp_path):
    state = OrderedDict(a=np.float64(1.5), b=np.arange(3), c=torch.nn.Parameter(torch.ones(2)))
    write_file(tmp_path / "a.ckpt", state)
    found = read_file(tmp_path / "a.ckpt")
    assert equal(found, {"a": 1.5, "b": torch.arange(3), "c": torch.ones(2)})
    assert not found["c"].requires_grad


def test_a_view_does_not_bring_its_storage(tmp_path):
    write_file(tmp_path / "a.ckpt", {"a": torch.zeros(10**6)[:2]})
    assert (tmp_path / "a.ckpt").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: 0, r"`state\['a'\]\[1\]` must be made of tensors, .*, was function"),
        (torch.nn.Linear(1, 1), r"`state\['a'\]\[1\]` must be made of .*, was Linear"),
        ({(1, 2): 3}, r"must have strings or numbers as keys, had tuple"),
    ],
)
def test_what_a_file_cannot_hold(value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_file(tmp_path / "a.ckpt", {"a": [1, value]})
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_noticed(tmp_path):
    write_file(tmp_path / "a.ckpt", {"a": torch.ones(2)})
    content = (tmp_path / "a.ckpt").read_bytes()
    for size in range(len(content)):
        (tmp_path / "b.ckpt").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"must be .*b\.ckpt"):
            read_file(tmp_path / "b.ckpt")


def test_every_changed_byte_is_noticed(tmp_path):
    write_file(tmp_path / "a.ckpt", {"a": torch.ones(2)})
    content = (tmp_path / "a.ckpt").read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "b.ckpt").write_bytes(bytes(changed))
        with pytest.raises(CheckpointError):
            read_file(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a checkpoint of pyro_sig, but was not"),
        (b"\x80\x02}q\x00.", "must be a checkpoint of pyro_sig, but was not"),
        (b"pyro_sig checkpoint 2 abc\n", "version 1 at most, but was one of version 2"),
        (b"pyro_sig checkpoint 1 abc\nxyz", "do not match their checksum"),
    ],
)
def test_foreign_and_newer_files(content, message, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_file(tmp_path / "a.ckpt")


def test_a_file_of_torch_is_foreign(tmp_path):
    torch.save(STATE, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="must be a checkpoint of pyro_sig"):
        read_file(tmp_path / "a.ckpt")


class Malicious:
    """Runs a command when it is unpickled in the usual way."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def with_checksum(payload):
    digest = hashlib.sha256(payload).hexdigest()
    return f"pyro_sig checkpoint 1 {digest}\n".encode() + payload


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cannot_run_code(zipped, tmp_path):
    target = tmp_path / "executed"
    if zipped:
        content = io.BytesIO()
        torch.save({"a": Malicious(target)}, content)
        payload = content.getvalue()
    else:
        payload = pickle.dumps({"a": Malicious(target)})
    (tmp_path / "a.ckpt").write_bytes(with_checksum(payload))
    with pytest.raises(CheckpointError, match="tensors and plain values only"):
        read_file(tmp_path / "a.ckpt")
    assert not target.exists()
    # The payload would have: the test can fail.
    if zipped:
        torch.load(io.BytesIO(payload), weights_only=False)
    else:
        pickle.loads(payload)
    assert target.exists()


def test_the_old_content_stays_where_the_new_cannot_be_written(tmp_path, monkeypatch):
    write_file(tmp_path / "a.ckpt", {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"):
                write_file(tmp_path / "a.ckpt", {"a": 2})
        assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
        assert read_file(tmp_path / "a.ckpt") == {"a": 1}


FULL = """
    import resource, signal, sys
    import torch
    from pyro_sig.checkpoint._files import read_file, write_file

    write_file(sys.argv[1], {"a": torch.zeros(10)})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        write_file(sys.argv[1], {"a": torch.zeros(100_000)})
    except OSError as error:
        print(error.strerror, len(read_file(sys.argv[1])["a"]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on the size of files")
def test_a_write_that_the_system_cuts_off(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / "a.ckpt")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["File", "too", "large", "10"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
