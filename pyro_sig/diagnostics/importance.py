"""Importance weights of a guide, with the check that they are unbiased."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Independent

from pyro_sig.distributions import SemiImplicit
from pyro_sig.distributions.components import check_positive

__all__ = ["log_importance_weights"]


def log_importance_weights(
    model: Callable,
    guide: Callable,
    *args: Any,  # noqa: ANN401 - arguments of the program
    num_samples: int = 1000,
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    r"""Draws from the guide and weighs each draw by the joint density of all its rows.

    .. math::
        \log w_s = \log p(x, z_s) - \log \hat q(z_s), \qquad \mathbb{E}\, w_s = p(x)

    The mean weight is the evidence, also where the guide is semi-implicit: its estimate
    :math:`\hat q` counts the psi_0 behind the draw. That holds for one row under shared fresh
    psi, and for several rows only if each has its own.

    :param callable model: a Pyro program with observations.
    :param callable guide: a Pyro program that samples the model's latents.
    :param args: arguments of both programs.
    :param int num_samples: number S of draws.
    :param kwargs: keyword arguments of both programs.
    :return: a tensor of shape ``[S]``.
    :raises ValueError: if a site is a :class:`~pyro_sig.distributions.SemiImplicit` of several
        rows with ``share_draws=True``, which biases their joint weight, or ``num_samples < 1``.

    Reference: M. Yin and M. Zhou (2018), "Semi-Implicit Variational Inference", section 3.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.5))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.25, 0.5**0.5))  # the exact posterior
        >>> log_importance_weights(model, guide, num_samples=2)
        tensor([-1.3280, -1.3280])
    """
    check_positive("num_samples", num_samples)
    log_weights = []
    with torch.no_grad():
        for _ in range(num_samples):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
            traces = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
            for trace in traces:
                _refuse_shared_draws(trace)
            log_weights.append(traces[0].log_prob_sum() - traces[1].log_prob_sum())
    return torch.stack([torch.as_tensor(w) for w in log_weights])


def _refuse_shared_draws(trace: Trace) -> None:
    for name, site in trace.nodes.items():
        fn = site.get("fn") if site["type"] == "sample" else None
        while isinstance(fn, Independent | MaskedDistribution):
            fn = fn.base_dist
        if isinstance(fn, SemiImplicit) and fn.share_draws and fn.batch_shape.numel() > 1:
            raise ValueError(
                f"`share_draws` must be False at site '{name}': fresh psi shared by its "
                f"{fn.batch_shape.numel()} rows bias their joint weight; was True"
            )
