"""Networks: shapes, batch dimensions, gradients, initialisation, errors."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from pyro_sig.nn import (
    MLP,
    DCGANCritic,
    DCGANGenerator,
    Encoder,
    Joint,
    StackedDigitsCritic,
    StackedDigitsGenerator,
)

SIZES = [8, 16, 28, 32]
NETWORKS = [
    (partial(MLP, 3, [8, 8], 2), (3,)),
    (partial(MLP, 3, [], 2), (3,)),
    (partial(MLP, 3, (4,), 1, activation=nn.Tanh), (3,)),
    (partial(Encoder, 3, [8, 8], 2), (3,)),
    (partial(DCGANGenerator, 5, 3, 16, 4), (5,)),
    (partial(DCGANGenerator, 5, 1, 28, 4, norm=None, activation=None), (5,)),
    (partial(DCGANCritic, 3, 16, 4), (3, 16, 16)),
    (partial(DCGANCritic, 1, 28, 4, norm=None), (1, 28, 28)),
    (partial(DCGANCritic, 1, 16, 4, norm=partial(nn.GroupNorm, 2)), (1, 16, 16)),
    (partial(StackedDigitsGenerator, 5, 1), (5,)),
    (partial(StackedDigitsGenerator, 5, 1, norm=None), (5,)),
    (partial(StackedDigitsCritic, 1), (3, 28, 28)),
    (partial(StackedDigitsCritic, 1, norm=None), (3, 28, 28)),
]
EACH = pytest.mark.parametrize(("make", "event_shape"), NETWORKS)


def flat(output):
    """Join the parts of an output into one tensor."""
    return torch.cat([part for part in output], -1) if isinstance(output, tuple) else output


@EACH
def test_leading_batch_dimensions(make, event_shape):
    net = make().eval()
    x = torch.randn(2, 3, *event_shape)
    out = flat(net(x))
    assert out.shape[:2] == (2, 3)
    # Convolutions may take another order of sums for another batch size: float32 rounding.
    torch.testing.assert_close(flat(net(x[1, 2])), out[1, 2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(flat(net(x.flatten(0, 1))), out.flatten(0, 1), rtol=1e-4, atol=1e-6)
    assert flat(net(x[:0])).shape == (0,) + out.shape[1:]


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_parameter_gets_a_gradient(make, event_shape, dtype):
    net = make(dtype=dtype)
    out = flat(net(torch.randn(6, *event_shape, dtype=dtype)))
    assert out.dtype == dtype
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.dtype == dtype
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(b.dtype in (dtype, torch.int64) for b in net.buffers())


@EACH
def test_device(make, event_shape):
    net = make(device="meta")
    assert all(t.device.type == "meta" for t in [*net.parameters(), *net.buffers()])
    assert flat(net(torch.empty(2, *event_shape, device="meta"))).shape[0] == 2


@EACH
def test_state_round_trip(make, event_shape):
    net, other = make().eval(), make().eval()
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, *event_shape)
    torch.testing.assert_close(flat(other(x)), flat(net(x)), rtol=0, atol=0)
    torch.testing.assert_close(flat(copy.deepcopy(net)(x)), flat(net(x)), rtol=0, atol=0)


def test_mlp_is_the_stated_map():
    net = MLP(2, [100, 100], 2, dtype=torch.float64)
    assert [tuple(p.shape) for p in net.parameters()] == [
        (100, 2), (100,), (100, 100), (100,), (2, 100), (2,),
    ]  # fmt: skip
    x = torch.randn(7, 2, dtype=torch.float64)
    w0, b0, w1, b1, w2, b2 = net.parameters()
    hidden = (((x @ w0.T + b0).relu()) @ w1.T + b1).relu()
    torch.testing.assert_close(net.features(x), hidden)
    torch.testing.assert_close(net(x), hidden @ w2.T + b2)


def test_mlp_makes_an_activation_for_each_layer():
    net = MLP(2, [3, 3], 1, activation=nn.PReLU)
    assert sum(isinstance(m, nn.PReLU) for m in net.modules()) == 2


def test_encoder_scale_stays_positive():
    net = Encoder(1, [], 2)
    with torch.no_grad():
        net.net.head.weight.fill_(1.0)
    loc, scale = net(torch.tensor([[-1e6], [0.0], [1e6]]))
    assert loc.shape == scale.shape == (3, 2)
    assert (scale > 0).all() and scale.isfinite().all()


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_shapes(image_size, channels):
    generator = DCGANGenerator(10, channels, image_size, 4)
    critic = DCGANCritic(channels, image_size, 4)
    images = generator(torch.randn(2, 5, 10))
    assert images.shape == (2, 5, channels, image_size, image_size)
    assert images.abs().max() <= 1
    assert critic(images).shape == (2, 5, 1)
    features = critic.features(images)
    assert features.shape[:2] == (2, 5) and features.dim() == 3
    assert features.shape[-1] == critic.head.in_features


def test_dcgan_starts_at_7_for_28():
    first = DCGANGenerator(10, 1, 28, 4).layers[1]
    assert first(torch.randn(1, 10, 1, 1)).shape == (1, 8, 7, 7)
    first = DCGANGenerator(10, 1, 64, 4).layers[1]
    assert first(torch.randn(1, 10, 1, 1)).shape == (1, 32, 4, 4)


@pytest.mark.parametrize(
    "net", [DCGANGenerator(64, 3, 32, 32, norm=None), DCGANCritic(3, 32, 32, norm=None)]
)
def test_dcgan_initialisation(net):
    for parameter in net.parameters():
        if parameter.dim() == 1:
            assert (parameter == 0).all()
        else:
            # Mean and SD of n normal draws: errors 0.02 / sqrt(n) and 0.02 / sqrt(2 n); 5 standard
            # errors fail with probability 6e-7 each, 1e-5 over the sixteen checks.
            n = parameter.numel()
            assert abs(parameter.mean().item()) < 5 * 0.02 / n**0.5
            assert abs(parameter.std().item() - 0.02) < 5 * 0.02 / (2 * n) ** 0.5


def test_critic_without_norm_scores_rows_apart():
    x = torch.randn(4, 1, 8, 8)
    assert _depends_on_batch(DCGANCritic(1, 16, 4), torch.randn(4, 1, 16, 16))
    assert not _depends_on_batch(DCGANCritic(1, 8, 4, norm=None), x)


def _depends_on_batch(critic, x):
    with torch.no_grad():
        together, apart = critic(x)[0], critic(x[:2])[0]
    return (together - apart).abs().max() > 1e-3 * together.abs().max()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: MLP(0, [3], 1), r"`in_features` must be a positive integer, was 0"),
        (lambda: MLP(2, [3, -1], 1), r"`hidden_features` must be a positive integer, was -1"),
        (
            lambda: MLP(2, 100, 1),
            r"`hidden_features` must be a sequence of positive integers, was 100",
        ),
        (lambda: MLP(2, [3], 1.0), r"`out_features` must be a positive integer, was 1\.0"),
        (
            lambda: MLP(2, [3], 1)(torch.zeros(5, 3)),
            r"`x` must be .* of shape \[\*, 2\] .*, was .* of shape \(5, 3\)",
        ),
        (lambda: Encoder(2, [3], 0), r"`latent_dim` must be a positive integer, was 0"),
        (lambda: DCGANGenerator(0, 1, 8), r"`noise_dim` must be a positive integer"),
        (lambda: DCGANGenerator(2, True, 8), r"`channels` must be a positive integer, was True"),
        (lambda: DCGANGenerator(2, 1, 8, 0), r"`width` must be a positive integer"),
        (lambda: DCGANGenerator(2, 1, 4), r"`image_size` must be 28 or one of 8, .*, was 4"),
        (lambda: DCGANCritic(1, 30), r"`image_size` must be 28 or one of 8, .*, was 30"),
        (lambda: DCGANCritic(1, 1), r"`image_size` must be 28 or one of 8, .*, was 1"),
        (
            lambda: DCGANGenerator(2, 1, 8, 4)(torch.zeros(3)),
            r"`noise` must be .* of shape \[\*, 2\]",
        ),
        (
            lambda: DCGANCritic(1, 8, 4)(torch.zeros(5, 8, 8)),
            r"`x` must be .* of shape \[\*, 1, 8, 8\] .*, was .* of shape \(5, 8, 8\)",
        ),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_joint_feeds_all_values_as_one_row():
    net = MLP(7, [5], 1)
    x, z = torch.randn(4, 2, 2), torch.randn(4, 3)
    expected = net(torch.cat([x.flatten(1), z], -1))
    assert torch.equal(Joint(net)(x, z), expected)
    assert list(Joint(net).parameters()) == list(net.parameters())


def test_joint_wants_as_many_rows_of_each_value():
    with pytest.raises(ValueError, match=r"`values` must have the same number of rows.*\[4, 3\]"):
        Joint(MLP(4, [5], 1))(torch.zeros(4, 2), torch.zeros(3, 2))


@pytest.mark.parametrize("width", [1, 2, 4])
def test_stacked_digits_pair_has_the_numbers_of_maps_of_its_width(width):
    generator, critic = StackedDigitsGenerator(10, width, device="meta"), StackedDigitsCritic(width)
    convolutions = [m for m in generator.layers if isinstance(m, nn.ConvTranspose2d)]
    assert [c.out_channels for c in convolutions] == [64 * width, 32 * width, 8 * width, 3]
    convolutions = [m for m in critic.hidden if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [8 * width, 16 * width, 32 * width]


def test_stacked_digits_are_within_the_range_of_pixels():
    images = StackedDigitsGenerator(10, 1)(100 * torch.randn(4, 10))
    assert images.shape == (4, 3, 28, 28)
    assert images.abs().max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StackedDigitsGenerator(0), "`noise_dim` must be a positive integer, was 0"),
        (lambda: StackedDigitsGenerator(2, 0), "`width` must be a positive integer, was 0"),
        (lambda: StackedDigitsCritic(1.5), "`width` must be a positive integer, was 1.5"),
        (
            lambda: StackedDigitsGenerator(2)(torch.zeros(3)),
            r"`noise` must be .* of shape \[\*, 2\]",
        ),
        (
            lambda: StackedDigitsCritic()(torch.zeros(3, 8, 8)),
            r"`x` must be .* of shape \[\*, 3, 28, 28\]",
        ),
    ],
)
def test_stacked_digits_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "x, message",
    [
        ([0.0], r"must be a dense .* tensor .*, was \[0.0\]"),
        (torch.eye(3).to_sparse(), "must be a dense .* tensor .*, was a torch.sparse_coo"),
        (torch.zeros(2, 3, dtype=torch.float64), "must be a dense torch.float32 .*, was a .*64"),
        (torch.zeros(2, 3, dtype=torch.long), "must be a dense torch.float32 .*, was a .*int64"),
        (torch.zeros(2, 3, device="meta"), "must be a dense .* on cpu, was a .* on meta"),
    ],
)
def test_input_of_another_kind(x, message):
    for network in (MLP(3, [4], 2), DCGANGenerator(3, 1, 8, 2)):
        with pytest.raises(ValueError, match=message):
            network(x)


def test_half_an_input_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert MLP(3, [4], 2)(torch.zeros(2, 3, dtype=torch.bfloat16)).shape == (2, 2)


@pytest.mark.parametrize("activation", [nn.ReLU(), None, "relu", nn.Linear, lambda: 3])
def test_what_makes_no_activation(activation):
    with pytest.raises(ValueError, match="`activation` must"):
        MLP(3, [4], 2, activation)


@pytest.mark.parametrize("make", [partial(MLP, 3, [4], 2), partial(DCGANCritic, 1, 8, 2)])
def test_parameters_that_cannot_be_made(make):
    with pytest.raises(ValueError, match="`device` must be a device at hand, was 'nowhere'"):
        make(device="nowhere")
    with pytest.raises(ValueError, match="`dtype` must be a floating point type, was torch.int64"):
        make(dtype=torch.int64)


def test_joint_takes_numbers_without_features():
    assert Joint(MLP(2, [4], 1))(torch.zeros(5), torch.zeros(5, 1)).shape == (5, 1)
    with pytest.raises(ValueError, match="`values` must be tensors"):
        Joint(MLP(2, [4], 1))(torch.zeros(5, 1), None)
