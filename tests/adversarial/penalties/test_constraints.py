"""Weight clipping, spectral norms, and the questions that a trainer asks about a critic."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from pyro_sig.adversarial.penalties import (
    R1,
    GradientPenalty,
    WeightClipping,
    controls_lipschitz,
    mixes_rows,
    spectral_norm,
)
from pyro_sig.nn import MLP, DCGANCritic


def test_clipping():
    critic = MLP(3, [5], 1)
    original = copy.deepcopy(critic.state_dict())
    parameters = list(critic.parameters())
    WeightClipping(0.1).constrain(critic)
    for name, value in critic.state_dict().items():
        torch.testing.assert_close(value, original[name].clamp(-0.1, 0.1), rtol=0, atol=0)
    assert all(a is b for a, b in zip(parameters, critic.parameters(), strict=True))
    assert all(p.requires_grad and p.grad_fn is None for p in critic.parameters())
    with pytest.raises(ValueError, match=r"`critic` must be a torch module, was function"):
        WeightClipping().constrain(lambda x: x)


def layers():
    return nn.ModuleList(
        [
            nn.Linear(4, 3),
            nn.Conv1d(2, 3, 2),
            nn.Conv2d(2, 3, 2),
            nn.Conv3d(2, 3, 2),
            nn.ConvTranspose1d(2, 3, 2),
            nn.ConvTranspose2d(2, 3, 2),
            nn.ConvTranspose3d(2, 3, 2),
            nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2, bias=False)),
        ]
    )


def test_spectral_norms_are_one():
    module = layers().double()
    assert spectral_norm(module, n_power_iterations=200) is module
    found = [m for m in module.modules() if parametrize.is_parametrized(m)]
    assert len(found) == 8
    for layer in found:
        weight = layer.weight.detach()
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            weight = weight.transpose(0, 1)  # outputs come second
        norm = torch.linalg.matrix_norm(weight.flatten(1), 2)
        torch.testing.assert_close(norm, torch.ones_like(norm), rtol=1e-6, atol=0)


def test_a_normalised_critic_has_slopes_up_to_one():
    critic = spectral_norm(MLP(3, [20, 20], 1, dtype=torch.float64), n_power_iterations=100)
    x, y = torch.randn(2, 1000, 3, dtype=torch.float64)
    slopes = (critic(x) - critic(y)).abs().squeeze(-1) / (x - y).norm(dim=-1)
    assert float(slopes.max().detach()) <= 1 + 1e-6


def test_optimisers_stay_valid():
    critic = MLP(3, [5], 1)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    held = optimizer.param_groups[0]["params"]
    spectral_norm(critic)
    assert {id(p) for p in held} == {id(p) for p in critic.parameters()}
    before = critic.head.weight.detach().clone()
    critic(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, critic.head.weight)


def test_a_layer_is_normalised_once():
    critic = spectral_norm(spectral_norm(MLP(3, [5], 1)))
    assert len(critic.head.parametrizations["weight"]) == 1
    old = nn.utils.spectral_norm(nn.Linear(3, 1))  # the hook from before parametrisations
    assert not parametrize.is_parametrized(spectral_norm(old))
    assert controls_lipschitz(old, [])


def test_another_parametrisation_stays():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert not controls_lipschitz(layer, [])
    spectral_norm(layer)
    assert len(layer.parametrizations["weight"]) == 2
    assert controls_lipschitz(layer, [])


@pytest.mark.parametrize("number", [0, -1, 1.0, True, None])
def test_bad_iterations(number):
    with pytest.raises(ValueError, match=f"`n_power_iterations` must be a positive.*{number!r}"):
        spectral_norm(nn.Linear(2, 1), number)


def test_lazy_layers():
    critic = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(1))
    with pytest.raises(ValueError, match=r"`module` must have seen data.*LazyLinear"):
        spectral_norm(critic)
    assert not parametrize.is_parametrized(critic[0]), "changed before it was refused"
    critic(torch.randn(4, 3))
    assert controls_lipschitz(spectral_norm(critic), [])


def test_controls_lipschitz():
    critic = MLP(3, [5], 1)
    assert not controls_lipschitz(critic, [])
    assert not controls_lipschitz(critic, [R1(1.0)])
    assert controls_lipschitz(critic, iter([R1(1.0), GradientPenalty()]))
    assert controls_lipschitz(lambda x: x, [WeightClipping()])
    assert not controls_lipschitz(lambda x: x, [])
    spectral_norm(critic.head)
    assert not controls_lipschitz(critic, [])  # the other layer is free
    assert controls_lipschitz(spectral_norm(critic), [])
    assert controls_lipschitz(spectral_norm(nn.Linear(2, 1)), [])
    images = DCGANCritic(channels=1, image_size=8, width=4, norm=None)
    assert controls_lipschitz(spectral_norm(images), [])
    # Scales of normalisations and free matrices are not bounded.
    assert not controls_lipschitz(spectral_norm(nn.Sequential(nn.Linear(3, 3), nn.PReLU())), [])
    assert not controls_lipschitz(nn.ReLU(), [])


def test_mixes_rows():
    assert mixes_rows(DCGANCritic(channels=1, image_size=16, width=4))
    assert mixes_rows(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    assert mixes_rows(nn.SyncBatchNorm(3))
    for critic in (MLP(3, [5], 1), nn.LayerNorm(3), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3)):
        assert not mixes_rows(critic)
    assert not mixes_rows(lambda x: x)
