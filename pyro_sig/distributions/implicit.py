"""A distribution known by its samples alone: noise pushed through a callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_sig._arguments import (
    check_instance,
    check_integer,
    check_tensor,
    describe,
    refusal,
    shape_of,
)
from pyro_sig._functions import call, check_callable
from pyro_sig._show_settings import show_settings
from pyro_sig.distributions._checks import check_value, expanded_shape
from pyro_sig.distributions._closures import THROUGH_INPUTS, check_closure, fixed_tensors

__all__ = ["Implicit"]


def _has_trainable(d: Distribution) -> bool:
    """Looks for parameters with a gradient, also inside ``Independent`` and the like."""
    return any(
        _has_trainable(x) if isinstance(x, Distribution) else x.requires_grad
        for x in vars(d).values()
        if isinstance(x, (Distribution, Tensor))
    )


class Implicit(TorchDistribution):
    r"""Pushes noise forward through a transform; can be sampled, has no density.

    .. math::
        \psi = T_\phi(\epsilon, c), \qquad \epsilon \sim \text{noise}

    At a sample site it is marginalised by :class:`~pyro_sig.infer.SIG_ELBO`; as ``mixing`` it
    makes a :class:`~pyro_sig.distributions.SemiImplicit`. ``log_prob`` raises.

    Whatever the transform depends on besides noise (data, another latent) goes through
    ``inputs``, not a closure: the distribution then knows its batch shape and draws noise for
    each row. A closure over N rows would pair them with N draws; where it is noticed, that raises.

    :param callable transform: a module or function; called as ``transform(noise, *inputs)``, each
        argument with the same leading dimensions ``[*]`` followed by its event dimensions, it
        returns a tensor of shape ``[*, *event_shape]``.
    :param noise: the law of :math:`\epsilon`, a distribution whose parameters need no gradient
        unless it has ``rsample``.
    :param event_shape: shape of one draw: an int or a sequence of ints.
    :param inputs: a tensor or a tuple of tensors of shape ``[*batch_shape, *features]``.
    :param int inputs_event_dim: how many rightmost dimensions of every input are features.
    :param support: constraint of one draw, by default real.
    :raises ValueError: if the transform returns another shape, or the noise has parameters that
        cannot be trained.

    Reference: M. Yin and M. Zhou (2018), "Semi-Implicit Generative Model", section 2, eq. 3.

    Example::

        >>> import pyro.distributions as dist
        >>> noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> psi = Implicit(torch.nn.Linear(2, 3), noise, event_shape=3)
        >>> psi.sample((5,)).shape
        torch.Size([5, 3])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    __repr__ = show_settings

    def __init__(
        self,
        transform: Callable[..., Tensor],
        noise: Distribution,
        event_shape: int | Sequence[int] = (),
        inputs: Tensor | Sequence[Tensor] | None = None,
        inputs_event_dim: int = 1,
        support: constraints.Constraint | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_callable("transform", transform, "a callable noise -> psi", classes=True)
        check_instance("noise", noise, Distribution, "a Distribution")
        if not noise.has_rsample and _has_trainable(noise):
            raise ValueError(
                "`noise` must have rsample or parameters that need no gradient, was "
                f"{type(noise).__name__} with trainable parameters, which would not train"
            )
        sizes = (event_shape,) if isinstance(event_shape, int) else event_shape
        event_shape = shape_of("event_shape", sizes)
        check_integer("inputs_event_dim", inputs_event_dim, 0, int)
        inputs = () if inputs is None else (inputs,) if isinstance(inputs, Tensor) else inputs
        if not isinstance(inputs, Sequence):
            raise refusal("inputs", "a tensor or a tuple of tensors", inputs)
        for x in inputs:
            must_be = f"dense tensors of real numbers, of at least {inputs_event_dim} dimensions"
            if check_tensor("inputs", x, must_be).dim() < inputs_event_dim:
                raise refusal("inputs", must_be, x)
        self.transform = transform
        self.noise = noise
        self.inputs = tuple(inputs)
        self.inputs_event_dim = inputs_event_dim
        if support is None:
            support = constraints.independent(constraints.real, len(event_shape))
        else:
            check_instance("support", support, constraints.Constraint, "a constraint")
        self._given_support = support
        super().__init__(self.own_batch_shape, event_shape, validate_args=validate_args)

    @property
    def own_batch_shape(self) -> torch.Size:
        """Batch shape of noise and inputs, before any expansion: rows that differ in law."""
        if not self.inputs:
            return torch.Size(self.noise.batch_shape)  # some laws of Pyro's have a plain tuple
        inputs = (x.shape[: x.dim() - self.inputs_event_dim] for x in self.inputs)
        return torch.Size(broadcast_shape(self.noise.batch_shape, *inputs))

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Constraint of one draw."""
        return self._given_support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Implicit:  # noqa: ANN401
        """Returns the same law with another batch shape; draws are independent along it."""
        new = self._get_checked_instance(Implicit, _instance)
        for name in ("transform", "noise", "inputs", "inputs_event_dim", "_given_support"):
            setattr(new, name, getattr(self, name))
        batch_shape = shape_of("batch_shape", batch_shape)
        if batch_shape != self.own_batch_shape:  # from before an expansion
            batch_shape = expanded_shape(self.batch_shape, batch_shape)
        super(Implicit, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self) -> dict[str, Any]:
        # Graph tensors can be neither copied nor pickled.
        return {**vars(self), "inputs": tuple(x.detach() for x in self.inputs)}

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws with a gradient to the transform and to the noise's parameters.

        :param sample_shape: shape of independent draws to the left of the batch shape.
        :return: a tensor of shape ``[*sample_shape, *batch_shape, *event_shape]``.
        :raises ValueError: if the transform returns another shape.
        """
        return self.push(self.sample_noise(sample_shape))

    def sample_noise(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws the noise alone.

        :param sample_shape: shape of independent draws to the left of the batch shape.
        :return: a tensor of shape ``[*sample_shape, *batch_shape, *noise.event_shape]``.
        """
        noise, shape = self.noise, shape_of("sample_shape", sample_shape)
        if noise.batch_shape:
            noise = noise.expand(self.batch_shape)
        else:  # the same draws without a copy of the distribution
            shape = shape + self.batch_shape
        return noise.rsample(shape) if noise.has_rsample else noise.sample(shape)

    def push(self, noise: Tensor) -> Tensor:
        """Maps given noise to psi.

        :param torch.Tensor noise: of shape ``[*sample_shape, *batch_shape, *noise.event_shape]``.
        :return: a tensor of shape ``[*sample_shape, *batch_shape, *event_shape]``.
        :raises ValueError: if the transform does not take the noise, returns another shape, or
            pairs draws with rows of a tensor that it closes over.
        """
        check_value(noise, self.noise.event_shape, self.own_batch_shape)
        shape = noise.shape[: noise.dim() - len(self.noise.event_shape)]
        inputs = []
        for x in self.inputs:
            event = x.shape[x.dim() - self.inputs_event_dim :]
            inputs.append(x.expand(shape + event))
        try:
            psi = call("transform", self.transform, noise, *inputs)
        except (RuntimeError, IndexError, ValueError) as error:
            was, remedy = str(error), self._remedy()
            other_arguments = was.startswith("`transform` must")
            if other_arguments and not self.inputs:
                remedy = THROUGH_INPUTS
            # Other kinds of them tell of memory, devices and processes, not of shapes.
            if not remedy or type(error) not in (RuntimeError, IndexError, ValueError):
                raise
            if not other_arguments:
                given = ", ".join(map(describe, (noise, *inputs)))
                was = f"`transform` must take {given}, but raised: {was}"
            raise ValueError(f"{was}: {remedy}") from error
        if not isinstance(psi, Tensor) or psi.shape != shape + self.event_shape:
            raise self._wrong_shape(psi, shape)
        if not self.inputs and not isinstance(self.transform, nn.Module):
            num_dims = len(shape) - len(self.batch_shape)
            check_closure(
                "transform", self.transform, noise, num_dims, shape, self._rows_of, THROUGH_INPUTS
            )
        return psi

    def _rows_of(self, psi: Tensor) -> torch.Size:
        return psi.shape[: psi.dim() - len(self.event_shape)]

    def _remedy(self) -> str:
        if not self.inputs:
            return THROUGH_INPUTS if fixed_tensors(self.transform) else ""
        dim = self.inputs_event_dim
        for x in self.inputs:
            if dim and x.dim() == dim:
                one, row = ("vector", "number") if dim == 1 else ("event", "smaller event")
                return (
                    f"an input of shape {tuple(x.shape)} is one {one}, the same for every draw, "
                    f"with inputs_event_dim={dim}; a {row} per row needs inputs_event_dim={dim - 1}"
                )
        return ""

    def _wrong_shape(self, psi: object, shape: torch.Size) -> ValueError:
        was, remedy = type(psi).__name__, ""
        if isinstance(psi, Tensor):
            was = str(tuple(psi.shape))
            if self.inputs and self._remedy():
                remedy = f": {self._remedy()}"
            elif psi.shape[: len(shape)] == shape:  # only the event differs
                event = tuple(psi.shape[len(shape) :])
                remedy = f": pass event_shape={event}"
                if event == (*self.event_shape, 1):
                    remedy += ", or return transform(noise).squeeze(-1)"
            if not self.inputs and self._remedy():
                remedy += f"{', or' if remedy else ':'} {THROUGH_INPUTS}"
        return ValueError(
            f"`transform` must return psi of shape {tuple(shape + self.event_shape)} (draws and "
            f"batch {tuple(shape)}, event_shape {tuple(self.event_shape)}), was {was}{remedy}"
        )

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws without a gradient; shapes as :meth:`rsample`."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raises: an implicit distribution has no density.

        :raises NotImplementedError: always, with the ways to score a model that holds one.
        """
        raise NotImplementedError(
            "Implicit has no density. Marginalise the site with pyro_sig.infer.SIG_ELBO, or mix "
            "an explicit conditional over it: SemiImplicit(mixing, conditional, num_mixing)."
        )
