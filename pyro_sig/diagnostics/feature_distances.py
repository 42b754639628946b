"""Distances of generated from real samples in features that somebody else computes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._samples import check_samples, row_blocks
from pyro_sig.diagnostics._streams import check_generator

__all__ = ["KernelDistance", "frechet_distance", "kernel_distance"]

# Elements of one block of rows of features in double.
_CHUNK_ELEMENTS = 2**22


class KernelDistance(NamedTuple):
    """Result of :func:`kernel_distance`.

    :param mean: of the estimates from the subsets.
    :param standard_error: of the mean, for samples from their laws.
    :param std: standard deviation over the subsets, which tables of this distance often print.
    """

    mean: float
    standard_error: float
    std: float

    def __repr__(self) -> str:
        return (
            f"KernelDistance(mean={self.mean:.4g}, standard_error={self.standard_error:.2g}, "
            f"std={self.std:.2g})"
        )


def frechet_distance(real: Tensor, fake: Tensor) -> Tensor:
    r"""Computes the Fréchet distance of two Gaussians with the moments of two samples.

    .. math::
        d^2 = \|\mu_x - \mu_y\|^2 + \operatorname{tr}\bigl\{\Sigma_x + \Sigma_y
            - 2 (\Sigma_x \Sigma_y)^{1/2}\bigr\}, \qquad
        \operatorname{tr} (\Sigma_x \Sigma_y)^{1/2} = \|\Sigma_x^{1/2} \Sigma_y^{1/2}\|_*,

    the squared Wasserstein-2 distance of those Gaussians, with the covariances that divide by one
    less than the count. On features of the Inception network this is the FID. The sum of
    singular values on the right needs no root of an unsymmetric matrix; for less rows than
    columns the centred sample is a root of its covariance itself, so that a singular covariance
    is no special case. Everything is computed in double. The value is biased upwards, by less for
    larger samples: compare samples of one size only.

    :param real: features, shape ``[N, D]`` or ``[N]``.
    :param fake: features of the generated sample, shape ``[M, D]`` or ``[M]``.
    :return: the distance (a square, as the FID is), never negative: a scalar tensor without a
        gradient.
    :raises ValueError: if a shape does not fit, or a sample is not finite or has less than two
        rows.

    Source: M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
    Nash Equilibrium", 2017, https://arxiv.org/abs/1706.08500, equation (6).

    Example::

        >>> real = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
        >>> frechet_distance(real, real + 3)  # 3^2 + 3^2
        tensor(18.)
        >>> frechet_distance(real, 2 * real)  # means differ by (1, 1); 4 + 16 - 2 * 8
        tensor(6.)
    """
    real, fake = check_samples(real, fake, ("real", "fake"), least=2)
    with torch.no_grad():
        # A common offset would cost digits of both.
        offset = real.mean(0).double()
        (mean_x, root_x), (mean_y, root_y) = (_moments(s, offset) for s in (real, fake))
        cross = torch.linalg.svdvals(root_x @ root_y.mT).sum()
        spread = root_x.square().sum() + root_y.square().sum() - 2 * cross
        distance = (mean_x - mean_y).square().sum() + spread.clamp(min=0.0)
        return distance.to(real.dtype)


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    num_subsets: int = 100,
    subset_size: int | None = None,
    generator: torch.Generator | None = None,
    *,
    progress: bool | None = None,
) -> KernelDistance:
    r"""Estimates the squared MMD with a cubic kernel, averaged over random subsets.

    .. math::
        k(x, y) = \Bigl(\frac{x^\top y}{D} + 1\Bigr)^3,

    by its U-statistic, which has no bias at any size and may be negative. On features of the
    Inception network this is the KID. The kernel compares the first three moments only.

    From the variance :math:`V` between subsets of :math:`s` of :math:`n` rows the standard error
    follows as the delete-:math:`(n - s)` jackknife has it, with the noise of the choice of
    :math:`S` subsets added:

    .. math::
        \mathrm{SE}^2 = V \Bigl(\frac{s}{n - s} + \frac{1}{S}\Bigr), \qquad
        n \text{ the smaller count.}

    Where the laws are nearly equal it errs on the large side.

    :param real: features, shape ``[N, D]`` or ``[N]``.
    :param fake: features of the generated sample, shape ``[M, D]`` or ``[M]``.
    :param num_subsets: the number :math:`S` of subsets, at least 2.
    :param subset_size: rows :math:`s` that each takes from each sample, at least 2 and less than
        the smaller count; by default 1000, or half of the smaller count if that is less.
    :param generator: source of the subsets; torch's global one by default.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :return: mean, standard error, and standard deviation over the subsets.
    :raises ValueError: if a shape does not fit, a sample is not finite or has less than four
        rows, or a number is out of its range.

    Source: M. Bińkowski, D. Sutherland, M. Arbel and A. Gretton, "Demystifying MMD GANs", 2018,
    https://arxiv.org/abs/1801.01401.

    Example::

        >>> real = torch.linspace(-1, 1, 200).unsqueeze(-1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> kernel_distance(real, real + 1, generator=generator).mean > 1
        True
    """
    real, fake = check_samples(real, fake, ("real", "fake"), least=4)
    check_integer("num_subsets", num_subsets, 2)
    check_generator(generator)
    smaller = min(len(real), len(fake))
    if subset_size is None:
        subset_size = min(1000, smaller // 2)
    check_integer("subset_size", subset_size, 2)
    if subset_size >= smaller:
        raise ValueError(
            f"`subset_size` must be less than the rows of the smaller sample, {smaller}, "
            f"was {subset_size}"
        )
    found = []
    with torch.no_grad(), Progress(progress, num_subsets, "subsets") as bar:
        for _ in range(num_subsets):
            subsets = (_choose(sample, subset_size, generator) for sample in (real, fake))
            found.append(_cubic_mmd(*subsets))
            bar.update()
        estimates = torch.stack(found)
        std = float(estimates.std())
        factor = subset_size / (smaller - subset_size) + 1 / num_subsets
        return KernelDistance(float(estimates.mean()), std * factor**0.5, std)


def _moments(sample: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The mean less ``offset``, and a matrix R with R' R the covariance."""
    blocks = row_blocks(len(sample), sample.shape[1], _CHUNK_ELEMENTS)
    mean = torch.stack([(sample[rows].double() - offset).sum(0) for rows in blocks]).sum(0)
    mean = mean / len(sample)
    centre = offset + mean
    if len(sample) < sample.shape[1]:
        return mean, (sample.double() - centre) / (len(sample) - 1) ** 0.5
    covariance = mean.new_zeros(len(mean), len(mean))
    for rows in blocks:
        centred = sample[rows].double() - centre
        covariance += centred.mT @ centred / (len(sample) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    # A zero eigenvalue may come out a little below zero.
    return mean, values.clamp(min=0.0).sqrt().unsqueeze(-1) * vectors.mT


def _choose(sample: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    device = sample.device if generator is None else generator.device
    rows = torch.randperm(len(sample), generator=generator, device=device)[:size]
    return sample[rows.to(sample.device)].double()


def _cubic_mmd(x: Tensor, y: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT / x.shape[1] + 1) ** 3

    def mean_of_pairs(a: Tensor) -> Tensor:
        within = kernel(a, a)
        return (within.sum() - within.diagonal().sum()) / (len(a) * (len(a) - 1))

    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean()
