"""The evidence bound of a flat guide, with the model mapped over particles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_sig.infer._potential import unconstrained_log_density

__all__ = ["MappedELBO"]


class MappedELBO(ELBO):
    """The bound of ``Trace_ELBO`` for an ``AutoContinuous`` guide of any deterministic model.

    A model that is written for one draw (``x @ beta`` with ``beta`` of shape ``[D]``) cannot run
    in a plate of particles; :func:`torch.func.vmap` runs it for many draws at once all the same.
    The model's own randomness would be frozen, and its parameters would not train: it must have
    neither.

    :param int num_particles: draws in each step.
    """

    def _get_trace(self, *args: Any) -> Any:  # noqa: ANN401
        raise NotImplementedError

    def differentiable_loss(
        self,
        model: Callable[..., Any],
        guide: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """The negative bound, as a tensor."""

        def latent() -> None:
            # Inside the guide's context, so that its parameters are captured.
            with guide._pyro_context, pyro.plate("_particles", self.num_particles, dim=-1):
                guide.sample_latent(*args, **kwargs)

        trace = poutine.trace(latent).get_trace()
        site: dict[str, Any] = trace.nodes[f"_{guide._pyro_name}_latent"]  # type: ignore[assignment]
        log_density = unconstrained_log_density(model, guide._unpack_latent, args, kwargs)
        return (site["fn"].log_prob(site["value"]) - log_density(site["value"])).mean()

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:  # noqa: ANN401
        """The negative bound."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self,
        model: Any,  # noqa: ANN401
        guide: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> float:
        """The negative bound; adds its gradient to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())
