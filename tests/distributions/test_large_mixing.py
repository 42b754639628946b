"""Mixtures over many psi: the gradient of the chosen ones against that of all."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_sig.distributions import (
    Implicit,
    ParticleMixing,
    Responsibility,
    SemiImplicit,
    TopK,
    backward_modes,
    large_mixing,
)
from pyro_sig.distributions.backward_modes import inclusion_probabilities, systematic_sample
from pyro_sig.distributions.psi_stream import PsiStream

DOUBLE = {"dtype": torch.float64}
CONDITIONALS = {
    "normal": lambda psi, scale: dist.Normal(psi, scale).to_event(1),
    "bernoulli": lambda psi, scale: dist.Bernoulli(logits=psi * scale).to_event(1),
    "poisson": lambda psi, scale: dist.Poisson((psi * scale).exp()).to_event(1),
    "student": lambda psi, scale: dist.StudentT(4.0, psi, scale).to_event(1),
    "laplace": lambda psi, scale: dist.Laplace(psi, scale).to_event(1),
}
DISCRETE = ("bernoulli", "poisson")


class Case:
    """Seven data, and a mixture with a network and a scale to learn."""

    def __init__(self, kind="normal", dtype=torch.float64, num_mixing=40, chunk_size=11):
        torch.manual_seed(0)
        self.kind, self.num_mixing, self.chunk_size = kind, num_mixing, chunk_size
        net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        self.net = net.to(dtype)  # without units that are off: no two psi are equal
        self.scale = torch.tensor(0.6, dtype=dtype, requires_grad=True)
        self.x = torch.randn(7, 3, dtype=dtype)
        if kind in DISCRETE:
            self.x = (self.x > 0).to(dtype)
        else:
            self.x.requires_grad_()
        self.noise = dist.Normal(torch.zeros(2, dtype=dtype), 1.0).to_event(1)
        self.upstream = torch.linspace(-1, 2.5, 7, dtype=dtype)  # any weights of the rows
        self.wanted = [*self.net.parameters(), self.scale]
        self.wanted += [self.x] if self.x.requires_grad else []

    def mixture(self, backward="exact", **kwargs):
        conditional = CONDITIONALS[self.kind]
        return SemiImplicit(
            kwargs.pop("mixing", Implicit(self.net, self.noise, 3)),
            lambda psi: conditional(psi, self.scale),
            self.num_mixing,
            chunk_size=kwargs.pop("chunk_size", self.chunk_size),
            backward=backward,
            **kwargs,
        )

    def run(self, backward="exact", seed=1, **kwargs):
        """Log-densities, all gradients in one vector, and the distribution."""
        torch.manual_seed(seed)
        p = self.mixture(backward, **kwargs)
        log_prob = p.log_prob(self.x)
        grads = torch.autograd.grad((self.upstream * log_prob).sum(), self.wanted)
        return log_prob.detach(), torch.cat([g.flatten() for g in grads]), p

    def dense(self, seed=1):
        """The same psi, all at once, by broadcasting."""
        torch.manual_seed(seed)
        left, eps = self.num_mixing, []
        while left > 0:
            eps.append(self.noise.sample((min(left, self.chunk_size),)))
            left -= self.chunk_size
        psi = self.net(torch.cat(eps)).unsqueeze(1)
        scores = CONDITIONALS[self.kind](psi, self.scale).log_prob(self.x)  # [M, N]
        log_prob = scores.logsumexp(0) - math.log(self.num_mixing)
        grads = torch.autograd.grad((self.upstream * log_prob).sum(), self.wanted)
        return log_prob.detach(), torch.cat([g.flatten() for g in grads]), scores.detach()


# ------------------------------------------------------------------------- equal to the dense sum


@pytest.mark.parametrize(
    "backward", ["exact", Responsibility(1000), Responsibility(40), TopK(1000), TopK(40)], ids=str
)
@pytest.mark.parametrize("kind", CONDITIONALS)
def test_all_psi_give_the_dense_value_and_gradient(kind, backward):
    case = Case(kind)
    truth, truth_grad, _ = case.dense()
    value, grad, _ = case.run(backward)
    assert torch.allclose(value, truth, rtol=1e-10, atol=1e-10)
    assert torch.allclose(grad, truth_grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backward", ["exact", Responsibility(100), TopK(100)], ids=str)
@pytest.mark.parametrize("kind", CONDITIONALS)
def test_single_precision(kind, backward):
    case = Case(kind, torch.float32)
    truth, truth_grad, _ = case.dense()
    value, grad, _ = case.run(backward)
    assert value.dtype == torch.float32
    assert torch.allclose(value, truth, rtol=1e-5, atol=1e-5)
    assert torch.allclose(grad, truth_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backward", [Responsibility(5), TopK(2)], ids=str)
@pytest.mark.parametrize("kept", [0, 2**27])
def test_value_is_exact_and_does_not_need_the_scores_to_be_kept(backward, kept, monkeypatch):
    monkeypatch.setattr(large_mixing, "_KEPT_PAIRS", kept)
    case = Case()
    value, grad, p = case.run(backward)
    assert torch.allclose(value, case.dense()[0], rtol=1e-12)
    monkeypatch.setattr(large_mixing, "_KEPT_PAIRS", 2**27 - kept)
    assert torch.allclose(grad, case.run(backward)[1], rtol=1e-10)
    assert p.backward_report.num_psi < 15


def test_without_a_gradient_nothing_is_drawn_again():
    case = Case()
    truth = case.dense()[0]
    torch.manual_seed(1)
    with torch.no_grad():
        p = case.mixture("top")
        assert torch.allclose(p.log_prob(case.x), truth, rtol=1e-12)
    assert p.backward_report is None


# ----------------------------------------------------------------------------------- no bias


def test_inclusion_probabilities():
    torch.manual_seed(0)
    totals = torch.rand(50, **DOUBLE).pow(8)
    totals[7] = 0.0
    for size in (1, 3, 10, 30, 48):
        pi = inclusion_probabilities(totals, size)
        assert math.isclose(pi.sum().item(), size, rel_tol=1e-12)
        assert pi.max() <= 1
        assert pi[7] == 0
        free = pi < 1
        c = (pi / totals)[free & (totals > 0)]
        assert torch.allclose(c, c[:1].expand_as(c), rtol=1e-12)
        assert (totals[~free] * c[0] >= 1 - 1e-12).all()
    for size in (49, 50, 60):  # no more than these have any
        assert torch.equal(inclusion_probabilities(totals, size), (totals > 0).double())
    # Far apart: the differences of cumulative sums would be rounding alone.
    totals = torch.tensor([1.0, 1e-30, 3e-30], **DOUBLE)
    pi = inclusion_probabilities(totals, 2)
    assert torch.allclose(pi, torch.tensor([1.0, 0.25, 0.75], **DOUBLE), rtol=1e-12)


def test_systematic_sample_includes_with_its_probabilities():
    torch.manual_seed(0)
    pi = inclusion_probabilities(torch.rand(30, **DOUBLE).pow(4), 9)
    grid = (torch.arange(4000) + 0.5) / 4000
    count = torch.zeros(30, **DOUBLE)
    for u in grid.tolist():
        chosen = systematic_sample(pi, u)
        assert len(chosen) == 9
        count[chosen] += 1
    assert torch.allclose(count / len(grid), pi, atol=2 / len(grid))


@pytest.mark.parametrize("kind", CONDITIONALS)
def test_responsibility_has_no_bias(kind, monkeypatch):
    """The mean over the uniform number is a finite sum: the choice changes at known points."""
    case = Case(kind)
    truth = case.run()[1]
    seen = {}

    def given(inclusion, _):
        seen["inclusion"] = inclusion
        return systematic_sample(inclusion, seen["uniform"])

    monkeypatch.setattr(backward_modes, "systematic_sample", given)
    seen["uniform"] = 0.5
    case.run(Responsibility(6))
    pi = seen["inclusion"]  # in the order in which they are laid in line
    ends = pi.masked_fill(pi >= 1, 0.0).cumsum(0) % 1
    points = torch.cat([torch.zeros(1), ends, torch.ones(1)]).sort().values
    mean, largest = 0.0, 0.0
    for low, high in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
        if high - low > 1e-12:
            seen["uniform"] = (low + high) / 2
            value, grad, p = case.run(Responsibility(6))
            assert abs(p.backward_report.num_psi - 6) <= 1
            mean = mean + (high - low) * grad
            largest = max(largest, (grad - truth).abs().max().item())
    assert torch.allclose(mean, truth, rtol=1e-7, atol=1e-8)
    assert largest > 1e-2  # each of them alone is off


def test_responsibility_has_no_bias_over_fresh_psi():
    """Paired with the exact gradient of the same psi; all |z| below 5.2: 1e-5 for 55 numbers."""
    case = Case(chunk_size=40)
    differences = torch.stack(
        [case.run(Responsibility(6), seed)[1] - case.run(seed=seed)[1] for seed in range(80)]
    )
    z = differences.mean(0) / (differences.std(0) / math.sqrt(len(differences)))
    assert differences.abs().max() > 1e-2
    assert z.abs().max() < 5.2


# ------------------------------------------------------------------------------------ top k


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_bias_is_within_its_bound(k):
    case = Case()
    scores = case.dense()[2]  # [M, N]
    weights = scores.softmax(0)
    chosen = scores.topk(k, 0).indices.unique()
    dropped = 1 - weights[chosen].sum(0)
    torch.manual_seed(1)
    p = case.mixture(TopK(k))
    log_prob = p.log_prob(case.x)
    torch.manual_seed(1)
    exact = case.mixture().log_prob(case.x)
    torch.manual_seed(1)
    eps = torch.cat([case.noise.sample((size,)) for size in (11, 11, 11, 7)])
    per_pair = CONDITIONALS["normal"](case.net(eps).unsqueeze(1), case.scale).log_prob(case.x)
    nets = [*case.net.parameters(), case.scale]
    left_out = [j for j in range(40) if j not in chosen]
    for i in range(7):

        def flat(y):
            return torch.cat([g.flatten() for g in torch.autograd.grad(y, nets, retain_graph=True)])

        bias = (flat(log_prob[i]) - flat(exact[i])).norm()
        largest = max(flat(per_pair[j, i]).norm() for j in left_out)
        assert 1e-8 < bias <= dropped[i] * largest
    report = p.backward_report
    assert report.num_psi == len(chosen)
    assert math.isclose(report.mean_dropped, dropped.mean(), rel_tol=1e-8)
    assert math.isclose(report.max_dropped, dropped.max(), rel_tol=1e-8)


# ------------------------------------------------------------------------------------ report


def test_report_of_a_made_case():
    """Two data and three psi with known responsibilities."""
    psi = torch.tensor([0.0, 1.0, 2.0], **DOUBLE)
    counter = dist.Normal(torch.zeros((), **DOUBLE), 1.0)  # any noise: psi are given

    def given(eps):
        order.append(eps)
        return psi[: len(eps)] + 0.0 * eps

    order = []
    x = torch.tensor([0.0, 2.0], **DOUBLE)
    p = SemiImplicit(
        Implicit(given, counter), lambda loc: dist.Normal(loc, 1.0), 3, backward=TopK(3)
    )
    p.log_prob(x)
    w = torch.softmax(-0.5 * (x.unsqueeze(-1) - psi).square(), -1)
    r = w.sum(0)
    report = p.backward_report
    assert report.num_psi == report.num_mixing == 3
    assert math.isclose(report.carried, 1.0, rel_tol=1e-12)
    assert report.max_dropped < 1e-12
    assert math.isclose(report.effective_num_psi, 4 / r.square().sum(), rel_tol=1e-10)
    assert "3 of 3 psi" in str(report)
    # The network gives psi[0] to whatever is drawn again by itself, which is right for TopK(1)
    # of a datum at 0 alone.
    p = SemiImplicit(
        Implicit(given, counter), lambda loc: dist.Normal(loc, 1.0), 3, backward=TopK(1)
    )
    p.log_prob(x[:1])
    report = p.backward_report
    assert report.num_psi == 1
    assert math.isclose(report.carried, w[0, 0], rel_tol=1e-10)
    assert math.isclose(report.mean_dropped, 1 - w[0, 0], rel_tol=1e-10)


def test_report_is_shared_with_expansions():
    case = Case()
    p = case.mixture("top")
    p.expand([7]).log_prob(case.x).sum().backward()
    assert p.backward_report.num_psi > 0
    assert Case().mixture().backward_report is None


# ------------------------------------------------------------------------- random numbers, origin


@pytest.mark.parametrize("backward", ["responsibility", "top"])
def test_random_stream_is_that_of_one_draw(backward):
    case = Case()
    torch.manual_seed(1)
    for size in (11, 11, 11, 7):
        case.noise.sample((size,))
    truth = torch.rand(3)
    case.run(backward)
    assert torch.equal(torch.rand(3), truth)


@pytest.mark.cuda
@pytest.mark.parametrize("backward", [Responsibility(100), TopK(100), Responsibility(5)], ids=str)
def test_on_a_cuda_device(backward):
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 3).cuda()
    noise = dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1)
    x, found, after = torch.randn(7, 3, device="cuda"), [], []
    for mode in ("exact", backward):
        torch.manual_seed(1)
        p = SemiImplicit(
            Implicit(net, noise, 3),
            lambda psi: dist.Normal(psi, 0.6).to_event(1),
            40,
            chunk_size=11,
            backward=mode,
        )
        log_prob = p.log_prob(x)
        grads = torch.autograd.grad(log_prob.sum(), list(net.parameters()))
        found.append((log_prob, torch.cat([g.flatten() for g in grads])))
        after.append(torch.cuda.get_rng_state())
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-4)
    same = torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)
    assert same == (backward != Responsibility(5))
    assert torch.equal(*after)


def test_chunks_fill_a_cache():
    cuda = torch.device("cuda")
    assert large_mixing.chunk_for(2) == 16384
    assert large_mixing.chunk_for(784) == 1337
    assert large_mixing.chunk_for(784, 64, cuda) == 8 * 2**20 // 784
    assert large_mixing.chunk_for(10**7) == 256
    assert large_mixing.chunk_for(2, 10**5) == 2**22 // 10**5
    assert large_mixing.chunk_for(2, 10**9) == 1


@pytest.mark.parametrize("backward", [Responsibility(7), TopK(2)], ids=str)
def test_parameters_may_change_after_it_is_built(backward):
    case = Case()
    torch.manual_seed(1)
    p = case.mixture(backward)
    with torch.no_grad():
        p.log_prob(case.x)
        for weight in case.net.parameters():
            weight.add_(0.5)
    torch.manual_seed(1)
    q = case.mixture(backward)
    state = torch.get_rng_state()
    truth = q.log_prob(case.x)
    torch.set_rng_state(state)
    assert torch.allclose(p.log_prob(case.x), truth, rtol=1e-12)


def test_generator_makes_the_choice():
    case = Case()

    def grad(seed):
        return case.run(Responsibility(5, torch.Generator().manual_seed(seed)))[1]

    assert torch.equal(grad(3), grad(3))
    assert not torch.allclose(grad(3), grad(4))


def test_stream_draws_rows_again():
    stream, law = PsiStream(), dist.Normal(torch.zeros(3), 1.0).to_event(1)
    noise = torch.cat([stream.draw(law, 4), stream.draw(law, 1), stream.draw(law, 6)])
    after = torch.get_rng_state()
    chosen = torch.tensor([0, 3, 5, 10])
    assert torch.equal(stream.rows(law, chosen), noise[chosen])
    assert torch.equal(stream.redraw(law, 2), noise[5:])
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("size", [3, 40])
def test_psi_with_its_own_rsample(size):
    """Parameters of the mixing law and of the noise get the gradient of the chosen psi."""
    loc = torch.zeros(3, **DOUBLE, requires_grad=True)
    spread = torch.ones(3, **DOUBLE, requires_grad=True)
    for push in (None, lambda eps: eps.tanh()):
        case = Case()
        case.wanted = [loc, spread, case.scale]
        law = dist.Normal(loc, spread).to_event(1)
        mixing = law if push is None else Implicit(push, law, 3)
        truth = case.run(mixing=mixing)
        found = case.run(TopK(size), mixing=mixing)
        assert torch.allclose(found[0], truth[0], rtol=1e-12)
        assert torch.allclose(found[1], truth[1], rtol=1e-9) == (size == 40)


@pytest.mark.parametrize("backward", [Responsibility(100), TopK(100)], ids=str)
def test_value_drawn_here_keeps_its_own_term(backward):
    case, results = Case(), []
    for mode in ("exact", backward):
        torch.manual_seed(2)
        p = case.mixture(mode).expand([6])
        z = p.rsample()
        log_prob = p.score_parts(z).log_prob
        grads = torch.autograd.grad((log_prob - z.square().sum(-1)).sum(), case.wanted[:-1])
        results.append((log_prob, torch.cat([g.flatten() for g in grads])))
    for found, truth in zip(results[1], results[0], strict=True):
        assert torch.allclose(found, truth, rtol=1e-9, atol=1e-11)


def test_other_reads_have_a_gradient():
    case = Case()
    torch.manual_seed(1)
    p = case.mixture("top")
    torch.manual_seed(1)
    exact = case.mixture()
    assert torch.equal(p.shared_psi, exact.shared_psi)
    assert torch.equal(p.mean, exact.mean)
    (grad,) = torch.autograd.grad(p.mean.sum(), case.net[-1].bias)
    assert torch.allclose(grad, torch.ones_like(grad))


def test_rows_of_any_shape_and_many_draws():
    case = Case(num_mixing=30)
    p = case.mixture(Responsibility(100), chunk_size=None).expand([2, 3])
    x = torch.randn(5, 2, 3, 3, **DOUBLE)
    log_prob = p.log_prob(x)
    assert log_prob.shape == (5, 2, 3)
    again = p.log_prob(x)  # one object, and the same psi while they are one chunk
    assert torch.allclose(log_prob, again, rtol=1e-12)


def test_rows_with_psi_of_their_own_have_the_exact_gradient():
    case, found = Case(), []
    for backward in ("top", "exact"):
        p = case.mixture(backward)
        torch.manual_seed(5)
        log_prob = p.with_draws(15, share_draws=False).log_prob(case.x)
        found.append((log_prob, torch.autograd.grad(log_prob.sum(), case.scale)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    shared = case.mixture(TopK(1000)).with_draws(15)
    shared.log_prob(case.x)
    assert shared.backward_report.num_mixing == 15


def test_data_without_density_stay_infinite():
    def model(psi):
        return dist.Uniform(psi.sigmoid(), 1 + psi.sigmoid())

    weight = torch.ones((), **DOUBLE, requires_grad=True)
    mixing = Implicit(lambda eps: weight * eps, dist.Normal(torch.zeros((), **DOUBLE), 1.0))
    x = torch.tensor([0.5, 9.0], **DOUBLE)
    for backward in ("responsibility", "top"):
        p = SemiImplicit(mixing, model, 20, backward=backward)
        log_prob = p.log_prob(x)
        assert log_prob[0].isfinite()
        assert log_prob[1] == -math.inf
        (grad,) = torch.autograd.grad(log_prob[0], weight)
        assert grad.isfinite()
        assert p.log_prob(x[1:]) == -math.inf


# ---------------------------------------------------------------------------------- training


@pytest.mark.parametrize("backward", [Responsibility(32), TopK(4)], ids=str)
def test_a_prior_is_learned(backward):
    """The mean of a Gaussian generator with known noise finds the mean of the data."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    x = 2.0 + 1.1 * torch.randn(100)
    shift = torch.nn.Parameter(torch.zeros(()))

    def model():
        mixing = Implicit(lambda eps: shift + eps, dist.Normal(0.0, 1.0))
        prior = SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.5), 400, backward=backward)
        pyro.module("shift", module)
        with pyro.plate("data", len(x)):
            pyro.sample("x", prior, obs=x)

    module = torch.nn.Module()
    module.shift = shift
    svi = SVI(model, lambda: None, Adam({"lr": 0.1}), Trace_ELBO())
    tail = []
    for step in range(120):
        svi.step()
        if step >= 80:
            tail.append(shift.item())
    assert abs(sum(tail) / len(tail) - x.mean().item()) < 0.15


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("backward", [Responsibility(5), TopK(1)], ids=str)
@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)])
def test_networks_that_mix_psi_are_refused(layer, backward):
    case = Case()
    layers = torch.nn.Linear(2, 4), copy.deepcopy(layer), torch.nn.Linear(4, 3)
    net = torch.nn.Sequential(*layers).double()
    mixing = Implicit(net, case.noise, 3)
    with pytest.raises(ValueError, match="`backward` must be 'exact' .* Batch normalisation"):
        case.mixture(backward, mixing=mixing).log_prob(case.x)
    net.eval()
    case.mixture(backward, mixing=mixing).log_prob(case.x)


