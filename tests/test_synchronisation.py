"""What a step reads back from the device: its losses, and of each mixture whether it is exact.

Every such read waits for the device. They are operators of their own, which are counted here on
the CPU. A mixture reads once whether a matrix product in the given precision would lose digits.
Validation of arguments reads too, and is off.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_sig.adversarial import GAN, PsiView, objectives, penalties
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, no_guide
from pyro_sig.nn import MLP

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
}


class Reads(TorchDispatchMode):
    """Counts what would wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Indexing by a mask looks for its nonzero entries.
        by_mask = func is aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        self.count += func in READS or by_mask
        return func(*args, **(kwargs or {}))


def reads_of(inference, x):
    with pyro.validation_enabled(False):
        inference.step(x)  # finds sites, parameters and plates
        inference.step(x)
        with Reads() as reads:
            inference.step(x)
    return reads.count


def implicit(net):
    return Implicit(net, dist.Normal(torch.zeros(2), 1.0).to_event(1), event_shape=3)


def program(net):
    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", implicit(net))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    return model


def observed_mixture(net):
    def model(x):
        pyro.module("net", net)
        law = SemiImplicit(implicit(net), lambda psi: dist.Normal(psi, 0.5).to_event(1), 50)
        with pyro.plate("data", len(x)):
            pyro.sample("x", law, obs=x)

    return model


def test_the_counter_counts():
    with Reads() as reads:
        x = torch.ones(3)
        x.sum().item()
        x[x > 2]
        assert bool((x > 0).all())
    assert reads.count == 3


@pytest.mark.parametrize(
    ("model", "elbo", "num_mixtures"),
    [
        (program, SIG_ELBO(50, max_plate_nesting=1), 1),
        (program, SIG_ELBO(50, chunk_size=25, max_plate_nesting=1), 3),  # one of them again
        (observed_mixture, Trace_ELBO(), 1),
    ],
    ids=["SIG_ELBO", "SIG_ELBO in chunks", "SemiImplicit"],
)
def test_sig(model, elbo, num_mixtures):
    svi = SVI(model(MLP(2, [8], 3)), no_guide, pyro.optim.ClippedAdam({"lr": 1e-3}), elbo)
    assert reads_of(svi, torch.randn(10, 3)) == 1 + num_mixtures


@pytest.mark.parametrize("weight", [None, 0.1, "balance"])
@pytest.mark.parametrize("penalised", [False, True])
def test_gan(weight, penalised):
    net, critic = MLP(2, [8], 3), MLP(3, [8], 1)
    bound = {}
    if weight is not None:
        bound = {"elbo": SIG_ELBO(10, max_plate_nesting=1), "elbo_weight": weight}
    gan = GAN(
        program(net),
        critic,
        # Adam reads its own number of steps, which is on the CPU.
        torch.optim.SGD(net.parameters(), lr=1e-3),
        torch.optim.SGD(critic.parameters(), lr=1e-3),
        objectives.Relativistic(),
        (penalties.R1(1.0), penalties.R2(1.0)) if penalised else (),
        view=PsiView("psi"),
        ema=0.99,
        **bound,
    )
    reads = reads_of(gan, torch.randn(10, 3))
    assert reads == len(gan.loss_names) + (weight is not None)
