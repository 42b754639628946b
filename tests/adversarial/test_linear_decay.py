"""The schedule is 1, then falls linearly to 0, with torch's and Pyro's optimisers."""

import pyro
import pytest
import torch

from pyro_sig.adversarial import linear_decay


@pytest.mark.parametrize("constant", [0, 0.25, 0.5, 1.0])
def test_it_is_one_then_falls_linearly_to_zero(constant):
    factor = linear_decay(200, constant)
    start = int(200 * constant)
    assert all(factor(step) == 1 for step in range(start))
    values = [factor(step) for step in range(start, 200)]
    assert all(0 < value <= 1 for value in values)
    values = torch.tensor(values, dtype=torch.float64)
    slopes = values[1:] - values[:-1]
    assert torch.allclose(slopes, torch.full_like(slopes, -1 / max(200 - start, 1)))
    assert factor(200) == factor(10**6) == 0


def test_torch_and_pyro_take_it():
    factor = linear_decay(4)
    param = torch.zeros(1, requires_grad=True)
    optim = torch.optim.SGD([param], lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, factor)
    pyro_optim = pyro.optim.LambdaLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 2.0}, "lr_lambda": factor}
    )
    other = torch.zeros(1, requires_grad=True)
    rates, moves = [], []
    for _ in range(4):
        param.grad, other.grad = torch.ones(1), torch.ones(1)
        before = other.detach().clone()
        optim.step()
        pyro_optim([other])
        rates.append(optim.param_groups[0]["lr"])
        moves.append(float(before - other.detach()))
        schedule.step()
        pyro_optim.step()
    assert rates == moves == [2.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0,), "num_steps"),
        ((2.5,), "num_steps"),
        ((True,), "num_steps"),
        ((10, -0.1), "constant"),
        ((10, 1.1), "constant"),
        ((10, "half"), "constant"),
        ((10, float("nan")), "constant"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must"):
        linear_decay(*arguments)
