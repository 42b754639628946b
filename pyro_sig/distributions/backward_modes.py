r"""Which psi of a large mixture the backward pass touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, refusal

__all__ = ["BackwardReport", "Responsibility", "Shares", "TopK", "backward_mode"]


class Shares(NamedTuple):
    """Holds what a choice of psi goes by.

    :param torch.Tensor totals: total responsibility of each psi, ``[M]``.
    :param torch.Tensor best: the k psi of largest responsibility for each datum, ``[N, k]``, or
        None.
    :param torch.Tensor owner: the datum that each psi serves most, ``[M]``, or None.
    """

    totals: Tensor
    best: Tensor | None = None
    owner: Tensor | None = None


@dataclass(frozen=True)
class Responsibility:
    r"""Chooses about S psi at random by their share in all data: a gradient without bias.

    .. math::
        w_{ij} = \frac{p(x_i \mid \psi_j)}{\sum_l p(x_i \mid \psi_l)}, \quad
        r_j = \sum_i w_{ij}, \quad
        \pi_j = \min(1, c\, r_j), \quad \sum_j \pi_j = S, \qquad
        \widehat{\nabla \ell_i} = \sum_{j\ \text{chosen}} \frac{w_{ij}}{\pi_j}
        \nabla \log p(x_i \mid \psi_j)

    Systematic sampling includes :math:`\psi_j` with probability :math:`\pi_j`, so that the
    estimate of every :math:`\nabla \ell_i` is unbiased. The psi that serve one datum most stand
    side by side in it, so that every datum gets its share of them. Where no more than S psi have
    any responsibility, all of these are taken and the gradient is exact.

    :param int num_psi: number S of psi that get a gradient.
    :param torch.Generator generator: a CPU generator of the random choice. By default the choice
        follows from the random state after the psi are drawn, and does not change it.
    :raises ValueError: for ``num_psi < 1``.

    References: D. G. Horvitz and D. J. Thompson (1952), "A generalization of sampling without
    replacement from a finite universe" (the weights); W. G. Madow (1949), "On the theory of
    systematic sampling, II" (the choice).

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit, SemiImplicit
        >>> mixing = Implicit(torch.nn.Linear(2, 3), dist.Normal(torch.zeros(2), 1).to_event(1), 3)
        >>> p = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.5).to_event(1),
        ...                  num_mixing=5000, backward=Responsibility(num_psi=64))
        >>> p.log_prob(torch.zeros(4, 3)).sum().backward()
        >>> p.backward_report.num_psi in (63, 64, 65)
        True
    """

    num_psi: int = 1024
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_integer("num_psi", self.num_psi, 1)

    def choose(self, shares: Shares, seed: int) -> tuple[Tensor, Tensor]:
        """Chooses psi.

        :param Shares shares: the responsibilities, with ``owner`` or without.
        :param int seed: of the choice, without a ``generator``.
        :return: numbers of the chosen psi, ascending, and what each of them counts.
        """
        generator = self.generator or torch.Generator().manual_seed(seed)
        uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
        inclusion = inclusion_probabilities(shares.totals, self.num_psi)
        if shares.owner is None:
            chosen = systematic_sample(inclusion, uniform)
        else:
            order = shares.owner.sort(stable=True).indices
            chosen = order[systematic_sample(inclusion[order], uniform)].sort().values
        return chosen, inclusion[chosen].reciprocal()


@dataclass(frozen=True)
class TopK:
    r"""Chooses the k psi of largest responsibility for each datum: no noise, and some bias.

    .. math::
        \widehat{\nabla \ell_i} = \sum_{j \in \mathcal{U}} w_{ij} \nabla \log p(x_i \mid \psi_j),
        \qquad \big\| \widehat{\nabla \ell_i} - \nabla \ell_i \big\| \le
        \Big(1 - \sum_{j \in \mathcal{U}} w_{ij}\Big) \max_{j \notin \mathcal{U}}
        \big\| \nabla \log p(x_i \mid \psi_j) \big\|

    :math:`\mathcal{U}` is the union over data, and the weights are not normalised again. The
    dropped mass, the first factor of the bound, is in the report.

    :param int k: number of psi for each datum.
    :raises ValueError: for ``k < 1``.

    Source: own; truncated responsibilities are those of R. M. Neal and G. E. Hinton (1998), "A
    view of the EM algorithm that justifies incremental, sparse, and other variants", section 5.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit, SemiImplicit
        >>> mixing = Implicit(torch.nn.Linear(2, 3), dist.Normal(torch.zeros(2), 1).to_event(1), 3)
        >>> p = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.5).to_event(1),
        ...                  num_mixing=5000, backward=TopK(k=2))
        >>> p.log_prob(torch.randn(4, 3)).sum().backward()
        >>> 2 <= p.backward_report.num_psi <= 8
        True
    """

    k: int = 8

    def __post_init__(self) -> None:
        check_integer("k", self.k, 1)

    def choose(self, shares: Shares, seed: int) -> tuple[Tensor, Tensor]:
        """Chooses psi.

        :param Shares shares: the responsibilities, with ``best``.
        :param int seed: not needed.
        :return: numbers of the chosen psi, ascending, and what each of them counts.
        """
        assert shares.best is not None
        chosen = shares.best.unique()
        chosen = chosen[shares.totals[chosen] > 0]
        return chosen, torch.ones_like(shares.totals[chosen])


@dataclass(frozen=True)
class BackwardReport:
    """Holds what the last evaluation left to its backward pass.

    The figures are tensors without dimensions, so that reading them is what waits for a device.

    :param int num_psi: psi that were drawn again with a gradient.
    :param int num_mixing: psi that were scored.
    :param torch.Tensor carried: share of the total responsibility that these psi have.
    :param torch.Tensor mean_dropped: responsibility that a datum gives to other psi, on average.
    :param torch.Tensor max_dropped: the same for the datum where it is largest. Under
        :class:`TopK` it bounds the bias; under :class:`Responsibility` there is none.
    :param torch.Tensor effective_num_psi: number of psi that equal shares would need,
        ``1 / sum_j (r_j / R)^2``.
    """

    num_psi: int
    num_mixing: int
    carried: Tensor
    mean_dropped: Tensor
    max_dropped: Tensor
    effective_num_psi: Tensor

    def __str__(self) -> str:
        return (
            f"{self.num_psi} of {self.num_mixing} psi have a gradient and {self.carried:.4f} of "
            f"the responsibility; dropped {self.mean_dropped:.2e} of a datum on average and "
            f"{self.max_dropped:.2e} at most; effective number of psi {self.effective_num_psi:.1f}"
        )


def backward_mode(backward: Responsibility | TopK | str) -> Responsibility | TopK | None:
    """Reads the argument ``backward``.

    :param backward: ``"exact"``, ``"responsibility"``, ``"top"``, or one of the objects.
    :return: the object, None for ``"exact"``.
    :raises ValueError: for anything else.

    Example::

        >>> backward_mode("top")
        TopK(k=8)
    """
    if isinstance(backward, (Responsibility, TopK)):
        return backward
    if isinstance(backward, str) and backward in ("exact", "responsibility", "top"):
        return {"exact": None, "responsibility": Responsibility(), "top": TopK()}[backward]
    must_be = "'exact', 'responsibility', 'top', a Responsibility or a TopK"
    raise refusal("backward", must_be, backward)


def inclusion_probabilities(totals: Tensor, num_psi: int) -> Tensor:
    r"""Solves :math:`\sum_j \min(1, c\, r_j) = S` for c, exactly.

    :param torch.Tensor totals: r, in double precision.
    :param int num_psi: S.
    :return: the terms of the sum; all of them 1 or 0 where no more than S are positive.
    """
    totals = torch.where(totals > 0, totals, 0.0)
    largest, which = totals.topk(min(num_psi, len(totals)))
    # Sums from each of the largest to the end, without a difference that would cancel.
    rest = totals.scatter(0, which, 0.0).sum()
    tails = largest.flip(0).cumsum(0).flip(0) + rest
    left = num_psi - torch.arange(len(largest), device=totals.device, dtype=totals.dtype)
    fits = (left * largest <= tails) if num_psi < len(totals) else tails < 0
    # The first k psi are sure; where all are, the tail is empty and c infinite.
    first = fits.to(torch.uint8).argmax()
    c = torch.where(fits.any() & (tails[first] > 0), left[first] / tails[first], torch.inf)
    return torch.where(totals > 0, (c * totals).clamp(max=1.0), 0.0)


def systematic_sample(inclusion: Tensor, uniform: float) -> Tensor:
    """Takes what lies under the points u, u + 1, u + 2, .. when the probabilities are laid in line.

    :param torch.Tensor inclusion: probabilities, in double precision.
    :param float uniform: u.
    :return: numbers of what is taken, ascending.
    """
    sure = inclusion >= 1
    line = inclusion.masked_fill(sure, 0.0).cumsum(0)
    below = (line - uniform).ceil().clamp(min=0)
    taken = torch.diff(below, prepend=below.new_zeros(1)) > 0
    return (taken | sure).nonzero().squeeze(-1)
