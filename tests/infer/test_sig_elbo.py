"""SIG_ELBO against direct sums, on every plate layout; its gradients, streaming and errors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam

from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import SIG_ELBO, no_guide, train
from pyro_sig.nn import MLP

DOUBLE = {"dtype": torch.float64}


def noise(dim=2):
    return dist.Normal(torch.zeros(dim, **DOUBLE), 1.0).to_event(1)


def log_mean(scores, dim=0):
    return scores.logsumexp(dim) - math.log(scores.shape[dim])


class Programs:
    """Programs with their bound as a direct sum over the same draws."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = MLP(2, [5], 3).double()
        self.other = MLP(2, [5], 3).double()
        self.x = torch.randn(7, 3, **DOUBLE)

    def flat(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(self.net, noise(), 3))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    def flat_direct(self, x, num_mixing):
        psi = self.net(noise().sample((num_mixing,)))
        return log_mean(dist.Normal(psi.unsqueeze(1), 0.5).to_event(1).log_prob(x)).sum()

    def two_sites(self, x):
        pyro.module("net", self.net)
        pyro.module("other", self.other)
        with pyro.plate("data", len(x)):
            loc = pyro.sample("loc", Implicit(self.net, noise(), 3))
            log_scale = pyro.sample("log_scale", Implicit(self.other, noise(), 3))
            pyro.sample("x", dist.Normal(loc, log_scale.exp()).to_event(1), obs=x)

    def two_sites_direct(self, x, num_mixing):
        loc = self.net(noise().sample((num_mixing,))).unsqueeze(1)
        log_scale = self.other(noise().sample((num_mixing,))).unsqueeze(1)
        return log_mean(dist.Normal(loc, log_scale.exp()).to_event(1).log_prob(x)).sum()

    def groups(self, x):  # x: [datum, group, 3]
        pyro.module("net", self.net)
        pyro.module("other", self.other)
        with pyro.plate("groups", x.shape[1], dim=-1):
            a = pyro.sample("a", Implicit(self.net, noise(), 3))
            with pyro.plate("data", len(x), dim=-2):
                b = pyro.sample("b", Implicit(self.other, noise(), 3))
                pyro.sample("x", dist.Normal(a + b, 0.5).to_event(1), obs=x)

    def groups_direct(self, x, num_mixing):
        a = self.net(noise().sample((num_mixing,)))
        b = self.other(noise().sample((num_mixing,)))
        loc = (a.unsqueeze(1) + b)[:, :, None, None]  # [Ma, Mb, 1, 1, 3]
        scores = dist.Normal(loc, 0.5).to_event(1).log_prob(x)
        return log_mean(log_mean(scores, 1).sum(1), 0).sum()

    def group_level(self, x):  # one psi for all data of a group
        pyro.module("net", self.net)
        with pyro.plate("groups", x.shape[1], dim=-1):
            a = pyro.sample("a", Implicit(self.net, noise(), 3))
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("x", dist.Normal(a, 0.5).to_event(1), obs=x)

    def group_level_direct(self, x, num_mixing):
        a = self.net(noise().sample((num_mixing,)))
        scores = dist.Normal(a[:, None, None], 0.5).to_event(1).log_prob(x)
        return log_mean(scores.sum(1), 0).sum()

    def global_level(self, x):
        pyro.module("net", self.net)
        psi = pyro.sample("psi", Implicit(self.net, noise(), 3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    def global_level_direct(self, x, num_mixing):
        psi = self.net(noise().sample((num_mixing,)))
        return log_mean(dist.Normal(psi.unsqueeze(1), 0.5).to_event(1).log_prob(x).sum(1), 0)


def gradients(programs, loss):
    for net in (programs.net, programs.other):
        net.zero_grad()
    loss.backward()
    nets = [*programs.net.parameters(), *programs.other.parameters()]
    return [None if w.grad is None else w.grad.clone() for w in nets]


LAYOUTS = ["flat", "two_sites", "groups", "group_level", "global_level"]


@pytest.mark.parametrize("num_mixing", [1, 2, 7, 20])
@pytest.mark.parametrize("enumerates", [None, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bound_and_gradient_equal_a_direct_sum(layout, enumerates, num_mixing):
    programs = Programs()
    x = torch.randn(4, 5, 3, **DOUBLE) if "group" in layout else programs.x
    elbo = SIG_ELBO(num_mixing, max_plate_nesting=2 if "group" in layout else 1)
    elbo._enumerates = enumerates  # one implicit and one observed site are scored directly
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(getattr(programs, layout), no_guide, x)
    torch.manual_seed(1)
    direct = -getattr(programs, f"{layout}_direct")(x, num_mixing)
    assert torch.allclose(loss, direct, rtol=1e-10)
    assert not elbo.broadcast_sites
    for grad, truth in zip(gradients(programs, loss), gradients(programs, direct), strict=True):
        assert (grad is None) == (truth is None)
        assert grad is None or torch.allclose(grad, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 6, 20, 50])
@pytest.mark.parametrize("layout", ["flat", "group_level", "global_level"])
def test_streaming_equals_a_direct_sum(layout, chunk_size):
    programs = Programs()
    num_mixing = 20
    x = torch.randn(4, 5, 3, **DOUBLE) if "group" in layout else programs.x
    elbo = SIG_ELBO(
        num_mixing, chunk_size=chunk_size, max_plate_nesting=2 if "group" in layout else 1
    )
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(getattr(programs, layout), no_guide, x)
    grads = gradients(programs, loss)
    torch.manual_seed(1)
    sizes = [min(chunk_size, num_mixing - i) for i in range(0, num_mixing, chunk_size)]
    eps = torch.cat([noise().sample((size,)) for size in sizes])
    psi = programs.net(eps)
    if layout == "flat":
        scores = dist.Normal(psi.unsqueeze(1), 0.5).to_event(1).log_prob(x)
    elif layout == "group_level":
        scores = dist.Normal(psi[:, None, None], 0.5).to_event(1).log_prob(x).sum(1)
    else:
        scores = dist.Normal(psi.unsqueeze(1), 0.5).to_event(1).log_prob(x).sum(1)
    direct = -log_mean(scores, 0).sum()
    assert torch.allclose(loss, direct, rtol=1e-10)
    for grad, truth in zip(grads, gradients(programs, direct), strict=True):
        assert grad is None or torch.allclose(grad, truth, rtol=1e-8, atol=1e-10)


def test_subsampling_scales_and_streams():
    programs = Programs()
    x = programs.x

    def model(x):
        pyro.module("net", programs.net)
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            psi = pyro.sample("psi", Implicit(programs.net, noise(), 3))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x[rows])

    torch.manual_seed(1)
    loss = SIG_ELBO(10, max_plate_nesting=1).loss(model, no_guide, x)
    torch.manual_seed(1)
    rows = torch.randperm(7)[:3]
    assert math.isclose(loss, -7 / 3 * programs.flat_direct(x[rows], 10).item(), rel_tol=1e-10)
    torch.manual_seed(1)
    streamed = SIG_ELBO(10, chunk_size=10, max_plate_nesting=1).loss(model, no_guide, x)
    assert math.isclose(loss, streamed, rel_tol=1e-10)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_rows_may_have_weights(chunk_size):
    """Equal rows counted once, with their number as scale."""
    programs = Programs()
    weights = torch.tensor([3.0, 1.0, 2.0, 5.0, 1.0, 1.0, 4.0], **DOUBLE)

    def model(x):
        pyro.module("net", programs.net)
        with pyro.plate("data", len(x)), poutine.scale(scale=weights):
            psi = pyro.sample("psi", Implicit(programs.net, noise(), 3))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    elbo = SIG_ELBO(12, chunk_size=chunk_size, max_plate_nesting=1)
    torch.manual_seed(1)
    weighted = elbo.loss(model, no_guide, programs.x)
    torch.manual_seed(1)
    rows = programs.x.repeat_interleave(weights.long(), 0)
    assert math.isclose(weighted, elbo.loss(programs.flat, no_guide, rows), rel_tol=1e-10)
    elbo = SIG_ELBO(12, max_plate_nesting=1)
    elbo._enumerates = True
    with pytest.raises(ValueError, match="`poutine.scale` must be a number where several sites"):
        elbo.loss(model, no_guide, programs.x)


def test_mask_inside_the_mean():
    programs = Programs()
    mask = torch.tensor([True, False, True, True, True, False, True])

    def model(x):
        pyro.module("net", programs.net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(programs.net, noise(), 3))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    torch.manual_seed(1)
    loss = SIG_ELBO(10, max_plate_nesting=1).loss(model, no_guide, programs.x)
    torch.manual_seed(1)
    assert math.isclose(loss, -programs.flat_direct(programs.x[mask], 10).item(), rel_tol=1e-10)
    torch.manual_seed(1)
    streamed = SIG_ELBO(10, chunk_size=10, max_plate_nesting=1)
    assert math.isclose(streamed.loss(model, no_guide, programs.x), loss, rel_tol=1e-10)


def test_inputs_of_the_transform_are_not_paired_with_draws():
    x = torch.randn(6, 1, **DOUBLE)

    def model(x):
        def shift(eps, x):
            return x + eps

        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(shift, noise(1), 1, inputs=x))
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    elbo = SIG_ELBO(6, max_plate_nesting=1)  # M = N
    torch.manual_seed(1)
    loss = elbo.loss(model, no_guide, x)
    assert "differs along a plate" in elbo.broadcast_sites["x"]
    torch.manual_seed(1)
    psi = x + noise(1).expand([6]).sample((6,))
    direct = -log_mean(dist.Normal(psi, 0.5).to_event(1).log_prob(x)).sum()
    assert math.isclose(loss, direct.item(), rel_tol=1e-10)


@pytest.mark.parametrize("particles", [{}, {"num_particles": 4, "vectorize_particles": True}])
def test_other_latents_keep_their_guide(particles):
    programs = Programs()

    def model(x):
        pyro.module("net", programs.net)
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), **DOUBLE), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
            psi = pyro.sample("psi", Implicit(programs.net, noise(), 3))
            loc = psi + z.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, scale.unsqueeze(-1)).to_event(1), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["psi"]))
    svi = SVI(model, guide, Adam({"lr": 0.01}), SIG_ELBO(10, **particles))
    losses = [svi.step(programs.x) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert {name.split(".")[0] for name in pyro.get_param_store()} >= {"net$$$hidden", "AutoNormal"}


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_other_latents_without_enumeration(chunk_size):
    """A hierarchy scored directly: the loss and every gradient are those of the enumeration."""
    net = MLP(2, [5], 1).double()
    x = torch.randn(4, 6, **DOUBLE)
    seen = torch.rand(4, 6) < 0.7

    def model(x):
        pyro.module("net", net)
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), **DOUBLE), 1.0))
        with pyro.plate("groups", x.shape[1], dim=-1):
            slope = pyro.sample("slope", dist.Normal(torch.zeros((), **DOUBLE), 1.0))
            psi = pyro.sample("psi", Implicit(lambda e: net(e).squeeze(-1), noise(2)))
            with pyro.plate("data", x.shape[0], dim=-2), poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(psi + 0.0 * slope, scale), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["psi"]))
    guide(x)
    losses, found = [], []
    for enumerates in (True, None):
        elbo = SIG_ELBO(7, chunk_size=None if enumerates else chunk_size, max_plate_nesting=2)
        elbo._enumerates = enumerates
        guide.zero_grad()
        net.zero_grad()
        torch.manual_seed(1)  # up to 15 normal numbers are the same in one call and in several
        losses.append(elbo.loss_and_grads(model, guide, x))
        assert elbo._enumerates is (True if enumerates else False)
        found.append([p.grad.clone() for p in (*net.parameters(), *guide.parameters())])
    assert math.isclose(*losses, rel_tol=1e-10)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_that_share_a_psi_far_from_the_origin(dtype):
    """Added statistics keep their digits: 1000 + noise of 0.01, against double broadcasting."""
    x = (1000 + 0.01 * torch.randn(5, 6, **DOUBLE)).to(dtype)
    atoms = (1000 + 0.01 * torch.randn(10, **DOUBLE)).to(dtype)
    prior = Implicit(lambda e: atoms[: len(e)], dist.Normal(torch.zeros((), dtype=dtype), 1.0))

    def model(x):
        with pyro.plate("groups", x.shape[1], dim=-1):
            psi = pyro.sample("psi", prior)
            with pyro.plate("data", x.shape[0], dim=-2):
                pyro.sample("x", dist.Normal(psi, torch.tensor(0.01, dtype=dtype)), obs=x)

    loss = SIG_ELBO(10, max_plate_nesting=2).loss(model, no_guide, x)
    scores = dist.Normal(atoms.double()[:, None, None], 0.01).log_prob(x.double()).sum(1)
    assert math.isclose(loss, -log_mean(scores).sum().item(), abs_tol=0.05)


