"""An evidence bound beside an adversary: its value, its weight, and the sum of both gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

from pyro_sig._arguments import check_number, refusal
from pyro_sig._elbo_state import elbo_state, load_elbo_state
from pyro_sig._functions import is_function
from pyro_sig.adversarial._tap import Tap
from pyro_sig.adversarial.balance import Balance

__all__ = ["ElboTerm", "Weight"]

# A number, a function of the step, a balance, or the word for the default one.
Weight = float | Callable[[int], float] | Balance | str


class ElboTerm:
    """Holds an ELBO with its guide and weight.

    :param elbo: an ELBO of Pyro or this library.
    :param weight: its weight.
    :param guide: its guide, by default empty.
    :raises ValueError: if one of them does not suit.
    """

    def __init__(self, elbo: ELBO, weight: Weight | None, guide: Callable[..., Any] | None) -> None:
        if isinstance(elbo, type) or not callable(getattr(elbo, "loss_and_grads", None)):
            raise refusal("elbo", "an ELBO with loss_and_grads", elbo)
        if weight is None:
            raise ValueError(
                "`elbo_weight` must say how much the `elbo` counts: a number, a function of the "
                'step, or "balance"; was None'
            )
        self.elbo: Any = elbo
        self.last: float | None = None  # the value of the bound
        self.guide = _draw_nothing if guide is None else guide
        # With nothing to infer, Trace_ELBO is the log-density of one run.
        self._one_run = guide is None and type(elbo) is Trace_ELBO and elbo.num_particles == 1
        self.weight: float | Callable[[int], float] | Balance
        if weight == "balance":
            self.weight = Balance()
        elif isinstance(weight, Balance) or (
            callable(weight) and is_function(weight) and not isinstance(weight, nn.Module)
        ):
            self.weight = weight
        else:
            must_be = 'a number of at least 0, a function of the step, a Balance or "balance"'
            self.weight = check_number("elbo_weight", weight, must_be, least=0, finite=False)

    @property
    def differentiable(self) -> bool:
        """Whether the bound can be differentiated together with the adversary's loss."""
        return hasattr(self.elbo, "differentiable_loss")

    def __call__(
        self, model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]
    ) -> Tensor | float:
        """Computes the negative ELBO; as a number if its gradient is written already."""
        if self._one_run:
            with Tap() as run:
                model(*args, **kwargs)
            log_density = run.log_density()
            if log_density is not None:
                return -log_density
            self._one_run = False  # latents, which the ELBO knows how to handle
        if self.differentiable:
            return self.elbo.differentiable_loss(model, self.guide, *args, **kwargs)
        return float(self.elbo.loss_and_grads(model, self.guide, *args, **kwargs))

    def evaluate(self, model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> float:
        """Computes the negative ELBO without a gradient."""
        return float(self.elbo.loss(model, self.guide, *args, **kwargs))

    def weigh(self, step: int) -> float | Balance | None:
        """Returns the weight at a step; None where a schedule has come to 0, and no bound is due.

        :param int step: the number of the step.
        """
        if isinstance(self.weight, (float, Balance)):
            return self.weight
        must_be = f"a number of at least 0 at every step, at step {step}"
        weight = check_number("elbo_weight", self.weight(step), must_be, least=0, finite=False)
        return None if weight == 0 and self.last is not None else weight

    def write_gradients(
        self,
        params: Sequence[Tensor],
        adversarial: Tensor,
        bound: Tensor | float,
        num_units: float,
        weight: float | Balance,
    ) -> None:
        """Writes the gradient of ``adversarial + weight * bound / num_units``.

        :param params: the parameters, which hold that of the bound if this is a number.
        :param torch.Tensor adversarial: the adversary's loss.
        :param bound: what this object returned when called.
        :param float num_units: the number of data that the bound is of.
        :param weight: what :meth:`weigh` returned.
        """
        if isinstance(bound, Tensor) and not isinstance(weight, Balance):
            bound = bound / num_units
            loss = bound if math.isinf(weight) else adversarial + weight * bound
            loss.backward(inputs=params)
            return
        of_bound: Sequence[Tensor | None] = [param.grad for param in params]
        if isinstance(bound, Tensor):
            of_bound = torch.autograd.grad(bound, params, retain_graph=True, allow_unused=True)
        of_bound = [None if g is None else g / num_units for g in of_bound]
        of_adversary: Sequence[Tensor | None] = [None] * len(params)
        factor: Tensor | float = 1.0
        if weight != math.inf:
            of_adversary = torch.autograd.grad(adversarial, params, allow_unused=True)
            factor = (
                weight.update(of_adversary, of_bound) if isinstance(weight, Balance) else weight
            )
        for param, a, b in zip(params, of_adversary, of_bound, strict=True):
            if b is not None:
                b = b * factor
            param.grad = a + b if a is not None and b is not None else a if b is None else b

    def inner_optimizers(self) -> Iterator[torch.optim.Optimizer]:
        """Yields the optimisers of networks inside of the ELBO."""
        inner = getattr(self.elbo, "inner_optimizers", None)
        if callable(inner):
            yield from inner()

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the states of ELBO and balance."""
        state: dict[str, Any] = {"last": self.last, **elbo_state(self.elbo)}
        if isinstance(self.weight, Balance):
            state["balance"] = self.weight.state_dict()
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        :param state: the state.
        """
        state = copy.deepcopy(dict(state))
        self.last = state["last"]
        load_elbo_state(self.elbo, state)
        if isinstance(self.weight, Balance) and "balance" in state:
            self.weight.load_state_dict(state["balance"])


def _draw_nothing(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
    """An empty guide."""
