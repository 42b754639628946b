"""The conditional of a mixture run on many psi at once: its shape, support and moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_sig._arguments import describe
from pyro_sig._functions import call
from pyro_sig.distributions._closures import ROWS_OF_CONDITIONAL, check_closure, fixed_tensors

__all__ = [
    "component_log_prob",
    "mixture_moments",
    "mixture_support",
    "run_conditional",
    "under_vmap",
    "without_validation",
]


def run_conditional(
    conditional: Callable[[Tensor], Distribution],
    psi: Tensor,
    psi_event_dim: int,
    mixed: bool = False,
) -> Distribution:
    """Runs a conditional and checks that psi's leading dimensions are its batch shape.

    :param callable conditional: psi -> distribution.
    :param torch.Tensor psi: of shape ``[*batch, *psi_event_shape]``.
    :param int psi_event_dim: number of event dimensions of one psi.
    :param bool mixed: whether the leftmost dimension of psi is mixed over, so that a psi belongs to
        no row.
    :return: a distribution of batch shape ``[*batch]``.
    :raises ValueError: if it is no distribution or has another batch shape, or pairs psi that are
        mixed over with rows of a tensor that it closes over.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> run_conditional(lambda psi: dist.Normal(psi, 1.0), torch.zeros(3), 0).batch_shape
        torch.Size([3])
    """
    try:
        components = call("conditional", conditional, psi)
    except RuntimeError as error:
        if type(error) is not RuntimeError or not fixed_tensors(conditional):
            raise
        raise ValueError(
            f"`conditional` must take psi of shape {tuple(psi.shape)}, but raised: {error}: "
            f"{ROWS_OF_CONDITIONAL}"
        ) from error
    if not isinstance(components, Distribution):
        raise ValueError(
            f"`conditional` must return a Distribution, returned {describe(components)}"
        )
    batch_shape = psi.shape[: psi.dim() - psi_event_dim]
    if components.batch_shape == batch_shape:
        if mixed and not isinstance(conditional, nn.Module):
            check_closure(
                "conditional", conditional, psi, 1, batch_shape, _batch_shape, ROWS_OF_CONDITIONAL
            )
        return components
    extra = len(components.batch_shape) - len(batch_shape)
    hint = ""
    if extra > 0 and components.batch_shape[: len(batch_shape)] == batch_shape:
        hint = (
            f": the dimensions {tuple(components.batch_shape[len(batch_shape) :])} would make a "
            f"product of marginals; end the conditional with .to_event({extra})"
        )
        rows = math.prod(components.batch_shape[len(batch_shape) :])
        if fixed_tensors(conditional, rows):
            hint += f", unless they are rows of data: {ROWS_OF_CONDITIONAL}"
    raise ValueError(
        f"`conditional` must return a distribution of batch_shape {tuple(batch_shape)} for psi of "
        f"shape {tuple(psi.shape)}, was {tuple(components.batch_shape)}{hint}"
    )


def _batch_shape(law: Distribution) -> torch.Size:
    return law.batch_shape


def mixture_support(components: Distribution) -> constraints.Constraint:
    """Finds the support that all components share.

    A bound that differs between components (a uniform whose ends are psi) cannot be stated for
    their mixture: it is dropped and the real numbers, or the integers, remain.

    :param components: a distribution of batch shape ``[K, *batch_shape]``.
    :return: a constraint whose bounds do not depend on the component.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> mixture_support(dist.Gamma(torch.ones(3), 1.0))
        GreaterThanEq(lower_bound=0.0)
    """
    return _unbatched(components.support)


def _unbatched(constraint: Any) -> Any:  # noqa: ANN401 - torch's constraints are untyped
    if isinstance(constraint, constraints.independent):
        base = _unbatched(constraint.base_constraint)
        return constraints.independent(base, constraint.reinterpreted_batch_ndims)
    bounds = _bounds(constraint)
    if not bounds:
        return constraint
    if _varies(constraint):
        return pyro_constraints.integer if constraint.is_discrete else constraints.real
    new = object.__new__(type(constraint))
    new.__dict__.update(vars(constraint), **{k: v.flatten()[0] for k, v in bounds.items()})
    return new


def _bounds(constraint: Any) -> dict[str, Tensor]:  # noqa: ANN401
    return {k: v for k, v in vars(constraint).items() if isinstance(v, Tensor) and v.dim()}


def _varies(constraint: Any) -> bool:  # noqa: ANN401
    if isinstance(constraint, constraints.independent):
        return _varies(constraint.base_constraint)
    return any(bool((v != v.flatten()[0]).any()) for v in _bounds(constraint).values())


def component_log_prob(components: Distribution, value: Tensor) -> Tensor:
    r"""Scores a value by broadcasting, with density 0 outside a component's own support.

    With validation on, torch refuses a value that any one component excludes (a uniform whose
    ends are psi), though other components of the mixture allow it; with validation off, some
    distributions return a finite number there.

    :param components: a distribution of batch shape ``[K, *batch_shape]``.
    :param torch.Tensor value: of a shape that broadcasts with it.
    :return: a tensor of the shape that ``components.log_prob`` returns.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> components = dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> component_log_prob(components, torch.tensor(1.5)).exp()
        tensor([0.0000, 0.5000])
    """
    if not value.numel():  # which torch's independent laws cannot score
        rows = value.shape[: value.dim() - len(components.event_shape)]
        shape = torch.broadcast_shapes(rows, components.batch_shape)
        return torch.zeros(shape, device=value.device)
    if value.dtype == torch.bool:
        value = value.to(torch.get_default_dtype())
    try:
        support: Any = components.support
    except NotImplementedError:
        return components.log_prob(value)
    if not _varies(support):
        return components.log_prob(value)
    outside = ~support.check(value)
    return without_validation(components).log_prob(value).masked_fill(outside, -math.inf)


def without_validation(d: Distribution) -> Distribution:
    """Copies a distribution that does not look at the values it scores.

    :param d: a distribution.
    :return: one that shares its parameters.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> without_validation(dist.Exponential(torch.tensor(1.0))).log_prob(torch.tensor(-1.0))
        tensor(1.)
    """
    new = object.__new__(type(d))
    new.__dict__.update(vars(d), _validate_args=False)
    for name, x in vars(d).items():
        if isinstance(x, Distribution):
            new.__dict__[name] = without_validation(x)
    return new


def under_vmap() -> bool:
    """Tells whether ``torch.func.vmap`` is running: values may not be looked at then.

    Example::

        >>> under_vmap()
        False
    """
    functorch = torch._C._functorch
    # Not public: without it a program that holds a mixture is run point by point.
    stack = getattr(functorch, "get_interpreter_stack", lambda: None)()
    return any(level.key() == functorch.TransformType.Vmap for level in stack or ())


def mixture_moments(components: Distribution) -> tuple[Tensor, Tensor]:
    r"""Computes the mean and variance of an equal mixture by the law of total variance.

    .. math::
        \operatorname{Var} x = \operatorname{mean}_k \sigma_k^2 + \operatorname{var}_k \mu_k

    :param components: a distribution of batch shape ``[K, *batch_shape]``.
    :return: two tensors of shape ``[*batch_shape, *event_shape]``.

    Example::

        >>> import pyro.distributions as dist
        >>> import torch
        >>> mixture_moments(dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
        (tensor(0.), tensor(2.))
    """
    means, variances = components.mean, components.variance
    if not means.is_floating_point():  # of a law whose parameters are integers
        means, variances = means.to(torch.get_default_dtype()), variances + 0.0
    mean = means.mean(0)
    between = (means - mean).square().mean(0)
    return mean, variances.mean(0) + between
