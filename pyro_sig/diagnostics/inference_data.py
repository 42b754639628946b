"""Export of a fitted program, or of plain draws, to ArviZ.

Everything is first put into a plain dict of groups of numpy arrays; only ``_build`` knows ArviZ.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.poutine.trace_struct import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyro_sig import __version__

__all__ = ["draws_to_inference_data", "to_inference_data"]

Draws = Mapping[str, "Tensor | np.ndarray"]

# Dimensions that ArviZ gives a meaning to.
_RESERVED_DIMS = ("chain", "draw")

# Predictive keeps the trace of every sequential run, distributions included, until it returns.
_SEQUENTIAL_BLOCK = 50


def to_inference_data(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_samples: int = 1000,
    seed: int | None = None,
    parallel: bool = False,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    r"""Draws from a model and its guide and labels the draws for ArviZ.

    The groups, as far as they exist, with :math:`z` the latents that the guide draws and :math:`y`
    the observed sites:

    .. math::
        \text{posterior} \sim q(z), \quad \text{posterior\_predictive} \sim q(z)\, p(y \mid z),
        \quad \text{prior} \sim p(z), \quad \text{prior\_predictive} \sim p(y), \quad
        \text{observed\_data} = y.

    - A guide that draws nothing, such as that of a semi-implicit generative model trained by its
      marginal likelihood, leaves no posterior: its fresh samples are ``posterior_predictive``,
      because they come from the fitted program, and the two prior groups are left out.
    - Latents that the guide does not draw are drawn from the model.
    - If the program runs without observations, ``posterior_predictive`` (without a guide,
      ``prior``) holds every site that is left.
    - :func:`pyro.deterministic` sites go with the latents, :func:`pyro.factor` sites nowhere.

    Dimensions are named after plates; the event dimensions of a site ``x`` are ``x_dim_0``,
    ``x_dim_1``, ... unless ``dims`` names them. A plate that subsamples has other rows in every
    draw, so its sites are left out, with a warning. The draws form one chain: the draws of one
    guide are independent, and :math:`\hat R` over them says nothing.

    :param model: a Pyro program.
    :param guide: its guide. Without one, only the prior groups and ``observed_data`` exist.
    :param args: arguments of ``model`` and ``guide``.
    :param num_samples: draws in each group.
    :param seed: seed of the draws. If given, the global random states are left untouched; if not,
        the draws consume them.
    :param parallel: run the program once for all draws, as :class:`~pyro.infer.Predictive` does;
        the program must then broadcast under one more plate.
    :param coords: coordinate values of dimensions, by dimension name.
    :param dims: names of dimensions by site: all of them, or those that no plate names.
    :param attrs: further attributes for every group, beside the versions and the seed.
    :param kwargs: keyword arguments of ``model`` and ``guide``.
    :return: an ``arviz.InferenceData``, or from ArviZ 1.0 an ``xarray.DataTree``.
    :raises ValueError: if ``num_samples`` is less than 1, if ``model`` or ``guide`` is not
        callable, if they differ in the shape of a site, if ``dims`` names too few or too many
        dimensions, or if nothing is left to export.

    Source: the InferenceData schema, https://python.arviz.org/en/stable/schema/schema.html.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(data)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=data)
        >>> def guide(data):
        ...     pyro.sample("loc", dist.Normal(0.4, 0.5))
        >>> idata = to_inference_data(model, guide, torch.zeros(3), num_samples=10, seed=0)
        >>> dict(idata["posterior_predictive"]["x"].sizes)
        {'chain': 1, 'draw': 10, 'row': 3}
    """
    if isinstance(num_samples, bool) or not (isinstance(num_samples, int) and num_samples >= 1):
        raise ValueError(
            f"`num_samples` must be an integer of at least 1, but was {num_samples!r}."
        )
    if not callable(model):
        raise ValueError(f"`model` must be callable, but was {type(model).__name__}.")
    if guide is not None and not callable(guide):
        raise ValueError(
            f"`guide` must be callable or None, but was {type(guide).__name__}: "
            "the program's own arguments come after the guide."
        )

    with _random_state(seed), torch.no_grad(), poutine.block():
        sites = _describe_sites(model, guide, args, kwargs)

        def draw(program: Callable[..., Any], names: list[str], given: Draws) -> dict[str, Tensor]:
            if not names:
                return {}
            blocks = []
            rows = num_samples if parallel else _SEQUENTIAL_BLOCK
            for start in range(0, num_samples, rows):
                stop = min(start + rows, num_samples)
                predictive = Predictive(
                    program,
                    posterior_samples={name: value[start:stop] for name, value in given.items()},
                    num_samples=stop - start,
                    return_sites=names,
                    parallel=parallel,
                )
                blocks.append(predictive(*args, **kwargs))
            return {name: torch.cat([block[name] for block in blocks]) for name in names}

        released = _Release()(model)
        groups: dict[str, dict[str, Tensor]] = {}
        in_guide: dict[str, Tensor] = {}
        if guide is not None:
            names = [name for name in sites.latent if name in sites.guided]
            in_guide = draw(guide, names, {})
            predicted = sites.observed or [n for n in sites.latent if n not in in_guide]
            wanted = (sites.deterministic if in_guide else []) + predicted
            drawn = draw(released, wanted, in_guide)
            groups["posterior"] = dict(in_guide)
            if in_guide:
                groups["posterior"] |= {name: drawn[name] for name in sites.deterministic}
            groups["posterior_predictive"] = {name: drawn[name] for name in predicted}
        if guide is None or in_guide:
            latent = sites.latent + (sites.deterministic if sites.latent else [])
            drawn = draw(released, latent + sites.observed, {})
            groups["prior"] = {name: drawn[name] for name in latent}
            groups["prior_predictive"] = {name: drawn[name] for name in sites.observed}
        groups["observed_data"] = {name: sites.values[name] for name in sites.observed}

    arrays: dict[str, dict[str, np.ndarray]] = {}
    for group, values in groups.items():
        arrays[group] = {
            name: sites.shaped(name, _to_numpy(value), has_draws=group != "observed_data")
            for name, value in values.items()
            if name not in sites.subsampled
        }
    if sites.subsampled:
        left_out = ", ".join(f"{name} (plate {plate})" for name, plate in sites.subsampled.items())
        warnings.warn(
            f"These sites are inside a plate that subsamples, and are left out: {left_out}. "
            "Run the program on whole plates to export them.",
            stacklevel=2,
        )
    return _export(
        arrays,
        coords=coords,
        dims=sites.merge_dims(dims or {}),
        attrs={**({} if seed is None else {"seed": seed}), **(attrs or {})},
    )


def draws_to_inference_data(
    posterior: Draws | None = None,
    *,
    prior: Draws | None = None,
    posterior_predictive: Draws | None = None,
    prior_predictive: Draws | None = None,
    observed_data: Draws | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Labels draws that are already at hand for ArviZ.

    :param posterior: draws by name, each of shape ``[draws, ...]``; they become one chain.
    :param prior: draws from the prior, shaped alike.
    :param posterior_predictive: draws of the observed quantities from the fitted program.
    :param prior_predictive: draws of the observed quantities from the prior.
    :param observed_data: the data by name, of shape ``[...]``, without draws.
    :param coords: coordinate values of dimensions, by dimension name.
    :param dims: names of the dimensions after ``draws``, by variable.
    :param attrs: further attributes for every group, beside the versions.
    :return: an ``arviz.InferenceData``, or from ArviZ 1.0 an ``xarray.DataTree``.
    :raises ValueError: if there is nothing to export, if an entry is no array, or if the entries
        of a group differ in their number of draws.

    Source: the InferenceData schema, https://python.arviz.org/en/stable/schema/schema.html.

    Example::

        >>> idata = draws_to_inference_data({"z": torch.zeros(10, 2)}, dims={"z": ["axis"]})
        >>> dict(idata["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 10, 'axis': 2}
    """
    groups = {
        "posterior": posterior,
        "posterior_predictive": posterior_predictive,
        "prior": prior,
        "prior_predictive": prior_predictive,
        "observed_data": observed_data,
    }
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for group, values in groups.items():
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise ValueError(
                f"`{group}` must be a dict of tensors by name, but was {type(values).__name__}."
            )
        arrays[group] = {}
        for name, value in values.items():
            if not isinstance(value, (Tensor, np.ndarray)):
                raise ValueError(
                    f"`{group}` must hold tensors or arrays, "
                    f"but {name!r} was {type(value).__name__}."
                )
            arrays[group][name] = _to_numpy(value)
        if group != "observed_data":
            lengths = {name: array.shape[:1] for name, array in arrays[group].items()}
            if len(set(lengths.values())) > 1 or (0,) in lengths.values() or () in lengths.values():
                raise ValueError(
                    f"`{group}` must hold entries of shape [draws, ...] with the same number of "
                    f"draws, at least 1, but the leading shapes were {lengths}."
                )
    return _export(arrays, coords=coords, dims=dims or {}, attrs=attrs or {})


