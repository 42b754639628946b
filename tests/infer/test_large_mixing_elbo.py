"""SIG_ELBO over many psi: the gradient of the chosen ones against that of all."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_sig.distributions import Implicit, Responsibility, SemiImplicit, TopK
from pyro_sig.infer import SIG_ELBO, gradient_noise, no_guide

DOUBLE = {"dtype": torch.float64}
ALL = [Responsibility(1000), TopK(1000)]
SOME = [Responsibility(6), TopK(1)]


class Programs:
    def __init__(self):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        self.net = net.double()
        self.scale = torch.tensor(0.6, **DOUBLE, requires_grad=True)
        self.x = torch.randn(7, 3, **DOUBLE)
        self.grouped = torch.randn(4, 5, 3, **DOUBLE)
        self.counts = torch.tensor([3.0, 1.0, 2.0, 5.0, 1.0, 1.0, 4.0], **DOUBLE)
        self.mask = torch.tensor([True, False, True, True, True, False, True])
        self.wanted = [*self.net.parameters(), self.scale]

    def psi(self):
        noise = dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1)
        return pyro.sample("psi", Implicit(self.net, noise, 3))

    def emit(self, psi, x, kind=dist.Normal):
        return pyro.sample("x", kind(psi, self.scale).to_event(1), obs=x)

    def flat(self):
        with pyro.plate("data", 7):
            self.emit(self.psi(), self.x)

    def laplace(self):
        with pyro.plate("data", 7):
            self.emit(self.psi(), self.x, dist.Laplace)

    def subsampled(self):
        with pyro.plate("data", 7, subsample_size=3) as rows:
            self.emit(self.psi(), self.x[rows])

    def scaled(self):
        with poutine.scale(scale=0.3), pyro.plate("data", 7):
            self.emit(self.psi(), self.x)

    def counted(self):
        with pyro.plate("data", 7), poutine.scale(scale=self.counts):
            self.emit(self.psi(), self.x)

    def masked(self):
        with pyro.plate("data", 7):
            psi = self.psi()
            with poutine.mask(mask=self.mask):
                self.emit(psi, self.x)

    def groups(self):
        with pyro.plate("groups", 5, dim=-1):
            psi = self.psi()
            with pyro.plate("data", 4, dim=-2):
                self.emit(psi, self.grouped)

    def masked_groups(self):
        mask = self.grouped[..., 0] > -0.5
        mask[:, 2] = False
        with pyro.plate("groups", 5, dim=-1):
            psi = self.psi()
            with pyro.plate("data", 4, dim=-2), poutine.mask(mask=mask):
                self.emit(psi, self.grouped)

    def above(self):
        psi = self.psi()
        with pyro.plate("data", 7):
            self.emit(psi, self.x, dist.Laplace)

    def loss(self, name, backward="exact", seed=1, num_mixing=40, **kwargs):
        """Loss, its gradient in one vector, and the objective."""
        kwargs = {"chunk_size": 11, "max_plate_nesting": 2 if "groups" in name else 1} | kwargs
        elbo = SIG_ELBO(num_mixing, backward=backward, **kwargs)
        torch.manual_seed(seed)
        loss = elbo.differentiable_loss(getattr(self, name), no_guide)
        grads = torch.autograd.grad(loss, self.wanted)
        return loss.detach(), torch.cat([g.flatten() for g in grads]), elbo


LAYOUTS = ["flat", "laplace", "subsampled", "scaled", "counted", "masked", "groups", "above"]
LAYOUTS += ["masked_groups"]


@pytest.mark.parametrize("backward", ALL, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_psi_give_the_exact_loss_and_gradient(layout, backward):
    programs = Programs()
    truth, truth_grad, _ = programs.loss(layout)
    loss, grad, elbo = programs.loss(layout, backward)
    assert torch.allclose(loss, truth, rtol=1e-10)
    assert torch.allclose(grad, truth_grad, rtol=1e-9, atol=1e-10)
    assert elbo.backward_report.num_psi == 40
    assert elbo.backward_report.max_dropped < 1e-12


@pytest.mark.parametrize("backward", SOME, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_is_exact_and_the_stream_that_of_one_draw(layout, backward):
    programs = Programs()
    truth, truth_grad, _ = programs.loss(layout)
    after = torch.get_rng_state()
    loss, grad, elbo = programs.loss(layout, backward)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.allclose(loss, truth, rtol=1e-10)
    assert not torch.allclose(grad, truth_grad, rtol=1e-2)
    assert elbo.backward_report.num_psi <= 7
    assert 0 < elbo.backward_report.mean_dropped <= elbo.backward_report.max_dropped < 1


@pytest.mark.parametrize("layout", ["subsampled", "counted", "groups"])
def test_responsibility_has_no_bias(layout):
    """Paired with the exact gradient of the same psi; all |z| below 5.2: 1e-5 for 34 numbers."""
    programs, differences = Programs(), []
    for seed in range(60):
        found = programs.loss(layout, Responsibility(5), seed, 25, chunk_size=25)[1]
        truth = programs.loss(layout, "exact", seed, 25, chunk_size=25)[1]
        differences.append(found - truth)
    differences = torch.stack(differences)
    z = differences.mean(0) / (differences.std(0) / math.sqrt(len(differences)))
    assert differences.abs().max() > 1e-2
    assert z.abs().max() < 5.2


def test_rows_count_in_the_choice_and_in_the_report():
    """Of two far-off data one is masked: TopK(1) drops nothing of it."""
    programs = Programs()
    _, _, elbo = programs.loss("masked", TopK(2))
    programs.x = programs.x[programs.mask]
    with torch.enable_grad():
        torch.manual_seed(1)
        p = SemiImplicit(
            Implicit(programs.net, dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1), 3),
            lambda psi: dist.Normal(psi, programs.scale).to_event(1),
            40,
            chunk_size=11,
            backward=TopK(2),
        )
        p.log_prob(programs.x)
    report, truth = elbo.backward_report, p.backward_report
    assert torch.allclose(report.max_dropped, truth.max_dropped, rtol=1e-2)
    assert report.num_psi >= truth.num_psi
    assert torch.allclose(report.effective_num_psi, truth.effective_num_psi, rtol=1e-9)


@pytest.mark.parametrize("backward", ["exact", *ALL], ids=str)
def test_same_gradient_as_the_distribution(backward):
    programs = Programs()
    truth = programs.loss("flat")
    torch.manual_seed(1)
    p = SemiImplicit(
        Implicit(programs.net, dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1), 3),
        lambda psi: dist.Normal(psi, programs.scale).to_event(1),
        40,
        chunk_size=11,
        backward=backward,
    )
    loss = -p.log_prob(programs.x).sum()
    grads = torch.autograd.grad(loss, programs.wanted)
    assert torch.allclose(loss, truth[0], rtol=1e-10)
    assert torch.allclose(torch.cat([g.flatten() for g in grads]), truth[1], rtol=1e-9)


@pytest.mark.parametrize("backward", ALL, ids=str)
def test_latents_of_the_guide(backward):
    """Gradients to the guide, and to the prior of its latent, are those of the exact bound."""
    programs, results = Programs(), []

    def model():
        prior = pyro.param("prior", torch.tensor(0.5, **DOUBLE))
        shift = pyro.sample("shift", dist.Normal(prior, 1.0))
        with pyro.plate("data", 7):
            programs.emit(programs.psi() + shift.unsqueeze(-1), programs.x)

    def guide():
        loc = pyro.param("loc", torch.tensor(0.3, **DOUBLE))
        pyro.sample("shift", dist.Normal(loc, 0.2))

    for mode in ("exact", backward):
        pyro.clear_param_store()
        elbo = SIG_ELBO(30, chunk_size=8, backward=mode, num_particles=2)
        svi = SVI(model, guide, Adam({"lr": 0.01}), elbo)
        torch.manual_seed(3)
        loss = svi.step()
        results.append((loss, pyro.param("loc").item(), pyro.param("prior").item()))
        torch.manual_seed(3)
        grads = torch.autograd.grad(
            elbo.differentiable_loss(model, guide),
            [pyro.param("loc"), pyro.param("prior"), *programs.wanted],
        )
        results[-1] += tuple(g.flatten() for g in grads)
    for truth, found in zip(*results, strict=True):
        assert torch.allclose(torch.as_tensor(found), torch.as_tensor(truth), rtol=1e-8)


@pytest.mark.parametrize("backward", ["responsibility", "top"])
def test_without_chunk_size_and_without_gradient(backward):
    programs = Programs()
    loss, grad, elbo = programs.loss("flat", backward, num_mixing=3000, chunk_size=None)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert elbo.backward_report.num_mixing == 3000
    elbo = SIG_ELBO(3000, backward=backward)
    assert math.isclose(elbo.loss(programs.flat, no_guide), loss, rel_tol=0.05)
    assert elbo.backward_report is None


def test_a_program_trains():
    """The mean of a Gaussian generator with known noise finds the mean of the data."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    x = 2.0 + 1.1 * torch.randn(100)

    def model():
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(lambda eps: shift + eps, dist.Normal(0.0, 1.0)))
            pyro.sample("x", dist.Normal(psi, 0.5), obs=x)

    svi = SVI(model, no_guide, Adam({"lr": 0.1}), SIG_ELBO(400, backward=Responsibility(32)))
    tail = []
    for step in range(100):
        svi.step()
        if step >= 70:
            tail.append(pyro.param("shift").item())
    assert abs(sum(tail) / len(tail) - x.mean().item()) < 0.15


