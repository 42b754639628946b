"""What the generators and critics of images share."""

from collections.abc import Callable

from torch import Tensor, nn

from pyro_sig._arguments import Device, Dtype, check_like
from pyro_sig.nn._make_module import make_module


class ImageGenerator(nn.Module):
    """Runs ``layers`` on noise of any leading dimensions."""

    noise_dim: int
    layers: nn.Sequential

    def forward(self, noise: Tensor) -> Tensor:
        """Make images from noise.

        :param torch.Tensor noise: noise, with shape ``[*, noise_dim]``.
        :return: images, with shape ``[*, channels, image_size, image_size]``.
        :raises ValueError: if `noise` has another last dimension.
        """
        check_like("noise", noise, (self.noise_dim,), next(self.parameters()))
        batch = noise.shape[:-1]
        images = self.layers(noise.reshape(batch.numel(), self.noise_dim))
        return images.reshape(batch + images.shape[1:])


class ImageCritic(nn.Module):
    """Runs ``hidden`` and a linear ``head`` on images of any leading dimensions."""

    image_shape: tuple[int, ...]
    hidden: nn.Sequential
    head: nn.Linear

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer.

        :param torch.Tensor x: images, with shape ``[*, channels, image_size, image_size]``.
        :return: activations, with shape ``[*, F]``.
        :raises ValueError: if `x` has another shape.
        """
        check_like("x", x, self.image_shape, next(self.parameters()))
        batch = x.shape[:-3]
        hidden = self.hidden(x.reshape(batch.numel(), *self.image_shape))
        return hidden.reshape(batch + hidden.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Score images of shape ``[*, channels, image_size, image_size]``, shape ``[*, 1]``."""
        return self.head(self.features(x))


def normalise(
    norm: Callable[[int], nn.Module] | None, maps: int, device: Device, dtype: Dtype
) -> list[nn.Module]:
    if norm is None:
        return []
    return [make_module("norm", norm, maps).to(device=device, dtype=dtype)]


def initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