def test_discrete_latents_may_be_enumerated_beside_it():
    programs = Programs()

    def model(x):
        with pyro.plate("data", len(x)):
            outlier = pyro.sample(
                "outlier",
                dist.Bernoulli(torch.tensor(0.1, **DOUBLE)),
                infer={"enumerate": "parallel"},
            )
            psi = pyro.sample("psi", Implicit(programs.net, noise(), 3))
            scale = (0.5 + 4.5 * outlier).unsqueeze(-1)
            pyro.sample("x", dist.Normal(psi, scale).to_event(1), obs=x)

    elbo = SIG_ELBO(10, max_plate_nesting=1)
    torch.manual_seed(1)
    loss = elbo.loss(model, no_guide, programs.x)
    torch.manual_seed(1)
    psi = programs.net(noise().sample((10,))).unsqueeze(1)
    inlier, outlier = (
        dist.Normal(psi, s).to_event(1).log_prob(programs.x) + math.log(w)
        for s, w in ((0.5, 0.9), (5.0, 0.1))
    )
    direct = -log_mean(torch.logaddexp(inlier, outlier)).sum()
    assert math.isclose(loss, direct.item(), rel_tol=1e-10)
    marginals = elbo.compute_marginals(model, no_guide, programs.x)
    assert set(marginals) == {"psi", "outlier"}


