"""How many classes a sampler reaches, and how evenly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, check_tensor

__all__ = ["ClassCoverage", "class_coverage"]


@dataclass(frozen=True)
class ClassCoverage:
    """Result of :func:`class_coverage`.

    :param covered: number of classes with at least one sample.
    :param kl: divergence KL(samples || uniform) over the classes, in nats.
    :param floor: what a perfect sampler scores on average in as many samples.
    :param floor_std: and its standard deviation.
    :param counts: samples of each class, integers of shape ``[K]``.
    """

    covered: int
    kl: float
    floor: float
    floor_std: float
    counts: Tensor

    def __repr__(self) -> str:
        return (
            f"ClassCoverage(covered={self.covered} of {len(self.counts)}, kl={self.kl:.4f}, "
            f"floor={self.floor:.4f} +- {self.floor_std:.4f})"
        )


def class_coverage(classes: Tensor, num_classes: int) -> ClassCoverage:
    r"""Counts the classes that a sampler reaches, and compares their shares with equal ones.

    .. math::
        \mathrm{KL} = \sum_{k=1}^{K} \frac{n_k}{n} \log \frac{K n_k}{n}

    Even a perfect sampler has an expected KL above zero, near :math:`(K - 1) / 2n`, because the
    counts are random. It is computed here from the binomial law of one count; its spread is that
    of the chi-square law with :math:`K - 1` degrees of freedom over :math:`2n`.

    :param torch.Tensor classes: class of each sample, integers in 0..K - 1, shape ``[n]``.
    :param int num_classes: number K of classes.
    :return: covered classes, KL, its floor and the counts.
    :raises ValueError: if `classes` is no row of integers within range, or `num_classes` is not
        positive.

    Source: the protocol of the stacked digits of Metz et al., "Unrolled generative adversarial
    networks" (2017), and Srivastava et al., "VEEGAN" (2017), with 1000 classes and 26,000 samples.

    Example::

        >>> import torch
        >>> class_coverage(torch.tensor([0, 0, 1, 2, 2, 1]), num_classes=4).covered
        3
    """
    check_integer("num_classes", num_classes, 1)
    classes = check_tensor(
        "classes",
        classes,
        "a dense tensor of integers, of shape [n] with n > 0",
        lambda x: x.dim() == 1 and len(x) > 0 and not x.is_floating_point(),
    )
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"`classes` must lie in 0..{num_classes - 1}, was {low}..{high}")
    counts = torch.bincount(classes.long(), minlength=num_classes)
    n = len(classes)
    share = counts.double() / n
    kl = torch.special.xlogy(share, share * num_classes).sum().item()
    floor, spread = _floor(n, num_classes)
    return ClassCoverage(int((counts > 0).sum()), kl, floor, spread, counts)


def _floor(n: int, num_classes: int) -> tuple[float, float]:
    """Mean and standard deviation of the KL of n samples of the uniform law."""
    if num_classes == 1:
        return 0.0, 0.0
    count = torch.arange(n + 1, dtype=torch.float64)
    law = torch.distributions.Binomial(n, torch.tensor(1 / num_classes, dtype=torch.float64))
    share = count / n
    terms = torch.special.xlogy(share, share * num_classes)
    mean = num_classes * (law.log_prob(count).exp() * terms).sum().item()
    return mean, math.sqrt(2 * (num_classes - 1)) / (2 * n)
