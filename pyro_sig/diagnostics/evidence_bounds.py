"""The evidence of a model, from below and, where it can be, from above."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyro_sig._arguments import check_flag, check_integer, refusal
from pyro_sig._functions import check_callable
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._containers import as_list
from pyro_sig.diagnostics._given_draws import Given, count_draws, tensors_of
from pyro_sig.diagnostics._guide_parameters import own_parameters, refuse_foreign_parameters
from pyro_sig.diagnostics._own_draws import OwnDraws, semi_implicit_of
from pyro_sig.diagnostics._program_sites import Call, scored_sites
from pyro_sig.diagnostics.guide_density import score_values
from pyro_sig.diagnostics.importance import log_importance_weights

__all__ = ["EvidenceBounds", "evidence_bounds"]


class EvidenceBounds(NamedTuple):
    """Result of :func:`evidence_bounds`, one entry for each number of draws K.

    :param num_importance: the numbers K.
    :param lower: estimates of the lower bounds, in nats.
    :param lower_error: their standard errors.
    :param upper: estimates of the upper bounds, or None.
    :param upper_error: their standard errors, or None.
    """

    num_importance: Tensor
    lower: Tensor
    lower_error: Tensor
    upper: Tensor | None
    upper_error: Tensor | None

    @property
    def gap(self) -> Tensor | None:
        """Upper less lower bound, which holds the evidence; None without an upper one."""
        return None if self.upper is None else self.upper - self.lower

    def __repr__(self) -> str:
        lines = ["     K  lower bound (SE)    upper bound (SE)        gap"]
        for i, size in enumerate(self.num_importance.tolist()):
            line = f"{size:6d} {self.lower[i]:12.3f} ({self.lower_error[i]:.3f})"
            if self.upper is not None and self.upper_error is not None:
                gap = self.upper[i] - self.lower[i]
                line += f" {self.upper[i]:12.3f} ({self.upper_error[i]:.3f}) {gap:10.3f}"
            lines.append(line)
        if self.upper is None:
            lines[0] = lines[0][:24].rstrip()
        return "\n".join(lines)


def evidence_bounds(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_importance: Sequence[int] = (1, 10, 100),
    num_samples: int = 100,
    posterior: Mapping[str, Tensor] | None = None,
    num_mixing: int = 1000,
    parallel: bool = False,
    progress: bool | None = None,
    **kwargs: Any,
) -> EvidenceBounds:
    r"""Bounds the log evidence by K importance weights of a guide.

    .. math::
        \mathbb{E}_{z_{1:K} \sim q} \log \frac{1}{K} \sum_{k=1}^{K} w_k \;\le\; \log p(x)
        \;\le\; \mathbb{E}_{z_1 \sim p(z \mid x),\, z_{2:K} \sim q}
        \log \frac{1}{K} \sum_{k=1}^{K} w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k)}

    K = 1 is the evidence bound on the left, and on the right one that charges the guide for what
    it misses. Both tighten as K grows, and what is between them is how far the guide is from the
    posterior.

    The upper bound needs exact and independent draws of the posterior: of a conjugate model, of a
    long Markov chain that was thinned, or the latents that simulated the data. A draw that is
    only roughly from the posterior gives no bound. Latents that the guide leaves to the model are
    drawn from their prior: the lower bound holds, and is loose where the data say much about them.

    :param callable model: a Pyro program with observations.
    :param callable guide: a Pyro program that samples the model's latents.
    :param args: arguments of both programs.
    :param num_importance: the numbers K, each at least 1.
    :param int num_samples: estimates that are averaged at the largest K; smaller K use the same
        draws, in more groups.
    :param dict posterior: exact posterior draws by site, of shape ``[S, *]``; an S of 100 gives
        the upper bound about the error of the lower one.
    :param int num_mixing: fresh psi at semi-implicit sites, each row and draw with its own. They
        loosen the bounds and leave them valid.
    :param bool parallel: run the programs once for many draws of the guide; they must broadcast
        under one more plate.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :param kwargs: keyword arguments of both programs.
    :return: both bounds with their standard errors, for every K.
    :raises ValueError: as :func:`log_importance_weights`; if a number is not positive; if the
        draws of ``posterior`` do not fit the sites, or the guide cannot score them; or if
        ``posterior`` is given to a model with a semi-implicit site, whose density is estimated
        from below only.

    Sources: Y. Burda, R. Grosse and R. Salakhutdinov (2016), "Importance weighted autoencoders",
    https://arxiv.org/abs/1509.00519; R. Grosse, S. Ancha and D. Roy (2016), "Measuring the
    reliability of MCMC inference with bidirectional Monte Carlo",
    https://arxiv.org/abs/1606.02275; A. Sobolev and D. Vetrov (2019), "Importance weighted
    hierarchical variational inference", https://arxiv.org/abs/1905.03290.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.5))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.25, 0.6))  # the posterior is Normal(0.25, 0.71)
        >>> exact = {"z": 0.25 + 0.5**0.5 * torch.randn(1000)}
        >>> found = evidence_bounds(model, guide, posterior=exact, parallel=True)
        >>> evidence = -1.328  # log N(0.5; 0, 2)
        >>> bool((found.lower - 5 * found.lower_error < evidence).all())
        True
        >>> bool((found.upper + 5 * found.upper_error > evidence).all())
        True
    """
    sizes = as_list(num_importance)
    if sizes is None:
        raise refusal("num_importance", "a sequence of numbers", num_importance)
    if not sizes:
        raise ValueError("`num_importance` must hold at least one number, was empty")
    for size in sizes:
        check_integer("num_importance", size, 1)
    check_integer("num_samples", num_samples, 1)
    check_integer("num_mixing", num_mixing, 1)
    check_callable("model", model)
    check_callable("guide", guide)
    check_flag("parallel", parallel)
    refuse_foreign_parameters(guide)
    options: dict[str, Any] = {"num_mixing": num_mixing, "parallel": parallel}
    options["progress"] = progress
    posterior_weights = None
    if posterior is not None:
        posterior_weights = weigh_draws(
            model, guide, Call(args, kwargs), posterior, num_mixing, progress
        )
    drawn = num_samples * max(sizes)
    log_weights = log_importance_weights(
        model, guide, *args, num_samples=drawn, **options, **kwargs
    )
    return bounds_of(log_weights, sizes, posterior_weights)


def bounds_of(
    log_weights: Tensor, sizes: Sequence[int], posterior_weights: Tensor | None = None
) -> EvidenceBounds:
    """Bounds the evidence by weights that are at hand, the same ones in groups of every size K.

    :param torch.Tensor log_weights: of the guide's draws, of shape ``[S]``, S at least the largest
        K.
    :param sizes: the numbers K.
    :param torch.Tensor posterior_weights: as :func:`weigh_draws` gives them, for the upper bounds.
    """
    bounds = [_groups(log_weights, size).logsumexp(1) - math.log(size) for size in sizes]
    below = torch.tensor([_mean_and_error(bound) for bound in bounds], dtype=torch.float64)
    found = EvidenceBounds(torch.tensor(list(sizes)), below[:, 0], below[:, 1], None, None)
    if posterior_weights is None:
        return found
    upper = [_upper(posterior_weights, _groups(log_weights, size), size) for size in sizes]
    above = torch.tensor(upper, dtype=torch.float64)
    return found._replace(upper=above[:, 0], upper_error=above[:, 1])


def _groups(log_weights: Tensor, size: int) -> Tensor:
    return log_weights[: len(log_weights) // size * size].reshape(-1, size)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _upper(posterior_weights: Tensor, groups: Tensor, size: int) -> tuple[float, float]:
    """Every posterior draw with the first K - 1 draws of a group of its own."""
    if size == 1:
        return _mean_and_error(posterior_weights)
    # Where there are more draws than groups, groups serve again: the error is that of groups.
    rest = groups[:, 1:].logsumexp(1)
    count = min(len(posterior_weights), len(rest))
    per_group = len(posterior_weights) // count
    weights = posterior_weights[: count * per_group].reshape(per_group, count)
    bound = torch.logaddexp(weights, rest[:count]) - math.log(size)
    return _mean_and_error(bound.mean(0))


def weigh_draws(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
    posterior: Mapping[str, Tensor],
    num_mixing: int,
    progress: bool | None = None,
) -> Tensor:
    """Log weights of given draws: the guide's semi-implicit sites meet fresh psi only."""
    posterior = tensors_of("posterior", posterior)
    count = count_draws("posterior", posterior)
    log_weights = []
    bar = Progress(progress, count, "posterior draws")
    with bar, torch.no_grad(), poutine.block(), own_parameters(guide):
        for index in range(count):
            values = {name: value[index] for name, value in posterior.items()}
            trace = call.trace(Given("posterior", values)(model))
            for name, site in scored_sites(trace):
                if not site["is_observed"]:
                    raise ValueError(
                        f"`posterior` must hold draws of every latent, held none of {name!r}"
                    )
                if semi_implicit_of(site["fn"]) is not None:
                    raise ValueError(
                        f"`posterior` must be None where the model has a semi-implicit site, here "
                        f"{name!r}: its density is estimated from below, and bounds nothing above"
                    )
            log_p = trace.log_prob_sum()
            with OwnDraws(num_mixing):
                log_q, scored = score_values(guide, values, *call.args, **call.kwargs)
            left = [n for n, _ in scored_sites(trace) if n in values and n not in scored]
            if left:
                raise ValueError(
                    f"`posterior` must be None where the guide leaves a latent to the model, here "
                    f"{left[0]!r}: the guide has no density of it"
                )
            log_weights.append(torch.as_tensor(log_p).double().cpu() - log_q.double().cpu())
            bar.update()
    result = torch.stack(log_weights)
    if not result.isfinite().all():
        raise ValueError(
            "`posterior` must hold draws to which model and guide give a positive density, held "
            f"{int((~result.isfinite()).sum())} others"
        )
    return result
