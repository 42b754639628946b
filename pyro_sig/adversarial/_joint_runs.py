"""Runs of a model beside its guide: data with their codes, draws with their noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_sig._random_state import preserved_random_state
from pyro_sig.adversarial._tap import ReleasedRun, Tap, modules_run
from pyro_sig.adversarial._units import Run, finish_rows, observed_sites, unit_mask, unit_rows
from pyro_sig.adversarial.views import ObservedView, Value, as_parts, as_value

__all__ = ["JointDraw", "JointRuns", "SameRows", "latent_sites"]


class JointDraw(NamedTuple):
    """What one run of the guide and one of the model gave."""

    real: Value  # data, and codes of the guide
    fake: Value  # draws, and the noise behind them
    params: dict[str, Tensor]
    guide: Tap
    model: ReleasedRun
    args: tuple
    kwargs: Mapping[str, Any]


class SameRows(Messenger):
    """Lets the plates of a program draw the rows that they had in another run.

    :param run: the other run.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self._run.nodes:
            msg["value"] = self._run.nodes[msg["name"]]["value"]
            msg["done"] = True


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
        self.latents = latents
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
        codes = as_parts(draw.real)[len(observed) :]
        if self._encoder_trains and not any(code.requires_grad for code in codes):
            raise ValueError(
                "`guide` must draw its sites with a gradient to its parameters, but none of "
                f"{self.latents} had one: they must have rsample, and their laws must depend on a "
                "parameter"
            )
        return draw

    def released(self, args: tuple, kwargs: dict[str, Any]) -> JointDraw:
        """Runs the guide, then the model with its observations released on the same rows."""
        with Tap() as guide, self._precision():
            self.guide(*args, **kwargs)
        with ReleasedRun() as model, SameRows(guide), self._precision():
            self.model(*args, **kwargs)
        if self.latents is None:
            self.latents = latent_sites(model)
            _check_same_sites(self.latents, latent_sites(guide))
        with self._precision():
            real, fake = self._view(model)
            codes = self._rows(guide, model, "guide")
            noise = self._rows(model, model, "model")
        for name, code, z in zip(self.latents, codes, noise, strict=True):
            if code.shape != z.shape:
                raise ValueError(
                    f"`guide` must draw site {name!r} with the shape that it has in the model, one "
                    f"row for each unit, {tuple(z.shape)}, was {tuple(code.shape)}"
                )
        return JointDraw(
            as_value([*as_parts(real), *codes]),
            as_value([*as_parts(fake), *noise]),
            {**guide.params, **model.params},
            guide,
            model,
            args,
            kwargs,
        )

    def _rows(self, run: Tap, model: ReleasedRun, name: str) -> list[Tensor]:
        """Lays the latent sites of a run out as rows for the units of the model."""
        plates = self._view.plates or frozenset()
        data = next(iter(observed_sites(model).values()))
        mask = unit_mask(data, plates)
        if mask is not None and mask.dim() > 1:
            mask = mask.flatten(1).any(1)
        rows = []
        for latent in self.latents or ():
            site: Any = run.nodes.get(latent)
            if site is None or site["is_observed"]:
                raise ValueError(
                    f"`{name}` must draw every site of `latents`, {list(self.latents or ())}, but "
                    f"drew {latent_sites(run)}"
                )
            rows += finish_rows(
                [unit_rows(site, site["value"], len(site["fn"].event_shape), plates)], mask
            )
        return rows


def _check_same_sites(model: Sequence[str], guide: Sequence[str]) -> None:
    if set(model) != set(guide) or not model:
        raise ValueError(
            f"`guide` must draw the latent sites of the model, {list(model)}, but drew "
            f"{list(guide)}; `latents` names those that the critic is to see, if not all"
        )
