"""Spectral normalisation of all layers of a critic."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrizations, parametrize

from pyro_sig._arguments import check_instance, check_integer

__all__ = ["spectral_norm"]

Module = TypeVar("Module", bound=nn.Module)

# A parametrisation, and the hook that came before parametrisations.
_NORMS = {"_SpectralNorm", "SpectralNorm"}


def spectral_norm(module: Module, n_power_iterations: int = 1) -> Module:
    r"""Divides the weights of all linear and convolutional layers by their largest singular value.

    .. math::

        W \leftarrow W / \sigma(W), \qquad \sigma(W) = \max_{\|h\| \le 1} \|W h\|

    A fully connected network whose activations have slopes up to 1 then has a Lipschitz constant
    up to 1; for a convolution, :math:`\sigma` is that of its kernel, reshaped to a matrix. Layers
    that are normalised already stay as they are. Parameters remain the same objects, so that an
    optimiser made before is still valid.

    The bound is in units of the data: a critic of slope 1 cannot tell modes that are much narrower
    than 1. Scale such data, or what the critic is given.

    :param torch.nn.Module module: the critic; changed in place.
    :param int n_power_iterations: iterations that follow the singular vectors in each forward
        pass in training mode.
    :return: `module`.
    :raises ValueError: if `n_power_iterations` is not a positive integer, or a lazy layer has not
        got its shape yet.

    Source: T. Miyato, T. Kataoka, M. Koyama and Y. Yoshida, "Spectral Normalization for
    Generative Adversarial Networks", 2018, https://arxiv.org/abs/1802.05957, section 2.1.

    Example::

        >>> import torch
        >>> critic = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        ... )
        >>> critic = spectral_norm(critic, n_power_iterations=20)
        >>> round(float(torch.linalg.matrix_norm(critic[0].weight.detach(), 2)), 2)
        1.0
    """
    check_integer("n_power_iterations", n_power_iterations, 1, int)
    check_instance("module", module, nn.Module)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | _ConvNd)]
    layers = [layer for layer in layers if not is_normalised(layer)]
    for layer in layers:
        if isinstance(layer.weight, UninitializedParameter):
            raise ValueError(
                "`module` must have seen data before, so that its layers have shapes, was with "
                f"{layer!r}"
            )
    for layer in layers:
        parametrizations.spectral_norm(layer, n_power_iterations=n_power_iterations)
    return module


def is_normalised(layer: nn.Module) -> bool:
    """Tell whether the weight of a layer is spectrally normalised."""
    found: list[object] = list(layer._forward_pre_hooks.values())
    if parametrize.is_parametrized(layer, "weight"):
        found += layer.parametrizations["weight"]  # type: ignore[index]
    return any(type(norm).__name__ in _NORMS for norm in found)