def test_networks_that_mix_psi_are_refused():
    programs = Programs()
    norm = torch.nn.BatchNorm1d(3).double()
    programs.net = torch.nn.Sequential(*programs.net, norm)
    with pytest.raises(ValueError, match="`backward` must be 'exact' .* Batch normalisation"):
        programs.loss("flat", TopK(1))
    norm.eval()
    assert programs.loss("flat", TopK(1))[0].isfinite()


def test_programs_that_cannot_choose():
    programs = Programs()

    def per_row():
        noise = dist.Normal(torch.zeros(1, **DOUBLE), 1.0).to_event(1)
        with pyro.plate("data", 7):
            psi = pyro.sample("psi", Implicit(torch.add, noise, 3, inputs=programs.x))
            programs.emit(psi, programs.x)

    def two_sites():
        with pyro.plate("data", 7):
            pyro.sample("x", dist.Normal(programs.psi(), 1.0).to_event(1), obs=programs.x)
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(7))

    elbo = SIG_ELBO(10, backward="top", max_plate_nesting=1)
    with pytest.raises(ValueError, match="`backward` must be 'exact' where an implicit site has"):
        elbo.loss(per_row, no_guide)
    with pytest.raises(ValueError, match="`backward` must be 'exact' unless .* 2 observed"):
        elbo.loss(two_sites, no_guide)
    with pytest.raises(ValueError, match="`backward` must be 'exact', 'responsibility'"):
        SIG_ELBO(10, backward="most")


