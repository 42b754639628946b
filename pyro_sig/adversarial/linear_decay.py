"""The learning-rate schedule of CycleGAN."""

from __future__ import annotations

from collections.abc import Callable

from pyro_sig._arguments import check_integer, check_number

__all__ = ["linear_decay"]


def linear_decay(num_steps: int, constant: float = 0.5) -> Callable[[int], float]:
    r"""Returns a factor of the learning rate that is 1 at first, then falls linearly to 0.

    .. math::
        r(t) = \min\Big(1, \; \max\Big(0, \; \frac{T - t}{(1 - c) \, T}\Big)\Big)

    For :class:`torch.optim.lr_scheduler.LambdaLR` or :func:`pyro.optim.LambdaLR`, which
    :func:`~pyro_sig.infer.train` advances after every step.

    :param int num_steps: the number :math:`T` of steps.
    :param float constant: the share :math:`c` of the steps before the fall, in [0, 1].
    :return: a function of the step, counted from 0, and 0 from `num_steps` on.
    :raises ValueError: if an argument is outside of its range.

    **Source:** Zhu et al., *Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
    Networks* (2017), section 4: 100 epochs with a constant rate, then 100 of a linear fall.

    Example::

        >>> factor = linear_decay(num_steps=200)
        >>> factor(0), factor(100), factor(150), factor(200)
        (1.0, 1.0, 0.5, 0.0)
        >>> import torch
        >>> optim = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=2e-4)
        >>> schedule = torch.optim.lr_scheduler.LambdaLR(optim, factor)
    """
    check_integer("num_steps", num_steps, 1, int)
    constant = check_number("constant", constant, least=0, most=1, tensors=False)
    start = constant * num_steps

    def factor(step: int) -> float:
        if step >= num_steps:
            return 0.0
        return 1.0 if step <= start else (num_steps - step) / (num_steps - start)

    return factor
