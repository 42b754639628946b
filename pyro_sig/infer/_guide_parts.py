"""What the semi-implicit guides share: a set-up that ends whole or not, checks, their network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import softplus

from pyro_sig.nn import MLP

__all__ = [
    "WholeSetUp",
    "check_continuous",
    "location_and_scale",
    "location_scale_network",
]

# Share of the initial variance that is in the spread of psi: enough to break the symmetry.
_INITIAL_SPREAD = 0.3
# A floor under the scale: a component without width has an unbounded density.
_LEAST_SCALE = 1e-3


class WholeSetUp:
    """Goes before Pyro's guide among the bases; a subclass defines ``_set_up(args, kwargs)``."""

    prototype_trace: Any

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise NotImplementedError

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        try:
            try:
                super()._setup_prototype(*args, **kwargs)  # type: ignore[misc]
            except RuntimeError as error:
                if "found no latent variables" not in str(error):
                    raise
                raise ValueError(
                    "`model` must have a latent site, had none: use no_guide"
                ) from error
            check_continuous(self.prototype_trace)
            self._set_up(args, kwargs)
        except BaseException:
            self.prototype_trace = None  # the next call must not take it for finished
            raise


def check_continuous(trace: poutine.Trace) -> None:
    """Checks that all latents of a program are continuous.

    :param trace: of the program.
    :raises ValueError: names the site, and what to do instead.
    """
    site: Any
    for name, site in trace.iter_stochastic_nodes():
        if getattr(site["fn"].support, "is_discrete", False):
            raise ValueError(
                f"`model` must have continuous latents, was discrete at site {name!r}: sum it "
                "out (config_enumerate with TraceEnum_ELBO) or hide it from this guide "
                "(poutine.block)"
            )


def location_scale_network(
    in_features: int,
    hidden_dims: Sequence[int],
    size: int,
    like: Tensor,
    loc: Tensor | float = 0.0,
    scale: float = 1.0,
) -> MLP:
    """Makes a network whose conditionals have, over normal input, about this location and scale.

    :param int in_features: size of the input.
    :param hidden_dims: sizes of the hidden layers.
    :param int size: of the location, and of the scale.
    :param torch.Tensor like: for dtype and device.
    :param torch.Tensor loc: of shape ``[size]``.
    :param float scale: standard deviation, of spread and width together.
    """
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    net = MLP(in_features, list(hidden_dims), 2 * size, **options)
    with torch.no_grad():
        probe = torch.randn(1000, in_features, **options)
        spread = math.sqrt(_INITIAL_SPREAD) * scale
        net.head.weight[:size] *= (spread / net(probe)[:, :size].std(0)).unsqueeze(-1)
        net.head.bias[:size] += loc - net(probe)[:, :size].mean(0)
        net.head.weight[size:] *= 0.1
        net.head.bias[size:] = math.log(math.expm1(math.sqrt(1 - _INITIAL_SPREAD) * scale))
    return net


def location_and_scale(psi: Tensor) -> tuple[Tensor, Tensor]:
    """Splits what the network returns, ``[*, 2 size]``, into location and positive scale."""
    loc, raw = psi.chunk(2, dim=-1)
    return loc, softplus(raw) + _LEAST_SCALE
