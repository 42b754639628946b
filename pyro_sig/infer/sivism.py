"""Semi-implicit inference by score matching, as a minimax problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyro_sig._arguments import check_integer, check_sizes
from pyro_sig.infer._objective import InnerNetworks, Joint, SemiImplicitObjective
from pyro_sig.infer._standardize import Standardize
from pyro_sig.nn import MLP

__all__ = ["SIVISM"]


class _Witness(nn.Module):
    """The function that maximises the inner problem, in standardised coordinates."""

    def __init__(self, z: Tensor, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        self.standardize = Standardize(z[0])
        options: dict[str, Any] = {"device": z.device, "dtype": z.dtype}
        size = z.shape[-1]
        self.net = MLP(size, list(hidden_dims), size, nn.SiLU, **options)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.standardize(z))


class SIVISM(SemiImplicitObjective):
    r"""Minimises the Fisher divergence between guide and posterior.

    .. math::
        \min_\phi \max_f \mathbb{E}_{z, \psi} \left[ 2 f(z) \cdot
        \{\nabla \log p(x, z) - \nabla_z \log q(z \mid \psi)\} - \|f(z)\|^2 \right]

    The best f is the difference of the scores, and the value there
    :math:`\mathbb{E}_q \|\nabla \log p - \nabla \log q\|^2`. Draws are standardised by
    their running mean and covariance. The weights of far modes do not enter a score: they go
    unnoticed. The divergence is no likelihood: hold the model's parameters fixed, or it warns.

    :param hidden_dims: sizes of the hidden layers of f.
    :param int inner_steps: steps of f for each step of the guide, on the same draws.
    :param float learning_rate: of the Adam of f.
    :param kwargs: ``num_particles`` (default 64), ``vectorize_particles`` (default True),
        ``max_plate_nesting``.
    :raises ValueError: for numbers below 1; from a step, if the guide has no semi-implicit site, or
        one is subsampled, scaled or masked, or another site is random.
    :raises UserWarning: once, if the model reads a parameter that trains and is not the guide's.

    Reference: L. Yu and C. Zhang (2023), "Semi-implicit variational inference via score matching",
    eq. 8.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_sig.infer import AutoSemiImplicit
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoSemiImplicit(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), SIVISM())
        >>> isinstance(svi.step(), float)
        True
    """

    fits_model = False
    guide_learning_rate = 1e-3  # for `fit`: f has to keep up

    def __init__(
        self,
        hidden_dims: Sequence[int] = (128, 128),
        inner_steps: int = 3,
        learning_rate: float = 2e-3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        check_integer("inner_steps", inner_steps, 1)
        hidden_dims = check_sizes("hidden_dims", hidden_dims)
        kwargs.setdefault("num_particles", 64)
        super().__init__(**kwargs)
        self.hidden_dims, self.inner_steps = hidden_dims, inner_steps
        self.learning_rate = learning_rate
        self.inner = {"witness": InnerNetworks(lambda z: _Witness(z, hidden_dims), learning_rate)}

    def _surrogate(self, joints: list[Joint], train: bool) -> tuple[float, Tensor]:
        z, target, conditional = self._flat_scores(joints, create_graph=True)
        fixed = z.detach()
        witness: Any = self.inner["witness"].get("joint", fixed)
        if train:
            witness.standardize.update(fixed)
        difference = witness.standardize.standardize_score(target - conditional)
        if train:
            known = difference.detach()
            for _ in range(self.inner_steps):
                f = witness(fixed)
                loss = (f.square() - 2 * f * known).sum(-1).mean()
                self.inner["witness"].minimize("joint", loss)
        f = witness(z)
        loss = (2 * f * difference - f.square()).sum(-1).mean()
        return float(loss.detach()), loss
