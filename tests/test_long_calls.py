"""Every public function that may take long shows a bar if asked, and is quiet otherwise."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_sig import diagnostics, infer
from pyro_sig.diagnostics import (
    c2st,
    draws_from,
    energy_test,
    evidence_bounds,
    k_hat,
    kernel_distance,
    kernel_stein_test,
    log_importance_weights,
    mmd_test,
    report,
    sbc,
    sliced_wasserstein_test,
    tarp,
    to_inference_data,
    unconstrained_score,
)
from pyro_sig.infer import find_scale, fit, gradient_noise, train

X = torch.linspace(-1.0, 1.0, 20)
DATA = torch.tensor(0.5)


def model(x=DATA):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=DATA):
    loc = pyro.param("loc", torch.tensor(0.2))
    pyro.sample("z", dist.Normal(loc, 0.6))


def score(**options):
    return unconstrained_score(model, {"z": X}, **options)


def svi():
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())


def noise(**options):
    w = torch.ones(2, requires_grad=True)
    return gradient_noise(lambda: (w * torch.randn(2)).sum(), [w], 5, **options)


def calibration(**options):
    def posterior(observations):
        return draws_from(guide, observations["x"], num_samples=5)

    return sbc(model, posterior, num_simulations=4, **options)


CALLS = {
    c2st: lambda **o: c2st(X, X + 3.0, **o),
    draws_from: lambda **o: draws_from(guide, num_samples=5, **o),
    energy_test: lambda **o: energy_test(X, X + 1.0, 9, **o),
    evidence_bounds: lambda **o: evidence_bounds(
        model, guide, num_importance=[1], num_samples=5, posterior={"z": X}, **o
    ),
    find_scale: lambda **o: find_scale(lambda z: -z.square().sum(-1), torch.ones(2), **o),
    fit: lambda **o: fit(model, guide=guide, loss=Trace_ELBO(), budget=3, **o),
    gradient_noise: noise,
    k_hat: lambda **o: k_hat(model, guide, num_samples=50, num_repeats=1, **o),
    kernel_distance: lambda **o: kernel_distance(X, X + 1.0, 3, **o),
    kernel_stein_test: lambda **o: kernel_stein_test(X, score=-X, num_bootstraps=9, **o),
    log_importance_weights: lambda **o: log_importance_weights(model, guide, num_samples=5, **o),
    mmd_test: lambda **o: mmd_test(X, X + 1.0, 9, **o),
    report: lambda **o: report(model, guide, num_samples=50, quiet=True, parallel=True, **o),
    sbc: calibration,
    sliced_wasserstein_test: lambda **o: sliced_wasserstein_test(X, X + 1.0, 9, **o),
    tarp: lambda **o: tarp(X, X.unsqueeze(-1) + X, **o),
    to_inference_data: lambda **o: to_inference_data(model, guide, num_samples=5, **o),
    train: lambda **o: train(svi(), (), 3, **o),
    unconstrained_score: score,
}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_a_bar_if_asked(function, capsys, monkeypatch):
    assert inspect.signature(function).parameters["progress"].default is None
    torch.manual_seed(0)
    CALLS[function](progress=True)
    assert "it/s" in capsys.readouterr().err
    pyro.clear_param_store()
    CALLS[function]()  # nobody watches what is captured
    assert capsys.readouterr() == ("", "")
    pyro.clear_param_store()
    monkeypatch.setattr("pyro_sig._progress._is_watched", lambda: True)
    monkeypatch.setattr("pyro_sig._progress._PATIENCE", 0.0)
    CALLS[function](progress=False)
    assert capsys.readouterr() == ("", "")


def test_all_are_here():
    found = set()
    for package in (diagnostics, infer):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) and "progress" in inspect.signature(value).parameters:
                found.add(value)
    assert found == set(CALLS)
