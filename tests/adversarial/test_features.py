import pytest
import torch
from torch import nn

from pyro_sig.adversarial import critic_features, penalties
from pyro_sig.nn import MLP, DCGANCritic


@pytest.mark.parametrize(
    ("critic", "x"),
    [
        (MLP(2, [7, 5], 1), torch.randn(4, 2)),
        (DCGANCritic(1, 8, width=4), torch.randn(4, 1, 8, 8)),
    ],
)
def test_they_are_the_networks_own_last_hidden_layer(critic, x):
    features = critic_features(critic, x)
    assert critic.training
    critic.eval()
    assert torch.equal(features, critic.features(x))
    # A linear layer on them gives the score.
    assert torch.allclose(critic.head(features), critic(x))


def test_under_spectral_norm_and_with_several_values():
    critic = penalties.spectral_norm(MLP(2, [7, 5], 1))
    x = torch.randn(4, 2)
    assert torch.equal(critic_features(critic, x), critic.eval().features(x))

    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(3, [6], 1)

        def forward(self, x, z):
            return self.net(torch.cat([x, z], -1))

    assert critic_features(Joint(), x, torch.randn(4, 1)).shape == (4, 6)


def test_convolutional_head_is_flattened():
    critic = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 1, 2), nn.Flatten())
    assert critic_features(critic, torch.randn(4, 1, 4, 4)).shape == (4, 12)


def test_critic_without_a_layer():
    with pytest.raises(ValueError, match="`critic` must run a layer with weights"):
        critic_features(nn.Flatten(), torch.randn(4, 2))
