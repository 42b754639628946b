"""Valid calls of `pyro_sig.nn`."""

import torch

from pyro_sig.nn import (
    MLP,
    DCGANCritic,
    DCGANGenerator,
    Encoder,
    Joint,
    StackedDigitsCritic,
    StackedDigitsGenerator,
)
from tests.faults.recipes import Recipe


def run(make):
    """Makes a network and runs it, on data that may be spoiled as well."""

    def call(x, **arguments):
        return make(**arguments)(x)

    return call


def run_features(make):
    """Also asks for the last hidden layer."""

    def call(x, **arguments):
        network = make(**arguments)
        assert network.features(x).shape[: x.dim() - 1] == x.shape[:-1]
        return network(x)

    return call


def check_rows(event_dim, out_shape):
    """Every row of the data has an output of one shape."""

    def check(result, x, **_):
        leading = x.shape[: x.dim() - event_dim]
        for output in result if isinstance(result, tuple) else (result,):
            assert output.shape == leading + out_shape
            assert output.is_floating_point()

    return check


def check_encoder(result, x, latent_dim, **_):
    loc, scale = result
    assert loc.shape == scale.shape == (*x.shape[:-1], latent_dim)


def run_joint(net, first, second):
    return Joint(net)(first, second)


def check_joint(result, first, net, **_):
    assert isinstance(result, torch.Tensor) or not isinstance(net, MLP)
    if isinstance(net, MLP):
        assert result.shape == (len(first), 1)


RECIPES: dict[str, Recipe] = {
    "nn.MLP": Recipe(
        run_features(MLP),
        lambda: {
            "in_features": 2,
            "hidden_features": [4],
            "out_features": 2,
            "activation": torch.nn.ReLU,
            "device": None,
            "dtype": None,
            "x": torch.zeros(5, 2),
        },
        check=lambda result, x, out_features, **_: check_rows(1, (out_features,))(result, x),
    ),
    "nn.Encoder": Recipe(
        run(Encoder),
        lambda: {
            "in_features": 2,
            "hidden_features": [4],
            "latent_dim": 3,
            "activation": torch.nn.ReLU,
            "device": None,
            "dtype": None,
            "x": torch.zeros(5, 2),
        },
        check=check_encoder,
    ),
    "nn.Joint": Recipe(
        run_joint,
        lambda: {
            "net": MLP(2, [3], 1),
            "first": torch.zeros(3, 1),
            "second": torch.zeros(3, 1),
        },
        check=check_joint,
    ),
    "nn.DCGANGenerator": Recipe(
        run(DCGANGenerator),
        lambda: {
            "noise_dim": 2,
            "channels": 1,
            "image_size": 8,
            "width": 2,
            "norm": torch.nn.BatchNorm2d,
            "activation": torch.nn.Tanh,
            "device": None,
            "dtype": None,
            "x": torch.zeros(3, 2),
        },
        check=lambda result, x, channels, **_: check_rows(1, (channels, 8, 8))(result, x),
    ),
    "nn.DCGANGenerator, two layers": Recipe(
        run(DCGANGenerator),
        lambda: {
            "noise_dim": 2,
            "channels": 1,
            "image_size": 16,
            "width": 2,
            "norm": torch.nn.BatchNorm2d,
            "x": torch.zeros(3, 2),
        },
        check=lambda result, x, channels, **_: check_rows(1, (channels, 16, 16))(result, x),
    ),
    "nn.DCGANCritic": Recipe(
        run(DCGANCritic),
        lambda: {
            "channels": 1,
            "image_size": 16,
            "width": 2,
            "norm": torch.nn.BatchNorm2d,
            "device": None,
            "dtype": None,
            "x": torch.zeros(3, 1, 16, 16),
        },
        check=check_rows(3, (1,)),
    ),
    "nn.StackedDigitsGenerator": Recipe(
        run(StackedDigitsGenerator),
        lambda: {
            "noise_dim": 2,
            "width": 1,
            "norm": torch.nn.BatchNorm2d,
            "device": None,
            "dtype": None,
            "x": torch.zeros(3, 2),
        },
        check=check_rows(1, (3, 28, 28)),
    ),
    "nn.StackedDigitsCritic": Recipe(
        run(StackedDigitsCritic),
        lambda: {
            "width": 1,
            "norm": torch.nn.BatchNorm2d,
            "device": None,
            "dtype": None,
            "x": torch.zeros(3, 3, 28, 28),
        },
        check=check_rows(3, (1,)),
    ),
}
