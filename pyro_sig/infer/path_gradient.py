"""The evidence bound through the path of the draws, with an estimate of the guide's score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_instance
from pyro_sig._show_settings import show_settings
from pyro_sig.infer._objective import Draw, InnerNetworks, Joint, SemiImplicitObjective

__all__ = ["MixtureScore", "PathGradient_ELBO", "ScoreEstimator"]


class ScoreEstimator:
    r"""Estimates the score of a semi-implicit law at draws from it.

    A subclass defines ``__call__``; networks that it trains are in ``inner``.

    .. math::
        s_q(z) = \nabla_z \log q(z) = \mathbb{E}_{q(\psi \mid z)} \nabla_z \log q(z \mid \psi)

    Example::

        >>> isinstance(MixtureScore(), ScoreEstimator)
        True
    """

    __repr__ = show_settings

    def __init__(self) -> None:
        self.inner: dict[str, InnerNetworks] = {}

    def __call__(self, draw: Draw, train: bool) -> Tensor:
        """Returns the score, of the shape of the draw, without a graph.

        :param draw: a semi-implicit site.
        :param bool train: whether networks of the estimator take their steps.
        """
        raise NotImplementedError


class MixtureScore(ScoreEstimator):
    r"""Takes the score of the mixture over psi_0 and the K fresh psi of the guide's distribution.

    .. math::
        \hat s(z) = \nabla_z \log \frac{1}{K + 1} \sum_{k=0}^{K} q(z \mid \psi_k)

    Exact for a :class:`~pyro_sig.distributions.ParticleMixing`, whose psi are all there are.
    Without psi_0 a draw far from all fresh psi would have too steep a score, which drives it
    farther: training diverges.

    Example::

        >>> loss = PathGradient_ELBO(score=MixtureScore())
    """

    def __call__(self, draw: Draw, train: bool) -> Tensor:
        """Returns the score, of the shape of the draw, without a graph.

        :param draw: a semi-implicit site.
        :param bool train: ignored.
        """
        value = draw.value.detach().requires_grad_()
        log_prob = draw.distribution._estimate(value, draw.origin)[0]
        return torch.autograd.grad(log_prob.sum(), value)[0]


class PathGradient_ELBO(SemiImplicitObjective):  # noqa: N801 - Pyro's way to name an ELBO
    r"""Climbs the evidence bound along the path of the draws, with an estimated score.

    .. math::
        \nabla_\phi \mathcal{L} = \mathbb{E} \left[ \{\nabla_z \log p(x, z) - s_q(z)\}
        \frac{\partial z_\phi}{\partial \phi} \right], \qquad s_q = \nabla_z \log q

    The gradient of log q in its own parameters has mean zero and is left out; what remains
    needs the score of q only, which ``score`` estimates. With the exact score the gradient
    vanishes, draw by draw, where q is the posterior. Parameters of the model climb the same bound,
    by the mean of :math:`\nabla_\theta \log p_\theta(x, z)` over the draws. The loss reported is
    the semi-implicit bound of :class:`~pyro.infer.Trace_ELBO`, so that objectives can be compared.

    :param score: a :class:`ScoreEstimator`; by default :class:`MixtureScore`.
    :param kwargs: ``num_particles`` (default 32), ``vectorize_particles`` (default True),
        ``max_plate_nesting``.
    :raises ValueError: from a step, if the guide has no semi-implicit site, or a site without
        rsample.

    References: G. Roeder, Y. Wu and D. Duvenaud (2017), "Sticking the landing"; M. Titsias and
    F. Ruiz (2019), "Unbiased implicit variational inference", eq. 8.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_sig.infer import AutoSemiImplicit
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoSemiImplicit(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), PathGradient_ELBO())
        >>> isinstance(svi.step(), float)
        True
    """

    def __init__(self, score: ScoreEstimator | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        check_instance("score", score, (ScoreEstimator, type(None)), "a ScoreEstimator")
        self.score = MixtureScore() if score is None else score
        self.inner = self.score.inner

    def _surrogate(self, joints: list[Joint], train: bool) -> tuple[float, Tensor]:
        bound, surrogate = 0.0, torch.zeros(())
        for joint in joints:
            surrogate = surrogate - joint.log_target
            bound += float(joint.log_target.detach())
            for draw in joint.draws:
                dims = len(draw.distribution.event_shape)
                score = self.score(draw, train).detach()
                along = (
                    (score * draw.value).flatten(draw.value.dim() - dims).sum(-1)
                    if dims
                    else (score * draw.value)
                )
                surrogate = surrogate + draw.weigh(along)
                with torch.no_grad():
                    bound -= float(draw.weigh(draw.distribution.log_prob(draw.value)))
        return -bound / self.num_particles, surrogate / self.num_particles
