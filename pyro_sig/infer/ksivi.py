"""Semi-implicit inference by the kernel Stein discrepancy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_choice, check_number, refusal
from pyro_sig.infer._objective import Joint, SemiImplicitObjective

__all__ = ["KSIVI"]


class KSIVI(SemiImplicitObjective):
    r"""Minimises the kernel Stein discrepancy between guide and posterior.

    .. math::
        \text{KSD}^2 = \mathbb{E}\, k(z, z')\, \{s_p(z) - s(z \mid \psi)\} \cdot
        \{s_p(z') - s(z' \mid \psi')\}

    with :math:`s_p = \nabla \log p(x, z)` and
    :math:`s(z \mid \psi) = \nabla_z \log q(z \mid \psi)`: given z the latter has the mean
    :math:`\nabla \log q(z)`, so that no marginal score is needed. Draws are standardised,
    coordinate by coordinate, and the kernel's bandwidth is the median distance. A kernel sees a
    wrong score where it has draws: modes without draws go unnoticed. The discrepancy is no
    likelihood: hold the model's parameters fixed, or it warns.

    :param str kernel: ``"imq"``, :math:`(1 + r^2 / h^2)^{-1/2}`, or ``"rbf"``,
        :math:`\exp(-r^2 / 2 h^2)`.
    :param str statistic: ``"v"``, whose diagonal keeps the conditional from becoming too narrow,
        or ``"u"``, unbiased but for the standardising, which may be negative and then
        diverge.
    :param float bandwidth: h, of the standardised draws; by default their median distance.
    :param kwargs: ``num_particles`` (default 100, at least 2), ``vectorize_particles`` (default
        True), ``max_plate_nesting``.
    :raises ValueError: for an unknown kernel or statistic, fewer than 2 particles; from a step, if
        the guide has no semi-implicit site, or one is subsampled, scaled or masked, or another
        site is random.
    :raises UserWarning: once, if the model reads a parameter that trains and is not the guide's.

    Reference: Z. Cheng, L. Yu, T. Xie, S. Zhang and C. Zhang (2024), "Kernel semi-implicit
    variational inference", eq. 10 and 13.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_sig.infer import AutoSemiImplicit
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoSemiImplicit(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), KSIVI(kernel="rbf"))
        >>> isinstance(svi.step(), float)
        True
    """

    fits_model = False
    guide_learning_rate = 1e-3  # for `fit`: pairs of draws with a narrow conditional are noisy

    def __init__(
        self,
        kernel: str = "imq",
        statistic: str = "v",
        bandwidth: float | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        check_choice("kernel", kernel, ("imq", "rbf"))
        check_choice("statistic", statistic, ("u", "v"))
        if bandwidth is not None:
            bandwidth = check_number("bandwidth", bandwidth, above=0)
        kwargs.setdefault("num_particles", 100)
        super().__init__(**kwargs)
        if self.num_particles < 2:
            must_be = "at least 2, since draws are compared in pairs"
            raise refusal("num_particles", must_be, self.num_particles)
        self.kernel, self.statistic, self.bandwidth = kernel, statistic, bandwidth

    def _surrogate(self, joints: list[Joint], train: bool) -> tuple[float, Tensor]:
        z, target, conditional = self._flat_scores(joints, create_graph=True)
        scale = z.detach().std(0).clamp_min(torch.finfo(z.dtype).tiny)
        difference = (target - conditional) * scale
        gram = self._gram(z / scale)
        pairs = gram * (difference @ difference.mT)
        size = len(z)
        if self.statistic == "u":
            pairs = pairs - torch.diag(pairs.diagonal())
            loss = pairs.sum() / (size * (size - 1))
        else:
            loss = pairs.mean()
        return float(loss.detach()), loss

    def _gram(self, z: Tensor) -> Tensor:
        squares = z.square().sum(-1)
        distances = (squares.unsqueeze(-1) + squares - 2 * z @ z.mT).clamp_min(0.0)
        if self.bandwidth is None:
            size = len(z)
            above = torch.triu_indices(size, size, 1, device=z.device)
            width = distances.detach()[above[0], above[1]].median().clamp_min(1e-12)
        else:
            width = z.new_tensor(self.bandwidth**2)
        if self.kernel == "imq":
            return (1.0 + distances / width).rsqrt()
        return (-0.5 * distances / width).exp()
