"""An explicit conditional mixed over an implicit law, as an ordinary distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Independent, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import broadcast_shape, sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.utils.checkpoint import checkpoint

from pyro_sig._arguments import (
    check_flag,
    check_instance,
    check_integer,
    check_tensor,
    refusal,
    shape_of,
)
from pyro_sig._functions import call, check_callable
from pyro_sig._rank_sum import all_reduce_logsumexp, check_same, own_share
from pyro_sig._show_settings import show_settings
from pyro_sig.distributions._checks import check_inside, check_value, expanded_shape
from pyro_sig.distributions.backward_modes import (
    BackwardReport,
    Responsibility,
    TopK,
    backward_mode,
)
from pyro_sig.distributions.components import (
    component_log_prob,
    mixture_moments,
    mixture_support,
    run_conditional,
    under_vmap,
)
from pyro_sig.distributions.fixed_mixture import FixedMixture
from pyro_sig.distributions.implicit import Implicit
from pyro_sig.distributions.large_mixing import (
    Scores,
    chunk_for,
    chunk_sizes,
    large_log_sum,
    whole_log_sum,
)
from pyro_sig.distributions.lineage import Lineage, Origin
from pyro_sig.distributions.mcmc_check import refuse_mcmc
from pyro_sig.distributions.mixing_noise import noise_law, push_noise, sample_noise
from pyro_sig.distributions.pairwise import mixture_log_prob, pairwise_log_prob
from pyro_sig.distributions.particle_mixing import ParticleMixing
from pyro_sig.distributions.psi_posterior import (
    PsiPosterior,
    resample_psi,
    score_psi,
    weigh_psi,
)
from pyro_sig.distributions.psi_stream import PsiStream
from pyro_sig.distributions.score_term import leave_one_out_surrogate

__all__ = ["SemiImplicit"]


class _Draws:
    """The fresh psi and their conditional, shared by all expansions of one object."""

    def __init__(self) -> None:
        self.psi: Tensor | None = None
        self.components: Distribution | None = None
        self.stream: PsiStream | None = None  # how the psi can be drawn again
        self.report: BackwardReport | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        return _Draws, ()

    def clear(self, *_: Tensor) -> None:
        self.psi = self.components = self.stream = None


class _Automatic:
    """Default of ``psi_0``: whatever is remembered for the value."""

    def __repr__(self) -> str:
        return "automatic"


_AUTOMATIC = _Automatic()


def _check_backward(
    backward: object, mixing: Distribution, share_draws: bool, proposal: object
) -> None:
    """Checks that psi can be drawn again one by one, and that all rows meet the same."""
    why = ""
    if isinstance(mixing, ParticleMixing):
        why = "with a ParticleMixing, whose particles are all kept"
    elif not mixing.has_rsample:
        why = "where `mixing` has no rsample"
    elif mixing.batch_shape:
        why = f"where `mixing` has a batch shape, {tuple(mixing.batch_shape)}: rows share no psi"
    elif proposal is not None:
        why = "with a `proposal`, which draws psi for each row"
    elif not share_draws:
        why = "with share_draws=False: rows share no psi"
    if why:
        raise refusal("backward", f"'exact' {why}", backward)


def _check_mixing_group(mixing: Distribution, proposal: object) -> None:
    why = ""
    if isinstance(mixing, ParticleMixing):
        why = "with a ParticleMixing, whose particles every process has"
    elif not mixing.has_rsample:
        why = "where `mixing` has no rsample: the score term needs all psi at once"
    elif proposal is not None:
        why = "with a `proposal`, which draws psi for each row"
    if why:
        raise ValueError(f"`mixing_group` must be None {why}")


class _IndependentRows(Independent):
    """Keeps the score term of the mixing, which Pyro's own class would leave out."""

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:  # noqa: ANN401
        parts = self.base_dist.score_parts(x, *args, **kwargs)
        n = self.reinterpreted_batch_ndims
        return ScoreParts(*(sum_rightmost(x, n) if isinstance(x, Tensor) else x for x in parts))


