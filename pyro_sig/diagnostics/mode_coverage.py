"""Which modes of a known mixture a sampler reaches, and how sharply."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_sig._arguments import check_finite, check_number, check_tensor
from pyro_sig.diagnostics._containers import as_tensor
from pyro_sig.diagnostics._samples import check_samples, distances

__all__ = ["ModeCoverage", "mode_coverage"]

# Elements of one [chunk, modes, D] block of differences.
_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True)
class ModeCoverage:
    """Result of :func:`mode_coverage`.

    :param captured: number of modes with more than ``min_count`` high-quality samples.
    :param high_quality: share of the samples within ``num_std`` standard deviations of a centre.
    :param counts: high-quality samples per mode, integers of shape ``[K]``.
    :param kl: divergence KL(generated || truth) over the K + 1 cells, in nats.
    :param min_count: the number of samples that a captured mode must exceed.
    """

    captured: int
    high_quality: float
    counts: Tensor
    kl: float
    min_count: float

    def __repr__(self) -> str:
        return (
            f"ModeCoverage(captured={self.captured} of {len(self.counts)}, "
            f"high_quality={self.high_quality:.4f}, kl={self.kl:.4f})"
        )


def mode_coverage(
    samples: Tensor,
    modes: Tensor,
    std: float,
    num_std: float = 3.0,
    min_count: float | None = None,
    weights: Tensor | None = None,
) -> ModeCoverage:
    r"""Counts the modes of an isotropic Gaussian mixture that a sampler captures.

    A sample is *high quality* if it lies within ``num_std`` standard deviations of its nearest
    centre. With :math:`p_k` the share of all samples that are high quality and belong to mode
    :math:`k`, and :math:`p_0` the share of the others,

    .. math::
        \mathrm{KL} = \sum_{k=1}^{K} p_k \log \frac{p_k}{(1 - r) w_k} + p_0 \log \frac{p_0}{r},
        \qquad r = P(\chi^2_D > \texttt{num\_std}^2),

    where an empty cell adds nothing. The cells of the truth take the balls around the centres to
    be disjoint. A perfect sampler scores :math:`1 - r` high quality (0.9889 for ``num_std=3`` in
    the plane) and, over :math:`n` samples, a KL of about :math:`K / (2 n)`.

    :param samples: shape ``[n, D]`` or ``[n]``: draws from the generator, with observation noise.
    :param modes: shape ``[K, D]`` or ``[K]``: the centres of the mixture.
    :param std: standard deviation of every component, in the units of ``samples``.
    :param num_std: radius of a high-quality ball, in units of ``std``.
    :param min_count: a mode is captured if it has *more* high-quality samples than this. By
        default 2 % of ``n``, which is the 1000 of 50,000 of the 5 x 5 grid protocol, or half an
        equal share, ``n / (2 K)``, where that is smaller (more than 25 modes).
    :param weights: shape ``[K]``: positive weights of the components, normalised here. Equal by
        default.
    :return: captured modes, high-quality share, counts per mode and KL.
    :raises ValueError: if a shape does not fit, if samples or modes are not finite, or if a
        number is not positive.

    Source: the 5 x 5 grid protocol of Srivastava et al., "VEEGAN: Reducing mode collapse in GANs
    using implicit variational learning", 2017, https://arxiv.org/abs/1705.07761, with the KL cells
    and the threshold of the semi-implicit generative model's Table 1.

    Example::

        >>> modes = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> samples = modes[0].repeat(10, 1)  # every sample on the first centre
        >>> mode_coverage(samples, modes, std=0.1)
        ModeCoverage(captured=1 of 2, high_quality=1.0000, kl=0.7043)
    """
    samples, modes = (x.detach() for x in check_samples(samples, modes, ("samples", "modes")))
    std, num_std = check_number("std", std, above=0), check_number("num_std", num_std, above=0)
    num_samples, num_modes = len(samples), len(modes)
    if min_count is None:
        min_count = num_samples * min(0.02, 0.5 / num_modes)
    else:
        min_count = check_number("min_count", min_count, least=0)

    counts = _high_quality_counts(samples, modes, num_std * std)
    # Double: a count above 2^24 has no exact float.
    generated = counts.double().cpu() / num_samples
    low_quality = 1.0 - int(counts.sum()) / num_samples

    half_dim = torch.tensor(modes.shape[1] / 2, dtype=torch.double)
    tail = torch.special.gammaincc(half_dim, torch.full_like(half_dim, num_std**2 / 2))
    truth = (1 - tail) * _check_weights(weights, num_modes)
    cells = torch.cat([generated, generated.new_tensor([low_quality])])
    true_cells = torch.cat([truth, tail.unsqueeze(0)])
    # xlogy(0, 0) is 0, and so is an empty cell's part.
    kl = torch.special.xlogy(cells, cells) - torch.special.xlogy(cells, true_cells)

    return ModeCoverage(
        captured=int((counts > min_count).sum()),
        high_quality=1.0 - low_quality,
        counts=counts,
        kl=float(kl.sum()),
        min_count=float(min_count),
    )


def _check_weights(weights: Tensor | None, num_modes: int) -> Tensor:
    if weights is None:
        return torch.full((num_modes,), 1 / num_modes, dtype=torch.double)
    if isinstance(weights, (list, tuple)) and all(isinstance(w, (int, float)) for w in weights):
        weights = torch.tensor(weights, dtype=torch.double)
    must_be = f"of shape ({num_modes},), one for each mode"
    weights = check_tensor(
        "weights", as_tensor(weights), must_be, lambda w: w.shape == (num_modes,)
    )
    weights = weights.detach().to(device="cpu", dtype=torch.double)
    check_finite("weights", weights)
    if not bool((weights > 0).all()):
        raise ValueError("`weights` must be positive and finite, was not in some entries")
    return weights / weights.sum()


def _high_quality_counts(samples: Tensor, modes: Tensor, radius: float) -> Tensor:
    counts = torch.zeros(len(modes), dtype=torch.long, device=samples.device)
    rows = max(1, _CHUNK_ELEMENTS // modes.numel())
    for chunk in samples.split(rows):
        nearest, mode = distances(chunk, modes).min(-1)
        counts += torch.bincount(mode[nearest <= radius], minlength=len(modes))
    return counts
