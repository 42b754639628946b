"""Runs of a model beside its guide: data with their codes, draws with their noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_sig._arguments import refusal
from pyro_sig._program_run import modules_run
from pyro_sig._random_state import preserved_random_state
from pyro_sig.adversarial._tap import Given, ReleasedRun, Tap
from pyro_sig.adversarial._units import (
    Run,
    finish_rows,
    observed_sites,
    unit_mask,
    unit_rows,
    whole_units,
)
from pyro_sig.adversarial.views import ObservedView, Value, as_parts, as_value

__all__ = [
    "JointDraw",
    "JointRuns",
    "check_codes",
    "check_same_shape",
    "check_same_sites",
    "latent_sites",
    "rows_drawn",
]


class JointDraw(NamedTuple):
    """What one run of the guide and one of the model gave."""

    real: Value  # data, and codes of the guide
    fake: Value  # draws, and the noise behind them
    params: dict[str, Tensor]
    model: ReleasedRun
    args: tuple
    kwargs: Mapping[str, Any]


def rows_drawn(run: Run) -> dict[str, Tensor]:
    """Returns which rows the plates of a run drew, for another program to take the same."""
    return {name: site["value"] for name, site in run.nodes.items() if site_is_subsample(site)}


def latent_sites(run: Run) -> list[str]:
    """Returns the names of the sites that were drawn and not observed.

    :param run: of a program; its observations may have been released.
    """
    return [
        name
        for name, site in run.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and "obs" not in site["infer"]
        and not site["infer"].get("is_auxiliary")
        and not site_is_subsample(site)
    ]


class JointRuns:
    """Runs a guide, and its model with the observations released.

    :param model: the model.
    :param guide: the guide.
    :param latents: names of the latent sites that the critic sees, None for all.
    :param precision: makes the context of every run.
    :param bool encoder_trains: whether the codes need a gradient.
    :raises ValueError: if `latents` are no names.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        latents: Sequence[str] | None,
        precision: Callable[[], AbstractContextManager[Any]],
        encoder_trains: bool,
    ) -> None:
        self.model = model
        self.guide = guide
        self.latents = latents if latents is None else _check_names(latents)
        self._view = ObservedView()
        self._precision = precision
        self._encoder_trains = encoder_trains

    def prepare(
        self, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[nn.Module]]:
        """Runs guide and model once to find their sites, without leaving a trace.

        :return: the parameters that they read, and the outermost modules that they ran.
        """
        with preserved_random_state(), modules_run() as modules, torch.no_grad():
            draw = self.released(args, kwargs)
        return draw.params, modules

    def draw(self, args: tuple, kwargs: dict[str, Any]) -> JointDraw:
        """Runs both with gradients.

        :raises ValueError: if what trains has no gradient.
        """
        draw = self.released(args, kwargs)
        observed = list(observed_sites(draw.model))
        for name, part in zip(observed, as_parts(draw.fake), strict=False):
            if not part.requires_grad:
                raise ValueError(
                    "`model` must draw what the critic sees with a gradient to its parameters, but "
                    f"site {name!r} had none: it must have rsample, and its law must depend on a "
                    "parameter"
                )
        if self._encoder_trains:
            check_codes(as_parts(draw.real)[len(observed) :], self.latents or ())
        return draw

    def released(self, args: tuple, kwargs: dict[str, Any]) -> JointDraw:
        """Runs the guide, then the model with its observations released on the same rows."""
        # Codes of a guide that does not learn from the critic must bring it no gradient.
        trains = self._encoder_trains and torch.is_grad_enabled()
        with Tap() as guide, self._precision(), torch.set_grad_enabled(trains):
            self.guide(*args, **kwargs)
        with ReleasedRun() as model, Given(rows_drawn(guide)), self._precision():
            self.model(*args, **kwargs)
        with self._precision():
            real, fake = self._view(model)
        if self.latents is None:
            latents = latent_sites(model)
            check_same_sites(latents, latent_sites(guide), "; or name in `latents` those to show")
            self.latents = latents
        with self._precision():
            codes = self.rows(guide, model, "guide")
            noise = self.rows(model, model, "model")
        for name, code, z in zip(self.latents, codes, noise, strict=True):
            check_same_shape(name, code, z)
        return JointDraw(
            as_value([*as_parts(real), *codes]),
            as_value([*as_parts(fake), *noise]),
            {**guide.params, **model.params},
            model,
            args,
            kwargs,
        )

    def rows(self, run: Tap, model: Tap, name: str) -> list[Tensor]:
        """Lays the latent sites of a run out as rows for the units of the model.

        :param run: a run of guide or model.
        :param model: a run of the model, on the same rows.
        :param str name: what messages call the first.
        :raises ValueError: if it has not drawn them.
        """
        rows = []
        for latent in self.latents or ():
            site = run.nodes.get(latent)
            if site is None or site["is_observed"]:
                raise ValueError(
                    f"`{name}` must draw every site of `latents`, {list(self.latents or ())}, but "
                    f"drew {latent_sites(run)}"
                )
            rows.append(self.unit_rows(site, site["value"], len(site["fn"].event_shape), model))
        return rows

    def unit_rows(self, site: dict[str, Any], value: Tensor, event_dim: int, model: Tap) -> Tensor:
        """Lays a value out as one row for each unit of the model that is not masked.

        :param site: the site that it belongs to.
        :param torch.Tensor value: of shape ``[*batch, *event]``.
        :param int event_dim: number of its event dimensions.
        :param model: a run of the model, on the same rows.
        """
        plates = self._view.plates or frozenset()
        mask = unit_mask(next(iter(observed_sites(model).values())), plates)
        return finish_rows([unit_rows(site, value, event_dim, plates)], whole_units(mask))[0]


def check_same_sites(model: Sequence[str], guide: Sequence[str], otherwise: str = "") -> None:
    """Checks that two programs draw the same latent sites, and at least one.

    :raises ValueError: if they do not.
    """
    if set(model) != set(guide):
        raise ValueError(
            f"`guide` must draw the latent sites of the model, {list(model)}, drew "
            f"{list(guide)}{otherwise}"
        )
    if not model:
        raise ValueError("`model` must have a latent site, which the guide draws too, had none")


def check_same_shape(name: str, code: Tensor, z: Tensor, program: str = "guide") -> None:
    """Checks that the draws of a latent site are alike.

    :raises ValueError: if they are not.
    """
    if code.shape != z.shape:
        raise ValueError(
            f"`{program}` must draw site {name!r} with the shape that it has in the model, one row "
            f"for each unit, {tuple(z.shape)}, was {tuple(code.shape)}"
        )


def check_codes(codes: Sequence[Tensor], names: Sequence[str]) -> None:
    """Checks that the draws of a guide can train it.

    :raises ValueError: if none has a gradient.
    """
    if not any(code.requires_grad for code in codes):
        raise ValueError(
            "`guide` must draw its sites with a gradient to its parameters, but none of "
            f"{list(names)} had one: they must have rsample, and their laws must depend on a "
            "parameter"
        )


def _check_names(latents: Sequence[str]) -> list[str]:
    names = list(latents) if isinstance(latents, (list, tuple)) else []
    if not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        must_be = "None or a sequence of different names of latent sites"
        raise refusal("latents", must_be, latents)
    return names
