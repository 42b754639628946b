"""Valid calls of `pyro_sig.nn`."""

import torch

from pyro_sig.nn import MLP
from tests.faults.recipes import Recipe


def forward_mlp(net, in_features, **_):
    return net(torch.zeros(5, in_features))


RECIPES: dict[str, Recipe] = {
    "nn.MLP": Recipe(
        MLP,
        lambda: {"in_features": 3, "hidden_features": [4], "out_features": 2},
        then=forward_mlp,
    ),
}
