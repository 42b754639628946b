"""A digest of data: the same for equal data, and for those only."""

import itertools

import numpy as np
import pytest
import torch

from pyro_sig.infer._fingerprint import fingerprint

X = torch.arange(6.0)
DIFFERENT = [
    X,
    X.reshape(2, 3),
    X.double(),
    X + 1e-6,
    X.flip(0),
    X.bool(),
    X.to(torch.bfloat16),
    X.to(torch.complex64),
    torch.complex(X, X).conj(),
    torch.empty(0),
    torch.tensor(3.0),
    (X, X),
    (X, (X,)),
    {"x": X},
    {"y": X},
    1,
    1.0,
    True,
    "1",
    None,
    torch.eye(2).to_sparse(),
]


def test_different_data_differ():
    for a, b in itertools.combinations(DIFFERENT, 2):
        assert fingerprint(a) != fingerprint(b), (a, b)


@pytest.mark.parametrize("data", DIFFERENT)
def test_equal_data_agree(data):
    again = data.clone() if isinstance(data, torch.Tensor) else data
    assert fingerprint(data) == fingerprint(again)


def test_layout_and_library_do_not_count():
    square = torch.randn(5, 7)
    turned = square.T.contiguous().T
    assert turned.stride() != square.stride()
    assert fingerprint(turned) == fingerprint(square)
    assert fingerprint(square.numpy()) == fingerprint(square)
    assert fingerprint(np.array(["a"])) == fingerprint(np.array(["b"]))  # by its type alone
    assert fingerprint(square.clone().requires_grad_()) == fingerprint(square)


def test_entries_of_a_large_tensor():
    x = torch.zeros(3 * 2**20 + 5)
    y = x.clone()
    y[0] = 1.0
    assert fingerprint(x) != fingerprint(y)
    assert fingerprint(x) != fingerprint(x[:-1])
