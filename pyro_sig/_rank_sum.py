"""Sums over the processes of a group, in logarithms and with gradients; what each has to draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
import torch.distributed as dist
from torch import Tensor

from pyro_sig._arguments import check_choice, check_floating, check_integer, refusal
from pyro_sig._random_state import preserved_random_state

__all__ = [
    "all_reduce_logsumexp",
    "check_group",
    "check_same",
    "own_share",
    "rank_share",
    "same_draws",
]

Group = Any  # a torch.distributed.ProcessGroup, which a build without distributed lacks


def check_group(group: Group = None) -> tuple[int, int]:
    """Returns rank and size of a process group.

    :param group: the group, None for all processes.
    :raises ValueError: if there is none, or this process is not in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "`group` must be a process group, but none is initialised: call "
            "torch.distributed.init_process_group() first, in a script started by torchrun"
        )
    outside = isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER
    if not (group is None or outside or isinstance(group, dist.ProcessGroup)):
        raise refusal("group", "a process group or None", group)
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            f"`group` must hold this process, but rank {dist.get_rank()} is outside of it"
        )
    return rank, dist.get_world_size(group)


def rank_share(number: int, group: Group = None) -> int:
    r"""Returns how many of some draws this process makes.

    .. math::
        M_r = \lfloor M / W \rfloor + [r < M \bmod W], \qquad \sum_r M_r = M

    :param int number: the draws M of all W processes together.
    :param group: the process group, None for all processes.
    :return: the number of this process.
    :raises ValueError: without a process group, or if there are fewer draws than processes.

    Example::

        >>> import tempfile, torch.distributed as dist
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> rank_share(1000)  # of one process
        1000
        >>> dist.destroy_process_group()
    """
    rank, size = check_group(group)
    check_integer("number", number, size, int)  # one draw for each process, at least
    return number // size + (rank < number % size)


def own_share(num_mixing: int, mixing_group: Group) -> int:
    """Returns how many of the psi of a mixture this process draws.

    :param int num_mixing: the psi of all processes together.
    :param mixing_group: the processes that share them out, None for this one alone.
    :return: the number of this process.
    :raises ValueError: if there are fewer psi than processes.
    """
    if mixing_group is None:
        return num_mixing
    size = check_group(mixing_group)[1]
    if num_mixing < size:
        raise ValueError(
            f"`num_mixing` must be at least {size}, one psi for each process of `mixing_group`, "
            f"was {num_mixing}"
        )
    return rank_share(num_mixing, mixing_group)


class _LogSumExp(torch.autograd.Function):
    """Carries the sum over processes, and gives each its own part of the gradient."""

    @staticmethod
    def forward(ctx: Any, log_sum: Tensor, group: Group, factor: float) -> Tensor:
        largest = log_sum.detach().clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        # Where all are -inf (or one is inf) the difference would be NaN.
        largest = torch.where(largest.isfinite(), largest, 0.0)
        total = (log_sum - largest).exp()
        dist.all_reduce(total, dist.ReduceOp.SUM, group)
        total = total.log() + largest
        ctx.save_for_backward(log_sum, total)
        ctx.factor = factor
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "`all_reduce_logsumexp` has no second derivative: the gradient in one process is "
                "its part only, and is whole once gradients are reduced over processes. Keep what "
                "is differentiated twice (unrolled steps, a score of the bound) on one process"
            )
        log_sum, total = ctx.saved_tensors
        share = (log_sum - total).exp()
        share = torch.where(total == -torch.inf, 0.0, share)  # as where nothing has a gradient
        return grads[0] * share * ctx.factor, None, None


def all_reduce_logsumexp(log_sum: Tensor, group: Group = None, reduction: str = "mean") -> Tensor:
    r"""Adds up over processes what each has the logarithm of.

    .. math::
        T = \log \sum_{r=1}^{W} e^{\ell_r}, \qquad
        \frac{\partial T}{\partial \ell_r} = e^{\ell_r - T}

    With :math:`\ell_r = \log \sum_{m} p(x \mid \psi_{rm})` over the draws of process r, T is that
    over the draws of all of them. Forward are two reductions of the size of the tensor (maximum,
    sum); backward there is none: each process gets the gradient of its own draws, and gradients
    of parameters are whole when they are reduced over processes. For those that take the mean, as
    :func:`~pyro_sig.distributed.data_parallel` does, each part is multiplied by W, so
    that terms which are the same in every process need no care. The gradient that comes in has to
    be the same in every process of the group.

    :param torch.Tensor log_sum: the own logarithm, of any shape, equal in all processes; -inf
        where it has nothing to add.
    :param group: the process group, None for all processes.
    :param str reduction: how gradients of parameters are reduced afterwards, "mean" or "sum".
    :return: T, a tensor of the same shape, the same in every process.
    :raises ValueError: without a process group, or for another `reduction`.
    :raises NotImplementedError: if the gradient is to be differentiated again.

    Example::

        >>> import tempfile, torch, torch.distributed as dist
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> all_reduce_logsumexp(torch.tensor([0.5, -torch.inf]))  # of one process
        tensor([0.5000,   -inf])
        >>> dist.destroy_process_group()
    """
    size = check_group(group)[1]
    check_floating("log_sum", log_sum)
    check_choice("reduction", reduction, ("mean", "sum"))
    total: Any = _LogSumExp.apply(log_sum, group, float(size) if reduction == "mean" else 1.0)
    return total


@torch.no_grad()
def check_same(name: str, value: Tensor, group: Group = None) -> None:
    """Checks that a tensor is the same in every process, as far as its sums tell.

    :param str name: what messages call it.
    :param torch.Tensor value: the tensor.
    :param group: the process group, None for all processes.
    :raises ValueError: if not, in every process.
    """
    wide = value.double()
    sums = torch.stack([wide.sum(), wide.square().sum(), wide.new_tensor(float(wide.numel()))])
    largest = torch.cat([sums, -sums])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    if bool((largest[:3] > -largest[3:]).any()):
        raise ValueError(
            f"`{name}` must be the same in every process of a mixture over the draws of all, but "
            "was not: draw rows within same_draws, or pass the same ones"
        )


@contextmanager
def same_draws(group: Group = None) -> Iterator[None]:
    """Draws the same random numbers in every process of a group, within a context.

    The seed is drawn by the first process. What each draws afterwards comes from its own random
    state, which goes on by that one number.

    :param group: the process group, None for all processes.
    :raises ValueError: without a process group.

    Example::

        >>> import tempfile, torch, torch.distributed as dist
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> with same_draws():
        ...     z = torch.randn(3)
        >>> dist.destroy_process_group()
    """
    check_group(group)
    seed = [int(torch.randint(2**31 - 1, ()))]
    first = 0 if group is None else dist.get_global_rank(group, 0)
    dist.broadcast_object_list(seed, first, group)
    with preserved_random_state():
        pyro.set_rng_seed(seed[0])
        yield
