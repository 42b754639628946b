"""Runs of a model at the draws of its guide, beside what the guide is contrasted with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn

from pyro_sig._program_run import modules_run
from pyro_sig._random_state import preserved_random_state
from pyro_sig.adversarial._joint_runs import (
    check_codes,
    check_same_shape,
    check_same_sites,
    latent_sites,
    rows_drawn,
)
from pyro_sig.adversarial._tap import Given, Tap
from pyro_sig.adversarial._units import finish_rows, subsampling, unit_mask, unit_rows, whole_units
from pyro_sig.adversarial.views import Value, as_data, as_parts, as_value

__all__ = ["AVBDraw", "AVBRuns"]

# As Pyro's own evidence bounds call the plate of their particles.
_PARTICLES = "num_particles_vectorized"


class AVBDraw(NamedTuple):
    """What the runs of all programs in a step gave."""

    real: Value  # data, and draws of the contrast or the prior
    fake: Value  # data, and draws of the guide
    params: dict[str, Tensor]
    expected: Tensor  # mean over units of log r(z) - log p(x, z), without what cancels
    misfit: Tensor | None  # minus the log-density of the contrast at the guide's draws


class AVBRuns:
    """Runs a guide, its model at the draws of the guide, and what it is contrasted with.

    :param model: the model.
    :param guide: the guide.
    :param contrast: the contrast, None for the model's prior.
    :param int num_particles: number of draws.
    :param max_plate_nesting: dimensions of plates, None to find them.
    :param precision: makes the context of every run.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        contrast: Callable[..., Any] | None,
        num_particles: int,
        max_plate_nesting: int | None,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.model = model
        self.guide = guide
        self.contrast = contrast
        self.num_particles = num_particles
        self.max_plate_nesting = max_plate_nesting
        self._precision = precision
        self._latents: list[str] = []
        self._factors: list[str] = []  # what is observed, and factors
        self._shown: list[str] = []  # observed sites of the rows, if latents belong to rows
        self._plates: frozenset[str] = frozenset()  # the plates of these rows

    # ------------------------------------------------------------------------------ the first step

    def prepare(
        self, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[nn.Module]]:
        """Runs all programs to find their sites, without leaving a trace.

        :return: the parameters that they read, and the outermost modules that they ran.
        :raises ValueError: if they do not go together.
        """
        with preserved_random_state(), modules_run() as modules, torch.enable_grad():
            if self.num_particles > 1 and self.max_plate_nesting is None:
                self.max_plate_nesting = self._find_nesting(args, kwargs)
            guide = self._run(self.guide, args, kwargs)
            rows = rows_drawn(guide)
            prior = self._run(self.model, args, kwargs, rows)
            self._find_sites(guide, prior)
            self._check_shapes(guide, prior, "guide")
            if self.contrast is None:
                self._check_prior(prior)
            else:
                contrast = self._run(self.contrast, args, kwargs, rows)
                drawn = [n for n, s in contrast.nodes.items() if _is_drawn(s)]
                if set(drawn) != set(self._latents):
                    raise ValueError(
                        "`contrast` must draw the latent sites of the model, "
                        f"{self._latents}, and nothing else, drew {drawn}"
                    )
                self._check_shapes(contrast, prior, "contrast")
            with torch.no_grad():
                draw = self.released(args, kwargs)
        return draw.params, modules

    def _find_nesting(self, args: tuple, kwargs: dict[str, Any]) -> int:
        with torch.no_grad(), Tap() as run, self._precision():
            for program in (self.guide, self.model, self.contrast):
                if program is not None:
                    program(*args, **kwargs)
        frames = [f for site in run.nodes.values() for f in site["cond_indep_stack"]]
        return max((-f.dim for f in frames if f.vectorized), default=0)

    def _find_sites(self, guide: Tap, prior: Tap) -> None:
        self._latents = latent_sites(prior)
        check_same_sites(self._latents, latent_sites(guide))
        observed = {
            name: site
            for name, site in prior.nodes.items()
            if site["is_observed"] and not site_is_subsample(site)  # type: ignore[arg-type]
        }
        data = [
            name
            for name, site in observed.items()
            if not site_is_factor(site) and not site["infer"].get("_deterministic")  # type: ignore[arg-type]
        ]
        self._factors = [n for n, s in observed.items() if not s["infer"].get("_deterministic")]
        if not self._factors:
            raise ValueError(
                "`model` must have an observed site or a factor, but its sample sites were "
                f"{self._latents}"
            )
        inside = [_plates(prior.nodes[n]) for n in (*self._latents, *(data or self._factors))]
        self._plates = frozenset.intersection(*inside) - {_PARTICLES}
        self._shown = data if self._plates else []

    def _check_shapes(self, run: Tap, prior: Tap, program: str) -> None:
        for name in self._latents:
            drawn, z = run.nodes[name]["value"], prior.nodes[name]["value"]
            check_same_shape(name, drawn, z, program)

    def _check_prior(self, prior: Tap) -> None:
        learned = [n for n in self._latents if prior.nodes[n]["value"].requires_grad]
        if learned:
            raise ValueError(
                f"`contrast` must be given where the prior has parameters, as at {learned}, was "
                "None: a critic of draws of the prior gives them no gradient"
            )

    # -------------------------------------------------------------------------------------- a step

    def draw(self, args: tuple, kwargs: dict[str, Any]) -> AVBDraw:
        """Runs the programs with gradients.

        :raises ValueError: if the draws of the guide have none.
        """
        draw = self.released(args, kwargs)
        check_codes(as_parts(draw.fake)[len(self._shown) :], self._latents)
        return draw

    def released(self, args: tuple, kwargs: dict[str, Any]) -> AVBDraw:
        """Runs the programs; with gradients where these are switched on."""
        guide = self._run(self.guide, args, kwargs)
        rows = rows_drawn(guide)
        z = {name: guide.nodes[name]["value"] for name in self._latents}
        with torch.no_grad():
            other = self._run(self.contrast or self.model, args, kwargs, rows)
        model = self._run(self.model, args, kwargs, {**rows, **z})
        params = {**guide.params, **model.params}

        mask = None
        if self._plates:
            first = model.nodes[(self._shown or self._latents)[0]]
            mask = whole_units(unit_mask(first, self._plates | {_PARTICLES}))
        data = [self._data_rows(name, model) for name in self._shown]
        real, fake = (
            finish_rows([self._rows(run.nodes[n], run.nodes[n]["value"]) for n in z], mask)
            for run in (other, guide)
        )
        num_units: float = len(fake[0])
        if self._plates:
            num_units *= subsampling(first, self._plates)

        misfit = None
        log_p = model.log_density_of(self._factors)
        assert log_p is not None
        expected = -log_p / num_units
        if self.contrast is not None:
            log_p = model.log_density_of(self._latents)
            log_r, misfit, of_contrast = self._score_contrast(args, kwargs, rows, z, num_units)
            expected = expected - log_p / num_units + log_r  # type: ignore[operator]
            params |= of_contrast
        return AVBDraw(as_value([*data, *real]), as_value([*data, *fake]), params, expected, misfit)

    def _score_contrast(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        rows: Mapping[str, Tensor],
        z: Mapping[str, Tensor],
        num_units: float,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns log r as a function of the guide's draws, -log r of r's parameters, and these."""
        assert self.contrast is not None
        leaves = {n: v.detach().requires_grad_(v.requires_grad) for n, v in z.items()}
        run = self._run(self.contrast, args, kwargs, {**rows, **leaves})
        try:
            log_r = run.log_density_of(self._latents)
        except NotImplementedError as error:
            raise ValueError(
                f"`contrast` must have a density at every site, but one of {self._latents} had none"
            ) from error
        assert log_r is not None
        log_r = log_r / num_units
        # One run for both: its slope in the draws, as a number, has no gradient for the parameters.
        moving = [n for n, leaf in leaves.items() if leaf.requires_grad]
        value = log_r.detach()
        if moving and torch.is_grad_enabled():
            slopes = torch.autograd.grad(
                log_r, [leaves[n] for n in moving], retain_graph=True, allow_unused=True
            )
            for name, slope in zip(moving, slopes, strict=True):
                if slope is not None:
                    value = value + ((z[name] - leaves[name].detach()) * slope).sum()
        return value, -log_r, run.params

    def _run(
        self,
        program: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        given: Mapping[str, Tensor] | None = None,
    ) -> Tap:
        particles: Any = nullcontext()
        if self.num_particles > 1:
            dim = -1 - (self.max_plate_nesting or 0)
            particles = pyro.plate(_PARTICLES, self.num_particles, dim=dim)
        with particles, Tap() as run, Given(given or {}), self._precision():
            program(*args, **kwargs)
        return run

    def _rows(self, site: dict[str, Any], value: Tensor) -> Tensor:
        """Lays a value out as one row for each unit."""
        if not self._plates and self.num_particles == 1:
            return value.unsqueeze(0)
        plates = self._plates | {_PARTICLES}
        return unit_rows(site, value, len(site["fn"].event_shape), plates)

    def _data_rows(self, name: str, model: Tap) -> Tensor:
        site = model.nodes[name]
        law = site["fn"]
        latent = model.nodes[self._latents[0]]["value"]
        data = as_data(name, site["value"], law.batch_shape + law.event_shape, latent)
        rows = self._rows(site, data)
        return finish_rows([rows], unit_mask(site, self._plates | {_PARTICLES}))[0]


def _is_drawn(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)  # type: ignore[arg-type]


def _plates(site: dict[str, Any]) -> frozenset[str]:
    return frozenset(f.name for f in site["cond_indep_stack"] if f.vectorized)
