"""The pair of the SIG paper for stacked digits."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pyro_sig._arguments import Device, Dtype, check_device, check_integer, floating
from pyro_sig.nn._image_networks import ImageCritic, ImageGenerator, initialise, normalise

__all__ = ["StackedDigitsCritic", "StackedDigitsGenerator"]


class StackedDigitsGenerator(ImageGenerator):
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

        >>> import torch
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
        floating(dtype)
        check_device(device)
        self.noise_dim = check_integer("noise_dim", noise_dim, 1, int)
        maps = 64 * check_integer("width", width, 1, int)
        # A normalisation subtracts the mean: a bias before it would do nothing.
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        self.layers = nn.Sequential(
            nn.Linear(noise_dim, 16 * maps, **options),
            nn.Unflatten(-1, (4, 4, maps)),
            _ChannelsFirst(),
            *normalise(norm, maps, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps, maps, 4, 1, **options),
            *normalise(norm, maps, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps, maps // 2, 4, 2, 1, **options),
            *normalise(norm, maps // 2, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps // 2, maps // 8, 4, 1, 1, **options),
            *normalise(norm, maps // 8, device, dtype),
            nn.ReLU(),
            nn.ConvTranspose2d(maps // 8, 3, 4, 2, 2, device=device, dtype=dtype),
            nn.Tanh(),
        )
        self.apply(initialise)


class StackedDigitsCritic(ImageCritic):
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

        >>> import torch
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
        floating(dtype)
        check_device(device)
        maps = 8 * check_integer("width", width, 1, int)
        options: dict[str, Any] = {"bias": norm is None, "device": device, "dtype": dtype}
        self.image_shape = (3, 28, 28)
        self.hidden = nn.Sequential(
            nn.Conv2d(3, maps, 4, 2, device=device, dtype=dtype),
            nn.LeakyReLU(0.2),
            nn.Conv2d(maps, 2 * maps, 4, 2, 2, **options),
            *normalise(norm, 2 * maps, device, dtype),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * maps, 4 * maps, 4, 1, 1, **options),
            *normalise(norm, 4 * maps, device, dtype),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * maps * 36, 1, device=device, dtype=dtype)
        self.apply(initialise)


class _ChannelsFirst(nn.Module):
    """Views ``[N, H, W, C]`` as ``[N, C, H, W]``, in the order of memory that convolutions like."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)
