"""Schedules of SIG on separated modes, by the share of the steps that is done."""

from __future__ import annotations

import math


def conditional_std(progress: float, last: float) -> float:
    """Anneals from 1 to 0.2 over the first half, holds, and ends at the data's own std.

    A conditional wider than the modes draws psi to their centres; the wide start finds them all.
    """
    if progress < 0.5:
        return 0.2 ** (2 * progress)
    return 0.2 if progress < 0.95 else last


def instance_noise_std(progress: float, last: float) -> float:
    """Falls geometrically from 1 over three fifths of the steps, and stays at the data's own std.

    Critics of blurred data and draws find where mass is missing before they look at detail.
    """
    return max(last, last ** (progress / 0.6))


def rate_factor(progress: float, warm_up: float = 1 / 12) -> float:
    """Rises linearly, then falls by a cosine; as a share of the largest learning rate."""
    return min(1.0, (progress + 1e-6) / warm_up) * 0.5 * (1 + math.cos(math.pi * progress))
