"""What counts as a function of the caller's, and what is said of one that takes something else."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sig import _functions as functions

TABLE = torch.zeros(4)


def square(x):
    return x**2


@pytest.mark.parametrize(
    "value", [None, 3, dist.Normal, dist.Normal(0.0, 1.0), pyro.optim.Adam({"lr": 0.1})]
)
def test_no_function(value):
    assert not functions.is_function(value)
    with pytest.raises(ValueError, match="`f` must be a function or a module, was"):
        functions.check_callable("f", value)


def test_what_will_do_besides():
    for good in (square, torch.exp, nn.Linear(2, 1)):
        functions.check_callable("f", good)
    functions.check_callable("f", None, optional=True)
    functions.check_callable("f", dist.Poisson, classes=True)
    with pytest.raises(ValueError, match="was the class Linear"):
        functions.check_callable("f", nn.Linear, classes=True)
    with pytest.raises(ValueError, match="`f` must be a function, was Linear"):
        functions.check_callable("f", nn.Linear(2, 1), "a function", modules=False)
    with pytest.raises(ValueError, match="`f` must be a function or a module, or None, was 3"):
        functions.check_callable("f", 3, optional=True)


def test_other_arguments():
    functions.check_takes("f", square, None)
    functions.check_takes("f", nn.Linear(2, 1), None)
    functions.check_takes("f", torch.exp, None, None)  # which has no signature
    match = r"`f` must be callable with \(a value, y=...\), but: got an unexpected .*'y'"
    for check in (functions.check_takes, functions.call):
        with pytest.raises(ValueError, match=match):
            check("f", square, 1, y=2)


def test_what_a_function_raises_itself_is_left_alone():
    with pytest.raises(TypeError, match="unsupported operand"):
        functions.call("f", square, "a")


def test_the_first_call_says_what_was_given():
    assert functions.first_call("f", square, 3) == 9
    match = r"`f` must take a torch.float32 tensor of shape \(3,\) on cpu, but raised: mat1 and"
    with pytest.raises(ValueError, match=match):
        functions.first_call("f", nn.Linear(2, 1), torch.zeros(3))


def test_tensors_closed_over():
    x, y, z = torch.zeros(1), torch.zeros(2), torch.zeros(3)

    class Law:
        def method(self, e):
            return e + x

    def inner(e, *, scale=z):
        return scale * (e + y)

    def outer(e):
        return [inner(e) for _ in range(3)]

    def further(e):
        return outer(e)

    def found(function):
        return [len(tensor) for tensor in functions.tensors_closed_over(function)]

    assert found(inner) == found(outer) == [2, 3]
    assert found(further) == []  # two functions away
    assert found(Law().method) == [1]
    assert found(partial(square, x, y=y)) == [1, 2]
    assert found(nn.Linear(2, 1)) == found(torch.exp) == found(square) == []
    assert found(lambda e: [e + TABLE for _ in range(2)]) == [4]  # inside of a comprehension
