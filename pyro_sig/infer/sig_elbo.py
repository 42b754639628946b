"""The SIG bound of any Pyro program with implicit sites."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Distribution, Empirical
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_sig.distributions.components import check_positive
from pyro_sig.infer.marginalize import MarginalizeImplicit

__all__ = ["SIG_ELBO"]


class SIG_ELBO(TraceEnum_ELBO):
    r"""Bounds the evidence of a program with implicit sites by M draws shared over its rows.

    .. math::
        \mathcal{L}_M = \sum_i \log \frac{1}{M} \sum_{m=1}^{M} p(x_i \mid \psi_m), \qquad
        \psi_m = T_\phi(\epsilon_m), \qquad
        \mathbb{E}\, \mathcal{L}_M \le \sum_i \log p(x_i)

    Every :class:`~pyro_sig.distributions.Implicit` site, at any plate level, is marginalised by
    Pyro's enumeration: M + N network evaluations, not M x N. Sites in the same plates share
    joint draws and one index. Other latents keep their guide; discrete ones may be enumerated as
    in :class:`pyro.infer.TraceEnum_ELBO`. The bound tightens as M grows.

    :param int num_mixing: number M of draws at each implicit site; a site can ask for its own by
        ``infer={"num_mixing": M}``.
    :param int chunk_size: draw and score this many psi at a time and compute them again in the
        backward pass, so that ``num_mixing`` may exceed memory. For programs of one implicit site
        and one observed site.
    :param kwargs: further arguments of :class:`pyro.infer.TraceEnum_ELBO`, such as
        ``num_particles``, ``max_plate_nesting`` and ``vectorize_particles``.
    :ivar dict broadcast_sites: after a step, observed site -> why it took no matrix product.
    :raises ValueError: for ``num_mixing < 1``; during a step for chains of implicit sites, for an
        implicit site that the guide samples, for differently scaled plates, and for a program
        that ``chunk_size`` cannot stream.

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

    def __init__(self, num_mixing: int, chunk_size: int | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        check_positive("num_mixing", num_mixing)
        if chunk_size is not None:
            check_positive("chunk_size", chunk_size)
        super().__init__(**kwargs)
        self.num_mixing = num_mixing
        self.chunk_size = chunk_size
        self.broadcast_sites: dict[str, str] = {}

    # -------------------------------------------------------------------------------- the bound

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """Estimates the negative bound.

        :return: a float, summed over rows and scaled by plates as Pyro's ELBOs are.
        """
        with _explained_scales():
            if self.chunk_size is None:
                return super().loss(model, guide, *args, **kwargs)
            with torch.no_grad():
                return float(self._streamed_loss(model, guide, args, kwargs))

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:  # noqa: ANN401
        """Estimates the negative bound as a differentiable scalar."""
        with _explained_scales():
            if self.chunk_size is None:
                return super().differentiable_loss(model, guide, *args, **kwargs)
            return self._streamed_loss(model, guide, args, kwargs)

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """Estimates the negative bound and adds its gradient to the parameters."""
        with _explained_scales():
            if self.chunk_size is None:
                return super().loss_and_grads(model, guide, *args, **kwargs)
            loss = self._streamed_loss(model, guide, args, kwargs)
            if loss.requires_grad:
                loss.backward()
            return loss.item()

    # --------------------------------------------------------------------------- by enumeration

    def _get_traces(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Iterator[tuple[Trace, Trace]]:
        self._find_plates(model, guide, args, kwargs)
        messenger = MarginalizeImplicit(self.num_mixing, self.max_plate_nesting)
        for traces in super()._get_traces(messenger(model), guide, args, kwargs):
            guided = [name for name in messenger.implicit_sites if name in traces[1]]
            if guided:
                raise ValueError(
                    f"`guide` must not sample the implicit sites, which SIG_ELBO marginalises and "
                    f"which have no density; was a guide of {guided}"
                )
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
        return self._marginals_and_atoms(model, guide, args, kwargs)[0]

    def psi_posterior(
        self,
        model: Callable,
        guide: Callable,
        *args: Any,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Empirical]:
        r"""Weighs the atoms of every implicit site by their responsibilities.

        The empirical Bayes posterior :math:`p(\psi \mid x_i)` by self-normalised importance
        sampling from the prior: with few atoms near :math:`\psi` it is coarse.

        :return: implicit site -> :class:`pyro.distributions.Empirical` of the site's batch and
            event shape, with mean, variance and samples.
        """
        marginals, atoms = self._marginals_and_atoms(model, guide, args, kwargs)
        posterior = {}
        for name, (psi, event_dim) in atoms.items():
            log_weights = marginals[name].logits
            batch, event = log_weights.shape[:-1], psi.shape[psi.dim() - event_dim :]
            rows = psi.shape[psi.dim() - event_dim - len(batch) : psi.dim() - event_dim]
            psi = psi.reshape(len(psi), *rows, *event).movedim(0, len(batch))
            posterior[name] = Empirical(psi.expand(log_weights.shape + event), log_weights)
        return posterior

    def _marginals_and_atoms(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[OrderedDict[str, Any], dict[str, tuple[Tensor, int]]]:
        with _explained_scales():
            marginals = super().compute_marginals(model, guide, *args, **kwargs)
        by_index = self._messenger.implicit_sites
        atoms = dict(self._messenger.atoms)
        self._messenger.atoms.clear()
        named = OrderedDict((name, marginals[index]) for name, index in by_index.items())
        indices = set(by_index.values())
        named.update((name, d) for name, d in marginals.items() if name not in indices)
        return named, atoms

    def sample_posterior(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Raises: sample from the distributions of :meth:`psi_posterior`.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("SIG_ELBO has no sample_posterior; sample from psi_posterior")

    # -------------------------------------------------------------------------------- by streaming

    def _streamed_loss(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Tensor:
        """Runs the program once for each chunk of psi, and again in the backward pass."""
        self._find_plates(model, guide, args, kwargs)
        particles = [
            self._streamed_particle(model, guide, args, kwargs) for _ in range(self.num_particles)
        ]
        return -torch.stack(particles).mean()

    def _streamed_particle(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> Tensor:
        chunk_size = self.chunk_size
        assert chunk_size is not None
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)

        def run(size: int, replayed: Trace) -> tuple[Trace, MarginalizeImplicit]:
            messenger = MarginalizeImplicit(self.num_mixing, self.max_plate_nesting, size)
            program = poutine.replay(messenger(model), trace=replayed)
            return poutine.trace(program).get_trace(*args, **kwargs), messenger

        trace, messenger = run(chunk_size, guide_trace)
        self.broadcast_sites = dict(messenger.broadcast_sites)
        psi_name, emission_name = _streamable(trace, messenger)
        num_mixing = messenger.requested[psi_name]
        first = self._log_sum(trace, psi_name, emission_name)
        subsample = trace.copy()
        subsample.remove_node(psi_name)

        def part(size: int, _: Tensor) -> Tensor:
            with poutine.block():
                return self._log_sum(run(size, subsample)[0], psi_name, emission_name)

        parts = [first]
        for start in range(chunk_size, num_mixing, chunk_size):
            size = min(chunk_size, num_mixing - start)
            # `first` tells the checkpoint which device's random state to keep.
            parts.append(checkpoint(part, size, first.detach(), use_reentrant=False))
        log_sum = torch.stack(parts).logsumexp(0)
        scale: Any = trace.nodes[emission_name]["scale"]
        return (scale * (log_sum - math.log(num_mixing))).sum()

    def _log_sum(self, trace: Trace, psi_name: str, emission_name: str) -> Tensor:
        """Log of the summed densities over psi, with one entry per row of the implicit site."""
        emission, psi = trace.nodes[emission_name], trace.nodes[psi_name]
        fn: Any = emission["fn"]
        log_prob = fn.log_prob(emission["value"], *emission["args"])
        log_prob = scale_and_mask(log_prob, mask=emission["mask"])
        own = {f.name for f in psi["cond_indep_stack"]}
        for f in emission["cond_indep_stack"]:
            if f.vectorized and f.name not in own:  # rows that share one psi
                log_prob = log_prob.sum(f.dim, keepdim=True)
        return log_prob.logsumexp(-1 - int(self.max_plate_nesting))


def _streamable(trace: Trace, messenger: MarginalizeImplicit) -> tuple[str, str]:
    """The implicit and the observed site of a program that has just these."""
    latents = [n for n in trace.stochastic_nodes if not site_is_subsample(trace.nodes[n])]
    observed = [n for n in trace.observation_nodes if n not in messenger.implicit_sites]
    if len(messenger.implicit_sites) != 1 or len(observed) != 1 or latents:
        raise ValueError(
            "`chunk_size` must be None unless the program is one implicit site and one observed "
            f"site; was {len(messenger.implicit_sites)} implicit {list(messenger.implicit_sites)}, "
            f"{len(observed)} observed {observed} and {len(latents)} other latents {latents}"
        )
    return next(iter(messenger.implicit_sites)), observed[0]


@contextmanager
def _explained_scales() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "common poutine.scale" not in str(error):
            raise
        raise ValueError(
            "sites that share an implicit site's index must share one scale: an implicit site "
            "above a subsampled plate, or plates subsampled at two levels, cannot be marginalised, "
            "because the scale would stand inside the logarithm. Use the full data in the inner "
            "plate, or subsample at the outermost plate only"
        ) from error
