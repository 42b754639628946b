"""An automatic guide with a semi-implicit posterior for every site, also in subsampled plates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.guides import AutoGuide, deep_setattr
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.nn import PyroModule, PyroParam
from pyro.ops.tensor_utils import periodic_repeat
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_sig._arguments import check_flag, check_integer, check_number, check_sizes
from pyro_sig._functions import check_callable
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer._guide_parts import (
    WholeSetUp,
    location_and_scale,
    location_scale_network,
)

__all__ = ["AutoLocalSemiImplicit"]


class AutoLocalSemiImplicit(WholeSetUp, AutoGuide):
    r"""Approximates the posterior of each site, row by row, by a semi-implicit law.

    .. math::
        q(z_i) = \int q(z_i \mid \psi) q(\psi \mid c_i) d\psi, \qquad
        \psi = f_\phi(\epsilon, c_i)

    One network per site serves all rows of its plates. What it knows of row i, the context
    :math:`c_i`, comes from an encoder of the data (amortised) or is a parameter of that row. Plates
    may be subsampled: fixed latent shapes, as :class:`AutoSemiImplicit` needs them, are not. Sites
    are independent given the data. For global latents with their correlations, put this guide
    and :class:`AutoSemiImplicit` side by side in an :class:`~pyro.infer.autoguide.AutoGuideList`.

    :param callable model: a Pyro model with continuous latents.
    :param callable encoder: arguments of the model -> features of shape ``[*rows, F]``, for all
        rows of the plates or for those of the subsample. A module is trained with the guide.
        Without it, and at sites outside of all plates, every row has a location, a scale and
        ``context_dim`` numbers of its own.
    :param int noise_dim: size of the noise :math:`\epsilon`; by default that of a site's latent,
        between 3 and 32.
    :param hidden_dims: sizes of the networks' hidden layers.
    :param int num_mixing: number K of fresh psi of each row in ``log_prob``.
    :param int context_dim: numbers per row where there is no encoder.
    :param bool share_draws: whether all particles meet the same fresh psi; see
        :class:`~pyro_sig.distributions.SemiImplicit`.
    :param callable init_loc_fn: a per-site initialisation.
    :param float init_scale: initial standard deviation of the unconstrained latents. Begin wide:
        a mode that no draw reaches is not found.
    :param callable create_plates: as Pyro's autoguides take it.
    :raises ValueError: for a discrete latent or sizes below 1.

    References: M. Yin and M. Zhou (2018), "Semi-Implicit Variational Inference", section 4.4.

    Example::

        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(x):
        ...     with pyro.plate("data", len(x), subsample_size=2) as index:
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=x[index])
        >>> guide = AutoLocalSemiImplicit(model, encoder=lambda x: x.unsqueeze(-1))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        >>> isinstance(svi.step(torch.ones(10)), float)
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: Callable[..., Tensor] | None = None,
        noise_dim: int | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        num_mixing: int = 50,
        *,
        context_dim: int = 8,
        share_draws: bool = True,
        init_loc_fn: Callable[[dict], Tensor] = init_to_median,
        init_scale: float = 0.5,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        sizes = [("num_mixing", num_mixing), ("context_dim", context_dim)]
        sizes += [("noise_dim", noise_dim)] if noise_dim is not None else []
        for name, size in sizes:
            check_integer(name, size, 1)
        check_callable("model", model, "a program, a function or a module")
        check_callable("encoder", encoder, optional=True)
        check_callable("init_loc_fn", init_loc_fn, "a function", modules=False)
        check_callable("create_plates", create_plates, optional=True)
        check_flag("share_draws", share_draws)
        hidden_dims = check_sizes("hidden_dims", hidden_dims)
        init_scale = check_number("init_scale", init_scale, above=0)
        super().__init__(InitMessenger(init_loc_fn)(model), create_plates=create_plates)
        self.encoder = encoder
        self.noise_dim, self.hidden_dims = noise_dim, hidden_dims
        self.num_mixing, self.context_dim = num_mixing, context_dim
        self.share_draws, self.init_scale = share_draws, init_scale

    # ------------------------------------------------------------------------------------- set-up

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self.prototype_trace is not None
        self._event_shapes: dict[str, torch.Size] = {}
        self.networks = PyroModule()
        self.locs, self.scales, self.contexts = PyroModule(), PyroModule(), PyroModule()
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            value = site["value"].detach()
            loc = biject_to(site["fn"].support).inv(value).detach()
            event_dim = site["fn"].event_dim + loc.dim() - value.dim()
            self._event_shapes[name] = loc.shape[loc.dim() - event_dim :]
            for frame in site["cond_indep_stack"]:
                full_size = frame.full_size or frame.size
                if full_size != frame.size:
                    loc = periodic_repeat(loc, full_size, frame.dim - event_dim).contiguous()
            num_features = self.context_dim
            encoded = self._encoded(site)
            if not encoded:
                rows = loc.shape[: loc.dim() - event_dim]
                scale = torch.full_like(loc, self.init_scale)
                context = 0.1 * torch.randn(*rows, num_features).to(loc)
                deep_setattr(self.locs, name, PyroParam(loc, constraints.real, event_dim))
                deep_setattr(self.scales, name, PyroParam(scale, constraints.positive, event_dim))
                deep_setattr(self.contexts, name, PyroParam(context, constraints.real, 1))
            else:
                with torch.no_grad():
                    num_features = self._features(args, kwargs).shape[-1]
                # The network gives location and scale: one start for all rows.
                loc = loc.reshape(-1, *self._event_shapes[name]).mean(0)
            size = self._event_shapes[name].numel()
            noise_dim = self.noise_dim or min(max(3, size), 32)
            # Around the row's own location and scale, or as these themselves.
            start = {"loc": loc.flatten(), "scale": self.init_scale} if encoded else {}
            network = location_scale_network(
                noise_dim + num_features, self.hidden_dims, size, loc, **start
            )
            deep_setattr(self.networks, name, network)

    def _create_plates(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self.create_plates is None:
            return super()._create_plates(*args, **kwargs)
        try:
            return super()._create_plates(*args, **kwargs)
        except (AssertionError, TypeError) as error:  # Pyro asserts what they are
            raise ValueError(
                "`create_plates` must take the arguments of the model and return a plate or an "
                f"iterable of plates, but: {error}"
            ) from error

    def _encoded(self, site: dict[str, Any]) -> bool:
        """A site outside of all plates has no row of features."""
        return self.encoder is not None and any(f.vectorized for f in site["cond_indep_stack"])

    def _features(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        assert self.encoder is not None
        features: Any = self.encoder(*args, **kwargs)
        if not isinstance(features, Tensor) or features.dim() < 1:
            was = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"`encoder` must return features of shape [*rows, F], was {was}")
        return features

    # ---------------------------------------------------------------------------------- posterior

    def _posterior(self, name: str, features: Tensor | None) -> SemiImplicit:
        network = attrgetter(name)(self.networks)
        event_shape = self._event_shapes[name]
        size = event_shape.numel()
        dims = len(event_shape)
        if features is None:
            loc, scale = attrgetter(name)(self.locs), attrgetter(name)(self.scales)
            context = attrgetter(name)(self.contexts)
        else:
            loc, scale = features.new_zeros(()), features.new_ones(())
            context = pyro.subsample(features, event_dim=1)

        def transform(noise: Tensor, context: Tensor) -> Tensor:
            return network(torch.cat([noise, context], -1))

        def conditional(psi: Tensor) -> dist.TorchDistribution:
            shape = psi.shape[:-1] + event_shape
            centre, width = (x.reshape(shape) for x in location_and_scale(psi))
            return dist.Normal(loc + scale * centre, scale * width).to_event(dims)

        noise_dim = network.in_features - context.shape[-1]
        noise = dist.Normal(context.new_zeros(noise_dim), 1.0).to_event(1)
        mixing = Implicit(transform, noise, event_shape=2 * size, inputs=context)
        return SemiImplicit(mixing, conditional, self.num_mixing, share_draws=self.share_draws)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Samples all latents of the model.

        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :return: site name -> sampled value.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        assert self.prototype_trace is not None
        plates = self._create_plates(*args, **kwargs)
        features = None if self.encoder is None else self._features(args, kwargs)
        result = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            transform = biject_to(site["fn"].support)
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    if frame.vectorized:
                        stack.enter_context(plates[frame.name])
                unconstrained = pyro.sample(
                    f"{name}_unconstrained",
                    self._posterior(name, features if self._encoded(site) else None),
                    infer={"is_auxiliary": True},
                )
                value = transform(unconstrained)
                log_density: Tensor | float = 0.0
                if poutine.get_mask() is not False:
                    volume = transform.inv.log_abs_det_jacobian(value, unconstrained)
                    dims = volume.dim() - value.dim() + site["fn"].event_dim
                    log_density = sum_rightmost(volume, dims)
                delta = dist.Delta(value, log_density=log_density, event_dim=site["fn"].event_dim)
                result[name] = pyro.sample(name, delta)
        return result

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Returns the posterior median of each latent, from 1,000 draws.

        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :return: site name -> median.
        """
        return {name: x[0] for name, x in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self,
        quantiles: Sequence[float],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Tensor]:
        """Returns posterior quantiles of each latent, from 1,000 draws.

        :param quantiles: numbers between 0 and 1.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        :return: site name -> tensor with the quantiles along its first dimension.
        """
        with poutine.block():
            draws = [self(*args, **kwargs) for _ in range(1000)]
        result = {}
        for name in draws[0]:
            stacked = torch.stack([draw[name] for draw in draws])
            result[name] = stacked.quantile(torch.as_tensor(quantiles).to(stacked), dim=0)
        return result
