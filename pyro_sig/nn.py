"""The small networks of the toys and the image experiments: MLP, encoder, DCGAN pairs.

All take any leading batch dimensions and build their parameters with `device` and `dtype` (torch's
defaults if None). A critic's score has a last dimension of 1, whichever network gives it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "DCGANCritic",
    "DCGANGenerator",
    "Encoder",
    "Joint",
    "MLP",
    "StackedDigitsCritic",
    "StackedDigitsGenerator",
]

Dtype = torch.dtype | None
Device = torch.device | str | None


class MLP(nn.Module):
    r"""Maps features through fully connected layers.

    .. math::

        h_l = a(W_l h_{l-1} + b_l), \quad f(x) = W_{L+1} h_L + b_{L+1}, \quad h_0 = x

    The generators and encoders of the SIG paper's toys have two hidden layers of 100 ReLU units,
    its critics one.

    :param int in_features: size of the last dimension of the input.
    :param hidden_features: sizes of the hidden layers; empty for a linear map.
    :param int out_features: size of the last dimension of the output.
    :param activation: makes an activation module; called once for each hidden layer.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if a size is not a positive integer, or an input has other features.

    **Source:** Yin and Zhou, *Semi-Implicit Generative Model* (2019), section 5.2.

    Example::

        >>> generator = MLP(2, [100, 100], 2)
        >>> generator(torch.randn(5, 3, 2)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        if not isinstance(hidden_features, Sequence):
            raise ValueError(
                f"`hidden_features` must be a sequence of sizes, was {hidden_features!r}"
            )
        self.in_features = _positive_integer("in_features", in_features)
        self.out_features = _positive_integer("out_features", out_features)
        layers: list[nn.Module] = []
        size = in_features
        for hidden in hidden_features:
            _positive_integer("hidden_features", hidden)
            layers += [nn.Linear(size, hidden, device=device, dtype=dtype), activation()]
            size = hidden
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(size, out_features, device=device, dtype=dtype)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer.

        :param torch.Tensor x: input, with shape ``[*, in_features]``.
        :return: activations, with shape ``[*, hidden_features[-1]]``.
        :raises ValueError: if `x` has another last dimension.
        """
        _check_event("x", x, (self.in_features,))
        return self.hidden(x)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the network at `x`, shape ``[*, in_features]`` to ``[*, out_features]``."""
        return self.head(self.features(x))


class Joint(nn.Module):
    r"""Feeds several values to a network as one row: a critic of data and latents.

    .. math::

        f(x, z) = \mathrm{net}([x, z])

    :param torch.nn.Module net: maps rows of all features, flattened and in the order of the values.
    :raises ValueError: if the values do not have the same number of rows.

    Example::

        >>> critic = Joint(MLP(6, [16], 1))
        >>> critic(torch.randn(5, 2, 2), torch.randn(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *values: Tensor) -> Tensor:
        """Evaluate the network at values of shapes ``[N, *]``."""
        rows = [len(value) for value in values]
        if len(set(rows)) != 1:
            raise ValueError(f"`values` must have the same number of rows, had {rows}")
        return self.net(torch.cat([value.flatten(1) for value in values], -1))


class Encoder(nn.Module):
    r"""Maps data to the location and the scale of a diagonal Gaussian.

    .. math::

        q(z | x) = \mathcal{N}(z; \mu(x), \mathrm{diag}(\sigma(x))^2), \quad
        \sigma = \log(1 + e^u) + \varepsilon, \quad (\mu, u) = f(x)

    with :math:`f` an :class:`MLP` and :math:`\varepsilon` the machine epsilon of its type: a
    softplus alone underflows to zero.

    :param int in_features: size of the last dimension of the data.
    :param hidden_features: sizes of the hidden layers.
    :param int latent_dim: size of the latent.
    :param activation: makes an activation module; called once for each hidden layer.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if a size is not a positive integer, or an input has other features.

    **Source:** Kingma and Welling, *Auto-Encoding Variational Bayes* (2014), appendix C.2, with a
    softplus in place of the exponential.

    Example::

        >>> loc, scale = Encoder(784, [100, 100], 20)(torch.rand(5, 784))
        >>> loc.shape, bool((scale > 0).all())
        (torch.Size([5, 20]), True)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        latent_dim: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        outputs = 2 * _positive_integer("latent_dim", latent_dim)
        self.net = MLP(
            in_features, hidden_features, outputs, activation, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale, each of shape ``[*, latent_dim]``, for `x`."""
        loc, raw = self.net(x).chunk(2, dim=-1)
        return loc, nn.functional.softplus(raw) + torch.finfo(raw.dtype).eps


class DCGANGenerator(nn.Module):
    r"""Maps noise to images by transposed convolutions.

    The noise becomes ``width * 2 ** (k - 1)`` maps of 4 x 4 (7 x 7 where `image_size` is 28);
    each of the k following layers doubles the size and halves the number of maps, the last
    one gives the image. Weights start as :math:`\mathcal{N}(0, 0.02^2)`, biases at zero.

    :param int noise_dim: size of the noise.
    :param int channels: channels of the image.
    :param int image_size: height and width in pixels: 28, or 4 times a power of two from 8 on.
    :param int width: number of maps before the last layer.
    :param norm: makes a normalisation module from a number of maps; None for none. Batch
        normalisation mixes all leading dimensions.
    :param activation: makes the activation of the image (tanh: pixels in [-1, 1]); None for none.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if a size is not allowed, or an input has other features.

    **Source:** Radford, Metz and Chintala, *Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks* (2016), section 3 and figure 1.

    Example::

        >>> generator = DCGANGenerator(noise_dim=10, channels=3, image_size=28, width=8)
        >>> generator(torch.randn(2, 5, 10)).shape
        torch.Size([2, 5, 3, 28, 28])
    """

    def __init__(
        self,
        noise_dim: int,
        channels: int,
        image_size: int,
        width: int = 64,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] | None = nn.Tanh,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        self.noise_dim = _positive_integer("noise_dim", noise_dim)
        _positive_integer("channels", channels)
        _positive_integer("width", width)
        start, doublings = _start_size(image_size)
        # A normalisation subtracts the mean: a bias before it would do nothing.
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        maps = width * 2 ** (doublings - 1)
        layers: list[nn.Module] = [nn.ConvTranspose2d(noise_dim, maps, start, **options)]
        for _ in range(doublings - 1):
            layers += [*_normalise(norm, maps, device, dtype), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1, **options))
            maps //= 2
        layers += [*_normalise(norm, maps, device, dtype), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(maps, channels, 4, 2, 1, device=device, dtype=dtype))
        if activation is not None:
            layers.append(activation())
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, noise: Tensor) -> Tensor:
        """Make images from noise.

        :param torch.Tensor noise: noise, with shape ``[*, noise_dim]``.
        :return: images, with shape ``[*, channels, image_size, image_size]``.
        :raises ValueError: if `noise` has another last dimension.
        """
        _check_event("noise", noise, (self.noise_dim,))
        batch = noise.shape[:-1]
        images = self.layers(noise.reshape(batch.numel(), self.noise_dim, 1, 1))
        return images.reshape(batch + images.shape[1:])


class DCGANCritic(nn.Module):
    r"""Maps images to scores by strided convolutions, the mirror of :class:`DCGANGenerator`.

    The first of k layers gives `width` maps, each further one twice as many, and each halves the
    size; a linear head gives the score. Leaky ReLU of slope 0.2; weights start as
    :math:`\mathcal{N}(0, 0.02^2)`, biases at zero.

    :param int channels: channels of the image.
    :param int image_size: height and width in pixels: 28, or 4 times a power of two from 8 on.
    :param int width: number of maps after the first layer.
    :param norm: makes a normalisation module from a number of maps; None for none. The first
        layer has none. Batch normalisation makes the score of an image depend on its batch: pass
        None with gradient penalties and relativistic pairing.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if a size is not allowed, or an input has another shape.

    **Source:** Radford, Metz and Chintala (2016), section 3.

    Example::

        >>> critic = DCGANCritic(channels=3, image_size=32, width=8, norm=None)
        >>> critic(torch.rand(2, 5, 3, 32, 32)).shape
        torch.Size([2, 5, 1])
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        width: int = 64,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        maps = _positive_integer("width", width)
        size, halvings = _start_size(image_size)
        self.image_shape = (_positive_integer("channels", channels), image_size, image_size)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, maps, 4, 2, 1, device=device, dtype=dtype),
            nn.LeakyReLU(0.2),
        ]
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        for _ in range(halvings - 1):
            layers.append(nn.Conv2d(maps, 2 * maps, 4, 2, 1, **options))
            maps *= 2
            layers += [*_normalise(norm, maps, device, dtype), nn.LeakyReLU(0.2)]
        self.hidden = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(maps * size**2, 1, device=device, dtype=dtype)
        self.apply(_initialise)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer.

        :param torch.Tensor x: images, with shape ``[*, channels, image_size, image_size]``.
        :return: activations, with shape ``[*, F]``.
        :raises ValueError: if `x` has another shape.
        """
        _check_event("x", x, self.image_shape)
        batch = x.shape[:-3]
        hidden = self.hidden(x.reshape(batch.numel(), *self.image_shape))
        return hidden.reshape(batch + hidden.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Score images of shape ``[*, channels, image_size, image_size]``, shape ``[*, 1]``."""
        return self.head(self.features(x))


