"""How noisy the gradient of a random loss is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, describe, refusal
from pyro_sig._functions import check_callable, check_takes
from pyro_sig._progress import Progress

__all__ = ["GradientNoise", "gradient_noise"]


class GradientNoise(NamedTuple):
    r"""Holds the size of a gradient and of its noise, over all parameters together.

    :param float mean_square: :math:`\|\mathbb{E} g\|^2`, estimated without bias: it can fall
        below 0 where the noise is much larger.
    :param float variance: :math:`\mathbb{E} \|g - \mathbb{E} g\|^2`.
    :param float ratio: variance over ``mean_square``; infinite where this is not positive.
    :param float relative_bias: :math:`\|\bar g - g^*\| / \|g^*\|` against the gradient that was
        given, else None.
    :param float bias_error: what ``relative_bias`` would be by noise alone, else None.
    """

    mean_square: float
    variance: float
    ratio: float
    relative_bias: float | None = None
    bias_error: float | None = None


def gradient_noise(
    loss_fn: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    num_repeats: int = 100,
    exact: Iterable[Tensor] | None = None,
    *,
    progress: bool | None = None,
) -> GradientNoise:
    r"""Measures the noise of a gradient by repeating it.

    .. math::
        \bar g = \frac{1}{R} \sum_r g_r, \qquad
        V = \frac{1}{R - 1} \sum_r \| g_r - \bar g \|^2, \qquad
        \|\mathbb{E} g\|^2 \approx \|\bar g\|^2 - V / R

    :param callable loss_fn: returns a scalar loss, anew at each call. What it does to the random
        state decides which noise is measured: reset the seed in it to keep some draws.
    :param parameters: tensors with a gradient. Their ``grad`` is left alone.
    :param int num_repeats: number R of gradients, at least 2.
    :param exact: a gradient for each parameter, to compare the mean with.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :return: sizes of the mean gradient and of its noise.
    :raises ValueError: for fewer than two repeats, no parameters, or ``exact`` of other shapes.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> w = torch.ones(3, requires_grad=True)
        >>> noise = gradient_noise(lambda: (w * torch.randn(3)).sum(), [w], 1000)
        >>> 2.8 < noise.variance < 3.2
        True
    """
    check_integer("num_repeats", num_repeats, 2)
    check_callable("loss_fn", loss_fn)
    check_takes("loss_fn", loss_fn)
    wanted = _tensors("parameters", parameters)
    if not wanted:
        raise ValueError("`parameters` must hold at least one tensor, was empty")
    if not all(w.requires_grad for w in wanted):
        raise ValueError(
            "`parameters` must require a gradient, but some do not; call requires_grad_()"
        )
    truth = None if exact is None else _flat(wanted, _tensors("exact", exact))
    mean, squares = torch.zeros((), dtype=torch.float64), 0.0
    with Progress(progress, num_repeats, "gradients") as bar:
        for repeat in range(1, num_repeats + 1):  # Welford's recursion: nothing cancels
            grads = torch.autograd.grad(_scalar(loss_fn()), wanted, allow_unused=True)
            grad = _flat(wanted, list(grads))
            change = grad - mean
            mean = mean + change / repeat
            squares += torch.dot(change, grad - mean).item()
            bar.update()
    variance = squares / (num_repeats - 1)
    mean_square = mean.square().sum().item() - variance / num_repeats
    ratio = variance / mean_square if mean_square > 0 else float("inf")
    if truth is None:
        return GradientNoise(mean_square, variance, ratio)
    size = truth.norm().item()
    bias = (mean - truth).norm().item() / size
    return GradientNoise(mean_square, variance, ratio, bias, (variance / num_repeats) ** 0.5 / size)


def _tensors(name: str, given: Iterable[Tensor]) -> list[Tensor]:
    # A tensor can be gone through too, but its rows are no parameters.
    tensors = list(given) if isinstance(given, Iterable) and not _is_array(given) else [None]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise refusal(name, "an iterable of tensors", given)
    return tensors  # type: ignore[return-value]


def _is_array(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _scalar(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(
            "`loss_fn` must return a scalar tensor with a gradient to the parameters, returned "
            f"{describe(loss)}"
        )
    return loss


def _flat(wanted: list[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
    """One vector in double precision on the CPU; 0 for what has no gradient."""
    if len(grads) != len(wanted) or any(
        g is not None and g.shape != w.shape for w, g in zip(wanted, grads, strict=False)
    ):
        shapes = [tuple(w.shape) for w in wanted]
        was = [None if g is None else tuple(g.shape) for g in grads]
        raise ValueError(f"`exact` must hold tensors of shapes {shapes}, was {was}")
    parts = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
    return torch.cat([g.detach().flatten().cpu().double() for g in parts])
