"""The conditional of a mixture run on many psi at once: its shape, support and moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = ["check_positive", "mixture_moments", "mixture_support", "run_conditional"]


def check_positive(name: str, size: Any) -> None:  # noqa: ANN401 - whatever a caller passed
    """Checks a number of draws.

    :param str name: the argument's name.
    :param int size: what was passed.
    :raises ValueError: unless it is a positive integer.

    Example::

        >>> check_positive("num_mixing", 10)
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"`{name}` must be a positive integer, was {size!r}")


def run_conditional(
    conditional: Callable[[Tensor], Distribution], psi: Tensor, psi_event_dim: int
) -> Distribution:
    """Runs a conditional and checks that psi's leading dimensions are its batch shape.

    :param callable conditional: psi -> distribution.
    :param torch.Tensor psi: of shape ``[*batch, *psi_event_shape]``.
    :param int psi_event_dim: number of event dimensions of one psi.
    :return: a distribution of batch shape ``[*batch]``.
    :raises ValueError: if it is no distribution or has another batch shape.

    Example::

        >>> import pyro.distributions as dist
        >>> run_conditional(lambda psi: dist.Normal(psi, 1.0), torch.zeros(3), 0).batch_shape
        torch.Size([3])
    """
    components = conditional(psi)
    if not isinstance(components, Distribution):
        raise ValueError(
            f"`conditional` must return a Distribution, was {type(components).__name__}"
        )
    batch_shape = psi.shape[: psi.dim() - psi_event_dim]
    if components.batch_shape == batch_shape:
        return components
    extra = len(components.batch_shape) - len(batch_shape)
    hint = ""
    if extra > 0 and components.batch_shape[: len(batch_shape)] == batch_shape:
        hint = (
            f": the dimensions {tuple(components.batch_shape[len(batch_shape) :])} would make a "
            f"product of marginals; end the conditional with .to_event({extra})"
        )
    raise ValueError(
        f"`conditional` must return a distribution of batch_shape {tuple(batch_shape)} for psi of "
        f"shape {tuple(psi.shape)}, was {tuple(components.batch_shape)}{hint}"
    )


def mixture_support(components: Distribution) -> constraints.Constraint:
    """Finds the support that all components share.

    A bound that differs between components (a uniform whose ends are psi) cannot be stated for
    their mixture: it is dropped and the real numbers, or the integers, remain.

    :param components: a distribution of batch shape ``[K, *batch_shape]``.
    :return: a constraint whose bounds do not depend on the component.

    Example::

        >>> import pyro.distributions as dist
        >>> mixture_support(dist.Gamma(torch.ones(3), 1.0))
        GreaterThanEq(lower_bound=0.0)
    """
    return _unbatched(components.support)


def _unbatched(constraint: Any) -> Any:  # noqa: ANN401 - torch's constraints are untyped
    if isinstance(constraint, constraints.independent):
        base = _unbatched(constraint.base_constraint)
        return constraints.independent(base, constraint.reinterpreted_batch_ndims)
    bounds = {k: v for k, v in vars(constraint).items() if isinstance(v, Tensor) and v.dim()}
    if not bounds:
        return constraint
    if any((v != v.flatten()[0]).any() for v in bounds.values()):
        return constraints.integer if constraint.is_discrete else constraints.real
    new = object.__new__(type(constraint))
    new.__dict__.update(vars(constraint), **{k: v.flatten()[0] for k, v in bounds.items()})
    return new


def mixture_moments(components: Distribution) -> tuple[Tensor, Tensor]:
    r"""Computes the mean and variance of an equal mixture by the law of total variance.

    .. math::
        \operatorname{Var} x = \operatorname{mean}_k \sigma_k^2 + \operatorname{var}_k \mu_k

    :param components: a distribution of batch shape ``[K, *batch_shape]``.
    :return: two tensors of shape ``[*batch_shape, *event_shape]``.

    Example::

        >>> import pyro.distributions as dist
        >>> mixture_moments(dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
        (tensor(0.), tensor(2.))
    """
    mean = components.mean.mean(0)
    between = (components.mean - mean).square().mean(0)
    return mean, components.variance.mean(0) + between