class StackedDigitsGenerator(nn.Module):
    r"""Maps noise to stacked digits, colour images of 28 x 28 pixels, as the SIG paper does.

    A linear layer gives 64p maps of 4 x 4; transposed convolutions of 4 x 4 make 64p maps of
    7 x 7, 32p of 14 x 14, 8p of 15 x 15 and the image, with p the `width`. The third of them has
    stride 1, and the last cuts its border. Weights start as :math:`\mathcal{N}(0, 0.02^2)`.

    :param int noise_dim: size of the noise.
    :param int width: the factor p of all numbers of maps.
    :param norm: makes a normalisation module from a number of maps; None for none. Batch
        normalisation mixes all leading dimensions.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if a size is not a positive integer, or an input has other features.

    **Source:** Yin and Zhou, *Semi-Implicit Generative Model* (2019), appendix C, with its layer
    sizes made to agree. The three values of p are not given there: 1, 2 and 4 are used here.

    Example::

        >>> generator = StackedDigitsGenerator(noise_dim=10, width=1)
        >>> generator(torch.randn(2, 5, 10)).shape
        torch.Size([2, 5, 3, 28, 28])
    """

    def __init__(
        self,
        noise_dim: int,
        width: int = 1,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        self.noise_dim = _positive_integer("noise_dim", noise_dim)
        maps = 64 * _positive_integer("width", width)
        # A normalisation subtracts the mean: a bias before it would do nothing.
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        self.layers = nn.Sequential(
            nn.Linear(noise_dim, 16 * maps, **options),
            nn.Unflatten(-1, (4, 4, maps)),
            _ChannelsFirst(),
            *_normalise(norm, maps, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps, maps, 4, 1, **options),
            *_normalise(norm, maps, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1, **options),
            *_normalise(norm, maps // 2, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps // 2, maps // 8, 4, 1, 1, **options),
            *_normalise(norm, maps // 8, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps // 8, 3, 4, 2, 2, device=device, dtype=dtype),
            nn.Tanh(),
        )
        self.apply(_initialise)

    def forward(self, noise: Tensor) -> Tensor:
        """Make images from noise.

        :param torch.Tensor noise: noise, with shape ``[*, noise_dim]``.
        :return: images in [-1, 1], with shape ``[*, 3, 28, 28]``.
        :raises ValueError: if `noise` has another last dimension.
        """
        _check_event("noise", noise, (self.noise_dim,))
        batch = noise.shape[:-1]
        images = self.layers(noise.reshape(batch.numel(), self.noise_dim))
        return images.reshape(batch + images.shape[1:])


class StackedDigitsCritic(nn.Module):
    r"""Maps colour images of 28 x 28 pixels to scores, against :class:`StackedDigitsGenerator`.

    Convolutions of 4 x 4 give 8q maps of 13 x 13, 16q of 7 x 7 and 32q of 6 x 6, with q the
    `width`; a linear head gives the score. Leaky ReLU of slope 0.2; weights start as
    :math:`\mathcal{N}(0, 0.02^2)`, biases at zero.

    :param int width: the factor q of all numbers of maps.
    :param norm: makes a normalisation module from a number of maps; None for none. The first
        layer has none. Batch normalisation makes the score of an image depend on its batch: pass
        None with gradient penalties and relativistic pairing.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if `width` is not a positive integer, or an input has another shape.

    **Source:** Yin and Zhou (2019), appendix C; the values of q as those of p.

    Example::

        >>> StackedDigitsCritic(width=1)(torch.rand(2, 5, 3, 28, 28)).shape
        torch.Size([2, 5, 1])
    """

    def __init__(
        self,
        width: int = 1,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        maps = 8 * _positive_integer("width", width)
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        self.image_shape = (3, 28, 28)
        self.hidden = nn.Sequential(
            nn.Conv2d(3, maps, 4, 2, device=device, dtype=dtype),
            nn.LeakyReLU(0.2),
            nn.Conv2d(maps, 2 * maps, 4, 2, 2, **options),
            *_normalise(norm, 2 * maps, device, dtype),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * maps, 4 * maps, 4, 1, 1, **options),
            *_normalise(norm, 4 * maps, device, dtype),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * maps * 36, 1, device=device, dtype=dtype)
        self.apply(_initialise)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer.

        :param torch.Tensor x: images, with shape ``[*, 3, 28, 28]``.
        :return: activations, with shape ``[*, F]``.
        :raises ValueError: if `x` has another shape.
        """
        _check_event("x", x, self.image_shape)
        batch = x.shape[:-3]
        hidden = self.hidden(x.reshape(batch.numel(), *self.image_shape))
        return hidden.reshape(batch + hidden.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Score images of shape ``[*, 3, 28, 28]``, shape ``[*, 1]``."""
        return self.head(self.features(x))


class _ChannelsFirst(nn.Module):
    """Views ``[N, H, W, C]`` as ``[N, C, H, W]``, in the order of memory that convolutions like."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


def _start_size(image_size: int) -> tuple[int, int]:
    """Return the smallest map size and how often it is doubled."""
    _positive_integer("image_size", image_size)
    if image_size == 28:
        return 7, 2
    doublings = image_size.bit_length() - 3
    if doublings < 1 or image_size != 4 * 2**doublings:
        raise ValueError(
            f"`image_size` must be 28 or one of 8, 16, 32, 64, ..., was {image_size!r}"
        )
    return 4, doublings


def _normalise(
    norm: Callable[[int], nn.Module] | None, maps: int, device: Device, dtype: Dtype
) -> list[nn.Module]:
    return [] if norm is None else [norm(maps).to(device=device, dtype=dtype)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_event(name: str, value: Tensor, event_shape: tuple[int, ...]) -> None:
    if value.shape[-len(event_shape) :] != event_shape:
        raise ValueError(f"`{name}` must have shape {['*', *event_shape]}, was {list(value.shape)}")


def _positive_integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, was {value!r}")
    return value