class SemiImplicit(TorchDistribution):
    r"""Mixes an explicit conditional over a law that only needs to be sampled.

    .. math::
        p(x) = \int p(x \mid \psi)\, p(\psi)\, d\psi, \qquad
        \log \hat p_K(x) = \log \frac{1}{K} \sum_{k=1}^{K} p(x \mid \psi_k)

    ``log_prob`` falls on the side that is valid where it stands:

    * a value drawn here keeps the :math:`\psi_0` that made it, and is scored by the K fresh psi
      *and* :math:`\psi_0`. At a guide's site this is the semi-implicit variational bound, and the
      importance weight is unbiased;
    * any other value, such as an observation or a latent under a semi-implicit prior, meets fresh
      psi only: in expectation a lower bound of :math:`\log p(x)` that tightens as K grows.

    The K psi are drawn and the conditional is run when the object is built, so build it inside
    the model or guide: parameters first touched in the conditional are then captured.

    :param mixing: the law of psi: any distribution, in particular
        :class:`~pyro_sig.distributions.Implicit`. Its batch shape is this one's: an amortised
        mixing of batch shape ``[N]`` gives each row its own K psi. A mixing without ``rsample``
        gets a score-function gradient, with a leave-one-out baseline.
    :param callable conditional: psi of shape ``[*, *mixing.event_shape]`` -> distribution of
        batch shape ``[*]``, continuous or discrete. All rows of data share it: constants of their
        own, such as known standard errors, go into psi through ``Implicit(inputs=)``.
    :param int num_mixing: number K of fresh psi in ``log_prob``.
    :param bool share_draws: whether all rows meet the same fresh psi. Right, and much faster, for
        sums of logs (SVI). Where the joint density of several rows is one number (importance
        weights, PSIS, ``RenyiELBO``), pass False: every row then has its own.
    :param int chunk_size: draw and score this many psi at a time and compute each chunk again
        in the backward pass, so that ``num_mixing`` may exceed memory.
    :param callable proposal: draws psi near a value instead of from the mixing: value of shape
        ``[*rows, *event_shape]`` -> distribution of batch shape ``[*rows]`` over the *noise* of
        the mixing (over psi, where the mixing is no push-forward), with rsample. The mean is then
        weighted, :math:`\frac{1}{K} \sum_k p(x \mid \psi_k) p(\epsilon_k) / \tau(\epsilon_k
        \mid x)`, the bounds hold on the same sides, and the bound trains the proposal. Every row
        has draws of its own.
    :param backward: which psi the backward pass touches: ``"exact"``, all of them;
        ``"responsibility"`` or a :class:`~pyro_sig.distributions.Responsibility`, about 1024
        chosen at random, without bias; ``"top"`` or a :class:`~pyro_sig.distributions.TopK`, the
        8 that explain each datum best. The value is that of all K psi. With either of the two,
        psi are drawn in chunks (of a size found here where ``chunk_size`` is None), each must be
        a function of its own noise, and there are first derivatives only.
    :param mixing_group: a process group of :mod:`torch.distributed` whose W processes draw K / W of
        the psi each; the mean is over all K, and gradients are whole once they are averaged over
        processes, as :func:`~pyro_sig.distributed.data_parallel` does. The value has to be the
        same in all of them (checked while validation is on). None for this process alone.
        ``shared_psi``, ``mean`` and ``variance`` are of the own psi.
    :raises ValueError: for ``num_mixing < 1`` or a conditional of another batch shape; from
        ``log_prob`` for a value outside shape or support. For a ``backward`` that the mixing does
        not allow: it needs rsample, no batch shape, ``share_draws`` and no ``proposal``.

    References: M. Yin and M. Zhou (2018), "Semi-Implicit Generative Model", eq. 3 and 6;
    M. Yin and M. Zhou (2018), "Semi-Implicit Variational Inference", eq. 9; A. Sobolev and
    D. Vetrov (2019), "Importance weighted hierarchical variational inference", eq. 6 (proposal).

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_sig.distributions import Implicit
        >>> noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> mixing = Implicit(torch.nn.Linear(2, 3), noise, event_shape=3)
        >>> p = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.1).to_event(1), num_mixing=50)
        >>> p.log_prob(torch.zeros(7, 3)).shape
        torch.Size([7])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    __repr__ = show_settings

    def __init__(
        self,
        mixing: Distribution,
        conditional: Callable[[Tensor], Distribution],
        num_mixing: int,
        share_draws: bool = True,
        chunk_size: int | None = None,
        proposal: Callable[[Tensor], Distribution] | None = None,
        validate_args: bool | None = None,
        backward: Responsibility | TopK | str = "exact",
        mixing_group: Any = None,  # noqa: ANN401
    ) -> None:
        check_instance("mixing", mixing, Distribution, "a Distribution")
        check_callable("conditional", conditional, "a callable psi -> Distribution", classes=True)
        check_integer("num_mixing", num_mixing, 1)
        if chunk_size is not None:
            check_integer("chunk_size", chunk_size, 1)
        if proposal is not None:
            check_callable("proposal", proposal, "a callable value -> Distribution", classes=True)
        share_draws = check_flag("share_draws", share_draws)
        mode = backward_mode(backward)
        if mode is not None:
            _check_backward(backward, mixing, share_draws, proposal)
        if mixing_group is not None:
            _check_mixing_group(mixing, proposal)
        if isinstance(mixing, ParticleMixing):
            num_mixing, share_draws = len(mixing.particles), True  # the mixture is finite
        elif proposal is not None:
            share_draws = False
        self.mixing = mixing
        self.conditional = conditional
        self.proposal = proposal
        self.num_mixing = num_mixing
        self.share_draws = share_draws
        self.chunk_size = chunk_size
        self.mixing_group = mixing_group
        self._num_own = own_share(num_mixing, mixing_group)
        self._backward = mode
        self._draws = _Draws()
        self._lineage = Lineage()
        if mode is not None:
            with torch.no_grad():
                components = self._fresh()[1]
        else:
            # Two psi are enough to tell whether the support depends on them.
            first = min(self._num_own, chunk_size or self._num_own) if share_draws else 2
            psi, components = self._draw_fresh(first)
            if share_draws:
                self._draws.psi, self._draws.components = psi, components
        if proposal is not None:
            call("proposal", proposal, components.sample())  # here, to capture its parameters
        self._support = mixture_support(components)
        self.has_rsample = mixing.has_rsample and components.has_rsample
        # Some laws of Pyro's have a plain tuple.
        shapes = torch.Size(mixing.batch_shape), torch.Size(components.event_shape)
        super().__init__(*shapes, validate_args=validate_args)

    # ------------------------------------------------------------------------------- psi and shapes

    def _draw(self, mixing: Distribution, shape: tuple[int, ...]) -> tuple[Tensor, Distribution]:
        psi = mixing.rsample(shape) if mixing.has_rsample else mixing.sample(shape)
        return psi, self._components(psi)

    def _draw_fresh(self, size: int) -> tuple[Tensor, Distribution]:
        if isinstance(self.mixing, ParticleMixing):
            psi = self.mixing.particles
            return psi, self._components(psi)
        return self._draw(self.mixing, (size,))

    def _fresh(self) -> tuple[Tensor, Distribution]:
        """The shared draws of this object; drawn anew after a backward pass freed their graph."""
        draws = self._draws
        if self._backward is not None:
            return self._pushed(self._first_of_stream().redraw(self.mixing, 0))
        if draws.psi is None or draws.components is None:
            size = min(self._num_own, self.chunk_size or self._num_own)
            draws.psi, draws.components = self._draw_fresh(size)
        return draws.psi, draws.components

    def _pushed(self, noise: Tensor) -> tuple[Tensor, Distribution]:
        psi = push_noise(self.mixing, noise)
        return psi, self._components(psi)

    def _components(self, psi: Tensor) -> Distribution:
        return run_conditional(self.conditional, psi, len(self.mixing.event_shape), mixed=True)

    def _first_of_stream(self) -> PsiStream:
        """How the first chunk is drawn, which is the same until a backward pass."""
        draws = self._draws
        if draws.stream is None:
            size = self.chunk_size or chunk_for(1024)  # before it is known what a psi emits
            draws.stream = PsiStream()
            draws.stream.draw(self.mixing, min(self._num_own, size))
        return draws.stream

    @property
    def backward_report(self) -> BackwardReport | None:
        """What the last evaluation left to its backward pass, of all expansions of this object.

        None before the first with a gradient, and with ``backward="exact"``.
        """
        return self._draws.report

    @property
    def shared_psi(self) -> Tensor | None:
        """The fresh psi that all rows meet, ``[K, *mixing.batch_shape, *mixing.event_shape]``.

        The first chunk of them with a ``chunk_size``; None with ``share_draws=False``.
        """
        return self._fresh()[0] if self.share_draws else None

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Support of the conditional, as far as all psi share it."""
        return self._support

    @property
    def mean(self) -> Tensor:
        """Monte Carlo mean over the fresh psi."""
        return mixture_moments(self._fresh()[1])[0].expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Monte Carlo variance over the fresh psi, by the law of total variance."""
        return mixture_moments(self._fresh()[1])[1].expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> SemiImplicit:  # noqa: ANN401
        """Returns the same law with another batch shape; the fresh psi are shared with it.

        :param batch_shape: the desired batch shape.
        :return: a distribution that also knows the values drawn from this one.
        """
        new = self._get_checked_instance(SemiImplicit, _instance)
        return self._copy_to(new, expanded_shape(self.batch_shape, batch_shape))

    def _copy_to(self, new: SemiImplicit, batch_shape: torch.Size) -> SemiImplicit:
        for name, x in vars(self).items():
            if name not in ("_batch_shape", "_event_shape", "_lineage"):
                setattr(new, name, x)
        new._lineage = self._lineage.child()
        super(SemiImplicit, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def with_draws(self, num_mixing: int, share_draws: bool | None = None) -> SemiImplicit:
        """Returns the same law, scored by another number of fresh psi.

        :param int num_mixing: number K of psi.
        :param bool share_draws: whether all rows meet the same, by default as here.
        :return: a distribution with draws of its own that also knows the values drawn from this
            one; a mixture over particles, which is exact, stays as it is. Rows with psi of their
            own have the exact gradient.
        :raises ValueError: for ``num_mixing < 1``.
        """
        check_integer("num_mixing", num_mixing, 1)
        if share_draws is not None:
            share_draws = check_flag("share_draws", share_draws)
        new = self._copy_to(SemiImplicit.__new__(SemiImplicit), self.batch_shape)
        if not isinstance(self.mixing, ParticleMixing):
            new.num_mixing, new._draws = num_mixing, _Draws()
            new._num_own = own_share(num_mixing, self.mixing_group)
            if self.proposal is None and share_draws is not None:
                new.share_draws = share_draws
                if not share_draws:
                    new._backward = None  # rows that share no psi share no choice of them
        return new

    # ------------------------------------------------------------------------------------- sampling

    def _sample(self, sample_shape: Sequence[int], method: str) -> Tensor:
        mixing = self.mixing
        if mixing.batch_shape != self.batch_shape:
            mixing = mixing.expand(self.batch_shape)
        noise = sample_noise(mixing, shape_of("sample_shape", sample_shape))
        psi = push_noise(mixing, noise)
        conditional = run_conditional(self.conditional, psi, len(mixing.event_shape))
        value = getattr(conditional, method)()
        self._lineage.remember(value, Origin(psi, conditional, noise))
        return value

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws psi, then a value, with a gradient through both.

        :param sample_shape: shape of independent draws to the left of the batch shape.
        :return: a tensor of shape ``[*sample_shape, *batch_shape, *event_shape]``.
        :raises NotImplementedError: if mixing or conditional cannot be reparameterised.
        """
        if not self.has_rsample:
            raise NotImplementedError(
                "`mixing` and `conditional` must both have rsample; use sample"
            )
        return self._sample(sample_shape, "rsample")

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws psi, then a value, without a gradient; shapes as :meth:`rsample`."""
        return self._sample(sample_shape, "sample")

    def psi(self, value: Tensor) -> Tensor:
        r"""Returns the :math:`\psi_0` behind a value that was drawn here.

        :param torch.Tensor value: a tensor returned by ``sample`` or ``rsample`` (that tensor, not
            a copy).
        :return: a tensor of shape ``[*sample_shape, *batch_shape, *mixing.event_shape]``.
        :raises ValueError: if the value was not drawn from this distribution.
        """
        check_tensor("value", value)
        origin = self._lineage.find(value)
        if origin is None:
            raise ValueError(
                "`value` must be a tensor drawn from this distribution (not a copy, a slice or a "
                f"detached alias), was another tensor of shape {tuple(value.shape)}"
            )
        return origin.psi

    def origin(self, value: Tensor) -> Origin:
        r"""Returns how a value was drawn here: its psi_0, the conditional there, and the noise.

        :param torch.Tensor value: a tensor returned by ``sample`` or ``rsample`` (that tensor, not
            a copy).
        :return: an :class:`~pyro_sig.distributions.lineage.Origin`.
        :raises ValueError: if the value was not drawn from this distribution.
        """
        self.psi(value)
        found = self._lineage.find(value)
        assert found is not None
        return found

    # -------------------------------------------------------------------------------------- scoring

    def log_prob(self, value: Tensor, psi_0: Tensor | None | _Automatic = _AUTOMATIC) -> Tensor:
        r"""Estimates the log-density by the mixture over K fresh psi, and :math:`\psi_0` if known.

        :param torch.Tensor value: of shape ``[*, *batch_shape, *event_shape]``.
        :param psi_0: by default what is remembered for the value; None leaves it out (lower
            bound); a tensor of shape ``[*, *batch_shape, *mixing.event_shape]`` includes it.
        :return: a tensor of the value's batch shape.
        :raises ValueError: for a value of wrong shape or outside the support; under HMC or NUTS,
            which need :meth:`to_mixture`; and, with validation on, for a copy of a drawn value,
            whose psi_0 is lost.
        """
        if self._validate_args and not under_vmap():
            self._validate_sample(value)
        if isinstance(psi_0, _Automatic):
            origin = self._remembered(value)
            if origin is not None:
                self._lineage.mark_scored(value)
        elif psi_0 is None:
            origin = None
        else:
            self._check_psi_0(psi_0, value)
            conditional = run_conditional(self.conditional, psi_0, len(self.mixing.event_shape))
            noise = None if isinstance(self.mixing, Implicit) else psi_0
            origin = Origin(psi_0, conditional, noise)
        return self._estimate(value, origin)[0]

    def log_prob_bounds(
        self, value: Tensor, psi_0: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        r"""Bounds the log-density from below and, where :math:`\psi_0` is known, from above.

        .. math::
            \mathbb{E} \log \frac{1}{K} \sum_{k \ge 1} p(x \mid \psi_k) \le \log p(x), \qquad
            \mathbb{E} \log \frac{1}{K + 1} \sum_{k \ge 0} p(x \mid \psi_k) \ge
            \mathbb{E} \log p(x)

        The upper one holds on average over values drawn together with their psi_0.

        :param torch.Tensor value: of shape ``[*, *batch_shape, *event_shape]``.
        :param torch.Tensor psi_0: the psi behind the value, if it is not remembered.
        :return: lower bound, and upper bound or None.
        """
        lower = self.log_prob(value, psi_0=None)
        if psi_0 is None:
            origin = self._lineage.find(value)
            return lower, None if origin is None else self._estimate(value, origin)[0]
        return lower, self.log_prob(value, psi_0=psi_0)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:  # noqa: ANN401
        """Splits the log-density for Pyro's gradient estimators, at a guide's site.

        :raises ValueError: with validation on, if the model scored the same value by this very
            object: as a prior it must not count psi_0, and cannot tell that it is one. Also
            with a ``proposal`` where there is no rsample.
        """
        if self._validate_args:
            self._validate_sample(x)
            if self._lineage.was_scored(x):
                raise ValueError(
                    "one SemiImplicit object must not be both guide and prior of a value: give "
                    "the prior its own object, or prior.expand(prior.batch_shape)"
                )
        if self.proposal is not None and not self.has_rsample:
            raise ValueError(
                "`proposal` must be None in a guide whose mixing or conditional has no rsample: "
                "its gradient would be biased"
            )
        # The K + 1 psi and the value have joint density prod_k p(psi_k) x mean_k p(x | psi_k).
        log_prob, log_mixing = self._estimate(x, self._remembered(x), score_term=False)
        if self.has_rsample:
            return ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]
        return ScoreParts(log_prob, log_prob + log_mixing, 0)  # type: ignore[arg-type]

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Distribution:
        """Makes rightmost batch dimensions event dimensions: a product of independent rows.

        :param int reinterpreted_batch_ndims: how many, by default all.
        :return: an independent distribution of fewer batch dimensions.
        """
        if reinterpreted_batch_ndims is not None:
            check_integer("reinterpreted_batch_ndims", reinterpreted_batch_ndims, 0, int)
        independent = super().to_event(reinterpreted_batch_ndims)
        if isinstance(independent, Independent):
            independent.__class__ = _IndependentRows
        return independent

    def _remembered(self, value: Tensor) -> Origin | None:
        origin = self._lineage.find(value)
        if origin is None and self._lineage.holds_copy_of(
            value, equal=self._validate_args and not self._support.is_discrete
        ):  # neither reading would be right
            raise ValueError(
                "`value` must be the drawn tensor itself, was a copy of it (`detach` or `clone`) "
                "that has lost its psi_0; pass log_prob(value, psi_0=...) with the psi_0 of "
                "`.psi(drawn)`, or psi_0=None for the lower bound without it. "
                "ReweightedWakeSleep detaches what the guide draws and reads one log_prob twice: "
                "its weights need psi_0, its wake-phi update must not count it. Use Trace_ELBO or "
                "RenyiELBO instead"
            )
        return origin

    def _estimate(
        self, value: Tensor, origin: Origin | None, score_term: bool = True
    ) -> tuple[Tensor, Tensor | float]:
        """Log of the mean density, and the log-density of the psi where these lack rsample."""
        if not isinstance(self.mixing, ParticleMixing):
            refuse_mcmc(
                "a SemiImplicit",
                "draw its psi once, before the model runs: sample from "
                "law.to_mixture(num_mixing), or from FixedMixture(psi, conditional) where the "
                "conditional depends on a latent",
            )
        if not value.numel():  # no rows, which torch's laws of vectors cannot score
            return torch.zeros(self._rows(value), device=value.device), 0.0
        if self.proposal is not None:
            return self._proposed(value, origin), 0.0
        if isinstance(self.mixing, ParticleMixing):
            origin = None  # all psi enter as it is
        # First, while a transform in the conditional has the value in its cache.
        own = None if origin is None else component_log_prob(origin.conditional, value)
        log_mixing: Tensor | float = 0.0
        if self.mixing.has_rsample:
            log_sum = self._log_sum(value)
            if self.mixing_group is not None:
                if self._validate_args:
                    check_same("value", value, self.mixing_group)
                log_sum = all_reduce_logsumexp(log_sum, self.mixing_group)
        else:
            if self.chunk_size is not None:
                raise ValueError(
                    "`chunk_size` must be None where `mixing` has no rsample: the score term needs "
                    f"all psi at once; was {self.chunk_size}"
                )
            psi, scores, dim = self._all_scores(value)
            log_psi = self.mixing.log_prob(psi)
            log_mixing = log_psi.sum(dim)
            if origin is None and score_term:
                log_sum = leave_one_out_surrogate(scores, log_psi, dim)
            else:
                log_sum = scores.logsumexp(dim)
        if origin is None or own is None:
            log_prob = log_sum - math.log(self.num_mixing)
        else:
            log_prob = torch.logaddexp(log_sum, own) - math.log1p(self.num_mixing)
            if not self.mixing.has_rsample:
                log_mixing = log_mixing + self.mixing.log_prob(origin.psi)
        shape = broadcast_shape(log_prob.shape, self.batch_shape)
        if log_prob.requires_grad and self.share_draws:
            log_prob.register_hook(self._draws.clear)  # the graph is gone: draw anew next time
        return log_prob.expand(shape), log_mixing

    def _log_sum(self, value: Tensor) -> Tensor:
        if self._backward is not None:
            return self._log_sum_of_chosen(value, self._backward)
        if self.share_draws:
            psi, components = self._fresh()
            parts = [mixture_log_prob(components, value)]
            left = self._num_own - len(psi)

            def chunk(value: Tensor, size: int) -> Tensor:
                return mixture_log_prob(self._draw(self.mixing, (size,))[1], value)

        else:
            parts, left = [], self._num_own
            mixing, shape = self._own_mixing(value)

            def chunk(value: Tensor, size: int) -> Tensor:
                components = self._draw(mixing, (size, *shape))[1]
                return component_log_prob(components, value).logsumexp(0)

            if self.chunk_size is None:
                return chunk(value, left)
        while left > 0:
            size = min(left, self.chunk_size or left)
            parts.append(checkpoint(chunk, value, size, use_reentrant=False))
            left -= size
        return whole_log_sum(parts)

    def _log_sum_of_chosen(self, value: Tensor, mode: Responsibility | TopK) -> Tensor:
        """All psi are scored; those that the mode chooses are drawn again with a gradient."""
        if under_vmap():
            raise ValueError("`backward` must be 'exact' under torch.func.vmap")
        rows = self._rows(value)
        flat = value.expand(rows + self.event_shape).reshape(rows.numel(), *self.event_shape)
        stream = self._first_of_stream().fork()
        is_drawn = [True]  # the first chunk

        def scored(noise: Tensor, value: Tensor = flat) -> Tensor:
            return pairwise_log_prob(self._pushed(noise)[1], value).mT

        def new_scores(size: int) -> Tensor:
            drawn = is_drawn.pop() if is_drawn else False
            return scored(
                stream.redraw(self.mixing, 0) if drawn else stream.draw(self.mixing, size)
            )

        def chosen_scores(chosen: Tensor) -> Tensor:
            if len(chosen) > 1 or self._num_own == 1:
                return scored(stream.rows(self.mixing, chosen))
            # That the support depends on psi shows between two of them only.
            at = min(int(chosen), 1)
            return scored(stream.rows(self.mixing, chosen - at + torch.arange(2)))[:, at : at + 1]

        scores = Scores(
            new_scores,
            lambda chunk: scored(stream.redraw(self.mixing, chunk)),
            chosen_scores,
            stream.seed,
        )
        largest = max(self.event_shape.numel(), self.mixing.event_shape.numel())
        chunk = self.chunk_size or chunk_for(largest, rows.numel(), value.device)
        sizes = chunk_sizes(self._num_own, stream.sizes[0], chunk)
        log_sum, report = large_log_sum(scores, sizes, mode)
        self._draws.report = report or self._draws.report
        return log_sum.reshape(rows)

    def _proposed(self, value: Tensor, origin: Origin | None) -> Tensor:
        """Log of the weighted mean over psi from the proposal."""
        value, law, tau = self._proposal_near(value)
        log_sum = self._weigh_proposed(value, law, tau)[1].logsumexp(0)
        if origin is None:
            return log_sum - math.log(self.num_mixing)
        if origin.noise is None:
            raise ValueError(
                "`psi_0` must be left to what the distribution remembers where `proposal` is "
                "given: the weight needs the noise behind it"
            )
        own = component_log_prob(origin.conditional, value)
        own = own + law.log_prob(origin.noise) - tau.log_prob(origin.noise)
        return torch.logaddexp(log_sum, own) - math.log1p(self.num_mixing)

    def _proposal_near(self, value: Tensor) -> tuple[Tensor, Distribution, Distribution]:
        """The value with all its rows, the law of the noise there, and the proposal for it."""
        assert self.proposal is not None
        rows = self._rows(value)
        value = value.expand(rows + self.event_shape)
        law = noise_law(self.mixing.expand(rows))
        tau = call("proposal", self.proposal, value)
        if not isinstance(tau, Distribution):
            raise ValueError(f"`proposal` must return a Distribution, was {type(tau).__name__}")
        if tau.batch_shape != rows or tau.event_shape != law.event_shape or not tau.has_rsample:
            raise ValueError(
                f"`proposal` must return a distribution of batch_shape {tuple(rows)} and "
                f"event_shape {tuple(law.event_shape)} (the noise of the mixing) with rsample, was "
                f"{type(tau).__name__} of {tuple(tau.batch_shape)} and {tuple(tau.event_shape)}"
            )
        return value, law, tau

    def _weigh_proposed(
        self, value: Tensor, law: Distribution, tau: Distribution, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Psi from the proposal, and the log weight of each for its row."""
        noise = tau.rsample((size or self.num_mixing,))
        mixing = self.mixing.expand(tau.batch_shape)
        psi = push_noise(mixing, noise)
        components = self._components(psi)
        scores = component_log_prob(components, value)
        return psi, scores + law.log_prob(noise) - tau.log_prob(noise)

    def _rows(self, value: Tensor) -> torch.Size:
        """Batch shape of the value's log-density."""
        rows = value.shape[: value.dim() - len(self.event_shape)]
        return torch.Size(broadcast_shape(rows, self.batch_shape))

    def _own_mixing(self, value: Tensor) -> tuple[Distribution, torch.Size]:
        """Mixing and sample shape that give every row of the value its own psi."""
        rows = self._rows(value)
        extra = len(rows) - len(self.batch_shape)
        return self.mixing.expand(rows[extra:]), rows[:extra]

    def _all_scores(self, value: Tensor) -> tuple[Tensor, Tensor, int]:
        """Psi, the log-densities under each of them, and the dimension that counts them."""
        if not self.share_draws:
            mixing, shape = self._own_mixing(value)
            psi, components = self._draw(mixing, (self.num_mixing, *shape))
            return psi, component_log_prob(components, value), 0
        psi, components = self._fresh()
        value = value.expand(self._rows(value) + self.event_shape)
        dim = -1 - len(self.mixing.batch_shape)
        value = value.unsqueeze(dim - len(self.event_shape))
        return psi, component_log_prob(components, value), dim

    # ------------------------------------------------------------------ posterior, and frozen forms

    @torch.no_grad()
    def psi_posterior(
        self,
        value: Tensor,
        num_mixing: int | None = None,
        chunk_size: int | None = None,
        num_draws: int = 1000,
    ) -> PsiPosterior:
        r"""Infers psi from a value, by importance resampling of mixing draws.

        .. math::
            p(\psi \mid x) \approx \sum_m w_m \delta_{\psi_m}, \qquad
            w_m \propto p(x \mid \psi_m), \quad \psi_m \sim p(\psi)

        With a fitted mixing law this is the empirical Bayes posterior. A ``proposal`` draws the
        psi near each value, where it is given.

        :param torch.Tensor value: of shape ``[*, *batch_shape, *event_shape]``.
        :param int num_mixing: number M of mixing draws, by default this distribution's.
        :param int chunk_size: draw this many psi at a time, so that M may exceed memory, and keep
            ``num_draws``; by default this distribution's. Without one, all M are kept.
        :param int num_draws: resampled draws to keep for each row where ``chunk_size`` is given.
        :return: the posterior of each row: draws, mean, variance, evidence, and the effective
            sample size, which says whether M was enough.
        :raises ValueError: for a value outside shape or support, or one that no psi can emit.

        Example::

            >>> import pyro.distributions as dist
            >>> p = SemiImplicit(dist.Gamma(2.0, 1.0), dist.Poisson, num_mixing=10)
            >>> posterior = p.psi_posterior(torch.tensor([0.0, 3.0]), 100_000, chunk_size=10_000)
            >>> ((posterior.mean - torch.tensor([1.0, 2.5])).abs() < 0.05).all()
            tensor(True)
        """
        num_mixing = self.num_mixing if num_mixing is None else num_mixing
        chunk_size = self.chunk_size if chunk_size is None else chunk_size
        check_integer("num_mixing", num_mixing, 1)
        check_integer("num_draws", num_draws, 1)
        if chunk_size is not None:
            check_integer("chunk_size", chunk_size, 1)
        if self._validate_args:
            self._validate_sample(value)
        if isinstance(self.mixing, ParticleMixing):
            return weigh_psi(*self._weigh_fresh(value, num_mixing))
        draw = self._weigh_fresh
        if self.proposal is not None:
            near = self._proposal_near(value)

            def draw(value: Tensor, size: int) -> tuple[Tensor, Tensor]:
                return self._weigh_proposed(*near, size)

        if chunk_size is None:
            return weigh_psi(*draw(value, num_mixing))
        sizes = [min(chunk_size, num_mixing - i) for i in range(0, num_mixing, chunk_size)]
        return resample_psi((draw(value, size) for size in sizes), num_draws)

    def _weigh_fresh(self, value: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Psi from the mixing, ``[size, *rows or 1, *event]``, and its score at every row."""
        mixing = self.mixing
        psi = mixing.particles if isinstance(mixing, ParticleMixing) else mixing.sample((size,))
        rows = self._rows(value)
        return score_psi(self.conditional, psi, len(self.mixing.event_shape), value, rows)

    def to_mixture(self, num_mixing: int | None = None) -> FixedMixture:
        r"""Freezes psi, for a ``log_prob`` that is deterministic (NUTS needs one).

        :param int num_mixing: number of psi, by default this distribution's.
        :return: a mixture over psi drawn now, without a gradient to the mixing.
        :raises ValueError: for ``num_mixing < 1``.
        """
        num_mixing = self.num_mixing if num_mixing is None else num_mixing
        check_integer("num_mixing", num_mixing, 1)
        with torch.no_grad():
            psi = self.mixing.sample((num_mixing,))
            mixture = FixedMixture(
                psi,
                self.conditional,
                len(self.mixing.event_shape),
                self.chunk_size,
                validate_args=self._validate_args,
            )
        return mixture.expand(self.batch_shape)

    # ----------------------------------------------------------------------------------- validation

    def _validate_sample(self, value: Tensor) -> None:
        check_value(value, self.event_shape, self.batch_shape)
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                "`value` must be finite, was NaN or infinite in some entries; leave missing "
                "data out by poutine.mask, with any number in their place"
            )
        check_inside(value, self._support, "conditional's")

    def _check_psi_0(self, psi_0: Tensor, value: Tensor) -> None:
        check_tensor("psi_0", psi_0)
        event = self.mixing.event_shape
        rows, own = self._rows(value), psi_0.shape[: max(0, psi_0.dim() - len(event))]
        if psi_0.shape != own + event or rows[len(rows) - len(own) :] != own:
            raise ValueError(
                f"`psi_0` must be of shape {tuple(rows + event)}, one psi for each row of the "
                f"value, was {tuple(psi_0.shape)}"
            )