def test_reduced_precision_is_no_mixing_of_psi():
    case = Case(dtype=torch.float32, num_mixing=500, chunk_size=100)
    with torch.autocast("cpu", torch.bfloat16):
        case.mixture(Responsibility(7)).log_prob(case.x).sum().backward()
    assert case.scale.grad.isfinite()


@pytest.mark.parametrize("backward", ["all", None, 3, Responsibility])
def test_bad_backward(backward):
    with pytest.raises(ValueError, match="`backward` must be 'exact', 'responsibility'"):
        Case().mixture(backward)


def test_bad_numbers():
    with pytest.raises(ValueError, match="`num_psi` must be a positive integer, was 0"):
        Responsibility(0)
    with pytest.raises(ValueError, match=r"`k` must be a positive integer, was 1\.5"):
        TopK(1.5)


def test_mixtures_that_cannot_choose():
    case = Case()
    law = dist.Normal(torch.zeros(3, **DOUBLE), 1.0).to_event(1)
    for why, kwargs in {
        "share_draws=False": {"share_draws": False},
        "a `proposal`": {"proposal": lambda x: law.expand(x.shape[:-1])},
        "no rsample": {"mixing": dist.Poisson(torch.ones(3, **DOUBLE)).to_event(1)},
        "ParticleMixing": {"mixing": ParticleMixing(torch.zeros(4, 3, **DOUBLE))},
        "a batch shape": {"mixing": law.expand([7])},
    }.items():
        with pytest.raises(ValueError, match=f"`backward` must be 'exact' .*{why}.*, was 'top'"):
            case.mixture("top", **kwargs)
    with pytest.raises(ValueError, match="`backward` must be 'exact' under"):
        torch.func.vmap(case.mixture("top").log_prob)(case.x.detach())
