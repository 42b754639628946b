"""Groups of arrays with names, made into an object of ArviZ.

Everything is a plain dict of groups of numpy arrays; only ``_build`` knows ArviZ.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_sig import __version__
from pyro_sig._arguments import describe
from pyro_sig.diagnostics._containers import as_list, check_mapping
from pyro_sig.diagnostics._program_sites import RESERVED_DIMS, Sites


def to_numpy(value: Tensor | np.ndarray) -> np.ndarray:
    """Copies to the host, in a dtype that NetCDF knows."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float16):  # numpy lacks the first, NetCDF the second
        value = value.float()
    return value.numpy()


def stack_chains(chains: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stacks draws ``[draws, *]`` by name into arrays ``[chains, draws, *]``."""
    return {
        name: np.stack([to_numpy(chain[name]) for chain in chains])
        for name in (chains[0] if chains else {})
    }


def label_pointwise(
    sites: Sites,
    arrays: Mapping[str, np.ndarray],
    used: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, list[str]], dict[str, list[int]]]:
    """Drops the log-likelihoods that are under a mask.

    :param sites: the sites of the model.
    :param arrays: by observed site, log-likelihoods of shape ``[chains, draws, *]``.
    :param used: by observed site, which entries of ``[*]`` are data.
    :return: what is left, and where it has other dimensions than the site, these and their
        coordinates.
    """
    left: dict[str, np.ndarray] = {}
    dims: dict[str, list[str]] = {}
    coords: dict[str, list[int]] = {}
    for name, array in arrays.items():
        array, is_used = sites.shaped(name, array, 2), sites.shaped(name, used[name], 0)
        if is_used.all():
            left[name] = array
        elif is_used.any():
            dim = f"{name}_unmasked"
            left[name], dims[name] = array[..., is_used], [dim]
            coords[dim] = np.flatnonzero(is_used).tolist()
    return left, dims, coords


def check_labels(coords: Any, dims: Any, attrs: Any) -> tuple[Any, Any, Any]:
    """Returns names of dimensions, their coordinates and attributes as dicts of lists and values.

    :raises ValueError: if they are not of this kind.
    """
    found = []
    for argument, of, given in (("coords", "sequences", coords), ("dims", "sequences", dims)):
        given = {} if given is None else given
        check_mapping(argument, given, of)
        lists = {}
        for name, values in given.items():
            entries = lists[name] = as_list(values)
            if entries is None or not all(isinstance(x, Hashable) for x in entries):
                raise ValueError(
                    f"`{argument}` must hold sequences, one value for each place, but {name!r} was "
                    f"{describe(values)}"
                )
            if argument == "dims" and not all(isinstance(one, str) for one in entries):
                raise ValueError(
                    f"`dims` must hold sequences of names, but {name!r} was {describe(values)}"
                )
        found.append(lists)
    attrs = {} if attrs is None else attrs
    check_mapping("attrs", attrs, "values")
    return found[0], found[1], attrs


def _check_sizes(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    coords: Mapping[str, Sequence[Any]],
    dims: Mapping[str, Sequence[str]],
    pointwise: Mapping[str, Sequence[str]],
) -> None:
    """Refuses dimensions that a variable lacks, or that have another size than elsewhere."""
    for group, arrays in groups.items():
        sizes = {name: (len(values), "its coordinates") for name, values in coords.items()}
        named = {**dims, **pointwise} if group == "log_likelihood" else dims
        for name, array in arrays.items():
            names = list(named.get(name, ()))
            shape = array.shape if group == "observed_data" else array.shape[2:]
            # A log-likelihood has none of the dimensions of an event.
            most = max(len(names), len(shape)) if group == "log_likelihood" else len(shape)
            if len(names) > most or len({*names, *RESERVED_DIMS}) < len(names) + 2:
                raise ValueError(
                    f"`dims` must name the {len(shape)} dimensions of {name!r} at most, no two "
                    f"alike and none {' or '.join(map(repr, RESERVED_DIMS))}, was {names}"
                )
            for dim, size in zip(names, shape, strict=False):
                expected, source = sizes.setdefault(dim, (size, f"{name!r}"))
                if size != expected:
                    raise ValueError(
                        f"`dims` and `coords` must give every dimension one size, but {dim!r} had "
                        f"{expected} for {source} and {size} for {name!r}"
                    )


def export(
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    *,
    coords: Mapping[str, Sequence[Any]],
    dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Any],
    pointwise: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Labels groups of arrays, and notes the versions.

    :param arrays: by group and name: of shape ``[chains, draws, *]``, without the first two for
        observed data.
    :param coords: coordinate values by dimension.
    :param dims: names of the dimensions ``[*]`` by variable.
    :param attrs: further attributes.
    :param pointwise: names of the dimensions of log-likelihoods, where they are others.
    """
    groups = {group: dict(values) for group, values in arrays.items() if values}
    if not groups:
        raise ValueError(
            "There is nothing to export: neither draws nor observed data outside of subsampled "
            "plates"
        )
    _check_sizes(groups, coords, dims, pointwise or {})
    exported = {name for values in groups.values() for name in values}
    data = _build(
        groups,
        coords={name: list(values) for name, values in coords.items()},
        dims={name: list(names) for name, names in dims.items() if name in exported},
        pointwise={name: list(names) for name, names in (pointwise or {}).items()},
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
    pointwise: dict[str, list[str]] | None = None,
) -> Any:
    """Builds the ArviZ object; ``pointwise`` names the dimensions of the log-likelihoods anew."""
    import arviz  # takes seconds to import

    def build(groups: dict[str, Any], dims: dict[str, list[str]]) -> Any:
        # Both lines of ArviZ have `from_dict`, and differ in how it takes the groups.
        if modern:
            return arviz.from_dict(groups, coords=coords, dims=dims)
        return arviz.from_dict(**groups, coords=coords, dims=dims)

    modern = int(arviz.__version__.split(".")[0]) >= 1
    if not pointwise:
        return build(groups, dims)
    # A variable has one list of dimensions in one call.
    group = "log_likelihood"
    data = build({name: values for name, values in groups.items() if name != group}, dims)
    other = build({group: groups[group]}, {**dims, **pointwise})
    if modern:
        data[group] = other[group]
    else:
        data.extend(other)
    return data