def test_sequential_plates_have_an_index_for_each_step():
    programs = Programs()

    def model(x):
        for i in pyro.plate("data", len(x)):
            psi = pyro.sample(f"psi_{i}", Implicit(programs.net, noise(), 3))
            pyro.sample(f"x_{i}", dist.Normal(psi, 0.5).to_event(1), obs=x[i])

    torch.manual_seed(1)
    loss = SIG_ELBO(10, max_plate_nesting=0).loss(model, no_guide, programs.x[:3])
    torch.manual_seed(1)
    direct = sum(programs.flat_direct(row.unsqueeze(0), 10) for row in programs.x[:3])
    assert math.isclose(loss, -direct.item(), rel_tol=1e-10)


@pytest.mark.parametrize("likelihood", ["poisson", "laplace", "categorical", "mvn", "masked"])
def test_any_emission(likelihood):
    torch.manual_seed(0)
    net = MLP(2, [5], 2).double()
    x = {
        "poisson": torch.tensor([0.0, 1.0, 4.0], **DOUBLE),
        "categorical": torch.tensor([0, 1, 1]),
        "mvn": torch.randn(3, 2, **DOUBLE),
    }.get(likelihood, torch.randn(3, **DOUBLE))

    def emission(psi):
        if likelihood == "poisson":
            return dist.Poisson(psi[..., 0].exp())
        if likelihood == "categorical":
            return dist.Categorical(logits=psi)
        if likelihood == "mvn":
            return dist.MultivariateNormal(psi, scale_tril=torch.eye(2, **DOUBLE))
        if likelihood == "masked":
            return dist.Normal(psi[..., 0], 0.5).mask(torch.tensor([True, False, True]))
        return dist.Laplace(psi[..., 0], 1.0)

    def model(x):
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(net, noise(), 2))
            pyro.sample("x", emission(psi), obs=x)

    elbo = SIG_ELBO(10, max_plate_nesting=1)
    torch.manual_seed(1)
    loss = elbo.loss(model, no_guide, x)
    assert bool(elbo.broadcast_sites) == (likelihood in ("laplace", "masked"))
    torch.manual_seed(1)
    psi = net(noise().sample((10,)))
    direct = -log_mean(emission(psi.unsqueeze(1)).log_prob(x)).sum()
    assert math.isclose(loss, direct.item(), rel_tol=1e-10)


