"""A semi-implicit distribution frozen to a set of psi: its density is exact and repeatable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_sig._arguments import check_integer, check_tensor, shape_of
from pyro_sig._functions import check_callable
from pyro_sig._show_settings import show_settings
from pyro_sig.distributions._checks import check_inside, check_value, expanded_shape
from pyro_sig.distributions.components import (
    mixture_moments,
    mixture_support,
    run_conditional,
    under_vmap,
)
from pyro_sig.distributions.pairwise import mixture_log_prob
from pyro_sig.distributions.psi_posterior import PsiPosterior, score_psi, weigh_psi

__all__ = ["FixedMixture"]


class FixedMixture(TorchDistribution):
    r"""Mixes a conditional over a fixed set of psi, with equal weights.

    .. math::
        p(x) = \frac{1}{K} \sum_{k=1}^{K} p(x \mid \psi_k)

    What :meth:`SemiImplicit.to_mixture` returns: a fitted semi-implicit law whose ``log_prob`` is
    deterministic, so that HMC and NUTS can use it as a prior.

    :param torch.Tensor psi: atoms, of shape ``[K, *batch_shape, *psi_event_shape]``.
    :param callable conditional: psi -> distribution of ``batch_shape`` equal to psi's leading
        dimensions.
    :param int psi_event_dim: number of event dimensions of one psi.
    :param int chunk_size: components per chunk of the matrix product.
    :raises ValueError: if psi has no atoms or the conditional adds batch dimensions.

    Example::

        >>> import pyro.distributions as dist
        >>> p = FixedMixture(torch.tensor([-1.0, 1.0]), lambda psi: dist.Normal(psi, 1.0))
        >>> p.log_prob(torch.zeros(()))
        tensor(-1.4189)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    __repr__ = show_settings

    def __init__(
        self,
        psi: Tensor,
        conditional: Callable[[Tensor], Distribution],
        psi_event_dim: int = 0,
        chunk_size: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_tensor("psi", psi)
        check_callable("conditional", conditional, "a callable psi -> Distribution", classes=True)
        check_integer("psi_event_dim", psi_event_dim, 0, int)
        if chunk_size is not None:
            check_integer("chunk_size", chunk_size, 1)
        if psi.dim() <= psi_event_dim or len(psi) < 1:
            raise ValueError(
                f"`psi` must have shape [K, *batch_shape] and {psi_event_dim} event dimensions "
                f"with K >= 1, was {tuple(psi.shape)}"
            )
        self.psi = psi
        self.conditional = conditional
        self.psi_event_dim = psi_event_dim
        self.chunk_size = chunk_size
        self.components = run_conditional(conditional, psi, psi_event_dim, mixed=True)
        super().__init__(
            torch.Size(self.components.batch_shape[1:]),
            self.components.event_shape,
            validate_args=validate_args,
        )

    @property
    def num_mixing(self) -> int:
        """Number of atoms K."""
        return len(self.psi)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Support of the conditional."""
        return mixture_support(self.components)

    @property
    def mean(self) -> Tensor:
        """Exact mean."""
        return mixture_moments(self.components)[0].expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Exact variance."""
        return mixture_moments(self.components)[1].expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FixedMixture:  # noqa: ANN401
        """Returns the same law with another batch shape."""
        new = self._get_checked_instance(FixedMixture, _instance)
        for name in ("psi", "conditional", "psi_event_dim", "chunk_size", "components"):
            setattr(new, name, getattr(self, name))
        batch_shape = expanded_shape(self.batch_shape, batch_shape)
        super(FixedMixture, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self) -> dict[str, Any]:
        # Graph tensors can be neither copied nor pickled: the copy runs its conditional itself.
        return {**vars(self), "psi": self.psi.detach(), "components": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.components = run_conditional(self.conditional, self.psi, self.psi_event_dim)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Chooses an atom and draws from its component.

        :param sample_shape: shape of independent draws to the left of the batch shape.
        :return: a tensor of shape ``[*sample_shape, *batch_shape, *event_shape]``.
        """
        with torch.no_grad():
            shape = shape_of("sample_shape", sample_shape) + self.batch_shape
            own = self.components.batch_shape[1:]
            event = self.psi.shape[1 + len(own) :]
            index = torch.randint(self.num_mixing, shape, device=self.psi.device)
            positions = [
                torch.arange(size, device=self.psi.device).reshape(-1, *(1,) * (len(own) - 1 - i))
                if size > 1
                else torch.zeros((), dtype=torch.long, device=self.psi.device)
                for i, size in enumerate(own)
            ]
            where = (index, *positions)
            return run_conditional(self.conditional, self.psi[where], len(event)).sample()

    def _validate_sample(self, value: Tensor) -> None:
        check_value(value, self.event_shape, self.batch_shape)
        check_inside(value, mixture_support(self.components), "conditional's")

    def log_prob(self, value: Tensor) -> Tensor:
        """Scores a value by the exact mixture density.

        :param torch.Tensor value: of shape ``[*, *batch_shape, *event_shape]``.
        :return: a tensor of the value's batch shape.
        """
        if self._validate_args and not under_vmap():
            self._validate_sample(value)
        log_sum = mixture_log_prob(self.components, value, self.chunk_size)
        shape = broadcast_shape(log_sum.shape, self.batch_shape)
        return (log_sum - math.log(self.num_mixing)).expand(shape)

    @torch.no_grad()
    def psi_posterior(self, value: Tensor) -> PsiPosterior:
        r"""Weighs the atoms by a value that they may have emitted.

        .. math::
            P(\psi = \psi_k \mid x) = p(x \mid \psi_k) \Big/ \sum_l p(x \mid \psi_l)

        :param torch.Tensor value: of shape ``[*, *batch_shape, *event_shape]``.
        :return: the posterior of each row, exact for this mixture.
        :raises ValueError: for a value outside shape or support, or one that no atom can emit.
        """
        if self._validate_args:
            self._validate_sample(value)
        leading = value.shape[: value.dim() - len(self.event_shape)]
        rows = torch.Size(broadcast_shape(leading, self.batch_shape))
        scored = score_psi(self.conditional, self.psi, self.psi_event_dim, value, rows)
        return weigh_psi(*scored)
