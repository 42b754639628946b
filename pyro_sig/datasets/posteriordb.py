"""Reader of reference posteriors: data and draws that posteriordb keeps as zipped JSON."""

import csv
import json
import math
import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import as_path, check_choice

__all__ = ["PosteriorDB", "posteriordb_names", "read_posteriordb"]

_COLUMNS = ("posterior", "data", "draws")
_ELEMENT = re.compile(r"([^\[\]]+)(?:\[(\d+(?:,\d+)*)\])?")  # mu, beta[2], L[1,2]


@dataclass(frozen=True, eq=False)
class PosteriorDB:
    """Holds the data of a Stan program and reference draws from its posterior.

    :param str name: name of the posterior.
    :param data: what the program reads. An integer stays an int; every other number or array is
        a float64 tensor on the CPU.
    :param draws: float64 draws of each parameter with shape ``[chains, draws, *]``, where ``*``
        is the parameter's own shape in the program.
    """

    name: str
    data: dict[str, Tensor | int]
    draws: dict[str, Tensor]


def posteriordb_names(folder: str | os.PathLike[str]) -> list[str]:
    r"""List the posteriors in a folder.

    :param folder: the folder, as :func:`read_posteriordb` describes it.
    :return: the names in the order of the index.
    :raises FileNotFoundError: if the folder has no index.
    :raises ValueError: if the index lacks a column or is not text.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     index = "posterior\tdata\tdraws\ntoy-normal\ttoy\ttoy-normal\n"
        ...     _ = (Path(root) / "INDEX.tsv").write_text(index)
        ...     posteriordb_names(root)
        ['toy-normal']
    """
    return list(_index(as_path("folder", folder)))


def read_posteriordb(folder: str | os.PathLike[str], name: str) -> PosteriorDB:
    r"""Read the data and the reference draws of one posterior.

    The folder holds ``INDEX.tsv``, a table with tabs whose columns ``posterior``, ``data`` and
    ``draws`` name the files, and those files: ``data/<data>.json.zip`` and
    ``draws/<draws>.json.zip``, as posteriordb keeps them.

    :param folder: the folder.
    :param str name: name of the posterior, one of :func:`posteriordb_names`.
    :return: a :class:`PosteriorDB`. The elements ``beta[1]``, ``beta[2]``, ... of a parameter make
        one tensor.
    :raises FileNotFoundError: if a file is missing.
    :raises ValueError: if `name` is not in the index, or a file is damaged or holds something else.

    **Source:** Magnusson, Torgander, Bürkner, Zhang, Carpenter and Vehtari, *posteriordb: Testing,
    Benchmarking and Developing Bayesian Inference Algorithms* (2024),
    https://arxiv.org/abs/2407.04967, https://github.com/stan-dev/posteriordb.

    Example::

        >>> import tempfile
        >>> draws = [{"mu": [0.5, 0.7, 0.6], "beta[1]": [1, 2, 3], "beta[2]": [4, 5, 6]}]
        >>> with tempfile.TemporaryDirectory() as root:
        ...     index = "posterior\tdata\tdraws\ntoy-normal\ttoy\ttoy-normal\n"
        ...     _ = (Path(root) / "INDEX.tsv").write_text(index)
        ...     for path, content in [
        ...         (Path(root) / "data" / "toy.json.zip", {"N": 2, "y": [0.1, 0.2]}),
        ...         (Path(root) / "draws" / "toy-normal.json.zip", draws),
        ...     ]:
        ...         path.parent.mkdir()
        ...         with zipfile.ZipFile(path, "w") as archive:
        ...             archive.writestr(path.stem, json.dumps(content))
        ...     posterior = read_posteriordb(root, "toy-normal")
        >>> posterior.data
        {'N': 2, 'y': tensor([0.1000, 0.2000], dtype=torch.float64)}
        >>> {name: list(values.shape) for name, values in posterior.draws.items()}
        {'mu': [1, 3], 'beta': [1, 3, 2]}
    """
    folder = as_path("folder", folder)
    index = _index(folder)
    check_choice("name", name, index)
    data, draws = index[name]
    return PosteriorDB(
        name,
        _data(folder / "data" / f"{data}.json.zip"),
        _draws(folder / "draws" / f"{draws}.json.zip"),
    )


def _index(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the names of the data and of the draws for each posterior."""
    path = folder / "INDEX.tsv"
    if not path.is_file():
        raise FileNotFoundError(f"no index at {path}")
    try:
        rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")
        missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
    except UnicodeDecodeError as error:
        raise _unfit(path, f"a table in UTF-8: {error}") from error
    if missing:
        raise _unfit(path, f"a table with the columns {', '.join(_COLUMNS)}, lacks {missing}")
    return {row["posterior"]: (row["data"], row["draws"]) for row in rows}


def _read_json(path: Path) -> Any:
    """Read the only file of an archive."""
    if not path.is_file():
        raise FileNotFoundError(f"no archive at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = archive.namelist()
            return json.loads(archive.read(member))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise _unfit(path, f"a zip archive of one JSON file: {error}") from error


def _data(path: Path) -> dict[str, Tensor | int]:
    content = _read_json(path)
    if not isinstance(content, dict):
        raise _unfit(path, f"the data by name, was a {type(content).__name__}")
    return {
        name: value if isinstance(value, int) else _float64(path, name, value)
        for name, value in content.items()
    }


def _draws(path: Path) -> dict[str, Tensor]:
    chains = _read_json(path)
    if not (isinstance(chains, list) and chains and all(isinstance(c, dict) for c in chains)):
        raise _unfit(path, "a list of chains, each with its draws by name")
    if any(set(chain) != set(chains[0]) for chain in chains):
        raise _unfit(path, "chains of the same parameters")
    elements: dict[str, dict[tuple[int, ...], Tensor]] = {}
    for element in chains[0]:
        values = _float64(path, element, [chain[element] for chain in chains])
        if values.dim() != 2:
            raise _unfit(path, f"draws of shape [chains, draws], {element!r} has another")
        match = _ELEMENT.fullmatch(element)
        if match is None:
            raise _unfit(path, f"names such as mu or beta[2], was {element!r}")
        position = tuple(int(i) for i in match[2].split(",")) if match[2] else ()
        elements.setdefault(match[1], {})[position] = values
    draws = {name: _gather(path, name, parts) for name, parts in elements.items()}
    if len({values.shape[1] for values in draws.values()}) != 1:
        raise _unfit(path, "as many draws of each parameter")
    return draws


def _gather(path: Path, name: str, parts: dict[tuple[int, ...], Tensor]) -> Tensor:
    """Join the elements of a parameter, which Stan counts from 1, in row-major order."""
    positions = sorted(parts)
    shape = positions[-1]
    aligned = all(len(position) == len(shape) for position in positions)
    complete = aligned and len(positions) == math.prod(shape)
    inside = complete and all(
        1 <= i <= n for position in positions for i, n in zip(position, shape, strict=True)
    )
    if not inside:
        raise _unfit(path, f"every element of {name!r} up to {list(shape)}, had {len(positions)}")
    values = torch.stack([parts[position] for position in positions], -1)
    return values.reshape(values.shape[:2] + shape)


def _float64(path: Path, name: str, value: Any) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unfit(path, f"numbers in arrays, {name!r} is something else: {error}") from error


def _unfit(path: Path, expected: str) -> ValueError:
    return ValueError(f"`folder` must hold files of posteriordb: {path} must be {expected}")
