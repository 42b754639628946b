"""The best critic of two known laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_sig._arguments import check_instance
from pyro_sig.adversarial.objectives import Objective, Wasserstein
from pyro_sig.adversarial.objectives.objective import check_objective

__all__ = ["optimal_critic"]

_QUANTILES = 500  # of each law, between which its cdf is compared with the other's


def optimal_critic(
    objective: Objective, data: Distribution, model: Distribution
) -> Callable[[Tensor], Tensor]:
    r"""Returns the critic that minimises an objective's critic loss for two known densities.

    .. math::
        D(x) = s(\log p_\text{data}(x) - \log p_\text{model}(x))

    with s the objective's :meth:`~pyro_sig.adversarial.objectives.Objective.optimal_score`. For
    :class:`~pyro_sig.adversarial.objectives.Wasserstein` it is the Kantorovich potential on the
    line,

    .. math::
        D'(x) = \mathrm{sign}\{F_\text{model}(x) - F_\text{data}(x)\},

    which is piecewise linear; where the distribution functions F cross is found by bisection,
    starting from their quantiles. Two crossings within 1/500 of the mass of both may be missed.

    The critic has gradients with respect to x and, other than for Wasserstein, the parameters of
    both laws: a generator's loss wants a model that is detached.

    :param objective: what the critic minimises.
    :param data: the law of the data, with a ``log_prob`` (Wasserstein: a ``cdf``).
    :param model: the law of the generator, likewise.
    :return: a function from x to scores, which have the shape of ``log_prob(x)``. Where neither
        law has a density the score is that of equal densities.
    :raises ValueError: for Wasserstein, if a law is not one of a single real variable.
    :raises NotImplementedError: if a law has no ``log_prob`` (Wasserstein: no ``cdf``), or another
        objective no pointwise optimum.

    Source: I. Goodfellow et al., "Generative Adversarial Nets", 2014,
    https://arxiv.org/abs/1406.2661, proposition 1; S. Nowozin et al., "f-GAN", 2016,
    https://arxiv.org/abs/1606.00709, equation (5).

    Example::

        >>> from torch.distributions import Normal
        >>> from pyro_sig.adversarial.objectives import Minimax
        >>> data, model = Normal(1.0, 1.0), Normal(0.0, 1.0)
        >>> optimal_critic(Minimax(), data, model)(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-0.5000,  0.0000,  0.5000])
        >>> critic = optimal_critic(Wasserstein(), data, model)
        >>> critic(torch.tensor(3.0)) - critic(torch.tensor(1.0))  # slope 1: data is on the right
        tensor(2.)
    """
    check_objective(objective)
    for name, law in (("data", data), ("model", model)):
        check_instance(name, law, Distribution, "a Distribution")
    if isinstance(objective, Wasserstein):
        for name, law in {"data": data, "model": model}.items():
            if law.batch_shape or law.event_shape:
                raise ValueError(
                    f"`{name}` must be a law of one real variable for {objective!r}, had batch "
                    f"shape {tuple(law.batch_shape)} and event shape {tuple(law.event_shape)}"
                )
        _check_has("cdf", objective, data, model)
        return lambda x: _potential(data, model, x)

    _check_has("log_prob", objective, data, model)

    def critic(x: Tensor) -> Tensor:
        log_data, log_model = data.log_prob(x), model.log_prob(x)
        neither = (log_data == -math.inf) & (log_model == -math.inf)
        ratio = torch.where(neither, 0.0, log_data) - torch.where(neither, 0.0, log_model)
        return objective.optimal_score(ratio)

    return critic


def _check_has(method: str, objective: Objective, data: Distribution, model: Distribution) -> None:
    for name, law in (("data", data), ("model", model)):
        if getattr(type(law), method) is getattr(Distribution, method):
            raise NotImplementedError(
                f"`{name}` must have a {method} for {objective!r}, but {type(law).__name__} has "
                "none"
            )


def _potential(data: Distribution, model: Distribution, x: Tensor) -> Tensor:
    with torch.no_grad():
        levels = _levels(x)
        points = torch.cat([_quantiles(data, levels), _quantiles(model, levels)]).sort().values
        signs = _sign(data, model, points)
        # Equality, exact or by rounding, lets any slope be: it goes on from the left.
        points, signs = points[signs != 0], signs[signs != 0]
        if not len(signs):
            return torch.zeros_like(x)
        left = (signs[1:] != signs[:-1]).nonzero().squeeze(-1)
        before, after = signs[left], signs[left + 1]

        def is_left(middle: Tensor) -> Tensor:
            return _sign(data, model, middle) == before

        kinks = _bisect(is_left, points[left], points[left + 1])
    bends = ((after - before) * torch.relu(x.unsqueeze(-1) - kinks)).sum(-1)
    return signs[0] * x + bends


def _levels(x: Tensor) -> Tensor:
    even = torch.linspace(0, 1, _QUANTILES + 2, dtype=x.dtype, device=x.device)[1:-1]
    # Mixtures cross in their tails too, as far as a cdf can be told from 0 and 1.
    end = -math.log(64 * torch.finfo(x.dtype).eps)
    return torch.cat([even, torch.linspace(-end, end, 128).to(even).sigmoid()])


def _sign(data: Distribution, model: Distribution, x: Tensor) -> Tensor:
    difference = _cdf(model, x) - _cdf(data, x)
    rounding = 8 * torch.finfo(difference.dtype).eps
    return torch.where(difference.abs() > rounding, difference, 0.0).sign().to(x.dtype)


def _quantiles(law: Distribution, levels: Tensor) -> Tensor:
    """Return quantiles by bisection: not every law has an ``icdf``."""
    low, high = -torch.ones_like(levels), torch.ones_like(levels)
    for _ in range(60):  # to 1e18
        low = torch.where(_cdf(law, low) > levels, 2 * low, low)
        high = torch.where(_cdf(law, high) < levels, 2 * high, high)
    return _bisect(lambda middle: _cdf(law, middle) < levels, low, high)


def _bisect(is_left: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    for _ in range(80):  # past the precision of float64 from a bracket of size 1e9
        middle = (low + high) / 2
        left = is_left(middle)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return (low + high) / 2


def _cdf(law: Distribution, x: Tensor) -> Tensor:
    """Return the distribution function on the whole line: torch's raise outside of the support."""
    lower = getattr(law.support, "lower_bound", -math.inf)
    upper = getattr(law.support, "upper_bound", math.inf)
    below, above = x <= lower, x >= upper
    inside = torch.where(below | above, _inside(lower, upper), x)
    return torch.where(below, 0.0, torch.where(above, 1.0, law.cdf(inside)))


def _inside(lower: Tensor | float, upper: Tensor | float) -> Tensor | float:
    if upper == math.inf:
        return 0.0 if lower == -math.inf else lower + 1
    return upper - 1 if lower == -math.inf else (lower + upper) / 2
