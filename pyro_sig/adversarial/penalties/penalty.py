"""What a penalty of a critic is, and the evaluation of several without a pass done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pyro_sig._arguments import describe, one_number, refusal
from pyro_sig._functions import check_callable, first_call

__all__ = ["Penalty", "gradient_points", "penalize"]

Values = Tensor | tuple[Tensor, ...]
Critic = Callable[..., Tensor]

_POINTS = ("real", "fake", "interpolated")


class Penalty:
    r"""Keeps a critic smooth: a term of its loss, a constraint after its steps, or both.

    .. math::

        \text{critic loss} + p\big(\|\nabla_x D(x_1)\|^2, \dots, \|\nabla_x D(x_N)\|^2\big)

    with :math:`p` the method :meth:`value` and the points :math:`x_n` those that `where` names. A
    subclass sets `where` and overrides :meth:`value`, or overrides :meth:`constrain`, and keeps its
    settings as attributes, which ``repr`` shows. This class itself does nothing. A term of the
    scores alone is part of an :class:`Objective <pyro_sig.adversarial.objectives.Objective>`.

    :cvar where: where the critic's gradient is taken: ``"real"``, ``"fake"``, ``"interpolated"``
        (between the two), or None for what needs no gradient.
    :cvar bool lipschitz: whether it controls the critic's Lipschitz constant, as the Wasserstein
        distance needs it.

    Example::

        >>> class Largest(Penalty):
        ...     where = "real"
        ...     def value(self, squared_norm):
        ...         return squared_norm.max()
        >>> critic = torch.nn.Linear(2, 1)
        >>> value = Largest()(critic, torch.randn(5, 2), torch.randn(5, 2))
        >>> torch.allclose(value, critic.weight.square().sum())
        True
    """

    where: ClassVar[Literal["real", "fake", "interpolated"] | None] = None
    lipschitz: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Trainers go through `penalize`, which would pass over it without a word.
        if cls.__call__ is not Penalty.__call__:
            raise TypeError(
                f"`__call__` of the penalty {cls.__name__} must be left as it is, since training "
                "does not call it: write `value`, with `where`, for a term of the critic's "
                "gradient, or `constrain` for a change of the critic after its steps; a term of "
                "the scores alone belongs into `_critic_loss` of an Objective"
            )

    def value(self, squared_norm: Tensor) -> Tensor:
        """Return the term of the critic's loss.

        :param torch.Tensor squared_norm: squared norms of the critic's gradient, with shape
            ``[N]``.
        :return: a scalar; zero unless overridden.
        """
        return squared_norm.new_zeros(())

    def constrain(self, critic: nn.Module) -> None:
        """Change the critic in place after one of its steps; nothing unless overridden.

        :param torch.nn.Module critic: the critic.
        """

    def __call__(self, critic: Critic, real: Values, fake: Values) -> Tensor:
        """Return this penalty by itself, as :func:`penalize` does."""
        check_callable("critic", critic)
        return penalize(critic, [self], real, fake)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


def gradient_points(penalties: Iterable[Penalty]) -> set[str]:
    """Tells where penalties take the critic's gradient.

    A training step that has scores at the reals or the fakes already hands them to
    :func:`penalize`, if it made these values require gradients before it scored them.

    :param penalties: the penalties.
    :return: a subset of ``{"real", "fake", "interpolated"}``.
    :raises ValueError: if an entry is no penalty, or a penalty names another point, or none
        although it has a :meth:`~Penalty.value`.

    Example::

        >>> from pyro_sig.adversarial.penalties import R1, WeightClipping
        >>> gradient_points([R1(10.0), WeightClipping()])
        {'real'}
    """
    points: set[str] = set()
    for index, penalty in enumerate(penalties):
        if not isinstance(penalty, Penalty):
            raise ValueError(
                "`penalties` must be a sequence such as [penalties.R1(1.0)], but its entry "
                f"{index} is no Penalty, was {describe(penalty)}"
            )
        if penalty.where is None:
            if type(penalty).value is not Penalty.value:
                raise refusal("where", f"one of {_POINTS} for {penalty!r}, which has a value", None)
            continue
        if penalty.where not in _POINTS:
            raise refusal("where", f"one of {_POINTS} or None for a penalty", penalty.where)
        points.add(penalty.where)
    return points


def penalize(
    critic: Critic,
    penalties: Iterable[Penalty],
    real: Values,
    fake: Values,
    real_scores: Tensor | None = None,
    fake_scores: Tensor | None = None,
) -> Tensor:
    r"""Adds up the penalties of a critic.

    .. math::

        \sum_p p\big(\|\nabla_x D(x_1)\|^2, \dots, \|\nabla_x D(x_N)\|^2\big)

    A gradient is that of the sum of the scores, so that row n of it belongs to score n, if the
    critic scores each row by itself (see :func:`mixes_rows
    <pyro_sig.adversarial.penalties.mixes_rows>`). Penalties with the same `where` share it, and
    scores that are given need no new pass through the critic. Norms are over all dimensions but
    the first and over all parts of a tuple, in single precision at least.

    :param critic: maps values to scores with shape ``[N]`` or ``[N, 1]``. A tuple of values is
        spread: ``critic(*values)``.
    :param penalties: the penalties.
    :param real: data, with shape ``[N, *]``, or a tuple of such tensors.
    :param fake: the generator's samples, the same. Without `fake_scores` they are detached.
    :param torch.Tensor real_scores: the critic's scores of `real`, which then has to require
        gradients since before they were computed.
    :param torch.Tensor fake_scores: the critic's scores of `fake`, the same.
    :return: a scalar, with a graph to the critic's parameters unless gradients are disabled; zero
        if no penalty takes a gradient.
    :raises ValueError: if values where a gradient is needed are not floating point, have no row
        for each score, or do not enter their scores; if values of given scores do not require
        gradients; if reals and fakes of different shapes are to be interpolated; if a penalty is
        none, or returns more than one number.

    Example::

        >>> from pyro_sig.adversarial.penalties import R1, R2
        >>> critic = torch.nn.Linear(2, 1)
        >>> real, fake = torch.randn(5, 2).requires_grad_(), torch.randn(5, 2)
        >>> scores = critic(real)
        >>> value = penalize(critic, [R1(1.0), R2(3.0)], real, fake, real_scores=scores)
        >>> torch.allclose(value, 2 * critic.weight.square().sum())  # (1 + 3) / 2
        True
    """
    penalties = list(penalties)
    points = gradient_points(penalties)
    total: Tensor | None = None
    for where in _POINTS:
        if where not in points:
            continue
        if where == "real":
            squared_norm = _squared_norm(critic, "real", real, real_scores)
        elif where == "fake":
            squared_norm = _squared_norm(critic, "fake", fake, fake_scores)
        else:
            between = _interpolate(real, fake)
            squared_norm = _squared_norm(critic, "real", between, None)
        for penalty in penalties:
            if penalty.where == where:
                value = one_number(f"{type(penalty).__name__}.value", penalty.value(squared_norm))
                total = value if total is None else total + value
    return _zero_like(critic, real, real_scores, fake_scores) if total is None else total


def _squared_norm(critic: Critic, name: str, values: Values, scores: Tensor | None) -> Tensor:
    parts = _floating_parts(name, values)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if scores is None:
            parts = tuple(part.detach().requires_grad_() for part in parts)
            score_name = "`critic`'s scores"
            # What is no module is a trainer's, which has looked at the critic itself.
            own = isinstance(critic, nn.Module)
            scores = first_call("critic", critic, *parts) if own else critic(*parts)
            if not isinstance(scores, Tensor):
                raise ValueError(f"`critic` must return scores, was {type(scores).__name__}")
        else:
            score_name = f"`{name}_scores`"
            if not all(part.requires_grad for part in parts):
                raise ValueError(
                    f"`{name}` must require gradients since before `{name}_scores` was computed "
                    "from it, but does not"
                )
        rows = len(parts[0])
        if scores.shape not in ((rows,), (rows, 1)):
            raise ValueError(
                f"{score_name} must have shape [{rows}] or [{rows}, 1], as `{name}` has {rows} "
                f"rows, was {list(scores.shape)}"
            )
        gradients: tuple[Tensor | None, ...] = (None,)
        if scores.requires_grad:
            gradients = torch.autograd.grad(
                scores.sum(), parts, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
    squared_norm: Any = 0.0
    for index, gradient in enumerate(gradients):
        if gradient is None:
            part = f"part {index} of `{name}`" if len(parts) > 1 else f"`{name}`"
            raise ValueError(
                f"{score_name} must depend on {part}, but no gradient leads from one to the other"
            )
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        squared_norm = squared_norm + wide.reshape(rows, -1).square().sum(-1)
    return squared_norm


def _interpolate(real: Values, fake: Values) -> Values:
    reals, fakes = _floating_parts("real", real), _floating_parts("fake", fake)
    shapes = [[list(part.shape) for part in parts] for parts in (reals, fakes)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`fake` must have the shape of `real` where a penalty interpolates between them, was "
            f"{shapes[1]} and `real` {shapes[0]}; let the model draw as many rows "
            "as it is given, or take R1, which needs no pairs"
        )
    # The parts of a row lie at one point of the line between its real and its fake.
    if any(x.device != y.device for x, y in zip(reals, fakes, strict=True)):
        devices = [str(parts[0].device) for parts in (reals, fakes)]
        raise ValueError(f"`fake` must be on the device of `real`, were {devices[::-1]}")
    alpha = torch.rand(len(reals[0]), device=reals[0].device)
    between = []
    for x, y in zip(reals, fakes, strict=True):
        share = alpha.to(x).reshape(-1, *[1] * (x.dim() - 1))
        between.append(share * x.detach() + (1 - share) * y.detach())
    return tuple(between)


def _floating_parts(name: str, values: Values) -> tuple[Tensor, ...]:
    parts = values if isinstance(values, tuple) else (values,)
    for part in parts:
        if not isinstance(part, Tensor) or not part.is_floating_point():
            was = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(
                f"`{name}` must be floating point, since a penalty takes a gradient with respect "
                f"to it, was {was}"
            )
    shapes = [list(part.shape) for part in parts]
    if not shapes or [] in shapes or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"`{name}` must have the same number of rows in each part, was {shapes}")
    if not shapes[0][0]:
        raise ValueError(f"`{name}` must have at least one row, was {shapes}")
    return parts


def _zero_like(critic: Critic, real: Values, *scores: Tensor | None) -> Tensor:
    for like in scores:
        if like is not None:
            return like.new_zeros(())
    if isinstance(critic, nn.Module):
        for parameter in critic.parameters():
            return parameter.detach().new_zeros(())
    like = real[0] if isinstance(real, tuple) else real
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return like.new_zeros((), dtype=dtype)
