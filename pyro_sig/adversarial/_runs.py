"""Runs of a program for its adversary: draws beside data, and the bound of the same draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_sig._arguments import describe
from pyro_sig._functions import first_call
from pyro_sig._program_run import modules_run
from pyro_sig._random_state import preserved_random_state
from pyro_sig.adversarial._elbo_term import ElboTerm
from pyro_sig.adversarial._tap import ReleasedRun, Tap
from pyro_sig.adversarial._units import (
    find_unit_plates,
    finish_rows,
    observed_sites,
    subsampling,
    unit_mask,
    unit_rows,
)
from pyro_sig.adversarial.views import (
    ObservedView,
    PsiView,
    Value,
    View,
    as_parts,
    find_psi_site,
    psi_law,
)

__all__ = ["Draw", "Runs"]


class Draw(NamedTuple):
    """What one run of the program gave: values for the critic, and the bound if there is one."""

    real: Value
    fake: Value
    params: dict[str, Tensor]
    bound: Tensor | float | None = None  # the negative ELBO of the whole data
    num_units: float = 1.0  # how many units that data have
    weight: Any = None  # of the bound in this step


class _SharedPsi(NamedTuple):
    """Where a bound draws the psi that the critic sees."""

    site: str
    observed: str
    event_shape: torch.Size
    plates: frozenset[str]


class Runs:
    """Runs a program with its observations released, or under a bound that draws the psi.

    :param model: the program.
    :param view: what the critic sees, None for the default.
    :param term: a bound beside the critic, if there is one.
    :param precision: makes the context of every run.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        view: Callable[[Any], tuple[Value, Value]] | None,
        term: ElboTerm | None,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.model = model
        self.view = view
        self.term = term
        self._precision = precision
        self._shared: _SharedPsi | None = None
        self._viewed = False

    def prepare(
        self, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[nn.Module]]:
        """Runs guide and model once to find their sites, without leaving a trace.

        :return: the parameters that they read, and the outermost modules that they ran.
        """
        with preserved_random_state(), modules_run() as modules:
            with Tap() as tap:
                if self.term is not None:
                    self.term.guide(*args, **kwargs)
            with torch.no_grad(), ReleasedRun() as run:
                self.model(*args, **kwargs)
        if self.view is None:
            psi_site = None if self.term is None else find_psi_site(run)
            self.view = ObservedView() if psi_site is None else PsiView(psi_site)
        if self.term is not None and self.term.differentiable and isinstance(self.view, PsiView):
            self._shared = _find_shared(run, self.view.site)
        return {**tap.params, **run.params}, modules

    def draw(self, args: tuple, kwargs: dict[str, Any], bounded: bool = True) -> Draw:
        """Runs program and bound with gradients; one run serves both where psi can be shared.

        :param bounded: whether the bound is due, if there is one.
        :raises ValueError: if what the critic sees has no gradient.
        """
        if self._shared is not None and bounded:
            draw = self._draw_shared(self._shared, args, kwargs)
            if draw is not None:
                return draw
            self._shared = None  # rows have psi of their own, or those have no gradient
        draw = self.released(args, kwargs)
        self._check_gradient(draw.fake)
        if self.term is not None and bounded:
            with Tap() as tap, self._precision():
                bound = self.term(self.model, args, kwargs)
            draw = draw._replace(params={**draw.params, **tap.params}, bound=bound)
        return draw

    def released(self, args: tuple, kwargs: dict[str, Any]) -> Draw:
        """Runs the program with its observations released."""
        assert self.view is not None
        with ReleasedRun() as run, self._precision():
            self.model(*args, **kwargs)
        with self._precision():
            seen = self._see(run)
        if not (isinstance(seen, (tuple, list)) and len(seen) == 2):
            raise ValueError(
                "`view` must return what the critic sees as a pair (real, fake), returned "
                f"{describe(seen)}"
            )
        real, fake = seen
        num_units = 1.0
        if self.term is not None:
            site = next(iter(observed_sites(run).values()))
            plates = self.view.plates if isinstance(self.view, View) else None
            num_units = len(as_parts(real)[0]) * subsampling(site, plates)
        return Draw(real, fake, run.params, num_units=num_units)

    def _see(self, run: ReleasedRun) -> Any:  # noqa: ANN401 - whatever a caller's function returns
        if isinstance(self.view, View):
            return self.view(run)
        assert self.view is not None
        if self._viewed:
            return self.view(run.trace())
        self._viewed = True
        return first_call("view", self.view, run.trace())

    def _draw_shared(self, shared: _SharedPsi, args: tuple, kwargs: dict[str, Any]) -> Draw | None:
        """Runs the bound and takes the psi that it drew as the draws; None where they do not do."""
        assert self.term is not None
        with Tap() as tap, self._precision():
            bound = self.term(self.model, args, kwargs)
        psi = tap.psi(shared.site, shared.event_shape)
        if psi is None or not psi.requires_grad:  # a bound may differentiate some of its psi only
            return None
        data = tap.nodes[shared.observed]
        # The bound may have expanded the site over its psi; the value is as it was given.
        x, event_dim = data["value"], len(data["fn"].event_shape)
        mask = unit_mask(data, shared.plates, x.shape[: x.dim() - event_dim])
        (real,) = finish_rows([unit_rows(data, x, event_dim, shared.plates)], mask)
        (psi,) = finish_rows([psi[: len(real)]], None)
        return Draw(real, psi, tap.params, bound, len(real) * subsampling(data, shared.plates))

    def _check_gradient(self, fake: Value) -> None:
        parts = as_parts(fake)
        lacking = [i for i, part in enumerate(parts) if not part.requires_grad]
        # A view of the user's may show a condition beside the draw.
        some = not isinstance(self.view, ObservedView) and len(lacking) < len(parts)
        if lacking and not some:
            raise ValueError(
                "`model` must draw what the critic sees with a gradient to its parameters, but "
                f"value {lacking[0]} of shape {tuple(parts[lacking[0]].shape)} had none: the site "
                "must have rsample, and its law must depend on a parameter. A discrete site can "
                "be trained by SIG, or show the critic its psi: view=PsiView(site)"
            )


def _find_shared(run: ReleasedRun, site: str) -> _SharedPsi | None:
    observed = list(observed_sites(run))
    law = psi_law(run.nodes[site]["fn"]) if site in run.nodes else None
    if law is None or len(observed) != 1:
        return None
    mixing = getattr(law, "mixing", None)
    shape = run.nodes[site]["fn"].event_shape if mixing is None else mixing.event_shape
    return _SharedPsi(site, observed[0], shape, find_unit_plates(run))
