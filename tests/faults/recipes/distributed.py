"""Valid calls of `pyro_sig.distributed`, by a group of one process."""

import tempfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_sig import distributed
from tests.faults.recipes import Recipe


def alone(function):
    """Calls within a group of this process."""

    def call(**arguments):
        with tempfile.TemporaryDirectory() as folder:
            store = torch.distributed.FileStore(str(Path(folder) / "store"), 1)
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
            try:
                return function(**arguments)
            finally:
                torch.distributed.destroy_process_group()

    return call


def svi():
    def model(rows):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("row", len(rows)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=rows)

    return SVI(model, lambda *_: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def data_parallel(inference, group, reduction):
    parallel = distributed.data_parallel(inference, group, reduction)
    assert parallel is inference
    loss = parallel.step(torch.ones(4))
    distributed.check_equal(parallel)
    return loss


def check_equal(inference):
    parallel = distributed.data_parallel(svi())
    parallel.step(torch.ones(4))
    distributed.check_equal(parallel if inference == "parallel" else inference)


def same_draws(group):
    with distributed.same_draws(group):
        return torch.randn(3)


def check_shape(result, log_sum, **_):
    assert result.shape == log_sum.shape


RECIPES: dict[str, Recipe] = {
    "distributed.all_reduce_logsumexp": Recipe(
        alone(distributed.all_reduce_logsumexp),
        lambda: {"log_sum": torch.zeros(3), "group": None, "reduction": "mean"},
        check=check_shape,
    ),
    "distributed.data_parallel": Recipe(
        alone(data_parallel),
        lambda: {"inference": svi(), "group": None, "reduction": "sum"},
        check=lambda loss, **_: isinstance(loss, float),
    ),
    "distributed.check_equal": Recipe(alone(check_equal), lambda: {"inference": "parallel"}),
    "distributed.rank_share": Recipe(
        alone(distributed.rank_share), lambda: {"number": 5, "group": None}
    ),
    "distributed.same_draws": Recipe(alone(same_draws), lambda: {"group": None}),
    "distributed.seed_ranks": Recipe(
        alone(distributed.seed_ranks), lambda: {"seed": 0, "group": None}
    ),
}