# ------------------------------------------------------------------------------ gradient_noise


def test_gradient_noise_of_a_known_law():
    """g = 2 + e with e of covariance diag(1, 4): mean square 8, variance 5."""
    torch.manual_seed(0)
    w = torch.zeros(2, **DOUBLE, requires_grad=True)
    unused = torch.zeros(3, requires_grad=True)

    def loss():
        return (w * (2 + torch.randn(2, **DOUBLE) * torch.tensor([1.0, 2.0]))).sum()

    exact = [torch.full((2,), 2.0), torch.zeros(3)]
    noise = gradient_noise(loss, [w, unused], 4000, exact=exact)
    assert w.grad is None
    # Standard errors: 0.13 of the variance, 0.14 of the mean square; 4.5 of them are 1e-5.
    assert abs(noise.variance - 5) < 0.6
    assert abs(noise.mean_square - 8) < 0.65
    assert math.isclose(noise.ratio, noise.variance / noise.mean_square)
    assert math.isclose(noise.bias_error, math.sqrt(noise.variance / 4000 / 8), rel_tol=1e-9)
    assert noise.relative_bias < 5 * noise.bias_error
    shifted = gradient_noise(loss, [w, unused], 1000, exact=[torch.full((2,), 4.0), exact[1]])
    assert abs(shifted.relative_bias - 0.5) < 0.1


def test_gradient_noise_of_a_fixed_loss():
    w = torch.ones(2, requires_grad=True)
    noise = gradient_noise(lambda: 3 * w.sum(), [w], 2)
    assert noise == (18.0, 0.0, 0.0, None, None)


def test_gradient_noise_errors():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="`num_repeats` must be an integer of at least 2, was 1"):
        gradient_noise(w.sum, [w], 1)
    with pytest.raises(ValueError, match="`parameters` must hold at least one"):
        gradient_noise(w.sum, [])
    with pytest.raises(ValueError, match=r"`exact` must hold tensors of shapes \[\(2,\)\]"):
        gradient_noise(w.sum, [w], exact=[torch.zeros(3)])


def test_semi_implicit_in_trace_elbo():
    """The same objects under Pyro's own objective."""
    programs = Programs()
    noise = dist.Normal(torch.zeros(2, **DOUBLE), 1.0).to_event(1)

    def model():
        p = SemiImplicit(
            Implicit(programs.net, noise, 3),
            lambda psi: dist.Normal(psi, programs.scale).to_event(1),
            40,
            backward="responsibility",
        )
        with pyro.plate("data", 7):
            pyro.sample("x", p, obs=programs.x)

    loss = Trace_ELBO().differentiable_loss(model, no_guide)
    assert loss.isfinite()
    grads = torch.autograd.grad(loss, programs.wanted)
    assert all(g.abs().max() > 0 for g in grads)
