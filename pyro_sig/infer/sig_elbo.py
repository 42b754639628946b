"""The SIG bound of any Pyro program with implicit sites."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions import Distribution
from pyro.infer import TraceEnum_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_sig._arguments import check_integer
from pyro_sig._rank_sum import own_share
from pyro_sig._show_settings import show_settings
from pyro_sig.distributions import BackwardReport, PsiPosterior, Responsibility, TopK
from pyro_sig.distributions.backward_modes import backward_mode
from pyro_sig.distributions.psi_posterior import resample_psi, weigh_psi
from pyro_sig.infer._check_elbo import check_elbo
from pyro_sig.infer._direct_bound import direct_bound, large_bound, stream_psi
from pyro_sig.infer._marginalize import (
    MarginalizeImplicit,
    explained_errors,
    refuse_guided_sites,
)

__all__ = ["SIG_ELBO"]


class SIG_ELBO(TraceEnum_ELBO):
    r"""Bounds the evidence of a program with implicit sites by M draws shared over its rows.

    .. math::
        \mathcal{L}_M = \sum_i \log \frac{1}{M} \sum_{m=1}^{M} p(x_i \mid \psi_m), \qquad
        \psi_m = T_\phi(\epsilon_m), \qquad
        \mathbb{E}\, \mathcal{L}_M \le \sum_i \log p(x_i)

    Every :class:`~pyro_sig.distributions.Implicit` site, at any plate level, is marginalised by
    Pyro's enumeration: M + N network evaluations, not M x N. Sites in the same plates share joint
    draws and one index. Other latents keep their guide; discrete ones may be enumerated as in
    :class:`pyro.infer.TraceEnum_ELBO`. The bound tightens as M grows.

    A program of one implicit and one observed site, beside latents that the guide draws by
    ``rsample``, is scored without enumeration, as :class:`~pyro_sig.distributions.SemiImplicit`
    is; data that share a psi, such as those of a group, are added up before the matrix product.

    Equal rows can be counted once: with one implicit and one observed site, both may stand under
    ``poutine.scale(scale=counts)`` with a count for each row.

    :param int num_mixing: number M of draws at each implicit site; a site can ask for its own by
        ``infer={"num_mixing": M}``.
    :param int chunk_size: draw and score this many psi at a time and compute them again in the
        backward pass, so that ``num_mixing`` may exceed memory. For programs that
        are scored without enumeration.
    :param backward: which psi the backward pass touches: ``"exact"``, all of them;
        ``"responsibility"`` or a :class:`~pyro_sig.distributions.Responsibility`, about 1024
        chosen at random, without bias; ``"top"`` or a :class:`~pyro_sig.distributions.TopK`, the
        8 that explain each row best. The loss is that of all M draws, which are made in chunks,
        of a size found here where ``chunk_size`` is None. For the programs that ``chunk_size``
        can stream, where the rows share their psi.
    :param mixing_group: a process group of :mod:`torch.distributed` whose W processes draw M / W of
        the psi each, for the same data; the bound is that of all M, and gradients are whole once
        they are averaged over processes, as :func:`~pyro_sig.distributed.data_parallel` does. The
        guide draws the same latents in all of them. For the programs that ``chunk_size`` can
        stream. None for this process alone, as :meth:`psi_posterior` always is.
    :param kwargs: further arguments of :class:`pyro.infer.TraceEnum_ELBO`, such as
        ``num_particles``, ``max_plate_nesting`` and ``vectorize_particles``.
    :ivar dict broadcast_sites: after a step, observed site -> why it took no matrix product.
    :ivar backward_report: after a step with another ``backward`` than ``"exact"``, a
        :class:`~pyro_sig.distributions.BackwardReport` of its last particle.
    :raises ValueError: for ``num_mixing < 1``; during a step for chains of implicit sites, for an
        implicit site that the guide samples, for differently scaled plates, and for a program
        that ``chunk_size`` cannot stream or ``backward`` cannot draw again.

    Reference: M. Yin and M. Zhou (2018), "Semi-Implicit Generative Model", eq. 6.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit
        >>> net = torch.nn.Linear(2, 1)
        >>> def model(x):
        ...     pyro.module("net", net)
        ...     noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        ...     with pyro.plate("data", len(x)):
        ...         psi = pyro.sample("psi", Implicit(net, noise, event_shape=1))
        ...         pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)
        >>> svi = pyro.infer.SVI(
        ...     model, lambda x: None, pyro.optim.Adam({"lr": 0.01}), SIG_ELBO(num_mixing=100)
        ... )
        >>> isinstance(svi.step(torch.zeros(5, 1)), float)
        True
    """

    __repr__ = show_settings

    def __init__(
        self,
        num_mixing: int,
        chunk_size: int | None = None,
        backward: Responsibility | TopK | str = "exact",
        mixing_group: Any = None,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        check_integer("num_mixing", num_mixing, 1)
        if chunk_size is not None:
            check_integer("chunk_size", chunk_size, 1)
        self._backward = backward_mode(backward)
        own_share(num_mixing, mixing_group)
        check_elbo(**kwargs)
        self.mixing_group = mixing_group
        super().__init__(**kwargs)
        self.num_mixing = num_mixing
        self.chunk_size = chunk_size
        self._enumerates: bool | None = None  # not known before the first run
        self.broadcast_sites: dict[str, str] = {}
        self.backward_report: BackwardReport | None = None

    # -------------------------------------------------------------------------------- the bound

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """Estimates the negative bound.

        :return: a float, summed over rows and scaled by plates as Pyro's ELBOs are.
        """
        with explained_errors():
            with torch.no_grad():
                loss = self._direct_loss(model, guide, args, kwargs)
            return super().loss(model, guide, *args, **kwargs) if loss is None else loss.item()

    def differentiable_loss(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """Estimates the negative bound as a differentiable scalar."""
        with explained_errors():
            loss = self._direct_loss(model, guide, args, kwargs)
            if loss is None:
                return super().differentiable_loss(model, guide, *args, **kwargs)
            return loss

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """Estimates the negative bound and adds its gradient to the parameters."""
        with explained_errors():
            loss = self._direct_loss(model, guide, args, kwargs)
            if loss is None:
                return super().loss_and_grads(model, guide, *args, **kwargs)
            if loss.requires_grad:
                loss.backward()
            return loss.item()

    def _direct_loss(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Tensor | None:
        """The loss of a program that needs no enumeration, else None."""
        must_stream = any(
            x is not None for x in (self.chunk_size, self._backward, self.mixing_group)
        )
        if not must_stream and (self._enumerates or self.vectorize_particles):
            return None
        self._find_plates(model, guide, args, kwargs)
        random_state = torch.get_rng_state() if self._enumerates is None else None
        bounds = []
        for _ in range(self.num_particles):
            messenger = MarginalizeImplicit(self.num_mixing, self.max_plate_nesting)
            messenger.mixing_group = self.mixing_group
            bound = self._one_bound(model, guide, args, kwargs, messenger)
            if isinstance(bound, str):
                if must_stream:
                    raise self._not_streamed(bound)
                self._enumerates = True
                if random_state is not None:  # as if this run had not been
                    torch.set_rng_state(random_state)
                return None
            self.broadcast_sites = dict(messenger.broadcast_sites)
            bounds.append(bound)
        self._enumerates = False
        return -torch.stack(bounds).mean()

    def _one_bound(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
        messenger: MarginalizeImplicit,
    ) -> Tensor | str:
        program = (model, guide, args, kwargs, messenger, self.chunk_size)
        if self._backward is None:
            return direct_bound(*program)
        found = large_bound(*program, self._backward)
        if isinstance(found, str):
            return found
        bound, report = found
        self.backward_report = report or self.backward_report
        return bound

    # --------------------------------------------------------------------------- by enumeration

    def _get_traces(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Iterator[tuple[Trace, Trace]]:
        self._find_plates(model, guide, args, kwargs)
        messenger = MarginalizeImplicit(self.num_mixing, self.max_plate_nesting)
        for traces in super()._get_traces(messenger(model), guide, args, kwargs):
            refuse_guided_sites(messenger, traces[1])
            self.broadcast_sites = dict(messenger.broadcast_sites)
            self._messenger = messenger
            yield traces
        messenger.atoms.clear()

    def _find_plates(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        if self.max_plate_nesting == float("inf"):
            messenger = MarginalizeImplicit(self.num_mixing, self.max_plate_nesting)
            self._guess_max_plate_nesting(messenger(model), guide, args, kwargs)

    def compute_marginals(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,  # noqa: ANN401
    ) -> OrderedDict[str, Distribution]:
        r"""Computes the responsibilities of the atoms for each row.

        .. math::
            w_{im} = p(x_i \mid \psi_m) \Big/ \sum_{l} p(x_i \mid \psi_l)

        :return: implicit site -> categorical over its M atoms, with the batch shape of its plates;
            also the marginals of other sites that the model enumerates.
        :raises NotImplementedError: with several particles or guide-side enumeration.
        """
        marginals = self._named_marginals(model, guide, args, kwargs)
        self._messenger.atoms.clear()
        return marginals

    @torch.no_grad()
    def psi_posterior(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, PsiPosterior]:
        r"""Weighs the draws of every implicit site by what they emitted.

        The empirical Bayes posterior :math:`p(\psi \mid x_i)` by self-normalised importance
        sampling from the prior: with few draws near :math:`\psi` it is coarse, which its
        ``effective_sample_size`` tells. With a ``chunk_size`` the draws are streamed, and as many
        as that are kept, by resampling. Where the guide draws other latents, the weights are
        given one draw of these.

        :return: implicit site -> :class:`~pyro_sig.distributions.PsiPosterior` of the site's
            batch and event shape, with mean, variance and samples.
        :raises ValueError: for a program that ``chunk_size`` cannot stream.
        """
        if self.chunk_size is not None:
            self._find_plates(model, guide, args, kwargs)
            messenger = MarginalizeImplicit(self.num_mixing, self.max_plate_nesting)
            with explained_errors():
                found = stream_psi(model, guide, args, kwargs, messenger, self.chunk_size)
            if isinstance(found, str):
                raise self._not_streamed(found)
            name, chunks = found
            return {name: resample_psi(chunks, self.chunk_size)}
        marginals = self._named_marginals(model, guide, args, kwargs)
        posterior = {}
        for name in self._messenger.atoms:
            log_weights = marginals[name].logits
            psi = self._messenger.rows_of_atoms(name, log_weights.dim() - 1)
            posterior[name] = weigh_psi(psi, log_weights.movedim(-1, 0))
        self._messenger.atoms.clear()
        return posterior

    def _not_streamed(self, was: str) -> ValueError:
        argument = "`chunk_size` must be None"
        if self.chunk_size is None:
            argument = "`mixing_group` must be None"
        if self._backward is not None:
            argument = "`backward` must be 'exact'"
        return ValueError(
            f"{argument} unless the program has one implicit site, one observed "
            "site, which depends on it, and no latents but those that the guide draws by "
            f"rsample; was {was}"
        )

    def _named_marginals(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> OrderedDict[str, Any]:
        """Marginals of indices under the names of their sites; the messenger keeps the atoms."""
        with explained_errors():
            marginals = super().compute_marginals(model, guide, *args, **kwargs)
        by_index = self._messenger.implicit_sites
        named = OrderedDict((name, marginals[index]) for name, index in by_index.items())
        indices = set(by_index.values())
        named.update((name, d) for name, d in marginals.items() if name not in indices)
        return named

    def sample_posterior(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Raises: sample from the distributions of :meth:`psi_posterior`.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("SIG_ELBO has no sample_posterior; sample from psi_posterior")