# ------------------------------------------------------------------------------------- posteriors


def test_marginals_are_responsibilities_and_posterior_means_follow():
    programs = Programs()
    elbo = SIG_ELBO(10, max_plate_nesting=1)
    torch.manual_seed(1)
    marginals = elbo.compute_marginals(programs.flat, no_guide, programs.x)
    torch.manual_seed(1)
    psi = programs.net(noise().sample((10,)))
    scores = dist.Normal(psi.unsqueeze(1), 0.5).to_event(1).log_prob(programs.x)
    truth = scores.softmax(0).T
    assert list(marginals) == ["psi"]
    assert torch.allclose(marginals["psi"].probs, truth, rtol=1e-8)
    torch.manual_seed(1)
    posterior = elbo.psi_posterior(programs.flat, no_guide, programs.x)["psi"]
    assert posterior.batch_shape == (7,) and posterior.event_shape == (3,)
    assert torch.allclose(posterior.mean, truth @ psi, rtol=1e-8)


def test_posterior_of_groups():
    programs = Programs()
    x = torch.randn(4, 5, 3, **DOUBLE)
    elbo = SIG_ELBO(10, max_plate_nesting=2)
    posterior = elbo.psi_posterior(programs.group_level, no_guide, x)["a"]
    assert posterior.mean.shape[-2:] == (5, 3)
    assert posterior.sample((6,)).shape[-2:] == (5, 3)


