"""Coverage of posterior draws by regions around random points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_finite, check_integer, check_number, check_tensor, refusal
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._rank_plot import plot_ranks, short_p_value
from pyro_sig.diagnostics._streams import own_stream
from pyro_sig.diagnostics.sbc import sbc_ranks
from pyro_sig.diagnostics.uniformity import check_ranks, uniformity_test

__all__ = ["TARP", "tarp"]

# Elements of one [chunk, S, D] block of differences.
_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True, repr=False)
class TARP:
    """Result of :func:`tarp`.

    :param ranks: of the truths by distance among their draws, integers of shape ``[N]``.
    :param num_draws: the number S of draws that every truth was ranked among.
    """

    ranks: Tensor
    num_draws: int

    def __post_init__(self) -> None:
        """Refuses ranks that do not fit.

        :raises ValueError: if the ranks are not integers from 0 to S of shape ``[N]``.
        """
        check_integer("num_draws", self.num_draws, 1)
        check_ranks("ranks", self.ranks, self.num_draws)
        if self.ranks.dim() != 1:
            raise refusal("ranks", "of shape [N]", self.ranks)

    @cached_property
    def p_value(self) -> float:
        """P-value of "the coverage is the credibility level" (:func:`uniformity_test`)."""
        return float(uniformity_test(self.ranks, self.num_draws).p_value)

    @property
    def levels(self) -> Tensor:
        """Credibility levels of the regions, of shape ``[S]``."""
        ranks = torch.arange(1, self.num_draws + 1, device=self.ranks.device, dtype=torch.double)
        return ranks / (self.num_draws + 1)

    @property
    def coverage(self) -> Tensor:
        """Expected coverage: the share of truths inside the region of each level."""
        counts = torch.bincount(self.ranks, minlength=self.num_draws + 1)
        return counts.cumsum(0)[:-1].double() / len(self.ranks)

    def __repr__(self) -> str:
        return (
            f"TARP({len(self.ranks)} truths, {self.num_draws} draws each, "
            f"p = {short_p_value(self.p_value)})"
        )

    def plot(self, level: float = 0.95) -> Any:
        """Draws the expected coverage, less the credibility level, with simultaneous bands.

        :param level: of the bands, between 0 and 1.
        :return: a matplotlib ``Figure``.
        :raises ValueError: if ``level`` is not between 0 and 1.
        """
        level = check_number("level", level, above=0, below=1)
        return plot_ranks(
            {"": self.ranks.unsqueeze(-1)},
            self.num_draws,
            {"": self.p_value},
            level,
            x_label="credibility level",
            y_label="expected coverage - level",
            title=f"{len(self.ranks)} truths, {self.num_draws} draws each; {100 * level:g} % bands",
            worst={"": 0},
        )


def tarp(
    truths: Tensor,
    draws: Tensor,
    references: Tensor | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> TARP:
    r"""Tests whether posterior draws cover the truth as often as they should.

    .. math::
        r_n = \#\{s : \|z_n^{(s)} - c_n\| < \|z_n^* - c_n\|\}, \qquad
        \mathrm{ECP}(\alpha) = \frac{1}{N} \#\{n : r_n < \alpha (S + 1)\},

    with one reference :math:`c_n` for each data set. Calibrated draws leave the rank uniform, so
    that the expected coverage is the level; where that holds for all references, also those that
    depend on the data, the posterior is exact. References that ignore the data, as the default
    ones do, do not see a posterior that ignores the data too, such as the prior: then pass
    references that are functions of the data. In :func:`~pyro_sig.diagnostics.sbc`, the distance to
    a reference is one of the ``quantities``.

    Columns are divided by their standard deviation over all truths and draws. The default
    references are uniform over the box that holds all truths and draws. It takes the draws in, not
    the truths alone, so that truth and draws are exchangeable and the p-value exact.

    :param torch.Tensor truths: of shape ``[N, D]``, or ``[N]``: the values behind independent
        simulated data sets.
    :param torch.Tensor draws: of shape ``[N, S, D]``, or ``[N, S]``: independent draws from the
        posterior of each.
    :param torch.Tensor references: of the shape of the truths. They may depend on the data, not on
        the truths.
    :param int seed: of references and ties; torch's global stream is left alone.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :return: the ranks, with their test, coverage and picture.
    :raises ValueError: if a shape does not fit, an entry is not finite, or ``seed`` is negative.

    Source: P. Lemos, A. Coogan, Y. Hezaveh and L. Perreault-Levasseur (2023), "Sampling-based
    accuracy testing of posterior estimators for general inference",
    https://arxiv.org/abs/2302.03026.

    Example::

        >>> generator = torch.Generator().manual_seed(0)
        >>> data = torch.randn(500, 2, generator=generator)
        >>> truths, draws = (
        ...     data.unsqueeze(1) + torch.randn(500, size, 2, generator=generator)
        ...     for size in (1, 50)
        ... )
        >>> tarp(truths[:, 0], draws).p_value > 0.01
        True
        >>> tarp(truths[:, 0], 0.5 * draws).p_value < 1e-6
        True
    """
    truths, draws = _check_draws(truths, draws)
    generator = own_stream("tarp", seed)
    num_draws = draws.shape[1]
    # The truth as one more draw: everything below treats it as it treats them.
    everything = torch.cat([truths.unsqueeze(1), draws], 1)
    rows = everything.flatten(0, 1)
    if references is None:
        low, high = rows.amin(0), rows.amax(0)
        uniform = torch.rand(truths.shape, generator=generator, dtype=torch.double)
        references = low + (high - low) * uniform.to(truths)
    else:
        references = check_tensor(
            "references",
            references,
            f"a tensor of the shape of the truths, {tuple(truths.shape)}",
            lambda x: x.numel() == truths.numel(),
        )
        check_finite("references", references)
        references = references.detach().reshape(truths.shape).to(truths)
    scale = rows.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    size = max(1, _CHUNK_ELEMENTS // everything[0].numel())
    found = []
    with Progress(progress, len(truths), "TARP") as bar:
        for chunk, centres in zip(everything.split(size), references.split(size), strict=True):
            found.append(torch.linalg.vector_norm((chunk - centres.unsqueeze(1)) / scale, dim=-1))
            bar.update(len(chunk))
    distances = torch.cat(found)
    return TARP(sbc_ranks(distances[:, 0], distances[:, 1:], generator), num_draws)


def _check_draws(truths: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    for name, values in (("truths", truths), ("draws", draws)):
        check_finite(name, check_tensor(name, values, "a tensor of real numbers"))
    if truths.dim() not in (1, 2) or truths.numel() == 0:
        raise ValueError(
            f"`truths` must be of shape [N, D] or [N], not empty, was {tuple(truths.shape)}"
        )
    fits = draws.dim() == truths.dim() + 1 and draws.shape[1] >= 1
    if not fits or draws.shape[:1] + draws.shape[2:] != truths.shape:
        raise ValueError(
            f"`draws` must be of shape [N, S, D] for `truths` of shape [N, D], [N, S] for [N], "
            f"but they were {tuple(draws.shape)} and {tuple(truths.shape)}"
        )
    dtype = torch.promote_types(truths.dtype, draws.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    truths = truths.detach().to(dtype)
    draws = draws.detach().to(device=truths.device, dtype=dtype)
    if truths.dim() == 1:
        truths, draws = truths.unsqueeze(-1), draws.unsqueeze(-1)
    return truths, draws
