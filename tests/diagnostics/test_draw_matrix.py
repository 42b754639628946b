"""Draws by site as a matrix, from dicts and from InferenceData."""

import numpy as np
import pytest
import torch

from pyro_sig.diagnostics import draw_matrix, draws_to_inference_data, energy_test


def test_columns_are_the_scalars_in_order():
    draws = {"b": torch.arange(24.0).reshape(4, 2, 3), "a": np.arange(4.0)}
    matrix = draw_matrix(draws)
    assert torch.equal(matrix[:, 0].float(), torch.arange(4.0))
    assert torch.equal(matrix[:, 1:].float(), torch.arange(24.0).reshape(4, 6))
    assert torch.equal(draw_matrix(draws, ["b"]).float(), torch.arange(24.0).reshape(4, 6))


def test_the_posterior_of_an_export():
    values = torch.randn(2, 5, 3)
    data = draws_to_inference_data({"z": values}, chains=True)
    assert torch.equal(draw_matrix(data), values.reshape(10, 3))


def test_tests_take_tensors_and_arrays():
    x, y = torch.randn(30, 2), torch.randn(30, 2)
    results = [
        energy_test(a, b, 99, torch.Generator().manual_seed(0))
        for a, b in ((x, y), (x.numpy(), y.numpy()))
    ]
    assert results[0] == results[1]
    assert repr(results[0]).startswith("TwoSampleTest(statistic=0.")
    with pytest.raises(ValueError, match="`generator` must be a torch.Generator or None, was"):
        energy_test(x, y, generator=0)


@pytest.mark.parametrize(
    ("draws", "sites", "problem"),
    [
        ({"a": torch.zeros(3), "b": torch.zeros(4)}, None, "equally many draws"),
        ({"a": torch.zeros(())}, None, "equally many draws"),
        ({"a": torch.zeros(3)}, ["b"], r"`sites` must be among \['a'\]"),
        ({}, None, "`draws` must hold draws of at least one site"),
        ({"a": torch.zeros(3)}, "a", "`sites` must be a sequence of names, was 'a'"),
        (torch.zeros(3), None, "`draws` must be a dict of tensors"),
        ({"a": 1.0}, None, "`draws` must hold tensors of real numbers, but 'a' was 1.0"),
        (
            {"a": torch.zeros(3) * 1j},
            None,
            "`draws` must hold tensors .*, but 'a' was .*complex",
        ),
    ],
)
def test_bad_draws_raise(draws, sites, problem):
    with pytest.raises(ValueError, match=problem):
        draw_matrix(draws, sites)