@pytest.mark.parametrize("layout", ["flat", "group_level", "global_level"])
def test_streamed_posterior_agrees_with_the_whole(layout):
    """Two estimates of each mean, from 20,000 draws each, within 6 of their standard errors."""
    programs = Programs()
    x = torch.randn(4, 5, 3, **DOUBLE) if layout == "group_level" else programs.x
    model = getattr(programs, layout)
    kwargs = {"max_plate_nesting": 2 if layout == "group_level" else 1}
    (whole,) = SIG_ELBO(20_000, **kwargs).psi_posterior(model, no_guide, x).values()
    elbo = SIG_ELBO(20_000, chunk_size=3000, **kwargs)
    (streamed,) = elbo.psi_posterior(model, no_guide, x).values()
    assert streamed.sample((2,)).shape[1:] == streamed.mean.shape
    assert streamed.mean.squeeze().shape == whole.mean.squeeze().shape
    sizes = torch.minimum(whole.effective_sample_size, streamed.effective_sample_size)
    error = (2 * whole.variance / sizes.unsqueeze(-1).reshape(whole.mean.shape[:-1] + (1,))).sqrt()
    assert ((streamed.mean.reshape(whole.mean.shape) - whole.mean).abs() < 6 * error).all()


def test_streamed_posterior_needs_one_implicit_and_one_observed_site():
    programs = Programs()
    with pytest.raises(ValueError, match="`chunk_size` must be None unless"):
        SIG_ELBO(10, chunk_size=5).psi_posterior(programs.two_sites, no_guide, programs.x)


# --------------------------------------------------------------------- the bound, and what trains


def test_the_bound_tightens_with_the_number_of_draws():
    """Lemma 1 at a fixed mixing law: E L_1 <= E L_4 <= E L_16 <= log evidence (5 SE apart)."""
    x = torch.linspace(-2, 2, 5, **DOUBLE).unsqueeze(-1)

    def model(x):
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(lambda eps: eps, noise(1), 1))
            pyro.sample("x", dist.Normal(psi, 0.7).to_event(1), obs=x)

    truth = dist.Normal(0.0, math.hypot(1.0, 0.7)).log_prob(x).sum().item()
    previous = -math.inf
    for num_mixing in (1, 4, 16):
        elbo = SIG_ELBO(num_mixing, max_plate_nesting=1)
        bounds = torch.tensor([-elbo.loss(model, no_guide, x) for _ in range(300)])
        error = 5 * bounds.std().item() / math.sqrt(300)
        assert previous < bounds.mean().item() - error
        assert bounds.mean().item() - error < truth
        previous = bounds.mean().item() + error


class Natural(PyroModule):
    """Networks and scales first touched inside the program, some only in the conditional."""

    def __init__(self, semi_implicit):
        super().__init__()
        self.semi_implicit = semi_implicit
        self.net = PyroModule[torch.nn.Linear](2, 3)
        self.decoder = PyroModule[torch.nn.Linear](3, 3)
        self.scale = PyroParam(torch.tensor(0.7), constraint=dist.constraints.positive)

    def conditional(self, psi):
        extra = pyro.param("extra", torch.tensor(0.1))
        return dist.Normal(self.decoder(psi) + extra, self.scale).to_event(1)

    def forward(self, x):
        mixing = Implicit(self.net, dist.Normal(torch.zeros(2), 1.0).to_event(1), 3)
        with pyro.plate("data", len(x)):
            if self.semi_implicit:
                pyro.sample("x", SemiImplicit(mixing, self.conditional, 10), obs=x)
            else:
                psi = pyro.sample("psi", mixing)
                pyro.sample("x", self.conditional(psi), obs=x)


