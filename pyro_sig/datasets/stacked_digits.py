"""Digits stacked as the colours of one image: a data set whose modes can be counted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, check_tensor
from pyro_sig._show_settings import show_settings

__all__ = ["StackedDigits"]


class StackedDigits:
    r"""Stacks three random digits as red, green and blue, a batch for each step.

    .. math::
        x = (d_i, d_j, d_k), \qquad y = 100\, y_i + 10\, y_j + y_k, \qquad
        i, j, k \sim \mathrm{Uniform}\{1, \dots, N\}

    Nothing is stored but the digits. A batch depends on `seed` and the step alone, so that a run
    that was stopped goes on with the batches that it would have seen.

    :param torch.Tensor images: digits, uint8 in 0..255, shape ``[N, H, W]``.
    :param torch.Tensor labels: their labels in 0..9, integers of shape ``[N]``.
    :param int batch_size: images in a batch.
    :param int seed: seed of all batches.
    :raises ValueError: if an argument is not as described.

    **Source:** Metz et al., *Unrolled Generative Adversarial Networks* (2017), section 3.3.1;
    Yin and Zhou, *Semi-Implicit Generative Model* (2019), section 5.3.

    Example::

        >>> images, labels = torch.zeros(20, 28, 28, dtype=torch.uint8), torch.arange(20) % 10
        >>> stacked = StackedDigits(images, labels, batch_size=4)
        >>> stacked(0).shape, stacked.classes(0).shape
        (torch.Size([4, 3, 28, 28]), torch.Size([4]))
    """

    #: Number of triples of digits.
    num_classes = 1000

    __repr__ = show_settings

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, seed: int = 0) -> None:
        check_tensor(
            "images",
            images,
            "a dense torch.uint8 tensor of shape [N, H, W] with N > 0",
            lambda x: x.dtype == torch.uint8 and x.dim() == 3 and len(x) > 0,
        )
        check_tensor(
            "labels",
            labels,
            f"a dense tensor of integers, of shape [{len(images)}]",
            lambda y: (
                y.shape == images.shape[:1] and not (y.is_floating_point() or y.dtype == torch.bool)
            ),
        )
        if not ((labels >= 0) & (labels <= 9)).all():
            raise ValueError(
                f"`labels` must lie in 0..9, was {int(labels.min())}..{int(labels.max())}"
            )
        self.images = images
        self.labels = labels.to(images.device, torch.int64)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.seed = check_integer("seed", seed, 0)

    def __call__(self, step: int) -> Tensor:
        """Return the images of a step.

        :param int step: number of the step.
        :return: pixels in [-1, 1], in torch's default type, shape ``[batch_size, 3, H, W]``.
        """
        digits = self.images[self._rows(step)]
        return digits.to(torch.get_default_dtype()) / 127.5 - 1

    def classes(self, step: int) -> Tensor:
        """Return the triples behind the images of a step, 0..999, shape ``[batch_size]``."""
        red, green, blue = self.labels[self._rows(step)].unbind(-1)
        return 100 * red + 10 * green + blue

    def _rows(self, step: int) -> Tensor:
        # NumPy's seeds may be pairs; torch's keep 32 bits.
        generator = np.random.default_rng((self.seed, check_integer("step", step, 0)))
        rows = generator.integers(len(self.images), size=(self.batch_size, 3))
        return torch.from_numpy(rows).to(self.images.device)
