"""The repr that shows what an object was made with."""

import pytest
import torch
from torch import nn

from pyro_sig._show_settings import show_settings
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import DIVI, SIG_ELBO


class Base:
    __repr__ = show_settings

    def __init__(self, rate=1.0, sizes=(2, 3)):
        self.rate, self.sizes = rate, list(sizes)


class Child(Base):
    def __init__(self, data, scale=None, **kwargs):
        super().__init__(**kwargs)
        self.data, self._scale = data, scale


class Alone(Base):
    def __init__(self, data):
        super().__init__(rate=3.0)
        self.data = data


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda: Base(), "Base()"),
        (lambda: Base(2.0, (4,)), "Base(rate=2.0, sizes=[4])"),
        (lambda: Child(torch.zeros(2, 3)), "Child(Tensor[2, 3])"),
        (lambda: Child("a", torch.ones(1), rate=0.5), "Child('a', scale=Tensor[1], rate=0.5)"),
        (lambda: Child(Base()), "Child(Base())"),
        (lambda: Child({"a": torch.ones(2)}), "Child({'a': Tensor[2]})"),
        (lambda: Child((1,)), "Child((1,))"),
        (lambda: Child(torch.relu), "Child(relu)"),
        (lambda: Child(nn.Linear), "Child(Linear)"),
        (lambda: Child(nn.Linear(2, 2)), "Child(Linear)"),
        (lambda: Child(object()), "Child(object)"),
        (lambda: Child("a" * 300), "Child(str)"),
        (lambda: Child(None), "Child()"),
        (lambda: Alone(1), "Alone(1)"),  # it takes no rate
        (lambda: DIVI(inner_steps=2).score, "DenoisingScore(inner_steps=2)"),
        (lambda: SIG_ELBO(8, backward="top"), "SIG_ELBO(8, backward=TopK(k=8))"),
    ],
)
def test_shown(made, shown):
    assert repr(made()) == shown


def unit(psi):
    return torch.distributions.Independent(torch.distributions.Normal(psi, 1.0), 1)


def test_a_semi_implicit_law_shows_its_parts():
    noise = torch.distributions.Normal(torch.zeros(2), 1.0)
    mixing = Implicit(nn.Linear(2, 2), torch.distributions.Independent(noise, 1), 2)
    law = SemiImplicit(mixing, unit, 5)
    for part in ("SemiImplicit(Implicit(Linear, noise=", "conditional=unit", "num_mixing=5"):
        assert part in repr(law)
    assert repr(law.expand([3])) == repr(law)
