"""Particle semi-implicit inference: the mixing law moves along a noisy gradient flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_number
from pyro_sig.distributions import ParticleMixing
from pyro_sig.infer._objective import Joint
from pyro_sig.infer.path_gradient import PathGradient_ELBO

__all__ = ["PVI"]


class PVI(PathGradient_ELBO):
    r"""Climbs the evidence bound with particles for the mixing law, moved by a gradient flow.

    .. math::
        \psi_m \leftarrow \psi_m + h\, P\, \nabla_{\psi_m} \mathbb{E}_{z \sim q(z \mid \psi_m)}
        \{\log p(x, z) - \log q(z)\} + \sqrt{2 h \lambda P}\, \xi_m

    :math:`\log q` is exact, a mixture over all particles, and its gradient is taken along the path
    of z. P is a diagonal preconditioner, from running squares of the gradient. The particles are
    neither parameters nor in the optimiser of ``SVI``, which trains the rest of the guide: give
    :class:`~pyro_sig.distributions.ParticleMixing` a tensor that requires a gradient, such as a
    buffer of the guide.

    :param float step_size: h.
    :param float noise: strength :math:`\lambda` of the noise, which keeps particles apart; 0 leaves
        a plain gradient step.
    :param kwargs: as :class:`PathGradient_ELBO` takes them; many particles of the *loss* (default
        100) reach every particle of the mixing more often.
    :raises ValueError: for a step size that is not positive or negative noise; from a step, if no
        site mixes over particles.

    Reference: J. N. Lim and A. M. Johansen (2024), "Particle semi-implicit variational inference",
    algorithm 1.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_sig.distributions import SemiImplicit
        >>> particles = torch.linspace(-1.0, 1.0, 20).requires_grad_()
        >>> def model():
        ...     pyro.sample("z", dist.Normal(3.0, 1.0))
        >>> def guide():
        ...     scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        ...     conditional = lambda psi: dist.Normal(psi, scale)
        ...     pyro.sample("z", SemiImplicit(ParticleMixing(particles), conditional, 20))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), PVI(step_size=0.1))
        >>> for _ in range(200):
        ...     loss = svi.step()
        >>> (particles.mean() - 3.0).abs() < 0.3
        tensor(True)
    """

    def __init__(
        self,
        step_size: float = 0.05,
        noise: float = 1e-4,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        step_size = check_number("step_size", step_size, above=0)
        noise = check_number("noise", noise, least=0)
        kwargs.setdefault("num_particles", 100)
        super().__init__(**kwargs)
        self.step_size, self.noise = step_size, noise
        self.squares: dict[str, Tensor] = {}

    def _surrogate(self, joints: list[Joint], train: bool) -> tuple[float, Tensor]:
        for joint in joints:
            for draw in joint.draws:
                mixing = draw.distribution.mixing
                if not (isinstance(mixing, ParticleMixing) and mixing.particles.requires_grad):
                    raise ValueError(
                        "PVI needs a ParticleMixing over a tensor that requires a gradient at "
                        f"site {draw.name!r}, was {type(mixing).__name__}: use another objective "
                        "there"
                    )
        return super()._surrogate(joints, train)

    @torch.no_grad()
    def _after_backward(self, joints: list[Joint]) -> None:
        moved: set[int] = set()
        for draw in joints[0].draws:
            mixing = draw.distribution.mixing
            assert isinstance(mixing, ParticleMixing)
            particles = mixing.particles
            if id(particles) in moved or particles.grad is None:
                continue
            moved.add(id(particles))
            # The loss is a mean over draws, of which each particle has one in M.
            grad = particles.grad * len(particles)
            square = grad.square().mean()
            before = self.squares.get(draw.name)
            square = square if before is None else before.lerp(square, 0.05)
            self.squares[draw.name] = square
            preconditioner = 1.0 / (1.0 + square.sqrt())
            particles -= self.step_size * preconditioner * grad
            spread = math.sqrt(2 * self.step_size * self.noise) * preconditioner.sqrt()
            particles += spread * torch.randn_like(particles)
            particles.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the preconditioner; the particles themselves belong to the guide."""
        return {"squares": dict(self.squares)}

    def load_state_dict(self, state_dict: Any) -> None:  # noqa: ANN401
        """Restores what :meth:`state_dict` returned.

        :param state_dict: the state.
        """
        if set(state_dict) != {"squares"}:
            raise ValueError(f"`state_dict` must hold squares, held {sorted(state_dict)}")
        self.squares = dict(state_dict["squares"])
