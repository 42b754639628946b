"""What every process of a test of sums over processes runs; see `ranks.py`."""

import math

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.infer import SVI, Trace_ELBO

from pyro_sig._rank_sum import check_same
from pyro_sig.distributed import (
    all_reduce_logsumexp,
    check_equal,
    data_parallel,
    rank_share,
    same_draws,
)
from pyro_sig.nn import MLP
from tests.distributed.checks import DOUBLE, rank, size


def sum_of_all(dtype, spread):
    generator = torch.Generator().manual_seed(0)
    every = spread * torch.randn(size(), 5, 3, generator=generator, dtype=dtype)
    weights = torch.randn(5, 3, generator=generator, dtype=dtype)
    leaves = every.clone().requires_grad_()
    expected = leaves.logsumexp(0)
    (gradient,) = torch.autograd.grad((weights * expected).sum(), leaves)
    scale = float(expected.abs().max().clamp_min(1.0))
    errors = []
    for reduction, factor in (("mean", size()), ("sum", 1)):
        own = every[rank()].clone().requires_grad_()
        total = all_reduce_logsumexp(own, reduction=reduction)
        (found,) = torch.autograd.grad((weights * total).sum(), own)
        errors.append(float((found / factor - gradient[rank()]).abs().max()))
    return float((total - expected).abs().max()) / scale, *errors


def infinities():
    rows = [[1.0, -math.inf, math.inf], [-math.inf, -math.inf, 0.0]]
    own = torch.tensor(rows[rank()], requires_grad=True)
    total = all_reduce_logsumexp(own, reduction="sum")
    (gradient,) = torch.autograd.grad(total[:2].sum(), own)
    return total.tolist(), gradient.tolist()


def second_derivative():
    own = torch.ones(2, requires_grad=True)
    total = all_reduce_logsumexp(own).sum()
    try:
        torch.autograd.grad(total, own, create_graph=True)
    except NotImplementedError as error:
        return str(error)
    return "none raised"


def log_sum(net, noise, x):
    """Log of the summed densities of rows under the psi of some noise."""
    law = dist.Normal(net(noise).unsqueeze(1), 0.5).to_event(1)
    return law.log_prob(x).logsumexp(0)


def mixture_bound():
    torch.manual_seed(0)  # the same network everywhere
    net = MLP(3, [6], 2, torch.nn.Tanh, dtype=DOUBLE)
    noise, x = torch.randn(10, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    params = list(net.parameters())
    expected = (log_sum(net, noise, x) - math.log(10)).sum()
    gradients = torch.autograd.grad(expected, params)
    shares = [10 // size() + (r < 10 % size()) for r in range(size())]
    own = noise.split(shares)[rank()]
    assert len(own) == rank_share(10)
    bound = (all_reduce_logsumexp(log_sum(net, own, x)) - math.log(10)).sum()
    error = 0.0
    for found, gradient in zip(torch.autograd.grad(bound, params), gradients, strict=True):
        torch.distributed.all_reduce(found)
        error = max(error, float((found / size() - gradient).abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    return abs(float(bound - expected)), error, largest


def data_and_mixing():
    """The steps of a mesh of two by two against those of one process."""
    mesh = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "mixing"))
    group, data_rank = mesh["mixing"].get_group(), mesh["data"].get_local_rank()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 3, generator=generator, dtype=DOUBLE)
    x = torch.randn(8, 2, generator=generator, dtype=DOUBLE)

    def make(group):
        net = MLP(3, [6], 2, torch.nn.Tanh, dtype=DOUBLE)

        def model(x, index, noise):
            pyro.module("net", net)
            # A term that all processes share, beside the bound.
            loc = pyro.param("loc", torch.ones(2, dtype=DOUBLE))
            pyro.factor("prior", -loc.square().sum())
            own = log_sum(net, noise, x + loc)
            own = own if group is None else all_reduce_logsumexp(own, group)
            with pyro.plate("data", 8, subsample=index):
                pyro.factor("x", own - math.log(6))

        return SVI(model, lambda *_: None, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())

    results = []
    for parallel in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = make(group if parallel else None)
        rows, draws = torch.arange(8), noise
        if parallel:
            data_parallel(svi)
            rows = rows.chunk(2)[data_rank]
            draws = noise.chunk(2)[mesh["mixing"].get_local_rank()]
        losses = torch.tensor([svi.step(x[rows], rows, draws) for _ in range(3)])
        store = pyro.get_param_store()
        results.append((losses, [store[name].detach().clone() for name in sorted(store.keys())]))
    check_equal(svi)
    (losses, params), (losses_1, params_1) = results
    error = max(float((a - b).abs().max()) for a, b in zip(params, params_1, strict=True))
    return float((losses - losses_1).abs().max()), error


def shares(number):
    return rank_share(number)


def draws():
    inside = []
    for _ in range(2):
        with same_draws():
            inside.append(torch.rand(()).item())
    before = torch.rand(()).item()
    with same_draws():
        inside.append(torch.rand(()).item())
    return inside, before, torch.rand(()).item()


def same(what):
    value = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    if what == "rows" and rank() == 1:
        value = value + 1e-3
    elif what == "number" and rank() == 1:
        value = torch.cat([value, torch.zeros(1, 2)])
    check_same("x", value)


def wrong_reduction():
    all_reduce_logsumexp(torch.zeros(2), reduction="max")


def outside_of_the_group():
    group = torch.distributed.new_group([0])
    all_reduce_logsumexp(torch.zeros(2), group)
