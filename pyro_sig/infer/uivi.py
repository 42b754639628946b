"""Unbiased implicit variational inference: the score by Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.ops.integrator import velocity_verlet
from torch import Tensor

from pyro_sig._arguments import check_integer, check_number
from pyro_sig.distributions.components import (
    component_log_prob,
    run_conditional,
    without_validation,
)
from pyro_sig.distributions.mixing_noise import noise_law, push_noise
from pyro_sig.infer._objective import Draw, batch_law, real_noise
from pyro_sig.infer.path_gradient import PathGradient_ELBO, ScoreEstimator

__all__ = ["HMCScore", "UIVI"]

_TARGET_ACCEPTANCE = 0.9


class HMCScore(ScoreEstimator):
    r"""Averages the conditional's score over a chain on the reverse conditional of the noise.

    .. math::
        \hat s(z) = \frac{1}{S} \sum_{s=1}^{S} \nabla_z \log q(z \mid \epsilon_s), \qquad
        \epsilon_s \sim q(\epsilon \mid z) \propto q(z \mid \epsilon) q(\epsilon)

    The chain starts at the noise behind z, which is an exact draw: every state has the right law,
    and the first ones are dropped only to become independent of it. All rows move at once; their
    step sizes follow the acceptance rate.

    :param int num_burn: transitions dropped.
    :param int num_samples: transitions kept.
    :param int num_leapfrog: leapfrog steps of a transition.
    :param float step_size: first step size.
    :raises ValueError: for numbers below 1, or noise without a differentiable density.

    Example::

        >>> score = HMCScore(num_samples=10)
    """

    def __init__(
        self,
        num_burn: int = 5,
        num_samples: int = 5,
        num_leapfrog: int = 5,
        step_size: float = 0.2,
    ) -> None:
        super().__init__()
        for name, size in (("num_samples", num_samples), ("num_leapfrog", num_leapfrog)):
            check_integer(name, size, 1)
        check_integer("num_burn", num_burn)
        step_size = check_number("step_size", step_size, above=0)
        self.num_burn, self.num_samples = num_burn, num_samples
        self.num_leapfrog = num_leapfrog
        self.step_size = step_size
        self.step_sizes: dict[str, float] = {}

    def __call__(self, draw: Draw, train: bool) -> Tensor:
        """Returns the score, of the shape of the draw, without a graph.

        :param draw: a semi-implicit site.
        :param bool train: whether the step size adapts.
        """
        mixing = batch_law(draw)
        law = without_validation(noise_law(mixing))
        noise = real_noise(draw, "UIVI")
        value = draw.value.detach()
        conditional = draw.distribution.conditional
        rows = law.batch_shape
        size = self.step_sizes.get(draw.name, self.step_size)

        def components(noise: Tensor) -> Any:  # noqa: ANN401 - any distribution
            psi = push_noise(mixing, noise)
            return run_conditional(conditional, psi, len(mixing.event_shape))

        def energies(noise: Tensor) -> Tensor:
            # A trajectory may leave the numbers; it is then rejected.
            with pyro.validation_enabled(False):
                return -law.log_prob(noise) - component_log_prob(components(noise), value)

        def potential(state: dict[str, Tensor]) -> Tensor:
            return energies(state["noise"]).sum()  # rows do not interact: one sum serves all

        def kinetic_grad(momentum: dict[str, Tensor]) -> dict[str, Tensor]:
            return momentum

        scores = torch.zeros_like(value)
        accepted = 0.0
        with torch.no_grad():
            energy = energies(noise)
        for transition in range(self.num_burn + self.num_samples):
            momentum = torch.randn_like(noise)
            state, end, *_ = velocity_verlet(
                {"noise": noise},
                {"noise": momentum},
                potential,
                kinetic_grad,
                size,
                self.num_leapfrog,
            )
            proposed = state["noise"].detach()
            with torch.no_grad():
                new_energy = energies(proposed)
                kinetic = _sum_event(momentum.square() - end["noise"].square(), rows) / 2
                log_ratio = (energy - new_energy + kinetic).nan_to_num(-torch.inf)
                accept = torch.rand_like(log_ratio).log() < log_ratio
                keep = accept.reshape(accept.shape + (1,) * (noise.dim() - accept.dim()))
                noise = torch.where(keep, proposed, noise)
                energy = torch.where(accept, new_energy, energy)
                accepted += float(log_ratio.exp().clamp_max(1.0).mean())
            if transition >= self.num_burn:
                with torch.no_grad():
                    final = components(noise)
                at = value.clone().requires_grad_()
                log_prob = component_log_prob(final, at)
                scores += torch.autograd.grad(log_prob.sum(), at)[0]
        if train:
            rate = accepted / (self.num_burn + self.num_samples)
            size *= 1.0 + 0.1 * (rate - _TARGET_ACCEPTANCE)
            self.step_sizes[draw.name] = min(max(size, 1e-4), 2.0)
        return scores / self.num_samples


def _sum_event(x: Tensor, rows: torch.Size) -> Tensor:
    return x.reshape(*rows, -1).sum(-1)


class UIVI(PathGradient_ELBO):
    r"""Climbs the exact evidence bound: :class:`PathGradient_ELBO` with :class:`HMCScore`.

    :param int num_burn: transitions dropped.
    :param int num_samples: transitions kept.
    :param int num_leapfrog: leapfrog steps of a transition.
    :param kwargs: as :class:`PathGradient_ELBO` takes them.

    Reference: M. Titsias and F. Ruiz (2019), "Unbiased implicit variational inference".

    Example::

        >>> loss = UIVI(num_particles=16)
    """

    def __init__(
        self,
        num_burn: int = 5,
        num_samples: int = 5,
        num_leapfrog: int = 5,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(HMCScore(num_burn, num_samples, num_leapfrog), **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Returns the step sizes."""
        assert isinstance(self.score, HMCScore)
        return {"step_sizes": dict(self.score.step_sizes)}

    def load_state_dict(self, state_dict: Any) -> None:  # noqa: ANN401
        """Restores what :meth:`state_dict` returned.

        :param state_dict: the state.
        """
        if set(state_dict) != {"step_sizes"}:
            raise ValueError(f"`state_dict` must hold step_sizes, held {sorted(state_dict)}")
        assert isinstance(self.score, HMCScore)
        self.score.step_sizes = dict(state_dict["step_sizes"])
