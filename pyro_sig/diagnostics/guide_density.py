"""The density of a guide at values that it did not draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import biject_to

from pyro_sig._functions import check_callable
from pyro_sig.diagnostics._containers import check_mapping
from pyro_sig.diagnostics._given_draws import Given, tensors_of

__all__ = ["guide_log_prob"]


def guide_log_prob(
    guide: Callable[..., Any], values: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    r"""Scores given values of all latents under a guide.

    .. math::
        \log q(z) = \log q_u(u) - \log \left| \frac{\partial z}{\partial u} \right|

    An automatic guide draws unconstrained values u and maps them: it is asked for the density
    there. A semi-implicit site meets fresh psi only, so that its density is estimated.

    :param callable guide: a Pyro program that samples every latent once: one that is written out,
        or an automatic one, such as :class:`~pyro.infer.autoguide.AutoNormal`,
        :class:`~pyro_sig.infer.AutoSemiImplicit` or any other
        :class:`~pyro.infer.autoguide.AutoContinuous`, or a list of them.
    :param values: a value for every site that the guide draws.
    :param args: arguments of the guide.
    :param kwargs: keyword arguments of the guide.
    :return: a scalar tensor.
    :raises ValueError: if a value is missing, not finite, of another shape or outside of the
        support, or the guide draws more.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide_log_prob(guide, {"z": torch.tensor(0.0)})
        tensor(-0.9189)
    """
    return score_values(guide, values, *args, **kwargs)[0]


def score_values(
    guide: Callable[..., Any], values: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> tuple[Tensor, set[str]]:
    """Scores as :func:`guide_log_prob`, and says which values the guide has a density of."""
    check_callable("guide", guide)
    values = _numbers(values)
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        guide(*args, **kwargs)  # sets it up
    parts = _automatic_parts(guide)
    # The latents that such a guide maps to follow from what it draws.
    given = {} if parts else dict(values)
    for part in parts:
        given |= _unconstrained(part, values)
    trace: Any = poutine.trace(Given("values", given)(guide)).get_trace(*args, **kwargs)
    mapped = {name for part in parts for name, _ in part.prototype_trace.iter_stochastic_nodes()}
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        if not poutine.util.site_is_subsample(site) and name not in mapped:
            raise ValueError(
                f"`values` must hold one for every site that `guide` draws, held none of {name!r}"
                + (", from which an automatic guide makes others" * bool(parts))
            )
    scored = mapped | (set(values) & set(trace.nodes))
    if not scored:
        raise ValueError(f"`guide` must draw one of {list(values)} at least, drew none")
    try:
        return torch.as_tensor(trace.log_prob_sum()), scored
    except ValueError as error:  # under validation
        raise ValueError(
            f"`values` must lie in the support of the sites that `guide` draws, but: {error}"
        ) from error


def _numbers(values: Any) -> dict[str, Tensor]:
    check_mapping("values", values, "tensors")
    numbers = {
        name: torch.as_tensor(value) if isinstance(value, Real) else value
        for name, value in values.items()
    }
    return tensors_of("values", numbers)


def _automatic_parts(guide: Callable[..., Any]) -> list[Any]:
    """Guides of Pyro's kind that a guide consists of, itself included."""
    if not isinstance(guide, torch.nn.Module):
        return []
    parts = (part for part in guide.modules() if isinstance(part, AutoGuide))
    return [part for part in parts if part.prototype_trace is not None]


def _unconstrained(part: Any, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an automatic guide draws before it maps the draw to the latents."""
    found = {}
    for name, site in part.prototype_trace.iter_stochastic_nodes():
        if name not in values:
            raise ValueError(f"`values` must hold one for every latent, held none of {name!r}")
        value = values[name]
        shape = site["value"].shape
        if value.numel() != shape.numel():
            raise ValueError(
                f"`values` must hold {name!r} in its shape {tuple(shape)}, was {tuple(value.shape)}"
            )
        found[name] = biject_to(site["fn"].support).inv(value.reshape(shape))
    given = {f"{name}_unconstrained": value for name, value in found.items()}
    packed = torch.cat([value.reshape(-1) for value in found.values()])
    return given | {f"_{part._pyro_name}_latent": packed}
