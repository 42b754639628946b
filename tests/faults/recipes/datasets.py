"""Valid calls of `pyro_sig.datasets`."""

import atexit
import functools
import gzip
import json
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from pyro_sig import datasets
from tests.faults.recipes import Recipe


@functools.cache
def folder():
    """A folder with a small file of every kind."""
    root = Path(tempfile.mkdtemp(prefix="pyro_sig_fuzz_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    images = struct.pack(">4I", 0x0803, 2, 28, 28) + bytes(2 * 784)
    labels = struct.pack(">2I", 0x0801, 2) + bytes([7, 2])
    for name in ("train", "t10k"):
        (root / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (root / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    for name in ("train", "valid", "test"):
        line = " ".join(["0", "1"] * 392) + "\n"
        (root / f"binarized_mnist_{name}.amat").write_text(line * 2)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        (root / f"{name}.bin").write_bytes((bytes([7]) + bytes(3072)) * 2)
    (root / "INDEX.tsv").write_text("posterior\tdata\tdraws\ntoy-normal\ttoy\ttoy-normal\n")
    draws = [{"mu": [0.5, 0.7], "beta[1]": [1, 2], "beta[2]": [4, 5]}]
    for path, content in [
        (root / "data" / "toy.json.zip", {"N": 2, "y": [0.1, 0.2]}),
        (root / "draws" / "toy-normal.json.zip", draws),
    ]:
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(path.stem, json.dumps(content))
    return root


def reading(read):
    """A missing file is a FileNotFoundError, as is documented: to the fuzz, a clear error."""

    def call(**arguments):
        try:
            return read(**arguments)
        except FileNotFoundError as error:
            assert str(error).startswith(("no ", "neither "))
            raise ValueError(str(error)) from error

    return call


def of_toy(make):
    """Makes a toy, draws from it, scores points and sorts them into modes."""

    def call(n, value, **arguments):
        toy = make(**arguments)
        draws = toy.sample(n)
        assert len(draws) == n
        return toy, draws, toy.log_prob(value)

    return call


def check_points(result, value, **_):
    toy, draws, log_prob = result
    assert draws.shape[1:] == (2,)
    assert log_prob.shape == value.shape[:-1]
    assert toy.modes is None or toy.modes.shape[1:] == (2,)


def of_counts(make):
    """Makes a toy of counts, draws, scores and tabulates."""

    def call(n, value, k, **arguments):
        toy = make(**arguments)
        assert toy.sample(n).shape == (n,)
        toy.mixing.sample()
        return toy.log_prob(value), toy.pmf(k)

    return call


def check_counts(result, value, k, **_):
    log_prob, pmf = result
    assert log_prob.shape == value.shape
    assert pmf.shape == torch.as_tensor(k).shape
    assert ((pmf >= 0) & (pmf <= 1)).all()


def finite_mixture(value, bound, sample_shape, batch_shape, **arguments):
    law = datasets.FiniteMixture(**arguments)
    drawn = law.expand(batch_shape).sample(sample_shape)
    return law, drawn, law.log_prob(value), law.cdf(bound)


def check_finite_mixture(result, value, bound, **_):
    law, drawn, log_prob, cdf = result
    assert law.mean.shape == law.variance.shape == law.batch_shape
    assert log_prob.shape == value.shape and cdf.shape == bound.shape


def ring(value, sample_shape, **arguments):
    law = datasets.NoisyRing(**arguments)
    return law, law.rsample(sample_shape), law.log_prob(value)


def check_ring(result, value, **_):
    law, drawn, log_prob = result
    assert drawn.shape[-1] == 2 and law.mean.shape == (*law.batch_shape, 2)
    assert log_prob.shape == torch.broadcast_shapes(value.shape[:-1], law.batch_shape)


def expand_ring(batch_shape):
    return datasets.NoisyRing(torch.tensor(2.0), torch.tensor(0.1)).expand(batch_shape).sample()


def stacked(step, **arguments):
    data = datasets.StackedDigits(**arguments)
    return data(step), data.classes(step)


def check_stacked(result, images, batch_size, **_):
    batch, classes = result
    assert batch.shape == (batch_size, 3, *images.shape[1:])
    assert classes.shape == (batch_size,)


def pad(groups, values, fill):
    return datasets.pad_groups(groups, values, fill=fill)


def check_pad(result, groups, values, **_):
    mask, laid = result
    assert int(mask.sum()) == len(groups)
    assert laid.shape == mask.shape + values.shape[1:]


def check_length(length):
    def check(counts, **_):
        assert counts.shape == (length,)

    return check


def with_points(**arguments):
    return lambda: {**arguments, "n": 3, "value": torch.zeros(4, 2), "dtype": None, "device": None}


def with_counts(**arguments):
    return lambda: {
        **arguments,
        "n": 3,
        "value": torch.zeros(4),
        "k": [0, 1],
        "dtype": None,
        "device": None,
    }


def on_device():
    return {"dtype": None, "device": None}


RECIPES: dict[str, Recipe] = {
    "datasets.noisy_ring": Recipe(
        of_toy(datasets.noisy_ring), with_points(radius=2.0, std=0.2), check=check_points
    ),
    "datasets.ring_of_gaussians": Recipe(
        of_toy(datasets.ring_of_gaussians),
        with_points(num_modes=3, radius=2.0, std=0.2),
        check=check_points,
    ),
    "datasets.grid_of_gaussians": Recipe(
        of_toy(datasets.grid_of_gaussians),
        with_points(side=2, spacing=2.0, std=0.2, weights=[1.0, 2.0, 1.0, 1.0]),
        check=check_points,
    ),
    "datasets.uneven_grid_of_gaussians": Recipe(
        of_toy(datasets.uneven_grid_of_gaussians), with_points(), check=check_points
    ),
    "datasets.negative_binomial": Recipe(
        of_counts(datasets.negative_binomial),
        with_counts(total_count=2.0, probs=0.8),
        check=check_counts,
    ),
    "datasets.poisson_negative_binomial": Recipe(
        of_counts(datasets.poisson_negative_binomial),
        with_counts(rate=3.0, total_count=2.0, probs=0.8, weight=0.5),
        check=check_counts,
    ),
    "datasets.FiniteMixture": Recipe(
        finite_mixture,
        lambda: {
            "weights": torch.ones(2),
            "components": [dist.Normal(torch.tensor(0.0), 1.0), dist.Uniform(-1.0, 1.0)],
            "support": constraints.real,
            "value": torch.zeros(4),
            "bound": torch.zeros(3),
            "sample_shape": (2,),
            "batch_shape": (2,),
        },
        check=check_finite_mixture,
    ),
    "datasets.NoisyRing": Recipe(
        ring,
        lambda: {
            "radius": torch.tensor(2.0),
            "std": torch.tensor(0.1),
            "value": torch.zeros(4, 2),
            "sample_shape": (2,),
        },
        check=check_ring,
    ),
    "datasets.NoisyRing, expanded": Recipe(expand_ring, lambda: {"batch_shape": (3,)}),
    "datasets.StackedDigits": Recipe(
        stacked,
        lambda: {
            "images": torch.zeros(20, 4, 4, dtype=torch.uint8),
            "labels": torch.arange(20) % 10,
            "batch_size": 3,
            "seed": 0,
            "step": 5,
        },
        check=check_stacked,
    ),
    "datasets.pad_groups": Recipe(
        pad,
        lambda: {
            "groups": torch.tensor([0, 1, 0]),
            "values": torch.ones(3, 2),
            "fill": 0.0,
        },
        check=check_pad,
    ),
    "datasets.accident_counts": Recipe(
        datasets.accident_counts,
        on_device,
        check=check_length(9461),
    ),
    "datasets.mite_counts": Recipe(
        datasets.mite_counts,
        on_device,
        check=check_length(150),
    ),
    "datasets.load_digits": Recipe(datasets.load_digits, on_device),
    "datasets.load_binarized_mnist": Recipe(
        reading(datasets.load_binarized_mnist), lambda: {"root": folder(), "split": "valid"}
    ),
    "datasets.load_cifar10": Recipe(
        reading(datasets.load_cifar10),
        lambda: {"root": folder(), "split": "train", "batches": (1, 2)},
    ),
    "datasets.load_mnist": Recipe(
        reading(datasets.load_mnist), lambda: {"root": folder(), "split": "test"}
    ),
    "datasets.read_idx": Recipe(
        reading(datasets.read_idx), lambda: {"path": folder() / "t10k-images-idx3-ubyte.gz"}
    ),
    "datasets.posteriordb_names": Recipe(
        reading(datasets.posteriordb_names), lambda: {"folder": folder()}
    ),
    "datasets.read_posteriordb": Recipe(
        reading(datasets.read_posteriordb), lambda: {"folder": folder(), "name": "toy-normal"}
    ),
}
