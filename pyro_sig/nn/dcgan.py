"""The DCGAN pair: generator and critic of images."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pyro_sig._arguments import Device, Dtype, check_device, check_integer, floating, refusal
from pyro_sig.nn._image_networks import ImageCritic, ImageGenerator, initialise, normalise
from pyro_sig.nn._make_module import make_module

__all__ = ["DCGANCritic", "DCGANGenerator"]


class DCGANGenerator(ImageGenerator):
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

        >>> import torch
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
        floating(dtype)
        check_device(device)
        self.noise_dim = check_integer("noise_dim", noise_dim, 1, int)
        check_integer("channels", channels, 1, int)
        check_integer("width", width, 1, int)
        start, doublings = _start_size(image_size)
        # A normalisation subtracts the mean: a bias before it would do nothing.
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        maps = width * 2 ** (doublings - 1)
        layers: list[nn.Module] = [
            nn.Unflatten(-1, (noise_dim, 1, 1)),
            nn.ConvTranspose2d(noise_dim, maps, start, **options),
        ]
        for _ in range(doublings - 1):
            layers += [*normalise(norm, maps, device, dtype), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1, **options))
            maps //= 2
        layers += [*normalise(norm, maps, device, dtype), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(maps, channels, 4, 2, 1, device=device, dtype=dtype))
        if activation is not None:
            layers.append(make_module("activation", activation))
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)


class DCGANCritic(ImageCritic):
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

        >>> import torch
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
        floating(dtype)
        check_device(device)
        maps = check_integer("width", width, 1, int)
        size, halvings = _start_size(image_size)
        self.image_shape = (check_integer("channels", channels, 1, int), image_size, image_size)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, maps, 4, 2, 1, device=device, dtype=dtype),
            nn.LeakyReLU(0.2),
        ]
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        for _ in range(halvings - 1):
            layers.append(nn.Conv2d(maps, 2 * maps, 4, 2, 1, **options))
            maps *= 2
            layers += [*normalise(norm, maps, device, dtype), nn.LeakyReLU(0.2)]
        self.hidden = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(maps * size**2, 1, device=device, dtype=dtype)
        self.apply(initialise)


def _start_size(image_size: int) -> tuple[int, int]:
    """Return the smallest map size and how often it is doubled."""
    check_integer("image_size", image_size, 1, int)
    if image_size == 28:
        return 7, 2
    doublings = image_size.bit_length() - 3
    if doublings < 1 or image_size != 4 * 2**doublings:
        raise refusal("image_size", "28 or one of 8, 16, 32, 64, ...", image_size)
    return 4, doublings
