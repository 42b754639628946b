"""Fully connected networks: the plain one, one of several values, and an encoder."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_sig._arguments import (
    Device,
    Dtype,
    check_device,
    check_instance,
    check_integer,
    check_like,
    check_sizes,
    floating,
    refusal,
)
from pyro_sig.nn._make_module import make_module

__all__ = ["MLP", "Encoder", "Joint"]


class MLP(nn.Module):
    r"""Maps features through fully connected layers.

    .. math::

        h_l = a(W_l h_{l-1} + b_l), \quad f(x) = W_{L+1} h_L + b_{L+1}, \quad h_0 = x

    The generators and encoders of the SIG paper's toys have two hidden layers of 100 ReLU units,
    its critics one.

    :param int in_features: size of the last dimension of the input.
    :param hidden_features: sizes of the hidden layers; empty for a linear map.
    :param int out_features: size of the last dimension of the output.
    :param activation: makes an activation module; called once for each hidden layer.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if a size is not a positive integer, or an input has other features.

    **Source:** Yin and Zhou, *Semi-Implicit Generative Model* (2019), section 5.2.

    Example::

        >>> generator = MLP(2, [100, 100], 2)
        >>> generator(torch.randn(5, 3, 2)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        floating(dtype)
        check_device(device)
        self.in_features = check_integer("in_features", in_features, 1, int)
        self.out_features = check_integer("out_features", out_features, 1, int)
        layers: list[nn.Module] = []
        size = in_features
        for hidden in check_sizes("hidden_features", hidden_features, int):
            layers.append(nn.Linear(size, hidden, device=device, dtype=dtype))
            layers.append(make_module("activation", activation))
            size = hidden
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(size, out_features, device=device, dtype=dtype)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer.

        :param torch.Tensor x: input, with shape ``[*, in_features]``.
        :return: activations, with shape ``[*, hidden_features[-1]]``.
        :raises ValueError: if `x` has another last dimension.
        """
        check_like("x", x, (self.in_features,), self.head.bias)
        return self.hidden(x)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the network at `x`, shape ``[*, in_features]`` to ``[*, out_features]``."""
        return self.head(self.features(x))


class Joint(nn.Module):
    r"""Feeds several values to a network as one row: a critic of data and latents.

    .. math::

        f(x, z) = \mathrm{net}([x, z])

    :param torch.nn.Module net: maps rows of all features, flattened and in the order of the values.
    :raises ValueError: if the values are no tensors with the same number of rows.

    Example::

        >>> critic = Joint(MLP(6, [16], 1))
        >>> critic(torch.randn(5, 2, 2), torch.randn(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        check_instance("net", net, nn.Module)
        self.net = net

    def forward(self, *values: Tensor) -> Tensor:
        """Evaluate the network at values of shapes ``[N, *]``."""
        if not all(isinstance(value, Tensor) and value.dim() for value in values):
            raise refusal("values", "tensors of shapes [N, *]", values)
        rows = [len(value) for value in values]
        if len(set(rows)) != 1:
            raise ValueError(f"`values` must have the same number of rows, had {rows}")
        kinds = {(value.device, value.layout) for value in values}
        if len(kinds) != 1 or values[0].layout != torch.strided:
            raise refusal("values", "dense tensors on one device", values)
        flat = [value.flatten(1) if value.dim() > 1 else value.unsqueeze(1) for value in values]
        return self.net(torch.cat(flat, -1))


class Encoder(nn.Module):
    r"""Maps data to the location and the scale of a diagonal Gaussian.

    .. math::

        q(z | x) = \mathcal{N}(z; \mu(x), \mathrm{diag}(\sigma(x))^2), \quad
        \sigma = \log(1 + e^u) + \varepsilon, \quad (\mu, u) = f(x)

    with :math:`f` an :class:`MLP` and :math:`\varepsilon` the machine epsilon of its type: a
    softplus alone underflows to zero.

    :param int in_features: size of the last dimension of the data.
    :param hidden_features: sizes of the hidden layers.
    :param int latent_dim: size of the latent.
    :param activation: makes an activation module; called once for each hidden layer.
    :param device: device of the parameters.
    :param dtype: floating point type of the parameters.
    :raises ValueError: if a size is not a positive integer, or an input has other features.

    **Source:** Kingma and Welling, *Auto-Encoding Variational Bayes* (2014), appendix C.2, with a
    softplus in place of the exponential.

    Example::

        >>> loc, scale = Encoder(784, [100, 100], 20)(torch.rand(5, 784))
        >>> loc.shape, bool((scale > 0).all())
        (torch.Size([5, 20]), True)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        latent_dim: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        outputs = 2 * check_integer("latent_dim", latent_dim, 1, int)
        self.net = MLP(
            in_features, hidden_features, outputs, activation, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale, each of shape ``[*, latent_dim]``, for `x`."""
        loc, raw = self.net(x).chunk(2, dim=-1)
        return loc, nn.functional.softplus(raw) + torch.finfo(raw.dtype).eps
