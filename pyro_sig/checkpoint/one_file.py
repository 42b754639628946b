"""One file of whatever trains."""

from __future__ import annotations

import os
from typing import Any

from pyro_sig._arguments import check_flag
from pyro_sig._random_state import preserved_random_state, random_state, set_random_state
from pyro_sig.checkpoint._files import read_file, write_file
from pyro_sig.checkpoint._snapshot import Snapshot

__all__ = ["load", "save"]


def save(path: str | os.PathLike[str], inference: Any, *args: Any, **kwargs: Any) -> None:
    r"""Writes all that the next step depends on to one file.

    .. math::
        \text{file} = (\theta, \text{buffers}, \text{optimisers}, \text{inner networks},
        \text{random states})

    The file has the old content or the new one at any moment, carries a checksum, and holds
    tensors and plain values only.

    :param path: the file; its folder exists.
    :param inference: :class:`~pyro.infer.SVI`, which stands for the parameters that its programs
        read, their networks' buffers, its optimiser and its loss; a trainer of
        :mod:`pyro_sig.adversarial`; anything with ``state_dict`` and ``load_state_dict``
        (networks, optimisers and schedules of torch); an optimiser of Pyro; a
        :class:`torch.Generator`; or a dict or list of these.
    :param args: arguments of a step, for SVI, and for a trainer that has taken none: the programs
        are run once, which leaves no trace.
    :param kwargs: keyword arguments of a step.
    :raises ValueError: if `inference` has no state that can be saved.
    :raises OSError: if the file cannot be written; the old one is then still there.

    Example::

        >>> import tempfile, pyro, torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(data):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("row", len(data)):
        ...         pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=data)
        >>> svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        >>> path, data = tempfile.mktemp(), torch.ones(4)
        >>> loss = svi.step(data)
        >>> save(path, svi, data)
        >>> loss = svi.step(data)
        >>> load(path, svi, data)
        >>> loss == svi.step(data)
        True
    """
    snapshot = Snapshot(inference)
    snapshot.meet(args, kwargs)
    write_file(path, {"inference": snapshot.state(), "random_state": random_state()})


def load(
    path: str | os.PathLike[str],
    inference: Any,
    *args: Any,
    map_location: Any = None,
    random_state: bool = True,
    **kwargs: Any,
) -> None:
    """Restores what :func:`save` wrote, into an object that was built in the same way.

    Tensors are filled in place, so that networks, optimisers and Pyro's parameter store go on
    holding the same ones. Kinds, keys of dicts and lists, and shapes of networks are compared
    before anything is loaded. The random states are restored last.

    :param path: the file.
    :param inference: as the object that was saved; it may have taken steps, or none.
    :param args: arguments of a step, for SVI and for a trainer that has taken none: a first run of
        the programs finds their parameters.
    :param map_location: where tensors go, as :func:`torch.load` has it.
    :param bool random_state: whether to restore the random states of torch, NumPy and Python too,
        which a run that goes on needs; False leaves them as they are.
    :param kwargs: keyword arguments of a step.
    :raises CheckpointError: (a ``ValueError``) if the file is damaged, foreign or of a newer
        version.
    :raises ValueError: if it is the state of another object.

    Example::

        >>> import tempfile, torch
        >>> first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> path = tempfile.mktemp()
        >>> save(path, first)
        >>> load(path, second)
        >>> torch.equal(first.weight, second.weight)
        True
    """
    check_flag("random_state", random_state)
    state = read_file(path, map_location)
    if set(state) != {"inference", "random_state"}:
        raise ValueError(
            f"`path` must be a file of `checkpoint.save`, held {sorted(map(str, state))}: a "
            f"file that `train` wrote is read by `train`: {path}"
        )
    snapshot = Snapshot(inference)
    with preserved_random_state():
        snapshot.load(state["inference"])
        snapshot.meet(args, kwargs)
    if random_state:
        set_random_state(state["random_state"])
