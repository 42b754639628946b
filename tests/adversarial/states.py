"""States of trainers: copies, and comparison bit for bit."""

import torch

__all__ = ["assert_equal", "copies"]


def copies(tensors):
    """Copies of tensors, in a list or by name."""
    if isinstance(tensors, dict):
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return [tensor.detach().clone() for tensor in tensors]


def assert_equal(a, b):
    """Compares states, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b or a != a, (a, b)
