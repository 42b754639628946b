"""The example of two auto-encoders: its estimate of log p(x), and what it says without data."""

import math
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "examples"
NOISE_STD = 0.5


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import semi_implicit_vae

    return semi_implicit_vae


def linear_gaussian(example, method, num_latents=2, num_pixels=3):
    """Return a VAE with x = W z + b + noise, whose p(x) is a Gaussian, and that Gaussian."""
    vae = example.make_vae(method, torch.full((num_pixels,), 0.5), num_latents).double()
    vae.decoder = nn.Linear(num_latents, num_pixels).double()
    vae.likelihood = lambda z: dist.Normal(vae.decoder(z), NOISE_STD).to_event(1)
    weight, bias = vae.decoder.weight, vae.decoder.bias
    covariance = weight @ weight.T + NOISE_STD**2 * torch.eye(num_pixels).double()
    exact = dist.MultivariateNormal(bias.detach(), covariance.detach())
    return vae, exact


@pytest.mark.parametrize("name", ["gaussian", "si", "si-directions"])
def test_weights_have_the_evidence_for_their_mean(example, name):
    vae, exact = linear_gaussian(example, example.METHODS[name])
    encoder = vae.encoder
    with torch.no_grad():
        # Wider than any posterior under a standard normal prior, so that weights are bounded.
        last = encoder.net.net.head if name == "gaussian" else encoder.centre
        last.bias[2:] = 1.5
        if name != "gaussian":
            # Few psi, far apart: a density that left out psi_0, or counted it wrongly, would show.
            encoder.num_mixing = 2
            (encoder.directions or encoder.move).weight *= 6
    x = exact.sample((50,))
    repeats, size = 100, 10
    log_weights, z = example.log_weights(vae, x, repeats * size, block=size)
    assert log_weights.shape == (repeats * size, 50)
    assert z.shape == (repeats * size, 50, 2)
    # Draws of an image in a block share their fresh psi: the blocks are what is independent.
    ratio = (log_weights - exact.log_prob(x)).exp().reshape(repeats, size, 50).mean(1)
    error = float(ratio.std()) / ratio.numel() ** 0.5
    # Bounded and 5,000 in number, so that their mean is normal: fails once in two million.
    assert abs(float(ratio.mean()) - 1) < 5 * error
    assert error < 0.04  # it can tell: without psi_0 the mean is above 1.3


def test_bounds(example):
    vae, exact = linear_gaussian(example, example.METHODS["si"])
    x = exact.sample((120,))
    assert len(x) > example.BLOCK  # several blocks
    found = example.bounds(vae, x, 300)
    assert {name: len(values) for name, values in found.items()} == {"elbo": 120, "log_p": 120}
    assert (found["elbo"] < found["log_p"]).all()
    log_p = exact.log_prob(x)
    gap = log_p - found["log_p"]
    # Positive but for noise (5 standard errors fail once in three million), and small.
    assert -5 * float(gap.std()) / len(x) ** 0.5 < float(gap.mean()) < 0.2


def test_quadrature_sums_to_one(example):
    vae = example.make_vae(example.METHODS["gaussian"], torch.full((5,), 0.4), 2)
    with torch.no_grad():
        vae.decoder.head.weight *= 5
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)  # all images there are
    log_p = example.exact_log_p(vae, x, spacing=0.1)
    assert abs(float(log_p.logsumexp(0))) < 1e-4
    torch.testing.assert_close(log_p, example.exact_log_p(vae, x, spacing=0.05), rtol=0, atol=1e-3)


def test_batches_depend_on_step_and_seed_alone(example):
    x = torch.arange(10.0)
    batch = example.batches(x, 5, seed=1)
    steps = [batch(step) for step in range(4)]
    assert torch.cat(steps[:2]).sort().values.equal(x)
    assert torch.cat(steps[2:]).sort().values.equal(x)
    assert not torch.cat(steps[:2]).equal(torch.cat(steps[2:]))
    assert example.batches(x, 5, seed=1)(3).equal(steps[3])
    assert not example.batches(x, 5, seed=2)(0).equal(steps[0])


def test_resample_follows_the_weights(example):
    draws = torch.tensor([[0.0], [1.0]])
    found = example.resample(torch.tensor([math.log(3.0) + 1000, 1000.0]), draws, 10_000)
    # A share of 1/4 with 10,000 draws: 5 standard errors of 0.0043 fail once in two million.
    assert abs(float(found.mean()) - 0.25) < 0.022


@pytest.mark.parametrize("flags", [[], ["--data-dir", "nowhere"]])
def test_without_data(example, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PYRO_SIG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        example.main(example.parse(flags))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    problem = "binarized_mnist_train.amat" if flags else "--data-dir or PYRO_SIG_DATA must be set"
    assert problem in said
    assert "must hold binarized_mnist_train.amat" in said
    assert "http://www.cs.toronto.edu/~larocheh/" in said
    assert not list(tmp_path.iterdir()), "leaves an output folder"
    assert example.parse(["--smoke", *flags]).num_steps < 1000


def test_methods_are_checked(example, capsys):
    with pytest.raises(SystemExit) as caught:
        example.parse(["--smoke", "--methods", "gaussian,gauss"])
    assert caught.value.code == 2
    assert "was with ['gauss']" in capsys.readouterr().err
