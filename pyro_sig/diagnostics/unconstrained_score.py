"""The score of a program's joint density at given draws, in unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyro_sig._functions import check_callable
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._given_draws import count_draws, tensors_of

__all__ = ["unconstrained_score"]


def unconstrained_score(
    model: Callable[..., Any],
    draws: Mapping[str, Tensor],
    *args: Any,
    progress: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    r"""Maps draws of a program's latents to unconstrained space, and finds the score there.

    .. math::
        u = T^{-1}(z), \qquad s(u) = \nabla_u \left\{ \log p(x, T(u))
        + \log \left| \det \frac{\partial T}{\partial u} \right| \right\}

    This is what :func:`kernel_stein_test` needs of a model. The program is run once for each draw;
    discrete latents are summed out as under HMC.

    :param callable model: a Pyro program with observations.
    :param draws: tensors of shape ``[S, *]`` for every continuous latent, as
        :func:`draws_from` and ``mcmc.get_samples()`` return them.
    :param args: arguments of the model.
    :param bool progress: show a bar; None does where someone watches: on a terminal or in a
        notebook, not under CI.
    :param kwargs: keyword arguments of the model.
    :return: u and its score, both of shape ``[S, D]``, columns by site in the order of the program.
    :raises ValueError: if a latent is missing, the draws do not fit or differ in their number, or
        the model has a semi-implicit site, whose density is an estimate.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("rate", dist.Gamma(2.0, 1.0))
        >>> u, score = unconstrained_score(model, {"rate": torch.tensor([1.0, 2.0])})
        >>> u.squeeze(), score.squeeze()  # u = log rate, score 2 - rate
        (tensor([0.0000, 0.6931]), tensor([1., 0.]))
    """
    check_callable("model", model)
    given = {name: value.detach() for name, value in tensors_of("draws", draws).items()}
    with torch.random.fork_rng(), poutine.block():
        _, potential, transforms, trace = initialize_model(model, args, kwargs)
    missing = [name for name in transforms if name not in given]
    if missing or not transforms:
        raise ValueError(
            f"`draws` must hold every continuous latent of `model`, of which there must be one; "
            f"latents are {list(transforms)}, held {list(given)}"
        )
    tensors = {
        name: given[name].to(trace.nodes[name]["value"].dtype)
        if not given[name].is_floating_point()
        else given[name]
        for name in transforms
    }
    count = count_draws("draws", tensors)
    points: dict[str, Tensor] = {}
    for name, transform in transforms.items():
        shape = trace.nodes[name]["value"].shape
        values = tensors[name]
        if values[0].numel() != shape.numel():
            raise ValueError(
                f"`draws` must hold {name!r} in shape [S, {', '.join(map(str, shape))}], was "
                f"{tuple(values.shape)}"
            )
        points[name] = transform(values.reshape(len(values), *shape))
    rows, scores = [], []
    with Progress(progress, count, "scores") as bar:
        for index in range(count):
            leaves = {name: u[index].detach().requires_grad_() for name, u in points.items()}
            with torch.enable_grad(), poutine.block():
                gradients = torch.autograd.grad(-potential(leaves), list(leaves.values()))
            rows.append(torch.cat([u.detach().reshape(-1) for u in leaves.values()]))
            scores.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            bar.update()
    return torch.stack(rows), torch.stack(scores)