@dataclass
class _Sites:
    """What one run of the program says about its sites."""

    latent: list[str]
    deterministic: list[str]
    observed: list[str]
    guided: set[str]
    values: dict[str, Tensor]
    # By site: the plate of each dimension of the value, None for an event dimension.
    plates: dict[str, list[str | None]]
    # By site: dimensions of the value that are there for alignment only.
    singletons: dict[str, tuple[int, ...]]
    # By site: the plate that subsamples.
    subsampled: dict[str, str]

    def shaped(self, name: str, array: np.ndarray, has_draws: bool) -> np.ndarray:
        # Predictive pads draws with singleton dimensions up to the deepest plate.
        shape = tuple(self.values[name].shape)
        lead = array.shape[:1] if has_draws else ()
        if array.size != int(np.prod(lead + shape)):
            raise ValueError(
                f"`model` must give {name!r} the same shape at every run, but that was {shape} "
                f"and then {array.shape[len(lead) :]}."
            )
        array = array.reshape(lead + shape)
        return array.squeeze(tuple(len(lead) + axis for axis in self.singletons[name]))

    def merge_dims(self, dims: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        merged = {}
        for name, plates in self.plates.items():
            unnamed = sum(plate is None for plate in plates)
            given = list(dims.get(name, [f"{name}_dim_{i}" for i in range(unnamed)]))
            if len(given) == len(plates):
                merged[name] = given
            elif len(given) == unnamed:
                rest = iter(given)
                merged[name] = [next(rest) if plate is None else plate for plate in plates]
            else:
                raise ValueError(
                    f"`dims` must name all {len(plates)} dimensions of {name!r}, or the {unnamed} "
                    f"that no plate names, but was {given}."
                )
        return merged


def _describe_sites(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> _Sites:
    guide_sites: dict[str, Any] = {}
    if guide is not None:
        guide_sites = dict(_sample_sites(poutine.trace(guide).get_trace(*args, **kwargs)))
    given = {name: site["value"] for name, site in guide_sites.items()}
    # Under the guide's values the program runs even where a prior cannot be drawn from.
    trace = poutine.trace(poutine.condition(model, given)).get_trace(*args, **kwargs)

    sites = _Sites([], [], [], set(), {}, {}, {}, {})
    for name, site in _sample_sites(trace):
        if site["infer"].get("_deterministic"):
            sites.deterministic.append(name)
        elif site["is_observed"] and name not in given:
            sites.observed.append(name)
        else:
            sites.latent.append(name)
            if name in given:
                sites.guided.add(name)

        value = sites.values[name] = site["value"]
        shape = tuple(site["fn"].batch_shape + site["fn"].event_shape)
        if name in sites.guided and tuple(value.shape) != shape:
            raise ValueError(
                f"`guide` must give {name!r} the shape that `model` gives it, {shape}, "
                f"but its draw had shape {tuple(value.shape)}."
            )
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        for frame in frames:
            if frame.full_size is not None and frame.full_size != frame.size:
                sites.subsampled[name] = frame.name
        event_dim = site["fn"].event_dim
        if site["infer"].get("_deterministic") and event_dim == value.dim():
            # pyro.deterministic takes all dimensions for event dimensions unless told otherwise.
            aligned = all(-f.dim <= event_dim and value.shape[f.dim] == f.size for f in frames)
            event_dim = 0 if aligned else event_dim
        num_batch = value.dim() - event_dim
        names: list[str | None] = []
        singletons = []
        for axis, size in enumerate(value.shape):
            plate = next((f.name for f in frames if num_batch + f.dim == axis), None)
            if axis < num_batch and plate is None and size == 1:
                singletons.append(axis)
            else:
                names.append(f"{plate}_plate" if plate in _RESERVED_DIMS else plate)
        sites.plates[name] = names
        sites.singletons[name] = tuple(singletons)
    return sites


class _Release(UnconditionMessenger):
    """Draws the observed sites anew.

    A deterministic site is one with its value observed; drawn anew inside of a plate, that value
    would be expanded to one copy for each row.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


def _sample_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    name: str
    site: Any
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or poutine.util.site_is_subsample(site):
            continue
        # A factor has an empty value; an auxiliary site is a guide's own.
        if site["infer"].get("is_auxiliary") or site["value"].numel() == 0:
            continue
        yield name, site


@contextmanager
def _random_state(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    # pyro.set_rng_seed seeds all of these.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Named devices: by default torch warns where there are several.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            pyro.set_rng_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _to_numpy(value: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float16):  # numpy lacks the first, NetCDF the second
        value = value.float()
    return value.numpy()


def _export(
    arrays: dict[str, dict[str, np.ndarray]],
    *,
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Any],
) -> Any:
    groups = {
        group: {
            name: value if group == "observed_data" else value[np.newaxis]
            for name, value in values.items()
        }
        for group, values in arrays.items()
        if values
    }
    if not groups:
        raise ValueError(
            "There is nothing to export: neither draws nor observed data outside of subsampled "
            "plates."
        )
    exported = {name for values in groups.values() for name in values}
    data = _build(
        groups,
        coords={name: list(values) for name, values in (coords or {}).items()},
        dims={name: list(names) for name, names in dims.items() if name in exported},
    )
    versions = {
        "inference_library": "pyro_sig",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
    }
    for group in groups:
        data[group].attrs.update({**versions, **attrs})
    return data


def _build(
    groups: dict[str, dict[str, np.ndarray]],
    coords: dict[str, list[Any]],
    dims: dict[str, list[str]],
) -> Any:
    import arviz  # takes seconds to import

    labels: dict[str, Any] = {"coords": coords, "dims": dims}
    # Both lines of ArviZ have `from_dict`, and differ in how it takes the groups.
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, **labels)
    return arviz.from_dict(**{**groups, **labels})
