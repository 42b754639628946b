"""An automatic guide with a semi-implicit posterior."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_sig._arguments import check_choice, check_flag, check_integer, check_number, check_sizes
from pyro_sig._functions import check_callable
from pyro_sig.distributions import Implicit, LowRankAffine, SemiImplicit, TriangularAffine
from pyro_sig.distributions.log_mixture import full_precision
from pyro_sig.infer._bad_site import describe_bad_site
from pyro_sig.infer._check_programs import check_start
from pyro_sig.infer._guide_parts import (
    WholeSetUp,
    location_and_scale,
    location_scale_network,
)
from pyro_sig.infer._potential import unconstrained_log_density
from pyro_sig.infer.find_scale import NoStartError, ScaleReport, find_scale

__all__ = ["AutoSemiImplicit"]

_COVARIANCES = ("full", "low_rank", "diagonal")
# From here on a dense factor costs more than the network.
_MAX_FULL = 300
# Starting points near the origin, tried for location and scale.
_NUM_NEAR = 6
_NUM_SUMMARY_DRAWS = 10_000
_NO_SEARCH = ScaleReport(
    "no search: the model draws what is hidden from this guide", math.nan, math.nan, 0, 0, 0, 0
)


class AutoSemiImplicit(WholeSetUp, AutoContinuous):
    r"""Approximates the joint posterior by an explicit conditional over an implicit law.

    .. math::
        q(z) = \int q(z \mid \psi) q(\psi) d\psi, \qquad
        z = m + S A \{\mu_\phi(\epsilon) + \sigma_\phi(\epsilon) \odot \eta\}

    where :math:`\epsilon` and :math:`\eta` are standard normal, :math:`\mu_\phi, \sigma_\phi` the
    outputs of a network, :math:`A` a trained matrix that all components share, and
    :math:`m, S` location and scale that :func:`find_scale` finds when the guide is first called.
    The posterior is over the unconstrained latents of all sites together and may be skewed,
    correlated and multimodal. Use it as :class:`~pyro.infer.autoguide.AutoNormal`.

    :param callable model: a Pyro model with continuous latents.
    :param int noise_dim: size of :math:`\epsilon`; by default that of the latents, between 3 and
        32.
    :param hidden_dims: sizes of the network's hidden layers; by default two of 64, or of 128
        for more than 32 latents.
    :param int num_mixing: number K of fresh psi in ``log_prob``.
    :param str covariance: ``"full"`` (A is triangular: exact for correlated normal posteriors),
        ``"low_rank"`` (A is the identity and a symmetric update of rank ``rank``) or
        ``"diagonal"``; by default full up to 300 latents, then low rank.
    :param int rank: of the low-rank update; by default about the root of the number of latents.
    :param bool share_draws: whether all particles meet the same fresh psi; see
        :class:`~pyro_sig.distributions.SemiImplicit`.
    :param callable init_loc_fn: a per-site initialisation, as for every Pyro guide.
    :param float init_scale: standard deviation of every unconstrained latent, where the search
        for the scale starts.
    :param bool find_scale: whether to search for location and scale; without it they are the
        initial location and ``init_scale``. So they are where the model draws something of its
        own, such as a latent that :func:`pyro.poutine.block` hides for another guide or for
        :class:`SIG_ELBO`: a search would meet one draw of it.
    :ivar scale_report: what the search found, after the first call.
    :raises ValueError: for a discrete latent, one without a density under ``find_scale=True``, an
        unknown covariance, or sizes below 1; before the search, for a site that cannot be scored,
        or in another shape than that of its plates.

    References: M. Yin and M. Zhou (2018), "Semi-Implicit Variational Inference".

    Example::

        >>> import pyro
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x.square(), 0.5), obs=torch.tensor(1.0))
        >>> guide = AutoSemiImplicit(model)
        >>> svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), Trace_ELBO())
        >>> isinstance(svi.step(), float)
        True
        >>> guide.scale_report.method, guide.scale_report.num_modes
        ('several modes', 2)
    """

    scale_report: ScaleReport | None

    def __init__(
        self,
        model: Callable[..., Any],
        noise_dim: int | None = None,
        hidden_dims: Sequence[int] | None = None,
        num_mixing: int = 200,
        covariance: str | None = None,
        *,
        rank: int | None = None,
        share_draws: bool = True,
        init_loc_fn: Callable[[dict], Tensor] = init_to_median,
        init_scale: float = 0.1,
        find_scale: bool = True,
    ) -> None:
        for name, size in (("noise_dim", noise_dim), ("rank", rank)):
            if size is not None:
                check_integer(name, size, 1)
        check_callable("model", model, "a program, a function or a module")
        check_callable("init_loc_fn", init_loc_fn, "a function", modules=False)
        if hidden_dims is not None:
            hidden_dims = check_sizes("hidden_dims", hidden_dims)
        check_integer("num_mixing", num_mixing, 1)
        if covariance is not None:
            check_choice("covariance", covariance, _COVARIANCES)
        check_flag("share_draws", share_draws)
        check_flag("find_scale", find_scale)
        init_scale = check_number("init_scale", init_scale, above=0)
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.noise_dim, self.hidden_dims = noise_dim, hidden_dims
        self.num_mixing, self.share_draws = num_mixing, share_draws
        self.covariance, self.rank = covariance, rank
        self.init_scale = init_scale
        self.find_scale = find_scale
        self.scale_report = None
        self._given_model = (model,)  # in a tuple: no submodule, as in Pyro's own guides

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's guides are pickled without their model.
        return {**super().__getstate__(), "_given_model": None}

    # ------------------------------------------------------------------------------------- set-up

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_store()
        init_loc = self._init_loc()
        dim = self.latent_dim
        if self.covariance is None:
            self.covariance = "full" if dim <= _MAX_FULL else "low_rank"
        if self.noise_dim is None:
            self.noise_dim = min(max(3, dim), 32)
        if self.hidden_dims is None:
            self.hidden_dims = [64, 64] if dim <= 32 else [128, 128]
        if self.rank is None:
            self.rank = min(dim, max(1, round(math.sqrt(dim))))
        loc, scale_tril = init_loc, self.init_scale * torch.eye(dim).to(init_loc)
        if self.find_scale:
            trace, is_random = check_start(self._given_model[0], self.prototype_trace, args, kwargs)
            if is_random:
                # One draw of what this guide does not know would be searched as if it were known.
                self.scale_report = _NO_SEARCH
            else:
                loc, scale_tril, self.scale_report = self._search(init_loc, trace, args, kwargs)
        self.register_buffer("loc", loc)
        if self.covariance == "full":
            self.register_buffer("scale_tril", scale_tril)
            self.tril_offset = nn.Parameter(torch.zeros_like(scale_tril))
        else:
            self.register_buffer("scale", torch.linalg.vector_norm(scale_tril, dim=-1))
        if self.covariance == "low_rank":
            self._init_factor(scale_tril)
        self.network = location_scale_network(self.noise_dim, self.hidden_dims, dim, init_loc)

    def _search(
        self, init_loc: Tensor, trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, ScaleReport]:
        log_density = unconstrained_log_density(
            self._given_model[0], self._unpack_latent, args, kwargs
        )
        # The user's start may be a draw from a very wide prior: the origin and points near it
        # are tried as well.
        generator = torch.Generator().manual_seed(0)
        near = 4 * torch.rand(_NUM_NEAR, self.latent_dim, generator=generator).to(init_loc) - 2
        starts = torch.stack([init_loc, torch.zeros_like(init_loc), *near])
        try:
            return find_scale(log_density, starts, init_scale=self.init_scale)
        except NoStartError as error:
            found = describe_bad_site(trace, "model") or "that or its gradient is not"
            raise ValueError(
                f"`model` must have a finite log-density at the start of the guide, but {found}; "
                "if data are not at fault, pass another `init_loc_fn`"
            ) from error

    def _check_store(self) -> None:
        store = pyro.get_param_store()
        if any(name.startswith(f"{self._pyro_name}.") for name in store.keys()):
            warnings.warn(
                f"the param store holds parameters of another guide named {self._pyro_name!r}, "
                "which this one will take over; call pyro.clear_param_store() first for a fresh "
                "start",
                stacklevel=2,
            )

    def _init_factor(self, scale_tril: Tensor) -> None:
        """The update of the identity that comes nearest to the correlations found."""
        assert self.rank is not None
        rows = scale_tril / torch.linalg.vector_norm(scale_tril, dim=-1, keepdim=True)
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        # (I + W W')^2 has the eigenvalue l where W W' has sqrt(l) - 1.
        gains = (values[-self.rank :].clamp_min(1e-6).sqrt() - 1).clamp_min(1e-4).sqrt()
        self.cov_factor = nn.Parameter(vectors[:, -self.rank :] * gains)

    # ---------------------------------------------------------------------------------- posterior

    def get_transform(self, *args: Any, **kwargs: Any) -> dist.transforms.Transform:  # noqa: ANN401
        """Returns the affine map that all components share, from the network's coordinates.

        :param args: arguments of the model, ignored.
        :param kwargs: keyword arguments of the model, ignored.
        """
        if self.covariance == "full":
            eye = torch.eye(self.latent_dim).to(self.loc)
            diagonal = nn.functional.softplus(self.tril_offset.diagonal() + math.log(math.e - 1))
            shape = self.tril_offset.tril(-1) + eye * diagonal
            with full_precision(self.loc.device):
                scale_tril = self.scale_tril @ shape
            return TriangularAffine(self.loc, scale_tril, cache_size=1)
        if self.covariance == "low_rank":
            return LowRankAffine(self.loc, self.scale, self.cov_factor)
        return LowRankAffine(self.loc, self.scale, self.loc.new_zeros(self.latent_dim, 0))

    def get_base_dist(self) -> SemiImplicit:
        """Returns the semi-implicit law in the network's coordinates."""
        return self._semi_implicit([])

    def get_posterior(
        self,
        *args: Any,
        num_mixing: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> SemiImplicit:
        """Returns the semi-implicit law of the unconstrained latents.

        The affine map is folded into the conditional: put around the mixture it would hide from it
        which psi made a value.

        :param args: arguments of the model, ignored.
        :param int num_mixing: number of fresh psi, by default the guide's.
        :param kwargs: keyword arguments of the model, ignored.
        """
        return self._semi_implicit([self.get_transform(*args, **kwargs)], num_mixing)

    def _semi_implicit(
        self, transforms: list[dist.transforms.Transform], num_mixing: int | None = None
    ) -> SemiImplicit:
        def conditional(psi: Tensor) -> dist.TorchDistribution:
            normal = dist.Normal(*location_and_scale(psi)).to_event(1)
            return dist.TransformedDistribution(normal, transforms) if transforms else normal

        noise = dist.Normal(self.loc.new_zeros(self.noise_dim), 1.0).to_event(1)
        mixing = Implicit(self.network, noise, event_shape=2 * self.latent_dim)
        num_mixing = self.num_mixing if num_mixing is None else num_mixing
        return SemiImplicit(mixing, conditional, num_mixing, share_draws=self.share_draws)

    # ------------------------------------------------------------------------------------ summaries

    @torch.no_grad()
    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """Draws from the joint posterior.

        :param int num_samples: number of draws.
        :return: site name -> draws, of shape ``[num_samples, *]`` with the site's own shape.
        :raises ValueError: before the guide has been called, or for ``num_samples < 1``.
        """
        check_integer("num_samples", num_samples, 1)
        self._check_called("draws from it are taken")
        draws = {}
        for site, latent in self._sites(self.get_posterior().sample((num_samples,))):
            draws[site["name"]] = biject_to(site["fn"].support)(latent)
        return draws

    def _check_called(self, before: str) -> None:
        if self.prototype_trace is None:
            raise ValueError(
                f"the guide must be called once with the model's arguments before {before}, was "
                "not: it makes its parameters then"
            )

    def _sites(self, latent: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Splits draws ``[S, D]`` into sites of shape ``[S, *shape]``."""
        position = 0
        assert self.prototype_trace is not None
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            shape = self._unconstrained_shapes[name]
            part = latent[:, position : position + shape.numel()]
            position += shape.numel()
            yield site, part.reshape(len(latent), *shape)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Returns the posterior median of each latent, from 10,000 draws.

        Medians are taken in each unconstrained coordinate, as those of every Pyro guide.

        :param args: arguments of the model, ignored.
        :param kwargs: keyword arguments of the model, ignored.
        :return: site name -> median.
        """
        return {name: x[0] for name, x in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self,
        quantiles: Sequence[float],
        *args: Any,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Tensor]:
        """Returns posterior quantiles of each latent, from 10,000 draws.

        :param quantiles: numbers between 0 and 1.
        :param args: arguments of the model, ignored.
        :param kwargs: keyword arguments of the model, ignored.
        :return: site name -> tensor with the quantiles along its first dimension.
        """
        self._check_called("it is summarised")
        draws = self.get_posterior().sample((_NUM_SUMMARY_DRAWS,))
        levels = torch.as_tensor(quantiles).to(draws)
        result: dict[str, list[Tensor]] = {}
        for latent in draws.quantile(levels, dim=0):
            for site, unconstrained in self._unpack_latent(latent):
                value = biject_to(site["fn"].support)(unconstrained)
                result.setdefault(site["name"], []).append(value)
        return {name: torch.stack(values) for name, values in result.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Restores parameters, location and scale.

        :param state_dict: as ``state_dict`` returned it.
        :param args: as :class:`torch.nn.Module` takes them.
        :param kwargs: as :class:`torch.nn.Module` takes them.
        :raises ValueError: before the guide has been called: it has no parameters yet.
        """
        self._check_called("its state is loaded")
        return super().load_state_dict(state_dict, *args, **kwargs)
