"""The posterior of psi given what it emitted, by importance resampling of mixing draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro.distributions import Empirical
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_sig._arguments import check_tensor, refusal, shape_of
from pyro_sig.distributions.components import component_log_prob, run_conditional
from pyro_sig.distributions.pairwise import pairwise_log_prob

__all__ = ["PsiPosterior", "resample_psi", "score_psi", "weigh_psi"]


def _check_optional(name: str, x: Tensor | None, shape: torch.Size) -> None:
    if x is None:
        return
    check_tensor(name, x)
    if x.shape != shape:
        raise refusal(name, f"of shape {tuple(shape)}", x)


class PsiPosterior(Empirical):
    r"""Holds weighted draws of psi, one set for each row of data.

    .. math::
        p(\psi \mid x) \approx \sum_m w_m \delta_{\psi_m}, \qquad
        w_m \propto p(x \mid \psi_m), \quad \psi_m \sim p(\psi)

    ``sample``, ``mean`` and ``variance`` are as :class:`pyro.distributions.Empirical` has them.
    The draws come from the mixing law, so a row that few of them explain has a coarse posterior:
    ``effective_sample_size`` says how many count.

    :param torch.Tensor samples: of shape ``[*rows, M, *psi_event_shape]``.
    :param torch.Tensor log_weights: of shape ``[*rows, M]``, of any normalisation.
    :param torch.Tensor log_evidence: log of the mean density of each row's data over the mixing
        draws, of shape ``[*rows]``; by default that of the log weights.
    :param torch.Tensor effective_sample_size: of shape ``[*rows]``; by default
        :math:`1 / \sum_m w_m^2`.
    :param tuple moments: mean and variance, of shape ``[*rows, *psi_event_shape]``, where more
        draws than ``samples`` are behind them.

    Example::

        >>> samples = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
        >>> posterior = PsiPosterior(samples, torch.tensor([[0.0, 0.0], [0.0, -100.0]]))
        >>> posterior.mean, posterior.effective_sample_size
        (tensor([ 0., -1.]), tensor([2., 1.]))
    """

    def __init__(
        self,
        samples: Tensor,
        log_weights: Tensor,
        log_evidence: Tensor | None = None,
        effective_sample_size: Tensor | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        for name, x in (("samples", samples), ("log_weights", log_weights)):
            check_tensor(name, x)
        if samples.dtype == torch.bool or not log_weights.is_floating_point():
            raise ValueError(
                "`samples` must be numbers and `log_weights` of floating point, were "
                f"{samples.dtype} and {log_weights.dtype}"
            )
        if log_weights.dim() < 1 or samples.shape[: log_weights.dim()] != log_weights.shape:
            raise ValueError(
                "`samples` must be of shape [*rows, M, *psi_event_shape] and `log_weights` of "
                f"[*rows, M], were {tuple(samples.shape)} and {tuple(log_weights.shape)}"
            )
        if not log_weights.numel():
            raise ValueError(
                f"`log_weights` must not be empty, was {tuple(log_weights.shape)}; draw at "
                "least one psi"
            )
        batch, event = log_weights.shape[:-1], samples.shape[log_weights.dim() :]
        _check_optional("log_evidence", log_evidence, batch)
        _check_optional("effective_sample_size", effective_sample_size, batch)
        if moments is not None:
            if not isinstance(moments, tuple) or len(moments) != 2:
                raise refusal("moments", "mean and variance", moments)
            for x in moments:
                _check_optional("moments", x, batch + event)
        if not (log_weights < math.inf).all():
            raise ValueError("`log_weights` must not be NaN or plus infinity, were in some entries")
        log_sum = log_weights.logsumexp(-1)
        if (log_sum == -math.inf).any():
            rows = int((log_sum == -math.inf).sum())
            raise ValueError(
                "`log_weights` must have a finite entry in every row, were all minus infinity in "
                f"{rows} of {log_sum.numel()}: no draw of psi can have emitted that datum"
            )
        super().__init__(samples, log_weights, validate_args=validate_args)
        if log_evidence is None:
            log_evidence = log_sum - math.log(log_weights.shape[-1])
        if effective_sample_size is None:
            effective_sample_size = (2 * log_sum - (2 * log_weights).logsumexp(-1)).exp()
        self.log_evidence = log_evidence
        self.effective_sample_size = effective_sample_size
        self._moments = moments

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """All values of the event shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws from the weighted draws of psi.

        :param sample_shape: shape of independent draws to the left of the rows.
        :return: a tensor of shape ``[*sample_shape, *rows, *psi_event_shape]``.
        """
        return super().sample(shape_of("sample_shape", sample_shape))

    @property
    def mean(self) -> Tensor:
        """Posterior mean, of shape ``[*rows, *psi_event_shape]``."""
        return super().mean if self._moments is None else self._moments[0]

    @property
    def variance(self) -> Tensor:
        """Posterior variance of each entry of psi, of shape ``[*rows, *psi_event_shape]``."""
        return super().variance if self._moments is None else self._moments[1]

    def __repr__(self) -> str:
        sizes = self.effective_sample_size
        least = float(sizes.min()) if sizes.numel() else math.nan
        return (
            f"PsiPosterior(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)}, least effective_sample_size={least:.1f})"
        )


def score_psi(
    conditional: Callable[[Tensor], Distribution],
    psi: Tensor,
    psi_event_dim: int,
    value: Tensor,
    rows: torch.Size,
) -> tuple[Tensor, Tensor]:
    """Scores every row of a value under every psi.

    :param callable conditional: psi -> distribution.
    :param torch.Tensor psi: of shape ``[M, *batch, *psi_event_shape]``.
    :param int psi_event_dim: number of event dimensions of one psi.
    :param torch.Tensor value: of shape ``[*, *event_shape]``.
    :param torch.Size rows: batch shape of the result; ``[*batch]`` are its last dimensions.
    :return: psi of shape ``[M, *rows or 1, *psi_event_shape]``, and scores ``[M, *rows]``.

    Example::

        >>> import pyro.distributions as dist
        >>> psi, scores = score_psi(dist.Poisson, torch.ones(9), 0, torch.ones(4), (4,))
        >>> psi.shape, scores.shape
        (torch.Size([9, 1]), torch.Size([9, 4]))
    """
    batch, event = psi.shape[1 : psi.dim() - psi_event_dim], psi.shape[psi.dim() - psi_event_dim :]
    psi = psi.reshape(len(psi), *(1,) * (len(rows) - len(batch)), *batch, *event)
    components = run_conditional(conditional, psi, psi_event_dim, mixed=True)
    value = value.expand(*rows, *components.event_shape)
    if batch.numel() > 1:  # psi of different laws in different rows
        return psi, component_log_prob(components, value).expand(len(psi), *rows)
    flat = value.reshape(-1, *components.event_shape)
    return psi, pairwise_log_prob(components, flat).reshape(len(psi), *rows)


def weigh_psi(psi: Tensor, log_weights: Tensor) -> PsiPosterior:
    """Makes a posterior of all draws of psi.

    :param torch.Tensor psi: of shape ``[M, *rows, *psi_event_shape]``, where a row may be 1.
    :param torch.Tensor log_weights: of shape ``[M, *rows]``.
    :return: the posterior of each row.

    Example::

        >>> weigh_psi(torch.zeros(5, 1, 2), torch.zeros(5, 3)).mean.shape
        torch.Size([3, 2])
    """
    num_rows = log_weights.dim() - 1
    log_weights = log_weights.movedim(0, -1)
    psi = psi.movedim(0, num_rows)
    return PsiPosterior(psi.expand(log_weights.shape + psi.shape[num_rows + 1 :]), log_weights)


def resample_psi(chunks: Iterable[tuple[Tensor, Tensor]], num_draws: int) -> PsiPosterior:
    r"""Keeps a fixed number of draws of psi while chunks of weighted ones stream past.

    After every chunk each kept draw is one of all psi seen so far, with the probability of its
    weight: it gives way to one of the chunk with the chunk's share of the total weight. Moments,
    evidence and effective sample size use all psi.

    :param chunks: pairs of psi, ``[C, *rows, *psi_event_shape]`` where a row may be 1, and log
        weights, ``[C, *rows]``.
    :param int num_draws: number S of draws to keep for each row.
    :return: the posterior of each row.
    :raises ValueError: if there is no chunk, or a row has no weight at all.

    Source: M. T. Chao (1982), "A general purpose unequal probability sampling plan".

    Example::

        >>> chunks = ((torch.randn(100, 1), torch.zeros(100, 3)) for _ in range(10))
        >>> resample_psi(chunks, 7).sample((4,)).shape
        torch.Size([4, 3])
    """
    kept: Any = None
    count = 0
    for psi, log_weights in chunks:
        shape, event = log_weights.shape[1:], psi.shape[log_weights.dim() :]
        if psi[0].numel() > event.numel():  # not the same for all rows
            psi = psi.expand(len(psi), *shape, *event)
        flat = psi.reshape(len(psi), -1, event.numel())
        log_weights = log_weights.reshape(len(log_weights), -1)
        count += len(psi)
        if kept is None:
            num_rows = log_weights.shape[1]
            minus_infinity = log_weights.new_full((num_rows,), -math.inf)
            log_sum, log_squares = minus_infinity, minus_infinity
            # Squares of psi far from zero would lose the digits of the variance.
            origin = flat.mean((0, 1))
            first = flat.new_zeros(num_rows, event.numel())
            second = first
            kept = flat.new_zeros(num_rows, num_draws, event.numel())
        new = log_weights.logsumexp(0)
        total = torch.logaddexp(log_sum, new)
        log_squares = torch.logaddexp(log_squares, (2 * log_weights).logsumexp(0))
        share = (new - total).exp().nan_to_num(0.0).unsqueeze(-1)
        weights = (log_weights - new).exp().nan_to_num(1.0 / len(psi))
        centred = flat - origin
        first = first + share * (_weighted_sum(weights, centred) - first)
        second = second + share * (_weighted_sum(weights, centred.square()) - second)
        index = torch.multinomial(weights.mT, num_draws, replacement=True)
        rows = torch.arange(flat.shape[1], device=flat.device).unsqueeze(-1)
        gives_way = torch.rand(index.shape, device=flat.device, dtype=share.dtype) < share
        kept = torch.where(gives_way.unsqueeze(-1), flat[index, rows], kept)
        log_sum = total
    if kept is None:
        raise ValueError("`chunks` must not be empty, was")
    if not log_sum.isfinite().all():
        bad = int((~log_sum.isfinite()).sum())
        raise ValueError(
            f"`chunks` must have finite total weight in every row, had not in {bad} of "
            f"{log_sum.numel()}: no draw of psi can have emitted that datum"
        )
    variance = (second - first.square()).clamp_min(0.0)
    return PsiPosterior(
        kept.reshape(*shape, num_draws, *event),
        log_sum.new_zeros(*shape, num_draws),
        (log_sum - math.log(count)).reshape(shape),
        (2 * log_sum - log_squares).exp().reshape(shape),
        ((first + origin).reshape(shape + event), variance.reshape(shape + event)),
    )


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Sums [C, rows or 1, E] over C by weights [C, rows]."""
    weights = weights.to(values.dtype)
    if values.shape[1] == 1:
        return weights.mT @ values.squeeze(1)
    return (weights.unsqueeze(-1) * values).sum(0)
