"""The Inception score, from class probabilities that somebody else computes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, check_tensor

__all__ = ["InceptionScore", "inception_score"]


class InceptionScore(NamedTuple):
    """Result of :func:`inception_score`.

    :param mean: of the scores of the splits.
    :param std: standard deviation over the splits, dividing by their number as published scores
        do.
    :param exp_marginal_entropy: the number of classes that all rows together reach: large is
        good.
    :param exp_conditional_entropy: the number of classes that the classifier hesitates between
        in a row, as a geometric mean: small is good.
    """

    mean: float
    std: float
    exp_marginal_entropy: float
    exp_conditional_entropy: float


def inception_score(probabilities: Tensor, num_splits: int = 10) -> InceptionScore:
    r"""Scores generated samples by the classes that a classifier sees in them.

    .. math::
        \mathrm{IS} = \exp E_x \mathrm{KL}\{p(c \mid x) \,\|\, p(c)\}
            = \frac{\exp H\{p(c)\}}{\exp E_x H\{p(c \mid x)\}}, \qquad p(c) = E_x p(c \mid x),

    between 1 and the number of classes. Each of ``num_splits`` parts of the rows, in the order
    given, is scored with its own :math:`p(c)`. The two factors are those of all rows; their ratio
    is the score for ``num_splits=1``, and lies above the mean over smaller splits where these
    miss classes.

    :param probabilities: :math:`p(c \mid x)`, shape ``[N, C]``: a row for each generated sample,
        shuffled if they were made class by class.
    :param num_splits: number of parts, at most :math:`N`; their sizes differ by one at most.
    :return: mean and standard deviation over the splits, and the two factors.
    :raises ValueError: if ``probabilities`` does not have two dimensions, has a negative or
        non-finite entry or a row that does not sum to one, or ``num_splits`` is out of range.

    Source: T. Salimans et al., "Improved Techniques for Training GANs", 2016,
    https://arxiv.org/abs/1606.03498, section 4.

    Example::

        >>> certain = torch.eye(4).repeat(5, 1)  # all four classes, without a doubt
        >>> inception_score(certain, num_splits=1).mean
        4.0
        >>> inception_score(torch.full((20, 4), 0.25)).mean  # no idea
        1.0
    """
    probabilities = check_tensor(
        "probabilities",
        probabilities,
        "a floating tensor of shape [N, C] and not empty",
        lambda p: p.dim() == 2 and 0 not in p.shape and p.is_floating_point(),
    )
    check_integer("num_splits", num_splits, 1)
    if num_splits > len(probabilities):
        raise ValueError(
            f"`num_splits` must be at most the number of rows, {len(probabilities)}, "
            f"was {num_splits}"
        )
    with torch.no_grad():
        rows = probabilities.double()
        if not bool((torch.isfinite(rows) & (rows >= 0)).all()):
            raise ValueError(
                "`probabilities` must be finite and not negative, but has other entries"
            )
        # What a softmax in half precision leaves.
        error = float((rows.sum(-1) - 1).abs().max())
        if error > 1e-2:
            raise ValueError(
                f"`probabilities` must have rows that sum to 1, but one is off by {error:.3g}"
            )
        rows = rows / rows.sum(-1, keepdim=True)
        scores = torch.stack(
            [(_entropy(part.mean(0)) - _entropy(part).mean()).exp()
             for part in rows.tensor_split(num_splits)]
        )  # fmt: skip
        return InceptionScore(
            mean=float(scores.mean()),
            std=float(scores.std(correction=0)),
            exp_marginal_entropy=float(_entropy(rows.mean(0)).exp()),
            exp_conditional_entropy=float(_entropy(rows).mean().exp()),
        )


def _entropy(probabilities: Tensor) -> Tensor:
    # xlogy(0, 0) is 0, and so is a class's part that never comes.
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)
