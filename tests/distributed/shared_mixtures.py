"""What every process of a test of shared mixtures runs; see `ranks.py`.

The psi of all processes are gathered and scored in one sum, without this library.
"""

import math

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.infer import SVI, Trace_ELBO

from pyro_sig.adversarial import GAN
from pyro_sig.distributed import check_equal, data_parallel, rank_share, same_draws
from pyro_sig.distributions import Implicit, ParticleMixing, Responsibility, SemiImplicit, TopK
from pyro_sig.infer import SIG_ELBO, no_guide
from pyro_sig.nn import MLP
from tests.distributed.checks import rank

M = 13  # 7 and 6 psi, or 4, 3, 3 and 3

MODES = {
    "exact": {},
    "chunks": {"chunk_size": 2},
    "responsibility": {"backward": Responsibility(M), "chunk_size": 3},
    "top": {"backward": TopK(M), "chunk_size": 3},
}


def world():
    return torch.distributed.group.WORLD  # None before the processes have met


class Problem:
    """A network with a scale, the same in every process, and data."""

    def __init__(self, dtype):
        with same_draws():
            self.net = MLP(3, [6], 2, torch.nn.Tanh, dtype=dtype)
            self.x = torch.randn(5, 2, dtype=dtype)
        self.log_std = torch.tensor(-0.5, dtype=dtype, requires_grad=True)
        self.params = [*self.net.parameters(), self.log_std]
        self.noise = dist.Normal(torch.zeros(3, dtype=dtype), 1.0).to_event(1)
        self.mixing = Implicit(self.net, self.noise, event_shape=2)

    def conditional(self, psi):
        return dist.Normal(psi, self.log_std.exp()).to_event(1)

    def noise_of_all(self, chunk_size, before=0):
        """The noise that every process draws next; leaves the random state as it was."""
        state = torch.get_rng_state()
        for _ in range(before):
            torch.randint(2**31 - 1, ())
        own = rank_share(M)
        chunk = chunk_size or own
        sizes = [min(chunk, own - i) for i in range(0, own, chunk)]
        drawn = torch.cat([self.noise.sample((size,)) for size in sizes])
        torch.set_rng_state(state)
        gathered = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, drawn)
        return torch.cat(gathered)

    def log_prob(self, noise, x):
        """Log of the mean density, by all pairs."""
        law = self.conditional(self.net(noise).unsqueeze(1))
        return law.log_prob(x).logsumexp(0) - math.log(len(noise))

    def errors(self, found, expected):
        """Relative differences of a value, and of its gradient after the mean over processes."""
        gradients = torch.autograd.grad(expected, self.params)
        largest = max(float(g.abs().max()) for g in gradients)
        error = 0.0
        for own, gradient in zip(torch.autograd.grad(found, self.params), gradients, strict=True):
            torch.distributed.all_reduce(own)
            own /= torch.distributed.get_world_size()
            error = max(error, float((own - gradient).abs().max()))
        return float((found - expected).abs() / expected.abs()), error / largest


def observed(mode, dtype):
    problem = Problem(dtype)
    options = MODES[mode]
    noise = problem.noise_of_all(options.get("chunk_size"))
    p = SemiImplicit(problem.mixing, problem.conditional, M, mixing_group=world(), **options)
    weights = torch.arange(1.0, 6.0, dtype=dtype)
    expected = (weights * problem.log_prob(noise, problem.x)).sum()
    return problem.errors((weights * p.log_prob(problem.x)).sum(), expected)


def drawn():
    """A value that the distribution has drawn, in a guide, whose psi_0 counts too."""
    problem = Problem(torch.float64)
    noise = problem.noise_of_all(None)
    p = SemiImplicit(problem.mixing, problem.conditional, M, mixing_group=world())
    with same_draws():
        z = p.rsample((4,)).detach()
    with same_draws():
        z = p.rsample((4,))
    psi_0 = p.psi(z)
    own = problem.conditional(psi_0).log_prob(z)
    fresh = problem.log_prob(noise, z.unsqueeze(0)) + math.log(M)
    expected = (torch.logaddexp(fresh, own) - math.log1p(M)).sum()
    return float((p.log_prob(z).sum() - expected).abs())


def bound(mode, dtype):
    problem = Problem(dtype)
    options = MODES[mode]

    def model(x):
        with pyro.plate("data", 50, subsample=torch.arange(len(x))):
            psi = pyro.sample("psi", problem.mixing)
            pyro.sample("x", problem.conditional(psi), obs=x)

    elbo = SIG_ELBO(M, mixing_group=world(), max_plate_nesting=1, **options)
    # The seed of what all draw alike is the first number.
    noise = problem.noise_of_all(options.get("chunk_size"), before=1)
    expected = -10 * problem.log_prob(noise, problem.x).sum()
    return problem.errors(elbo.differentiable_loss(model, no_guide, problem.x), expected)


def trained(kind):
    """Parameters are the same in all processes after some steps, and losses too."""
    problem = Problem(torch.float32)

    def model(x):
        pyro.module("net", problem.net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", problem.mixing)
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    elbo = SIG_ELBO(M, mixing_group=world(), max_plate_nesting=1)
    if kind == "svi":
        inference = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    else:
        critic = MLP(2, [6], 1)
        critic_optim = torch.optim.Adam(critic.parameters(), lr=0.01)
        optim = pyro.optim.Adam({"lr": 0.01})
        inference = GAN(model, critic, optim, critic_optim, elbo=elbo, elbo_weight=1.0)
    inference = data_parallel(inference)
    losses = [inference.step(problem.x) for _ in range(5)]
    check_equal(inference)
    return losses


def refused(what):
    problem = Problem(torch.float32)
    options = {}
    mixing = problem.mixing
    if what == "few":
        options["num_mixing"] = 1
    if what == "particles":
        mixing = ParticleMixing(torch.zeros(4, 2), 1)
    if what == "score":
        mixing = dist.Poisson(torch.ones(2)).to_event(1)
    if what == "proposal":
        options["proposal"] = lambda x: dist.Normal(torch.zeros(3), 1.0).to_event(1).expand([5])
    p = SemiImplicit(
        mixing, problem.conditional, options.pop("num_mixing", M), mixing_group=world(), **options
    )
    p.log_prob(problem.x + (rank() if what == "value" else 0))


def enumerated():
    problem = Problem(torch.float32)

    def model(x):
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", problem.mixing)
            other = pyro.sample("other", problem.mixing)
            pyro.sample("x", problem.conditional(psi + other), obs=x)

    SIG_ELBO(M, mixing_group=world(), max_plate_nesting=1).loss(model, no_guide, problem.x)


def latents():
    """A latent that the guide draws is the same in all processes."""
    problem = Problem(torch.float32)
    seen = []

    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        seen.append(shift.detach().clone())
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", problem.mixing)
            pyro.sample("x", problem.conditional(psi + shift), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.3))

    elbo = SIG_ELBO(M, mixing_group=world(), max_plate_nesting=1)
    elbo.differentiable_loss(model, guide, problem.x).backward()
    return float(seen[-1])


def semi_implicit_guide():
    """SIVI with a mixture that is shared out."""
    problem = Problem(torch.float32)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        pyro.module("net", problem.net)
        q = SemiImplicit(problem.mixing, problem.conditional, M, mixing_group=world())
        with same_draws():
            pyro.sample("z", q)

    svi = data_parallel(SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()))
    losses = [svi.step() for _ in range(4)]
    check_equal(svi)
    return losses