@pytest.mark.parametrize(
    ("semi_implicit", "elbo"),
    [
        (True, Trace_ELBO()),
        (True, TraceMeanField_ELBO()),
        (True, Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)),
        (False, SIG_ELBO(10)),
        (False, SIG_ELBO(10, num_particles=2, vectorize_particles=True)),
        (False, SIG_ELBO(10, chunk_size=4)),
    ],
    ids=["Trace", "TraceMeanField", "Trace vectorised", "SIG", "SIG vectorised", "SIG streamed"],
)
def test_the_natural_program_trains_every_parameter(semi_implicit, elbo):
    model = Natural(semi_implicit)
    svi = SVI(model, no_guide, Adam({"lr": 0.01}), elbo)
    svi.step(torch.randn(5, 3))
    before = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    assert len(before) == 6
    svi.step(torch.randn(5, 3))
    for name, value in pyro.get_param_store().items():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_works_as_a_torch_module(chunk_size):
    model = Natural(semi_implicit=False)
    elbo = SIG_ELBO(10, chunk_size=chunk_size)
    loss = elbo(model, no_guide)
    x = torch.randn(5, 3)
    loss(x)
    parameters = [p for n, p in loss.named_parameters()]
    optim = torch.optim.SGD(parameters, lr=0.1)
    before = [p.detach().clone() for p in parameters]
    loss(x).backward()
    optim.step()
    assert all(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_recovers_a_normal_law():
    """Gaussian mixing, closed form: the fitted marginal scale is that of the data."""
    torch.manual_seed(0)
    x = 3.0 + 2.0 * torch.randn(2000, 1)

    def model(x):
        loc = pyro.param("loc", torch.zeros(1))
        std = pyro.param("std", torch.ones(1), constraint=dist.constraints.positive)
        mixing = Implicit(
            lambda eps: loc + std * eps, dist.Normal(torch.zeros(1), 1).to_event(1), 1
        )
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", mixing)
            pyro.sample("x", dist.Normal(psi, 1.0).to_event(1), obs=x)

    svi = SVI(model, no_guide, Adam({"lr": 0.02}), SIG_ELBO(300))
    train(svi, x, 600, progress=False)
    # Maximum likelihood: the sample mean, and the sample variance less 1; 2 % for the optimiser.
    assert abs(pyro.param("loc").item() - x.mean().item()) < 0.1
    assert abs(pyro.param("std").item() - math.sqrt(x.var().item() - 1)) < 0.1


# ----------------------------------------------------------------------------------------- errors


def shifted(x):
    shift = pyro.param("shift", torch.zeros(2))
    with pyro.plate("data", 3):
        law = Implicit(lambda e: shift + e, dist.Normal(torch.zeros(2), 1.0).to_event(1), 2)
        pyro.sample("x", dist.Normal(pyro.sample("psi", law), 0.5).to_event(1), obs=x)


OPTIONS = [{}, {"vectorize_particles": True, "num_particles": 2}, {"chunk_size": 4}]


@pytest.mark.parametrize("options", OPTIONS)
def test_data_of_other_types(options):
    elbo = SIG_ELBO(8, max_plate_nesting=1, **options)
    pyro.set_rng_seed(0)
    expected = elbo.loss(shifted, no_guide, torch.eye(3)[:, :2])
    for x in (torch.eye(3).bool()[:, :2], torch.eye(3).long()[:, :2], torch.eye(3).double()[:, :2]):
        pyro.set_rng_seed(0)
        # Sums of six log-densities, each rounded in single precision.
        assert elbo.loss(shifted, no_guide, x) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_far_data_are_scored_in_every_way(options):
    elbo = SIG_ELBO(8, max_plate_nesting=1, **options)
    x = torch.full((3, 2), 1e6)
    loss = elbo.loss_and_grads(shifted, no_guide, x)
    # Draws of some units beside 1e6: minus the log-density is its square over 2 * 0.25.
    assert loss == pytest.approx(6 * 1e12 / 0.5, rel=1e-4)
    if elbo.num_particles == 1:
        assert elbo.psi_posterior(shifted, no_guide, x)["psi"].mean.isfinite().all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 2, device="meta"), "must be a dense tensor on cpu.*on meta"),
        (torch.eye(3)[:, :2].to_sparse(), "must be a dense tensor on cpu.*sparse"),
        (torch.zeros(4, 2), r"must have the shape \(3, 2\).*was \(4, 2\)"),
        (torch.zeros(2, 3, 2), r"must have the shape \(3, 2\).*was \(2, 3, 2\)"),
    ],
)
def test_data_that_do_not_meet_the_draws(x, message):
    with pytest.raises(ValueError, match=f"`obs` of site 'x' {message}"):
        SIG_ELBO(5, max_plate_nesting=1).loss(shifted, no_guide, x)


