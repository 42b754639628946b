r"""Log-probabilities of every datum under every component, as one matrix product.

The registry works as :func:`torch.distributions.kl.register_kl` does: a distribution whose
log-density separates into a datum's part times a parameter's part registers its
:class:`Terms`; anything else is broadcast, in chunks of rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributions as torch_dist
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_sig._arguments import (
    check_choice,
    check_instance,
    check_integer,
    check_tensor,
    describe,
    refusal,
)
from pyro_sig._functions import call, check_callable
from pyro_sig.distributions.affine_maps import map_back
from pyro_sig.distributions.components import (
    component_log_prob,
    under_vmap,
    without_validation,
)
from pyro_sig.distributions.log_mixture import full_precision, log_mixture

__all__ = [
    "Terms",
    "loses_digits",
    "mixture_log_prob",
    "pairwise_log_prob",
    "pairwise_terms",
    "register_pairwise",
]

# The largest broadcast tensor, in elements; beyond it rows are taken in chunks.
_BROADCAST_ELEMENTS = 2**22
# Above this bound on the absolute error of a log-density, it is computed with more care.
_TOLERATED_ERROR = 1e-2


class Terms(NamedTuple):
    r"""Holds the parts of :math:`\log p(x_i \mid \psi_j) = T_i \cdot \eta_j - A_j + h_i`.

    As returned by :func:`pairwise_terms`; a registered form returns the same fields with one
    more dimension of independent coordinates, ``R``, after the first.

    :param torch.Tensor statistics: sufficient statistics :math:`T`, of shape ``[N, F]``.
    :param torch.Tensor carrier: the datum's own part :math:`h`, of shape ``[N]``.
    :param torch.Tensor natural: natural parameters :math:`\eta`, of shape ``[M, F]``.
    :param torch.Tensor log_normalizer: :math:`A`, of shape ``[M]``.

    Example::

        >>> import pyro.distributions as dist
        >>> terms = pairwise_terms(dist.Poisson(torch.ones(3)), torch.zeros(5))
        >>> terms.statistics.shape, terms.natural.shape
        (torch.Size([5, 1]), torch.Size([3, 1]))
    """

    statistics: Tensor
    carrier: Tensor
    natural: Tensor
    log_normalizer: Tensor


_AnyForm = TypeVar("_AnyForm", bound=Callable[..., Terms | str])


class _Form(Protocol):
    def __call__(self, value: Tensor, **parameters: Tensor) -> Terms | str: ...


class _Entry(NamedTuple):
    form: _Form
    parameters: Callable[[Any], dict[str, Tensor]]
    event_dims: Mapping[str, int]
    location: str | None


_REGISTRY: dict[type, _Entry] = {}


def register_pairwise(
    *classes: type,
    event_dims: Mapping[str, int],
    parameters: Callable[[Any], dict[str, Tensor]] | None = None,
    location: str | None = None,
) -> Callable[[_AnyForm], _AnyForm]:
    r"""Registers the pairwise form of one or more distribution classes, as a decorator.

    The decorated function takes a value of shape ``[N, R]`` (plus event dimensions) and the
    parameters of shape ``[M | 1, R | 1]`` (plus their own event dimensions), and returns
    :class:`Terms` of shapes ``[N, R, F]``, ``[N, R]``, ``[M | 1, R | 1, F]``, ``[M | 1, R | 1]``,
    or a string that says why these parameters do not separate.

    :param type classes: distribution classes; a subclass is not covered, since it may define
        another density.
    :param dict event_dims: name of each parameter -> its number of event dimensions.
    :param callable parameters: distribution -> dict of parameters as the user gave them, for a
        class that hides them; by default attributes of these names.
    :param str location: name of a parameter that can be shifted together with the value without
        changing the density; far from the origin both are centred.
    :return: a decorator that returns the function unchanged.

    Example::

        >>> import pyro.distributions as dist
        >>> @register_pairwise(dist.Geometric, event_dims={"probs": 0})
        ... def geometric(value, probs):
        ...     x = value.unsqueeze(-1)
        ...     return Terms(x, 0 * value, (-probs).log1p().unsqueeze(-1), -probs.log())
        >>> p = dist.Geometric(torch.tensor([0.2, 0.5]))
        >>> pairwise_log_prob(p, torch.arange(3.0)).shape
        torch.Size([2, 3])
    """
    if not classes or not all(isinstance(x, type) for x in classes):
        raise refusal("classes", "classes of distributions", classes)
    if not isinstance(event_dims, Mapping) or not event_dims:
        raise refusal("event_dims", "a dict of numbers by name", event_dims)
    for name, number in event_dims.items():
        check_integer(f"event_dims[{name!r}]", number, 0, int)
    if parameters is not None:
        check_callable(
            "parameters", parameters, "a function distribution -> dict", classes=True, modules=False
        )
    if location is not None:
        check_choice("location", location, event_dims)

    def attributes(d: Any) -> dict[str, Tensor]:  # noqa: ANN401 - any distribution
        return {name: getattr(d, name) for name in event_dims}

    def decorator(form: _AnyForm) -> _AnyForm:
        check_callable("form", form, "a callable (value, **parameters) -> Terms", classes=True)
        entry = _Entry(form, parameters or attributes, dict(event_dims), location)
        _REGISTRY.update(dict.fromkeys(classes, entry))
        return form

    return decorator


class _FirstSlice(torch.autograd.Function):
    """Takes slice 0:1 of expanded dimensions; spreads the gradient without a full-size copy."""

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...]) -> Tensor:
        for dim in dims:
            x = x.narrow(dim, 0, 1)
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:  # noqa: ANN401
        x, dims = inputs
        ctx.shape, ctx.copies = x.shape, math.prod(x.shape[dim] for dim in dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        # The expansion sums over its copies: each of them carries an equal share.
        return (grad / ctx.copies).expand(ctx.shape), None


def _collapse(x: Tensor, num_dims: int) -> Tensor:
    """Undoes ``expand`` along the first dimensions: stride 0 means that all slices are one."""
    dims = tuple(d for d in range(num_dims) if x.shape[d] > 1 and x.stride(d) == 0)
    if not dims:
        return x
    if x.requires_grad:
        return _FirstSlice.apply(x, dims)
    for dim in dims:
        x = x.narrow(dim, 0, 1)
    return x


def _flatten(x: Tensor, num_batch: int, coordinates: torch.Size) -> Tensor:
    """Makes ``[M | 1, 1, .., 1, *coordinates, *event]`` into ``[M | 1, R | 1, *event]``."""
    num_coordinates = len(coordinates)
    event = x.shape[num_batch + num_coordinates :]
    given = x.shape[num_batch : num_batch + num_coordinates]
    if any(size > 1 for size in given):
        x = x.expand(*x.shape[:num_batch], *coordinates, *event)
    given = x.shape[num_batch : num_batch + num_coordinates]
    return x.reshape(math.prod(x.shape[:num_batch]), math.prod(given), *event)


def pairwise_terms(
    components: torch_dist.Distribution,
    value: Tensor,
    component_dims: int = 1,
) -> Terms | str:
    r"""Separates the log-density of every (component, datum) pair into :class:`Terms`.

    Where ``T . eta`` could lose more than 0.01 in a log-density to cancellation (data and
    parameters large against the scale), data and locations are centred in double precision.
    Whether the value lies in the support is not checked.

    A parameter that was expanded is read once, and its gradient is spread evenly over the
    copies: right for the tensor that was expanded, whatever its copies are asked for.

    :param components: a distribution of batch shape ``[*M, 1, .., 1]``: the first
        ``component_dims`` batch dimensions index components, any others must be of size 1 or
        expanded (equal along the dimension).
    :param torch.Tensor value: data, of shape ``[N, *event_shape]``.
    :param int component_dims: how many batch dimensions index components; they are flattened.
    :return: terms with ``N`` rows and ``M`` components, or a string that says why there are none.
    :raises ValueError: if the value does not end in the event shape.

    Example::

        >>> import pyro.distributions as dist
        >>> pairwise_terms(dist.Laplace(torch.zeros(3), 1.0), torch.zeros(5))
        'Laplace has no registered pairwise form'
    """
    return _terms_and_dtype(components, value, component_dims)[0]


def _check_components(components: torch_dist.Distribution, component_dims: int) -> None:
    check_instance("components", components, torch_dist.Distribution, "a Distribution")
    check_integer("component_dims", component_dims, 0, int)
    if len(components.batch_shape) < component_dims or not math.prod(components.batch_shape):
        raise ValueError(
            f"`components` must have a batch_shape with {component_dims} dimensions of components, "
            f"was {tuple(components.batch_shape)}"
        )


def _terms_and_dtype(
    components: torch_dist.Distribution, value: Tensor, component_dims: int
) -> tuple[Terms | str, torch.dtype]:
    _check_components(components, component_dims)
    check_tensor("value", value)
    # No shape is taken for a torch.Size below: zero-inflated laws have a plain tuple, and so does
    # a tensor whose provenance Pyro tracks, as in render_model.
    event_shape = components.event_shape
    if value.dim() < 1 or value.shape[1:] != event_shape:
        raise ValueError(
            f"`value` must have shape [N, *event_shape] with event_shape {tuple(event_shape)}, "
            f"was {tuple(value.shape)}"
        )
    base: Any = components
    if isinstance(base, torch_dist.TransformedDistribution) and value.dim() == 2:
        mapped = map_back(base.transforms, value)
        if mapped is not None:
            return _mapped_terms(base.base_dist, *mapped, component_dims)
    num_coordinates = 0
    while isinstance(base, torch_dist.Independent):
        num_coordinates += base.reinterpreted_batch_ndims
        base = base.base_dist
    dtype = value.dtype
    entry = _REGISTRY.get(type(base))
    if entry is None or getattr(base, "is_sparse", False):
        return f"{type(base).__name__} has no registered pairwise form", dtype
    rank = len(base.batch_shape)
    num_batch = rank - num_coordinates
    coordinates = base.batch_shape[num_batch:]
    num_components = components.batch_shape[:component_dims]
    total = math.prod(num_components)
    parameters = {}
    found = entry.parameters(base)
    if not isinstance(found, Mapping) or not found.keys() <= entry.event_dims.keys():
        raise ValueError(
            f"`parameters` must return a dict of {', '.join(entry.event_dims)}, returned "
            f"{describe(found)}"
        )
    for name, x in found.items():
        # Some classes keep a parameter without its batch dimensions.
        x = x.reshape((1,) * (rank + entry.event_dims[name] - x.dim()) + x.shape)
        x = _collapse(x, rank)
        if any(size > 1 for size in x.shape[component_dims:num_batch]):
            return f"`{name}` of {type(base).__name__} differs along a plate", dtype
        if any(size > 1 for size in x.shape[:component_dims]):
            x = x.expand(*num_components, *x.shape[component_dims:])
        parameters[name] = _flatten(x, num_batch, coordinates)

    dtype = functools.reduce(torch.promote_types, (x.dtype for x in parameters.values()))
    if value.is_floating_point():
        dtype = torch.promote_types(dtype, value.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    event = value.shape[1 + num_coordinates :]
    value = value.reshape(len(value), math.prod(value.shape[1 : 1 + num_coordinates]), *event)
    working = torch.promote_types(dtype, torch.float32)
    terms = _separate(entry, parameters, value, total, working)
    if isinstance(terms, Terms) and loses_digits(terms):
        value = value.to(torch.float64)
        if entry.location is not None:
            location = parameters[entry.location].to(torch.float64)
            centre = location.detach().mean(0, keepdim=True)
            parameters[entry.location], value = location - centre, value - centre
        terms = _separate(entry, parameters, value, total, torch.float64)
    return terms, dtype


def _mapped_terms(
    base: torch_dist.Distribution, value: Tensor, volume: Tensor, component_dims: int
) -> tuple[Terms | str, torch.dtype]:
    terms, dtype = _terms_and_dtype(base, value, component_dims)
    if isinstance(terms, Terms):
        terms = terms._replace(carrier=terms.carrier - volume)
    return terms, dtype


def _separate(
    entry: _Entry,
    parameters: dict[str, Tensor],
    value: Tensor,
    num_components: int,
    dtype: torch.dtype,
) -> Terms | str:
    parameters = {k: x.to(dtype) for k, x in parameters.items()}
    terms = call("form", entry.form, value.to(dtype), **parameters)
    if isinstance(terms, str):
        return terms
    if not isinstance(terms, Terms):
        raise ValueError(f"`form` must return Terms or a string, was {type(terms).__name__}")
    num_data, num_coordinates, num_features = terms.statistics.shape
    natural = terms.natural.expand(num_components, num_coordinates, num_features)
    log_normalizer = terms.log_normalizer
    if log_normalizer.dim() == 2:
        log_normalizer = log_normalizer.expand(num_components, num_coordinates).sum(-1)
    return Terms(
        terms.statistics.flatten(1),
        terms.carrier.expand(num_data, num_coordinates).sum(-1),
        natural.flatten(1),
        log_normalizer.expand(num_components),
    )


@torch.no_grad()
def loses_digits(terms: Terms) -> bool:
    """Tells whether rounding in ``T . eta``, bounded by Cauchy and Schwarz, could exceed 0.01.

    :param Terms terms: separated log-densities.
    :return: whether they want double precision.

    Example::

        >>> loses_digits(Terms(torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1), torch.zeros(1)))
        False
    """
    if not (len(terms.statistics) and len(terms.natural)):
        return False
    largest = (
        torch.linalg.vector_norm(terms.statistics, dim=-1).max()
        * torch.linalg.vector_norm(terms.natural, dim=-1).max()
    )
    return bool(largest * torch.finfo(largest.dtype).eps > _TOLERATED_ERROR)


def pairwise_log_prob(
    components: torch_dist.Distribution, value: Tensor, component_dims: int = 1
) -> Tensor:
    r"""Scores every datum under every component.

    .. math::
        L_{ji} = \log p(x_i \mid \psi_j)

    :param components: a distribution of batch shape ``[*M, 1, .., 1]``; see
        :func:`pairwise_terms`.
    :param torch.Tensor value: data, of shape ``[N, *event_shape]``.
    :param int component_dims: how many batch dimensions index components.
    :return: a tensor of shape ``[*M, N]``.
    :raises ValueError: if the value does not end in the event shape, or the components differ
        along other batch dimensions (without a registered form: have any of size above 1).

    Example::

        >>> import pyro.distributions as dist
        >>> components = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
        >>> pairwise_log_prob(components, torch.zeros(7, 2)).shape
        torch.Size([4, 7])
    """
    terms, dtype = _terms_and_dtype(components, value, component_dims)
    shape = components.batch_shape[:component_dims]
    if isinstance(terms, str):
        rows = components.batch_shape[component_dims:]
        if math.prod(rows) != 1:
            raise ValueError(
                f"`components` must have batch_shape [*M, 1, .., 1] with {component_dims} "
                f"dimensions of M, was {tuple(components.batch_shape)}, and {terms}"
            )
        value = value.reshape(len(value), *(1,) * len(components.batch_shape), *value.shape[1:])
        log_prob = _in_chunks(
            lambda part: component_log_prob(components, part).reshape(len(part), *shape),
            value,
            math.prod(components.batch_shape + components.event_shape),
        )
        return log_prob.movedim(0, -1)
    with full_precision(value.device):
        scores = torch.addmm(-terms.log_normalizer, terms.statistics, terms.natural.mT)
    scores = scores + terms.carrier.unsqueeze(-1)
    return scores.mT.reshape(*shape, len(value)).to(dtype)


def _in_chunks(score: Callable[[Tensor], Tensor], value: Tensor, pairs_per_row: int) -> Tensor:
    size = max(1, _BROADCAST_ELEMENTS // max(1, pairs_per_row))
    if len(value) <= size:
        return score(value)
    return torch.cat([checkpoint(score, part, use_reentrant=False) for part in value.split(size)])


def mixture_log_prob(
    components: torch_dist.Distribution, value: Tensor, chunk_size: int | None = None
) -> Tensor:
    r"""Sums the densities of all components at every datum, on the log scale.

    .. math::
        \ell_i = \log \sum_{k=1}^{K} p(x_i \mid \psi_k)

    Takes the matrix product of :func:`~pyro_sig.distributions.log_mixture.log_mixture` where
    the components are the same for all rows and have a registered form; otherwise broadcasts,
    in chunks of rows whose log-densities are computed again in the backward pass.

    :param components: a distribution of batch shape ``[K, *B]``.
    :param torch.Tensor value: data, of shape ``[*S, *B, *event_shape]`` (``B`` may broadcast).
    :param int chunk_size: components per chunk of the matrix product.
    :return: a tensor of shape ``[*S, *B]``.
    :raises ValueError: if the value does not end in the event shape.

    Example::

        >>> import pyro.distributions as dist
        >>> components = dist.Laplace(torch.zeros(4), 1.0)
        >>> mixture_log_prob(components, torch.zeros(3)).exp().round(decimals=3)
        tensor([2., 2., 2.])
    """
    _check_components(components, 1)
    check_tensor("value", value)
    if chunk_size is not None:
        check_integer("chunk_size", chunk_size, 1)
    event_shape = components.event_shape
    own = components.batch_shape[1:]
    rows = value.shape[: value.dim() - len(event_shape)]
    rows = torch.Size(broadcast_shape(rows, own))
    if value.shape[value.dim() - len(event_shape) :] != event_shape:
        raise ValueError(
            f"`value` must end in event_shape {tuple(event_shape)}, was of shape "
            f"{tuple(value.shape)}"
        )
    value = value.expand(rows + event_shape)
    if under_vmap():  # which neither a look at values nor the streaming product survives
        dim = len(rows) - len(own)
        scores = without_validation(components).log_prob(value.unsqueeze(dim))
        return scores.logsumexp(dim)
    flat = value.reshape(math.prod(rows), *event_shape)
    terms, dtype = _terms_and_dtype(components, flat, 1)
    if isinstance(terms, Terms):
        log_sum = log_mixture(terms.statistics, terms.natural, terms.log_normalizer, chunk_size)
        return (log_sum + terms.carrier).to(dtype).reshape(rows)

    def log_sum_of(values: Tensor) -> Tensor:
        return component_log_prob(components, values.unsqueeze(1)).logsumexp(1)

    # Rows first, then the dimensions along which the components differ.
    sizes = (1,) * (len(rows) - len(own)) + own
    order = sorted(range(len(rows)), key=lambda dim: sizes[dim] != 1)
    value = value.permute([*order, *range(len(rows), value.dim())])
    num_rows = math.prod(rows[dim] for dim in order if sizes[dim] == 1)
    value = value.reshape(num_rows, *own, *event_shape)
    pairs = math.prod(components.batch_shape + event_shape)
    log_sum = _in_chunks(log_sum_of, value, pairs).reshape([rows[dim] for dim in order])
    return log_sum.movedim(tuple(range(len(rows))), tuple(order))
