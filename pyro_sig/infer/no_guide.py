"""The guide of a program that leaves nothing to infer."""

from __future__ import annotations

from typing import Any

__all__ = ["no_guide"]


def no_guide(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - arguments of any program
    """Samples nothing: for programs whose objective sums all latents out.

    :param args: arguments of the model, ignored.
    :param kwargs: keyword arguments of the model, ignored.

    Example::

        >>> import pyro, torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_sig.infer import no_guide
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)
        >>> svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> isinstance(svi.step(torch.tensor(1.0)), float)
        True
    """