@pytest.mark.parametrize("bad", [0, -3, 1.5, None])
def test_num_mixing_must_be_positive(bad):
    with pytest.raises(ValueError, match="`num_mixing` must be a positive integer, was"):
        SIG_ELBO(bad)
    for options in ({"num_particles": 0}, {"max_plate_nesting": -1}, {"vectorize_particles": 2}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
            SIG_ELBO(5, **options)
    with pytest.raises(ValueError, match="`chunk_size` must be a positive integer, was 0"):
        SIG_ELBO(5, chunk_size=0)


def test_site_may_ask_for_its_own_number_of_draws():
    def model(x, per_site):
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(lambda e: e, noise(1), 1), infer=per_site[0])
            chi = pyro.sample("chi", Implicit(lambda e: e, noise(1), 1), infer=per_site[1])
            pyro.sample("x", dist.Normal(psi + chi, 0.5).to_event(1), obs=x)

    x = torch.zeros(3, 1, **DOUBLE)
    elbo = SIG_ELBO(10, max_plate_nesting=1)
    five = {"num_mixing": 5}
    marginals = elbo.compute_marginals(model, no_guide, x, (five, five))
    assert marginals["psi"].probs.shape == (3, 5)
    with pytest.raises(ValueError, match="`num_mixing` at site 'chi' must be 5, as at the other"):
        elbo.loss(model, no_guide, x, (five, {}))
    with pytest.raises(ValueError, match="must be a positive integer, was 0"):
        elbo.loss(model, no_guide, x, ({"num_mixing": 0}, {}))


def test_chains_of_implicit_sites_raise():
    def model(x):
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(lambda e: e, noise(1), 1))
            chi = pyro.sample("chi", Implicit(lambda e, p: e + p, noise(1), 1, inputs=psi))
            pyro.sample("x", dist.Normal(chi, 0.5).to_event(1), obs=x)

    with pytest.raises(ValueError, match="'chi' depends on another enumerated site.*jointly"):
        SIG_ELBO(5).loss(model, no_guide, torch.zeros(3, 1, **DOUBLE))


def test_markov_raises():
    def model(x):
        for t in pyro.markov(range(2)):
            psi = pyro.sample(f"psi_{t}", Implicit(lambda e: e, noise(1), 1))
            pyro.sample(f"x_{t}", dist.Normal(psi, 0.5).to_event(1), obs=x[t])

    with pytest.raises(ValueError, match="must not stand inside pyro.markov"):
        SIG_ELBO(5).loss(model, no_guide, torch.zeros(2, 1, **DOUBLE))


def test_differently_scaled_plates_raise_with_an_explanation():
    def model(x):
        psi = pyro.sample("psi", Implicit(lambda e: e, noise(1), 1))
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x[rows])

    with pytest.raises(ValueError, match="must share one scale"):
        SIG_ELBO(5).loss(model, no_guide, torch.zeros(4, 1, **DOUBLE))


def test_a_guide_must_not_sample_an_implicit_site():
    def model(x):
        psi = pyro.sample("psi", Implicit(lambda e: e, noise(1), 1))
        pyro.sample("x", dist.Normal(psi, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.sample("psi", noise(1))

    with pytest.raises(ValueError, match="`guide` must not sample the implicit sites"):
        SIG_ELBO(5).loss(model, guide, torch.zeros(1, **DOUBLE))


def test_chunks_need_one_implicit_and_one_observed_site():
    programs = Programs()
    with pytest.raises(
        ValueError, match="`chunk_size` must be None unless .* several implicit sites"
    ):
        SIG_ELBO(5, chunk_size=2).loss(programs.two_sites, no_guide, programs.x)

    def coin(x):
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, **DOUBLE)))
        programs.flat(x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, **DOUBLE)))

    with pytest.raises(ValueError, match="latent 'z' whose law in the guide has no rsample"):
        SIG_ELBO(5, chunk_size=2).loss(coin, guide, programs.x)
    with pytest.raises(ValueError, match="latent 'z' that the guide does not sample"):
        SIG_ELBO(5, chunk_size=2).loss(coin, no_guide, programs.x)


def test_plain_elbos_refuse_an_implicit_latent():
    programs = Programs()
    with (
        pytest.warns(UserWarning, match="vars in model but not guide"),
        pytest.raises(NotImplementedError, match="Marginalise the site with .*SIG_ELBO"),
    ):
        Trace_ELBO().loss(programs.flat, no_guide, programs.x)


def test_wrong_data_raise():
    programs = Programs()
    with pytest.raises(ValueError):
        SIG_ELBO(5).loss(programs.flat, no_guide, torch.full((7, 3), math.nan, **DOUBLE))
    with pytest.raises(NotImplementedError, match="psi_posterior"):
        SIG_ELBO(5).sample_posterior(programs.flat, no_guide, programs.x)


