"""Any f-divergence as an adversarial objective."""

from __future__ import annotations

import functools
import inspect
import math

import torch
from torch import Tensor

from pyro_sig._arguments import check_choice, check_flag, is_number, refusal
from pyro_sig.adversarial.objectives.divergences import DIVERGENCES, Divergence
from pyro_sig.adversarial.objectives.objective import Objective

__all__ = ["FDivergence"]


class FDivergence(Objective):
    r"""The lower bound of an f-divergence by a critic, which the generator lowers.

    .. math::
        D_f(P \| Q) = E_Q f(p / q) \ge E_P\,g(D) - E_Q\,f^*(g(D)), \qquad
        L_D = E\,f^*(g(D(G))) - E\,g(D(x)), \qquad L_G = -E\,f^*(g(D(G)))

    with P the data, Q the model, :math:`f^*(t) = \sup_{u \ge 0} u t - f(u)` and g an increasing
    function into its domain, so that scores are free and a larger one means more real. The bound
    is tight at :math:`g(D) = f'(p / q)`. Names and functions f, with u = p / q:

    - ``total_variation``: :math:`|u - 1| / 2`
    - ``kl``: :math:`u \log u`, the divergence of maximum likelihood
    - ``reverse_kl``: :math:`-\log u`
    - ``pearson_chi2``: :math:`(u - 1)^2`
    - ``neyman_chi2``: :math:`(1 - u)^2 / u`
    - ``squared_hellinger``: :math:`(\sqrt{u} - 1)^2`
    - ``jeffrey``: :math:`(u - 1) \log u`, the sum of the two Kullback-Leibler divergences
    - ``jensen_shannon``: :math:`u \log u - (u + 1) \log \frac{u + 1}{2}`
    - ``jensen_shannon_weighted``:
      :math:`\pi u \log u - (1 - \pi + \pi u) \log(1 - \pi + \pi u)`
    - ``gan``: :math:`u \log u - (u + 1) \log(u + 1)`, which is -log 4 for equal laws
    - ``alpha``: :math:`(u^\alpha - 1 - \alpha (u - 1)) / (\alpha (\alpha - 1))`

    A loss is infinite where a score's exponential overflows its type.

    :param str name: which divergence.
    :param float alpha: order of ``alpha``, neither 0 nor 1.
    :param float pi: weight of the data in ``jensen_shannon_weighted``, between 0 and 1.
    :param bool heuristic: let the generator minimise :math:`-E\,g(D(G))` in place of
        :math:`L_G`: it has the same direction for each draw and more weight on draws that the
        critic rejects.
    :raises ValueError: for an unknown name, a parameter that the divergence does not have or
        lacks, or one out of its range; from a loss, for empty or not floating point scores.

    Source: S. Nowozin, B. Cseke and R. Tomioka, "f-GAN: Training Generative Neural Samplers using
    Variational Divergence Minimization", 2016, https://arxiv.org/abs/1606.00709, equation (4) and
    tables 1, 2, 5 and 6.

    Example::

        >>> objective = FDivergence("alpha", alpha=0.5)
        >>> objective, objective.threshold
        (FDivergence('alpha', alpha=0.5), 0.0)
        >>> # Two Bernoulli laws with P(1) = 0.8 and 0.5, each value as often as it occurs.
        >>> kl = FDivergence("kl")
        >>> zero, one = kl.optimal_score(torch.tensor([0.2 / 0.5, 0.8 / 0.5]).log())
        >>> kl.estimate(torch.stack([zero, one, one, one, one]), torch.stack([zero, one]))
        tensor(0.1927)
        >>> 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
        0.1927...
    """

    def __init__(
        self,
        name: str,
        alpha: float | None = None,
        pi: float | None = None,
        heuristic: bool = False,
    ) -> None:
        check_choice("name", name, DIVERGENCES)
        heuristic = check_flag("heuristic", heuristic)
        self.name, self.alpha, self.pi, self.heuristic = name, alpha, pi, heuristic
        entry = DIVERGENCES[name]
        needed = () if isinstance(entry, Divergence) else inspect.signature(entry).parameters
        for parameter, value in {"alpha": alpha, "pi": pi}.items():
            if parameter in needed and value is None:
                raise refusal(parameter, f"given for {name!r}", value)
            if parameter not in needed and value is not None:
                raise refusal(parameter, f"left out for {name!r}, which has none", value)
            if value is not None and not is_number(value):
                raise refusal(parameter, "a number", value)
        self._row  # noqa: B018 - checks the ranges

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the names of all divergences."""
        return tuple(DIVERGENCES)

    @property
    def threshold(self) -> float:
        r"""The :math:`t = f'(1)` that separates real from fake: equal densities."""
        value = float(self._row.f_prime(torch.ones((), dtype=torch.double)))
        return value + 0.0  # not -0.0

    def f(self, u: Tensor) -> Tensor:
        """Return the convex function at ratios `u` of data to model; infinite if negative."""
        value = self._row.f(torch.where(u < 0, 1.0, u))
        return torch.where(u < 0, math.inf, value)

    def f_prime(self, u: Tensor) -> Tensor:
        """Return the derivative of :meth:`f` at `u`, not negative; 0 at a kink."""
        return self._row.f_prime(u)

    def conjugate(self, t: Tensor) -> Tensor:
        """Return the conjugate of :meth:`f` at `t`; infinite outside of its domain."""
        row = self._row
        # The threshold is inside of every domain: no NaN reaches a gradient.
        value = row.conjugate(torch.where(t > row.upper, self.threshold, t))
        return torch.where(t > row.upper, math.inf, value)

    def activation(self, v: Tensor) -> Tensor:
        """Return the t = g(v), in the domain of the conjugate, of scores `v`."""
        return self._row.activation(v)

    def fused_conjugate(self, v: Tensor) -> Tensor:
        """Return the conjugate at g(v), exact where g(v) rounds to the end of the domain."""
        return self._row.fused_conjugate(v)

    def optimal_score(self, log_ratio: Tensor) -> Tensor:
        r"""Return the v with :math:`g(v) = f'(e^w)`; for total variation it is infinite."""
        return self._row.optimal_score(log_ratio)

    def estimate(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the lower bound of the divergence of the data from the model.

        :param torch.Tensor real: scores of data.
        :param torch.Tensor fake: scores of generated draws.
        :return: a scalar, minus the critic's loss.
        :raises ValueError: as :meth:`critic_loss`.
        """
        return -self.critic_loss(real, fake)

    @property
    def _row(self) -> Divergence:
        # Not kept in the instance: functions would not pickle.
        return _find_row(self.name, self.alpha, self.pi)

    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        row = self._row
        return row.fused_conjugate(fake).mean() - row.activation(real).mean()

    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        if self.heuristic:
            return -self.activation(fake).mean()
        return -self.fused_conjugate(fake).mean()

    def _joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        # The estimate itself; with the heuristic, its second term in the generator's other form.
        return self.activation(real).mean() + self._generator_loss(None, fake)


@functools.cache
def _find_row(name: str, alpha: float | None, pi: float | None) -> Divergence:
    entry = DIVERGENCES[name]
    if isinstance(entry, Divergence):
        return entry
    given = {"alpha": alpha, "pi": pi}
    return entry(**{needed: given[needed] for needed in inspect.signature(entry).parameters})
