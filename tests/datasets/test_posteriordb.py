"""The reader of posteriordb against made and real files."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from pyro_sig import datasets

INDEX = "posterior\tmodel\tdata\tdraws\ntoy-one\tone\ttoy\tfirst\ntoy-two\ttwo\ttoy\tsecond\n"
DATA = {"N": 2, "x": 0.5, "y": [1, 2.5], "X": [[1, 2, 3], [4, 5, 6]], "n": [1, 2]}
# The order of a file need not be the order of the elements: beta[10] may follow beta[1].
DRAWS = [
    {"mu": [c, c + 0.5, 0.1]}
    | {f"beta[{i}]": [i, c, -i] for i in (1, 10, *range(2, 10))}
    | {f"L[{i},{j}]": [10 * i + j, c, 0] for j in (1, 2, 3) for i in (1, 2)}
    for c in (100, 200)
]


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(path.stem, content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "INDEX.tsv").write_text(INDEX)
    write(tmp_path / "data" / "toy.json.zip", DATA)
    write(tmp_path / "draws" / "first.json.zip", DRAWS)
    return tmp_path


def test_names(folder):
    assert datasets.posteriordb_names(str(folder)) == ["toy-one", "toy-two"]


def test_data(folder):
    posterior = datasets.read_posteriordb(str(folder), "toy-one")
    assert posterior.name == "toy-one"
    data = dict(posterior.data)
    assert list(data) == list(DATA)
    assert type(data.pop("N")) is int
    assert all(value.dtype == torch.float64 for value in data.values())
    assert {name: value.tolist() for name, value in data.items()} | {"N": 2} == DATA


def test_draws(folder):
    draws = datasets.read_posteriordb(folder, "toy-one").draws
    shapes = {name: list(values.shape) for name, values in draws.items()}
    assert shapes == {"mu": [2, 3], "beta": [2, 3, 10], "L": [2, 3, 2, 3]}
    assert all(values.dtype == torch.float64 for values in draws.values())
    assert draws["mu"].tolist() == [[100, 100.5, 0.1], [200, 200.5, 0.1]]
    assert draws["beta"][:, 0].tolist() == [list(range(1, 11))] * 2
    assert draws["beta"][1, 1].tolist() == [200] * 10
    assert draws["L"][0, 0].tolist() == [[11, 12, 13], [21, 22, 23]]


def test_unknown_name(folder):
    with pytest.raises(ValueError, match="`name` must be one of 'toy-one', 'toy-two', was 'toy'"):
        datasets.read_posteriordb(folder, "toy")


def test_missing_files(folder):
    with pytest.raises(FileNotFoundError, match=r"no archive at .*second\.json\.zip"):
        datasets.read_posteriordb(folder, "toy-two")
    with pytest.raises(FileNotFoundError, match=r"no index at .*nowhere.INDEX\.tsv"):
        datasets.posteriordb_names(folder / "nowhere")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (b"", r"lacks \['posterior', 'data', 'draws'\]"),
        (b"posterior\tdata\na\tb\n", r"the columns posterior, data, draws, lacks \['draws'\]"),
        (b"\xff\xfe", "a table in UTF-8"),
    ],
)
def test_bad_index(tmp_path, index, match):
    path = tmp_path / "INDEX.tsv"
    path.write_bytes(index)
    with pytest.raises(ValueError, match=f"`folder` must hold files of posteriordb.*{match}"):
        datasets.posteriordb_names(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[1, 2", "a zip archive of one JSON file"),
        ([1, 2], "the data by name, was a list"),
        ({"y": [[1], [2, 3]]}, "numbers in arrays, 'y' is something else"),
        ({"y": "two"}, "numbers in arrays, 'y' is something else"),
        ({"y": None}, "numbers in arrays, 'y' is something else"),
    ],
)
def test_bad_data(folder, content, match):
    path = folder / "data" / "toy.json.zip"
    write(path, content)
    with pytest.raises(ValueError, match=match) as caught:
        datasets.read_posteriordb(folder, "toy-one")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"mu": [1]}, "a list of chains"),
        ([], "a list of chains"),
        ([{"mu": [1]}, 2], "a list of chains"),
        ([{"mu": [1]}, {"nu": [1]}], "chains of the same parameters"),
        ([{"mu": [1]}, {"mu": [1, 2]}], "numbers in arrays, 'mu' is something else"),
        ([{"mu": 1}], r"draws of shape \[chains, draws\], 'mu' has another"),
        ([{"mu": [1], "nu": [1, 2]}], "as many draws of each parameter"),
        ([{"b[1": [1]}], r"names such as mu or beta\[2\], was 'b\[1'"),
        ([{"b[1]": [1], "b[3]": [3]}], r"every element of 'b' up to \[3\], had 2"),
        ([{"b[0]": [1]}], r"every element of 'b' up to \[0\], had 1"),
        ([{"b": [1], "b[1]": [3]}], r"every element of 'b' up to \[1\], had 2"),
        ([{"b[1,2]": [1], "b[2,1]": [3]}], r"every element of 'b' up to \[2, 1\], had 2"),
    ],
)
def test_bad_draws(folder, content, match):
    path = folder / "draws" / "first.json.zip"
    write(path, content)
    with pytest.raises(ValueError, match=match) as caught:
        datasets.read_posteriordb(folder, "toy-one")
    assert str(path) in str(caught.value)


def test_bad_archives(folder):
    path = folder / "data" / "toy.json.zip"
    whole = path.read_bytes()
    for content in (b"", b"not zipped", whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a zip archive of one JSON file"):
            datasets.read_posteriordb(folder, "toy-one")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.json", "{}")
        archive.writestr("two.json", "{}")
    with pytest.raises(ValueError, match="a zip archive of one JSON file"):
        datasets.read_posteriordb(folder, "toy-one")


@pytest.mark.skipif("PYRO_SIG_DATA" not in os.environ, reason="PYRO_SIG_DATA is not set")
def test_real_files():
    root = Path(os.environ["PYRO_SIG_DATA"]) / "posteriordb"
    if not root.is_dir():
        pytest.skip(f"no folder {root}")
    names = datasets.posteriordb_names(root)
    assert len(names) == 11
    posteriors = {name: datasets.read_posteriordb(root, name) for name in names}
    for posterior in posteriors.values():
        assert {values.shape[:2] for values in posterior.draws.values()} == {(10, 1000)}
        assert all(values.isfinite().all() for values in posterior.draws.values())
    schools = posteriors["eight_schools-eight_schools_noncentered"]
    assert schools.data["J"] == 8
    assert schools.data["y"].tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert {name: list(values.shape[2:]) for name, values in schools.draws.items()} == {
        "theta": [8],
        "mu": [],
        "tau": [],
    }
