"""Every method says whose it is."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

import pyro_sig
from pyro_sig.adversarial import LBT, VEEGAN, objectives, penalties
from pyro_sig.diagnostics import tarp
from pyro_sig.infer import KSIVI, PVI, SIG_ELBO, AutoSemiImplicit, no_guide
from pyro_sig.nn import MLP
from tests.adversarial.programs import PushForward, make_gan


def gan():
    return make_gan(
        PushForward(),
        "torch",
        objective=objectives.Wasserstein(),
        penalties=penalties.GradientPenalty(),
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KSIVI, ["Kernel semi-implicit"]),
        (lambda: SIG_ELBO(4), ["Semi-Implicit Generative Model"]),
        (lambda: VEEGAN, ["VEEGAN"]),
        (lambda: LBT, ["by Teaching"]),
        (lambda: PVI, ["article"]),
        (lambda: tarp, ["Lemos"]),
        (gan, ["Goodfellow", "Wasserstein", "Gulrajani"]),
        (
            lambda: SVI(
                lambda: None,
                AutoSemiImplicit(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))),
                pyro.optim.Adam({"lr": 0.1}),
                KSIVI(),
            ),
            ["Kernel semi-implicit"],
        ),
    ],
)
def test_references(make, words, capsys):
    pyro_sig.cite(make())
    printed = capsys.readouterr().out
    assert any(word in printed for word in words), printed


def test_parts_are_cited_too(capsys):
    pyro_sig.cite(gan())
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize("value", [3, no_guide, torch.nn.Linear, MLP(1, [1], 1).head])
def test_nothing_is_known(value):
    with pytest.raises(ValueError, match="`value` must be a method of this library with a publ"):
        pyro_sig.cite(value)
