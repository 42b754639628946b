"""Draws take the place of data among arguments, wherever these stand."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sig.adversarial._substitute import substitutes, with_draws
from pyro_sig.adversarial._tap import ReleasedRun


def put(data_of, *args, **kwargs):
    """Runs a program that observes `data_of` its arguments; returns these with the draws."""

    def model(*args, **kwargs):
        data = data_of(*args, **kwargs)
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=data)

    with ReleasedRun() as run:
        model(*args, **kwargs)
    return run.nodes["x"]["value"], *with_draws(args, kwargs, substitutes(run))


X = torch.randn(4, 2)
OTHER = torch.randn(4, 2)


def test_arguments():
    draw, args, kwargs = put(lambda x, y: x, X, OTHER)
    assert args[0] is draw and args[1] is OTHER and kwargs == {}
    draw, args, kwargs = put(lambda y, x: x, OTHER, x=X)
    assert args[0] is OTHER and kwargs["x"] is draw


def test_lists_tuples_and_dictionaries():
    draw, args, _ = put(lambda batch: batch["image"], {"image": X, "label": OTHER})
    assert args[0]["image"] is draw and args[0]["label"] is OTHER
    draw, args, _ = put(lambda batch: batch[1][0], [OTHER, (X, 3)])
    assert args[0][0] is OTHER and args[0][1] == (draw, 3)
    assert type(args[0]) is list and type(args[0][1]) is tuple
    draw, _, kwargs = put(lambda batch: batch["x"], batch={"x": X})
    assert kwargs["batch"]["x"] is draw


def test_what_was_given_stays_as_it_was():
    batch = {"x": X}
    put(lambda batch: batch["x"], batch)
    assert batch["x"] is X


def test_a_view_of_all_of_it_is_the_argument():
    draw, args, _ = put(lambda x: x.view(4, 2), X)
    assert args[0] is draw


def test_the_same_data_twice():
    draw, args, kwargs = put(lambda x, again, y: x, X, X, y=X)
    assert args[0] is draw and args[1] is draw and kwargs["y"] is draw


@pytest.mark.parametrize(
    "data_of",
    [lambda x: x[:3], lambda x: x[torch.arange(4)], lambda x: x + 1, lambda x: x.flip(0)],
    ids=["part", "index", "transform", "order"],
)
def test_what_is_no_argument_is_named(data_of):
    with pytest.raises(ValueError, match=r"`model` must observe arguments .*\['x'\] are no arg"):
        put(data_of, X)


def test_several_sites():
    def model(x, y):
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=y)

    with ReleasedRun() as run:
        model(X, y=OTHER)
    args, kwargs = with_draws((X,), {"y": OTHER}, substitutes(run))
    assert args[0] is run.nodes["x"]["value"] and kwargs["y"] is run.nodes["y"]["value"]
    with pytest.raises(ValueError, match=r"\['y'\] are no argument"):
        with_draws((X,), {}, substitutes(run))
