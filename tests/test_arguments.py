"""What the shared checks of arguments accept, refuse and say."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_sig import _arguments as arguments


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "3"),
        (True, "True"),
        (None, "None"),
        (math.nan, "nan"),
        ("rbf", "'rbf'"),
        (b"ab", "b'ab'"),
        ([1, 2.5], "[1, 2.5]"),
        (torch.Size([2]), "torch.Size([2])"),
        (torch.int64, "torch.int64"),
        (Path("a"), repr(Path("a"))),
        (torch.zeros(3), "a torch.float32 tensor of shape (3,) on cpu"),
        (torch.nn.Parameter(torch.zeros(1000)), "a torch.float32 tensor of shape (1000,) on cpu"),
        (torch.zeros(2, device="meta"), "a torch.float32 tensor of shape (2,) on meta"),
        (
            torch.eye(2).to_sparse(),
            "a torch.sparse_coo torch.float32 tensor of shape (2, 2) on cpu",
        ),
        (np.zeros((2, 1)), "an array of float64 of shape (2, 1)"),
        ({"a": torch.zeros(2)}, "{'a': a torch.float32 tensor of shape (2,) on cpu}"),
        (dist.Normal, "the class Normal"),
        (dist.Normal(0.0, 1.0), "Normal"),
        (torch.nn.Linear(2, 1), "Linear"),
        (len, "builtin_function_or_method"),
    ],
)
def test_what_an_argument_was(value, words):
    assert arguments.describe(value) == words
    assert str(arguments.refusal("x", "else", value)) == f"`x` must be else, was {words}"


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, list(range(10_000)), 10**4_000])
def test_words_are_few(value):
    assert len(arguments.describe(value)) < 200


def test_a_list_in_itself_has_an_end():
    endless = []
    endless.append(endless)
    assert "..." in arguments.describe(endless)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_dense_tensors():
    nested = torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])
    for good in (torch.zeros(2), torch.zeros((), dtype=torch.bool), torch.zeros(0).long()):
        assert arguments.check_tensor("x", good) is good
    for bad in (nested, torch.zeros(1) * 1j, torch.eye(2).to_sparse(), torch.zeros(1).to("meta")):
        with pytest.raises(ValueError, match="`x` must be a dense tensor of real numbers, was a"):
            arguments.check_tensor("x", bad)
    with pytest.raises(
        ValueError, match="`x` must be a dense floating point tensor, was a .*int64"
    ):
        arguments.check_floating("x", torch.tensor([1]))
    with pytest.raises(ValueError, match="`x` must be of two rows, was a"):
        arguments.check_tensor("x", torch.zeros(3), "of two rows", lambda x: len(x) == 2)


def test_integers():
    found = arguments.check_integer("n", np.int64(3), 1)
    assert found == 3 and type(found) is int
    assert arguments.check_integer("n", -5, -math.inf) == -5
    with pytest.raises(ValueError, match="`n` must be an integer, was 0.5"):
        arguments.check_integer("n", 0.5, -math.inf)
    with pytest.raises(ValueError, match=r"`n` must be a positive integer, was np.int64\(3\)"):
        arguments.check_integer("n", np.int64(3), 1, int)
    with pytest.raises(ValueError, match="`n` must be an integer of at least 2, was 1"):
        arguments.check_integer("n", 1, 2)
    for bad in (0, -1, 1.0, True, None, "3", torch.tensor(3)):
        with pytest.raises(ValueError, match="`n` must be a positive integer, was"):
            arguments.check_integer("n", bad, 1)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), Fraction(1, 2), torch.tensor([0.5])])
def test_numbers(value):
    found = arguments.check_number("a", value, above=0, below=1)
    assert found == 0.5 and type(found) is float


@pytest.mark.parametrize(
    ("value", "bounds", "must_be"),
    [
        (0, {"above": 0}, "a finite number above 0"),
        (math.inf, {"least": 0}, "a finite number of at least 0"),
        (-1, {"least": 0, "finite": False}, "a number of at least 0"),
        (1.0, {"above": 0, "below": 1}, "a number above 0 and below 1"),
        (2, {"least": 0, "most": 1}, "a number of at least 0 and at most 1"),
        (math.nan, {}, "a finite number"),
        (True, {}, "a finite number"),
        ("2", {}, "a finite number"),
        (1j, {}, "a finite number"),
        (np.zeros(1), {}, "a finite number"),
        (torch.zeros(2), {}, "a finite number"),
        (torch.tensor(True), {}, "a finite number"),
        (torch.zeros(1, device="meta"), {}, "a finite number"),
        (torch.zeros(1), {"tensors": False}, "a finite number"),
        (0, {"must_be": "a share", "above": 0}, "a share"),
    ],
)
def test_what_is_no_number_within_bounds(value, bounds, must_be):
    with pytest.raises(ValueError, match=f"`a` must be {must_be}, was"):
        arguments.check_number("a", value, **bounds)


def test_infinity_where_it_will_do():
    assert arguments.check_number("a", math.inf, above=0, finite=False) == math.inf


def test_switches_and_choices():
    assert arguments.check_flag("f", np.bool_(True)) is True
    for bad in (1, 0, None, "yes", torch.tensor(True)):
        with pytest.raises(ValueError, match="`f` must be True or False, was"):
            arguments.check_flag("f", bad)
    arguments.check_choice("c", "a", ("a", "b"))
    for bad in ("c", ["a"], None):
        with pytest.raises(ValueError, match="`c` must be one of 'a', 'b', was"):
            arguments.check_choice("c", bad, ("a", "b"))


def test_shapes_and_sizes():
    assert arguments.shape_of("s", [2, 3]) == (2, 3)
    assert arguments.check_sizes("s", (2, np.int64(3))) == [2, 3]
    for bad in (3, b"ab", [-1], "ab", [1.5]):
        with pytest.raises(ValueError, match="`s` must be a sequence of sizes, was"):
            arguments.shape_of("s", bad)
    for bad in (3, b"ab", "ab", {3}):
        with pytest.raises(ValueError, match="`s` must be a sequence of positive integers, was"):
            arguments.check_sizes("s", bad)


@pytest.mark.parametrize("path", [3, None, b"a"])
def test_paths(path):
    with pytest.raises(ValueError, match="`p` must be a path, was"):
        arguments.as_path("p", path)
