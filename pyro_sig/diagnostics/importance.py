"""Importance weights of a guide, with the check that they are unbiased."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_sig._arguments import check_flag, check_integer
from pyro_sig._functions import check_callable
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._guide_parameters import own_parameters, refuse_foreign_parameters
from pyro_sig.diagnostics._own_draws import OwnDraws
from pyro_sig.diagnostics._program_draws import Runner
from pyro_sig.diagnostics._program_sites import Call, Sites, describe_sites

__all__ = ["log_importance_weights"]

# Psi of all draws that are weighed in one run.
_PSI_IN_A_RUN = 2**18


def log_importance_weights(
    model: Callable,
    guide: Callable,
    *args: Any,  # noqa: ANN401 - arguments of the program
    num_samples: int = 1000,
    num_mixing: int | None = None,
    parallel: bool = False,
    progress: bool | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    r"""Draws from the guide and weighs each draw by the joint density of all its rows.

    .. math::
        \log w_s = \log p(x, z_s) - \log \hat q(z_s), \qquad \mathbb{E}\, w_s = p(x)

    The mean weight is the evidence, also where the guide is semi-implicit: its estimate
    :math:`\hat q` counts the psi_0 behind the draw. That holds for one row under shared fresh
    psi, and for several rows only if each has its own, which ``num_mixing`` sees to. Latents that
    the guide leaves to the model are drawn from it, and cancel.

    :param callable model: a Pyro program with observations.
    :param callable guide: a Pyro program that samples the model's latents.
    :param args: arguments of both programs.
    :param int num_samples: number S of draws.
    :param int num_mixing: number of fresh psi at every semi-implicit site, each row with its own;
        by default the sites are left as they are.
    :param bool parallel: run the programs once for many draws, in an outermost plate; they must
        broadcast under it.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :param kwargs: keyword arguments of both programs.
    :return: a tensor of shape ``[S]``, in double precision; minus infinity where the model rules
        a draw out.
    :raises ValueError: if a site is a :class:`~pyro_sig.distributions.SemiImplicit` of several
        rows with ``share_draws=True`` and ``num_mixing`` is None, if a site has no density, if a
        plate subsamples, if the guide draws what the model lacks, if the param store holds another
        guide's parameters, if a log-density is NaN or plus infinity, or ``num_samples < 1``.

    Reference: M. Yin and M. Zhou (2018), "Semi-Implicit Variational Inference", section 3.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.5))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.25, 0.5**0.5))  # the exact posterior
        >>> log_importance_weights(model, guide, num_samples=2).float()
        tensor([-1.3280, -1.3280])
    """
    call = Call(args, kwargs)
    return weigh(model, guide, call, num_samples, num_mixing, parallel, progress)[0]


def weigh(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    call: Call,
    num_samples: int,
    num_mixing: int | None,
    parallel: bool,
    progress: bool | None,
) -> tuple[Tensor, list[str]]:
    """Weighs draws as :func:`log_importance_weights` does.

    :return: the weights, and the latents that the guide leaves to the model.
    """
    check_callable("model", model)
    check_callable("guide", guide)
    check_flag("parallel", parallel)
    check_integer("num_samples", num_samples, 1)
    if num_mixing is not None:
        check_integer("num_mixing", num_mixing, 1)
    refuse_foreign_parameters(guide)
    messenger = nullcontext() if num_mixing is None else OwnDraws(num_mixing)
    parts = []
    bar = Progress(progress, 2 * num_samples, "weights")  # a run of either program for each
    with bar, torch.no_grad(), poutine.block(), own_parameters(guide), messenger as own:
        sites = describe_sites(model, guide, call, {}, score=True)
        _check_weighable(sites, parallel)
        size = num_samples
        if own is not None and own.found and num_mixing is not None:
            size = max(1, _PSI_IN_A_RUN // num_mixing)
        latents = [name for name in sites.latent if name in sites.guided]
        for start in range(0, num_samples, size):
            count = min(size, num_samples - start)
            runner = Runner(sites, call, count, parallel, allow_zero=True, bar=bar)
            draws, log_q = runner.guide(guide, latents, score=True)
            found = runner.model(model, draws, [], score=True, pointwise=[], source="guide")
            log_p = found.log_joint
            parts.append(log_p if log_q is None or log_p is None else log_p - log_q)
    log_weights = torch.cat([part for part in parts if part is not None])
    if not (log_weights < torch.inf).all():
        raise ValueError(
            "`guide` must have a positive density where it draws, had log-density minus infinity"
        )
    return log_weights, sites.left


def _check_weighable(sites: Sites, parallel: bool) -> None:
    if not sites.values:
        raise ValueError("`model` must have a latent or an observed site, had none")
    if sites.foreign:
        raise ValueError(
            f"`guide` must draw latents of `model` or auxiliary sites only, or its density counts "
            f"what the model has no density of; drew {sites.foreign[0]!r}, which `model` lacks"
        )
    if sites.bias is not None:
        raise ValueError(sites.bias)
    for program, names in (("model", sites.unscored), ("guide", sites.unscored_guide)):
        if names:
            raise ValueError(
                f"`{program}` must have a density at every site, but {names[0]!r} has none. "
                "Marginalise an implicit site by SIG_ELBO, or mix a conditional over it: "
                "SemiImplicit(mixing, conditional, num_mixing)"
            )
    if sites.subsampled:
        name, plate = next(iter(sites.subsampled.items()))
        raise ValueError(
            f"`model` must not subsample, or its weights differ by the choice of rows; was "
            f"subsampled at {name!r} by the plate {plate!r}; give it no subsample_size here, "
            "nor the guide: `create_plates` makes the plates of an autoguide whole too"
        )
    if parallel:
        sites.check_parallel()