@pytest.mark.parametrize("enumerates", [None, True])
def test_rows_chosen_by_an_index_raise_with_the_way_out(enumerates):
    groups, x = torch.tensor([0, 0, 1, 2]), torch.zeros(4, **DOUBLE)

    def indexed(x):
        with pyro.plate("groups", 3):
            psi = pyro.sample("psi", Implicit(lambda e: e.squeeze(-1), noise(1)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(psi[..., groups], 1.0), obs=x)

    def outside(x):
        with pyro.plate("groups", 3):
            psi = pyro.sample("psi", Implicit(lambda e: e.squeeze(-1), noise(1)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(psi[..., :1], 1.0), obs=x)

    for model, problem in [
        (indexed, "cannot be chosen by an index.*pad_groups"),
        (outside, r"'x' must stand inside of the plates .* outside of \['groups'\].*pad_groups"),
    ]:
        elbo = SIG_ELBO(5, max_plate_nesting=1)
        elbo._enumerates = enumerates
        with pytest.raises(ValueError, match=problem):
            elbo.loss(model, no_guide, x)


def test_a_record_of_the_draws_scores_nothing():
    x = torch.linspace(-1.0, 1.0, 5)

    def model(x, event_dim):
        with pyro.plate("row", 5):
            psi = pyro.sample("psi", Implicit(lambda e: e, dist.Normal(torch.tensor(0.0), 1.0)))
            if event_dim != "none":
                pyro.deterministic("twice", 2 * psi, event_dim=event_dim)
            pyro.sample("x", dist.Normal(psi, 0.5), obs=x)

    losses = []
    for event_dim in ("none", None, 0):
        pyro.set_rng_seed(0)
        losses.append(SIG_ELBO(20, max_plate_nesting=1).loss(model, no_guide, x, event_dim))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_missing_data_are_masked():
    x, mask = torch.linspace(-1.0, 1.0, 5), torch.tensor([True, False, True, True, False])
    law = Implicit(lambda e: e, dist.Normal(torch.tensor(0.0), 1.0))

    def by_obs_mask(x):
        with pyro.plate("row", len(x)):
            psi = pyro.sample("psi", law)
            pyro.sample("x", dist.Normal(psi, 0.5), obs=x, obs_mask=mask)

    def by_mask(x):
        with pyro.plate("row", len(x)), pyro.poutine.mask(mask=mask):
            psi = pyro.sample("psi", law)
            pyro.sample("x", dist.Normal(psi, 0.5), obs=x.nan_to_num())

    def of_the_others(x):
        with pyro.plate("row", int(mask.sum())):
            psi = pyro.sample("psi", law)
            pyro.sample("x", dist.Normal(psi, 0.5), obs=x[mask])

    elbo = SIG_ELBO(20, max_plate_nesting=1)
    with pytest.raises(ValueError, match="`obs_mask` must be None.*'x_unobserved'.*poutine.mask"):
        elbo.loss(by_obs_mask, no_guide, x)
    losses = []
    for model in (by_mask, of_the_others):
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(model, no_guide, x.masked_fill(~mask, math.nan)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("to_event", [False, True])
def test_a_zero_inflated_observation(to_event):
    """Its batch shape is a plain tuple, and no matrix product fits it."""
    programs = Programs()
    x = torch.tensor([[0.0, 2.0], [1.0, 0.0], [4.0, 0.0]], **DOUBLE)
    x = x if to_event else x[:, 0]

    def emission(psi):
        rate, gate = psi[..., :2].exp(), psi[..., 2:]
        if to_event:
            gate = gate.expand(rate.shape)
            return dist.ZeroInflatedPoisson(rate, gate_logits=gate).to_event(1)
        return dist.ZeroInflatedPoisson(rate[..., 0], gate_logits=gate[..., 0])

    def model(x):
        pyro.module("net", programs.net)
        with pyro.plate("data", len(x)):
            psi = pyro.sample("psi", Implicit(programs.net, noise(), 3))
            pyro.sample("x", emission(psi), obs=x)

    torch.manual_seed(1)
    loss = SIG_ELBO(num_mixing=20, max_plate_nesting=1).loss(model, no_guide, x)
    torch.manual_seed(1)
    psi = programs.net(noise().sample((20,))).unsqueeze(1)
    assert loss == pytest.approx(-log_mean(emission(psi).log_prob(x)).sum().item())
