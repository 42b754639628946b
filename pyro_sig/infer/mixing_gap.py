"""How far a SIG bound is from what more draws would give."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI

from pyro_sig._arguments import check_integer, refusal
from pyro_sig._random_state import preserved_random_state
from pyro_sig.infer.sig_elbo import SIG_ELBO

__all__ = ["mixing_gap"]


@torch.no_grad()
def mixing_gap(svi: SVI, *args: Any, factor: int = 4, **kwargs: Any) -> float:  # noqa: ANN401
    r"""Estimates how much of the evidence a SIG bound loses by its number of draws, at the least.

    .. math::
        \frac{1}{N} \big(\mathcal{L}_{cM} - \mathcal{L}_M\big)
        \;\le\; \frac{1}{N} \big(\log p(x_{1:N}) - \mathcal{L}_M\big)
        \quad\text{in expectation}

    Above one nat a generator gains more by averaging what it cannot tell apart than by telling it:
    `num_mixing` should grow.

    :param svi: with the loss :class:`~pyro_sig.infer.SIG_ELBO`; evaluated twice, without gradients
        and without touching the random state.
    :param args: arguments of a step.
    :param int factor: how many times the draws, c.
    :param kwargs: keyword arguments of a step.
    :return: nats for each observed row.
    :raises ValueError: if the loss is another one, `factor` is below 2, or nothing is observed.

    **Source:** Yin and Zhou (2018), "Semi-Implicit Generative Model", lemma 1.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_sig.distributions import Implicit
        >>> def model(x):
        ...     noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        ...     with pyro.plate("data", len(x)):
        ...         psi = pyro.sample("psi", Implicit(lambda e: e, noise, event_shape=1))
        ...         pyro.sample("x", dist.Normal(psi, 0.1).to_event(1), obs=x)
        >>> def gap(num_mixing):
        ...     optim = pyro.optim.Adam({"lr": 0.1})
        ...     return mixing_gap(SVI(model, lambda x: None, optim, SIG_ELBO(num_mixing)), data)
        >>> data = torch.linspace(-2.0, 2.0, 50).unsqueeze(-1)
        >>> gap(5) > 1.0 > gap(200)
        True
    """
    elbo = sig_elbo_of(svi)
    if elbo is None:
        raise refusal("svi", "SVI with the loss SIG_ELBO", svi)
    check_integer("factor", factor, 2, int)
    more = copy.copy(elbo)
    more.num_mixing = factor * elbo.num_mixing
    with preserved_random_state():
        few, many = (e.loss(svi.model, svi.guide, *args, **kwargs) for e in (elbo, more))
        trace = poutine.trace(svi.model).get_trace(*args, **kwargs)
    num_rows = 0.0
    for site in trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"]:
            rows = math.prod(frame.full_size or frame.size for frame in site["cond_indep_stack"])
            num_rows = max(num_rows, float(rows))
    if num_rows == 0:
        raise ValueError(
            "`svi` must have a model with observed rows, had none; pass the data after `svi`"
        )
    return (few - many) / num_rows


def sig_elbo_of(inference: Any) -> SIG_ELBO | None:
    """Returns the loss of SVI, if it is a SIG bound."""
    elbo = getattr(getattr(inference, "loss_and_grads", None), "__self__", None)
    return elbo if isinstance(inference, SVI) and isinstance(elbo, SIG_ELBO) else None
