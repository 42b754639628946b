"""Whether a guide covers the posterior, by the tail of its importance weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, check_tensor
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._program_sites import Call
from pyro_sig.diagnostics.importance import weigh
from pyro_sig.diagnostics.pareto import k_hat_verdict, pareto_k_hat

__all__ = ["KHat", "effective_share", "k_hat"]


class KHat(NamedTuple):
    """Result of :func:`k_hat`.

    :param k_hat: the median over repeats.
    :param values: the tail index of each repeat, shape ``[R]``.
    :param effective_share: effective sample size of all weights together, as a share of the draws:
        one for the exact posterior.
    :param left: the latents that the guide leaves to the model. With any, the numbers judge the
        guide and the prior of these together, as a proposal.
    """

    k_hat: float
    values: Tensor
    effective_share: float
    left: tuple[str, ...] = ()

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest of the repeats."""
        return float(self.values.min()), float(self.values.max())

    @property
    def verdict(self) -> str:
        """What may be done with the draws, in a few words."""
        verdict = k_hat_verdict(self.k_hat, self.effective_share)
        if self.left:
            verdict += (
                f"; this judges the guide and the prior of {self.left[0]!r} together, which is "
                "left to the model"
            )
        return verdict

    def __repr__(self) -> str:
        low, high = self.spread
        return (
            f"k-hat {self.k_hat:.2f} ({low:.2f} to {high:.2f} in {len(self.values)} repeats), "
            f"effective share of draws {self.effective_share:.2g}: {self.verdict}"
        )


def k_hat(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    num_repeats: int = 5,
    num_mixing: int = 1000,
    parallel: bool = False,
    progress: bool | None = None,
    **kwargs: Any,
) -> KHat:
    r"""Judges a guide by the Pareto tail of its importance weights.

    .. math::
        w_s = p(x, z_s) / \hat q(z_s), \quad z_s \sim q, \qquad
        \hat k = \text{tail index of } w_1, \ldots, w_S

    Below 0.5 the guide may serve as a proposal; up to 0.7 with care; above, do not trust
    expectations, weighted or not, without a second look. The estimate varies from run to run by
    about 0.1: hence the repeats. A semi-implicit guide or prior is scored with many fresh psi,
    those of every row and draw its own: k-hat judges the density as it is estimated, and too few
    psi make it worse. Latents that the guide leaves to the model, such as implicit sites, are drawn
    from their prior: then k-hat judges the prior as their proposal, and is bad where the data say
    much about them, whatever the guide of the others is worth; the verdict says so.

    :param callable model: a Pyro program with observations.
    :param callable guide: a Pyro program that samples the model's latents.
    :param args: arguments of both programs.
    :param int num_samples: draws S in each repeat, at least 50.
    :param int num_repeats: number R of repeats.
    :param int num_mixing: number of fresh psi at semi-implicit sites.
    :param bool parallel: run the programs once for many draws; they must broadcast under one more
        plate.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :param kwargs: keyword arguments of both programs.
    :return: the median, every repeat, and the effective share of draws.
    :raises ValueError: as :func:`log_importance_weights` and :func:`pareto_k_hat`, or for
        ``num_repeats < 1``.

    References: Y. Yao, A. Vehtari, D. Simpson and A. Gelman (2018), "Yes, but did it work?:
    Evaluating variational inference"; A. Vehtari, D. Simpson, A. Gelman, Y. Yao and J. Gabry
    (2024), "Pareto smoothed importance sampling", https://arxiv.org/abs/1507.02646.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(5))
        >>> def guide():  # the posterior has a standard deviation of 0.71
        ...     pyro.sample("z", dist.Normal(torch.full((5,), 0.5), 0.2).to_event(1))
        >>> k_hat(model, guide, parallel=True, progress=False).verdict
        'do not trust expectations, weighted or not'
    """
    check_integer("num_repeats", num_repeats, 1)
    check_integer("num_samples", num_samples, 50)  # to have a tail

    repeats = []
    with Progress(progress, num_repeats, "k-hat") as bar:
        for _ in range(num_repeats):
            log_weights, left = weigh(
                model, guide, Call(args, kwargs), num_samples, num_mixing, parallel, None
            )
            repeats.append(log_weights)
            bar.update()
    return summarise_weights(torch.stack(repeats))._replace(left=tuple(left))


def summarise_weights(log_weights: Tensor) -> KHat:
    """Judges log weights of shape ``[repeats, draws]`` that are at hand.

    :param torch.Tensor log_weights: as :func:`log_importance_weights` gives them.
    """
    values = torch.tensor([pareto_k_hat(repeat) for repeat in log_weights])
    return KHat(float(values.median()), values, effective_share(log_weights.flatten()))


def effective_share(log_weights: Tensor) -> float:
    r"""Computes the effective sample size of importance weights as a share of the draws.

    .. math::
        \frac{(\sum_s w_s)^2}{S \sum_s w_s^2}

    :param torch.Tensor log_weights: of shape ``[S]``.
    :return: a number between 1 / S and 1.
    :raises ValueError: if there is no draw, or all log weights are minus infinity.

    Example::

        >>> effective_share(torch.zeros(10))
        1.0
    """
    log_weights = check_tensor(
        "log_weights",
        log_weights,
        "a dense tensor of shape [S] and not empty",
        lambda w: w.dim() == 1 and len(w) > 0,
    )
    largest = float(log_weights.max())
    if not math.isfinite(largest):
        raise ValueError(
            "`log_weights` must be finite in some entry, and neither NaN nor plus infinity in any, "
            f"but their maximum was {largest}"
        )
    log_weights = log_weights.double()
    log_size = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return min(1.0, float(log_size.exp()) / len(log_weights))
