"""The interface of all adversarial objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pyro_sig._arguments import check_instance, one_number, refusal
from pyro_sig._show_settings import show_settings

__all__ = ["Objective"]


class Objective(ABC):
    r"""Losses of critic and generator as functions of the critic's scores.

    .. math::
        L_D(\text{real}, \text{fake}), \qquad L_G(\text{real}, \text{fake})

    Both are scalars to minimise, the means over all scores. A score is the critic's raw output,
    and a larger one means more real. Objectives hold no state: networks and optimisers are the
    trainer's. Scores of less than 32 bits are turned into float32 first, so that a loss has at
    least that type.

    A subclass writes ``_critic_loss(real, fake)``, ``_generator_loss(real, fake)`` and
    :meth:`optimal_score`, may write ``_joint_loss(real, fake)``, keeps the arguments of its
    constructor under their names (``repr`` shows them), and overrides these where they are true:

    - ``paired``: real and fake scores are paired by row, so that their shapes must be equal.
    - ``uses_real``: the generator's loss reads the real scores.
    - ``needs_lipschitz``: the loss is bounded below for critics with a bounded slope only.

    Source: I. Goodfellow et al., "Generative Adversarial Nets", 2014,
    https://arxiv.org/abs/1406.2661.

    Example::

        >>> class Exponential(Objective):
        ...     def _critic_loss(self, real, fake):
        ...         return (-real).exp().mean() + fake.exp().mean()
        ...     def _generator_loss(self, real, fake):
        ...         return (-fake).exp().mean()
        ...     def optimal_score(self, log_ratio):
        ...         return log_ratio / 2
        >>> objective = Exponential()
        >>> objective, objective.critic_loss(torch.zeros(3), torch.zeros(5))
        (Exponential(), tensor(2.))
    """

    paired: ClassVar[bool] = False
    uses_real: ClassVar[bool] = False
    needs_lipschitz: ClassVar[bool] = False

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return what the critic minimises.

        :param torch.Tensor real: scores of data, of any shape.
        :param torch.Tensor fake: scores of generated draws; another number of them is allowed
            unless the objective is ``paired``.
        :return: a scalar.
        :raises ValueError: if there is no score, scores are not floating point, or paired ones
            differ in shape; if a subclass returns more than one number.
        """
        real, fake = _scores("real", real), _scores("fake", fake)
        self._check_pairs(real, fake)
        return self._one_number("_critic_loss", self._critic_loss(real, fake))

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Return what the generator minimises.

        :param torch.Tensor real: scores of data; None will do unless ``uses_real``.
        :param torch.Tensor fake: scores of generated draws.
        :return: a scalar.
        :raises ValueError: as :meth:`critic_loss`, or if `real` is None where it is used; if a
            subclass reads it without ``uses_real``.
        """
        fake = _scores("fake", fake)
        if not self.uses_real:
            return self._one_number("_generator_loss", self._generator_without_real(fake))
        if real is None:
            raise ValueError(
                f"`real` must be the scores of data, which {self!r} compares with, was None"
            )
        real = _scores("real", real)
        self._check_pairs(real, fake)
        return self._one_number("_generator_loss", self._generator_loss(real, fake))

    def joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return what generator and encoder minimise together, where both sides move.

        The players of a :class:`~pyro_sig.adversarial.BiGAN` make the fakes (draws with their
        noise) as well as the reals (data with their code): both get their labels flipped.

        :param torch.Tensor real: scores of data with codes.
        :param torch.Tensor fake: scores of draws with noise.
        :return: a scalar; unless overridden the critic's loss with its arguments swapped.
        :raises ValueError: as :meth:`critic_loss`.
        """
        real, fake = _scores("real", real), _scores("fake", fake)
        self._check_pairs(real, fake)
        return self._one_number("_joint_loss", self._joint_loss(real, fake))

    @abstractmethod
    def optimal_score(self, log_ratio: Tensor) -> Tensor:
        r"""Return the score that minimises the critic's loss where the densities are known.

        :param torch.Tensor log_ratio: :math:`w = \log p_\text{data}(x) - \log p_\text{model}(x)`.
        :return: scores, of the same shape; infinite where the optimum is only approached.
        :raises NotImplementedError: if the best score of a point depends on other points.
        """

    @abstractmethod
    def _critic_loss(self, real: Tensor, fake: Tensor) -> Tensor: ...

    @abstractmethod
    def _generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor: ...

    def _joint_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._critic_loss(fake, real)

    def _generator_without_real(self, fake: Tensor) -> Tensor:
        try:
            return self._generator_loss(None, fake)
        except (AttributeError, TypeError) as error:
            if "NoneType" not in str(error):  # a fault of another kind
                raise
            raise ValueError(
                f"`uses_real` must be True for {self!r}, if its `_generator_loss` reads the scores "
                f"of data, was False: write uses_real = True into the class ({error})"
            ) from error

    def _one_number(self, name: str, loss: Tensor) -> Tensor:
        return one_number(f"{type(self).__name__}.{name}", loss)

    def _check_pairs(self, real: Tensor, fake: Tensor) -> None:
        if self.paired and real.shape != fake.shape:
            raise ValueError(
                f"`real` and `fake` must have one shape for {self!r}, which pairs them by row, "
                f"were {tuple(real.shape)} and {tuple(fake.shape)}"
            )

    __repr__ = show_settings


def check_objective(objective: object) -> None:
    """Checks that something is an objective.

    :param objective: what was passed.
    :raises ValueError: if it is none.
    """
    must_be = "an Objective such as objectives.NonSaturating()"
    check_instance("objective", objective, Objective, must_be)


def _scores(name: str, scores: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.is_sparse:
        raise refusal(name, "a floating point tensor of scores", scores)
    if not scores.numel():
        raise ValueError(
            f"`{name}` must have at least one score, was empty with shape {tuple(scores.shape)}"
        )
    # The sums and exponentials of a loss need more than 16 bits.
    return scores.float() if torch.finfo(scores.dtype).bits < 32 else scores
