import inspect

import pytest
import torch
from torch import nn

from pyro_sig.adversarial import penalties
from pyro_sig.adversarial.penalties import (
    R1,
    R2,
    GradientPenalty,
    Penalty,
    WeightClipping,
    gradient_points,
    penalize,
)
from pyro_sig.nn import MLP, DCGANCritic

INSTANCES = {
    "GradientPenalty": GradientPenalty(3.0),
    "Penalty": Penalty(),
    "R1": R1(3.0),
    "R2": R2(3.0),
    "WeightClipping": WeightClipping(0.1),
}
CLASSES = [name for name in penalties.__all__ if inspect.isclass(getattr(penalties, name))]
EACH = pytest.mark.parametrize("name", CLASSES)


class Quadratic(nn.Module):
    """D(x) = x^T A x of the flattened row."""

    def __init__(self, size, dtype=torch.float64):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(size, size, dtype=dtype))

    def forward(self, x):
        x = x.flatten(1)
        return torch.einsum("ni,ij,nj->n", x, self.matrix, x)

    def squared_norm(self, x):
        return (x.flatten(1) @ (self.matrix + self.matrix.mT)).square().sum(-1)


def counted(critic):
    """Return the critic and a list that grows with each of its forward passes."""
    calls = []
    critic.register_forward_hook(lambda *_: calls.append(1))
    return critic, calls


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


# ------------------------------------------------------------------------------- every penalty


def test_every_penalty_has_an_instance():
    assert set(CLASSES) == set(INSTANCES)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_contract(name, dtype):
    penalty = INSTANCES[name]
    assert isinstance(penalty, getattr(penalties, name))
    assert penalty.where in (None, "real", "fake", "interpolated")
    assert repr(penalty).startswith(f"{name}(")
    critic = MLP(3, [8], 1, nn.Tanh, dtype=dtype)
    real, fake = normal(6, 3, dtype=dtype), normal(6, 3, dtype=dtype)
    value = penalty(critic, real, fake)
    assert value.shape == () and bool(value.isfinite())
    if penalty.where is None:
        assert value.dtype == dtype and value == 0.0
    else:  # norms in at least single precision
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        value.backward()
        weight = critic.hidden[0].weight.grad
        assert weight.dtype == dtype and bool((weight != 0).any())
    assert real.grad is None and fake.grad is None
    penalty.constrain(critic)
    assert penalty.value(torch.rand(5)).shape == ()


@EACH
def test_gradient_with_respect_to_the_critic(name):
    # The double backward, against finite differences.
    penalty = INSTANCES[name]
    if penalty.where is None:
        pytest.skip("a constraint")
    real, fake = normal(4, 3), normal(4, 3)

    def value(weight, head):
        torch.manual_seed(0)  # the same interpolates
        return penalty(lambda x: (x @ weight).tanh() @ head, real, fake)

    arguments = normal(3, 5).requires_grad_(), normal(5, 1).requires_grad_()
    assert torch.autograd.gradcheck(value, arguments)


@EACH
def test_no_graph_where_gradients_are_disabled(name):
    critic = MLP(3, [8], 1)
    with torch.no_grad():
        value = INSTANCES[name](critic, torch.randn(6, 3), torch.randn(6, 3))
    assert not value.requires_grad


# -------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4, 4)])
@pytest.mark.parametrize("column", [False, True])
def test_linear_critics(shape, column):
    real, fake = normal(5, *shape), normal(5, *shape)
    weight = normal(*shape).requires_grad_()
    squared = weight.square().sum()

    def critic(x):
        scores = (x * weight).flatten(1).sum(-1, keepdim=True)
        return scores if column else scores.squeeze(-1)

    for penalty, expected in [
        (R1(3.0), 1.5 * squared),
        (R2(3.0), 1.5 * squared),
        (GradientPenalty(3.0, 0.5), 3.0 * (squared.sqrt() - 0.5) ** 2),
        (GradientPenalty(3.0, 0.0), 3.0 * squared),
    ]:
        value = penalty(critic, real, fake)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(v, weight, retain_graph=True) for v in (value, expected))
        )


@pytest.mark.parametrize("shape", [(3,), (2, 3, 3)])
def test_quadratic_critics(shape):
    real, fake = normal(7, *shape), 1 + normal(7, *shape)
    critic = Quadratic(real[0].numel())
    torch.testing.assert_close(R1(3.0)(critic, real, fake), 1.5 * critic.squared_norm(real).mean())
    torch.testing.assert_close(R2(3.0)(critic, real, fake), 1.5 * critic.squared_norm(fake).mean())


def test_values_without_trailing_dimensions():
    weight = torch.tensor(2.0, requires_grad=True)
    assert R1(3.0)(lambda x: weight * x, torch.randn(5), torch.randn(5)) == 6.0


def test_tuples():
    # D(x, z) = x A x + 2 w z: squared norms add up over the parts.
    x, z = normal(6, 2, 2), normal(6, 3)
    quadratic, weight = Quadratic(4), normal(3)

    def critic(x, z):
        return quadratic(x) + 2 * (z @ weight)

    expected = quadratic.squared_norm(x).mean() + 4 * weight.square().sum()
    torch.testing.assert_close(R1(2.0)(critic, (x, z), (x, z)), expected)
    torch.testing.assert_close(R2(2.0)(critic, (z.new_zeros(6, 4), z), (x, z)), expected)


def test_images():
    critic = DCGANCritic(channels=1, image_size=8, width=4, norm=None)
    real, fake = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    value = penalize(critic, [R1(1.0), R2(1.0), GradientPenalty()], real, fake)
    value.backward()
    assert all(p.grad is not None for p in critic.parameters() if p.dim() > 1)


def test_one_row_does_not_move_another():
    # Each row has its own gradient: norms of single rows are those of the batch.
    critic = MLP(3, [8], 1, nn.Tanh, dtype=torch.float64)
    real = normal(5, 3)
    rows = torch.stack([R1(2.0)(critic, row[None], row[None]) for row in real])
    torch.testing.assert_close(R1(2.0)(critic, real, real), rows.mean())


def test_bfloat16_norms_do_not_overflow_or_vanish():
    weight = torch.full((2,), 256.0, dtype=torch.bfloat16, requires_grad=True)
    value = R1(2.0)(lambda x: x @ weight, *torch.randn(2, 4, 2).bfloat16())
    assert value == 2 * 256.0**2 and value.dtype == torch.float32
    weight = torch.full((2,), 2.0**-10, dtype=torch.float16, requires_grad=True)
    value = R1(2.0)(lambda x: x @ weight, *torch.randn(2, 4, 2).half())
    assert value == 2.0**-19  # each square is below the least half


# ------------------------------------------------------------------------------------- penalize


def test_penalties_add_up_and_share_passes():
    critic, calls = counted(Quadratic(3))
    real, fake = normal(5, 3), normal(5, 3)
    several = [R1(1.0), R1(2.0), R2(3.0), WeightClipping()]
    value = penalize(critic, several, real, fake)
    assert len(calls) == 2
    torch.testing.assert_close(value, sum(p(critic, real, fake) for p in several))


@pytest.mark.parametrize("parts", [1, 2])
def test_given_scores_need_no_pass(parts):
    critic, calls = counted(Quadratic(3))
    joint = critic if parts == 1 else lambda x, y: critic(x) + critic(y)
    real, fake = (tuple(normal(5, 3).requires_grad_() for _ in range(parts)) for _ in range(2))
    expected = penalize(joint, [R1(1.0), R2(2.0)], real, fake)
    real_scores, fake_scores = joint(*real), joint(*fake)
    calls.clear()
    value = penalize(joint, [R1(1.0), R2(2.0)], real, fake, real_scores, fake_scores)
    assert not calls
    torch.testing.assert_close(value, expected)
    # The scores can still be used in a loss.
    (value + real_scores.mean() - fake_scores.mean()).backward()
    assert critic.matrix.grad is not None
    critic.zero_grad()
    for values, scores, penalty in [
        (real, {"real_scores": joint(*real)}, R1(1.0)),
        (fake, {"fake_scores": joint(*fake)}, R2(1.0)),
    ]:
        calls.clear()
        one = penalize(joint, [penalty], values, values, **scores)
        assert not calls
        torch.testing.assert_close(one, penalty(joint, values, values))


def test_given_scores_keep_the_graph_to_the_generator():
    critic, scale = Quadratic(3), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    noise = normal(5, 3)
    fake = scale * noise
    value = penalize(critic, [R2(2.0)], noise, fake, fake_scores=critic(fake))
    (gradient,) = torch.autograd.grad(value, scale)
    torch.testing.assert_close(gradient, 2 * value.detach() / scale.detach())
    assert not R2(2.0)(lambda x: x.sum(-1), noise, fake).requires_grad  # detached without scores


def test_nothing_to_penalise():
    critic, calls = counted(MLP(2, [], 1, dtype=torch.float64))
    labels = torch.zeros(3, 2, dtype=torch.long)
    for none in ([], [Penalty()], [WeightClipping()]):
        value = penalize(critic, none, labels, labels)
        assert value.dtype == torch.float64 and value == 0.0 and not calls
    scores = torch.zeros(3, dtype=torch.bfloat16)
    assert penalize(critic, [], labels, labels, scores).dtype == torch.bfloat16
    assert penalize(lambda x: x, [], torch.zeros(3).double(), labels).dtype == torch.float64
    assert penalize(lambda x: x, [], labels, labels).dtype == torch.get_default_dtype()


def test_gradient_points():
    assert gradient_points([]) == gradient_points([WeightClipping(), Penalty()]) == set()
    assert gradient_points(iter([R1(1.0), R2(1.0), R1(2.0)])) == {"real", "fake"}
    assert gradient_points([GradientPenalty()]) == {"interpolated"}


@pytest.mark.cuda
def test_device():
    critic = MLP(3, [8], 1, device="cuda")
    real, fake = torch.randn(2, 6, 3, device="cuda")
    value = penalize(critic, [R1(1.0), R2(1.0), GradientPenalty()], real, fake)
    assert value.is_cuda
    assert penalize(critic, [], real, fake).is_cuda


# --------------------------------------------------------------------------------------- errors


def linear(x):
    return x.flatten(1).sum(-1)


@pytest.mark.parametrize(
    ("penalty", "change", "match"),
    [
        (R1(1.0), {"real": torch.zeros(4, 2).long()}, r"`real` must be floating point.*int64"),
        (R2(1.0), {"fake": torch.zeros(4, 2).bool()}, r"`fake` must be floating point.*bool"),
        (
            GradientPenalty(),
            {"fake": torch.zeros(4, 2).long()},
            r"`fake` must be floating point.*int64",
        ),
        (
            GradientPenalty(),
            {"fake": torch.zeros(3, 2)},
            r"`fake` must have the shape of `real`.*\[3, 2\].*\[4, 2\]",
        ),
        (
            GradientPenalty(),
            {"fake": (torch.zeros(4, 2), torch.zeros(4, 2))},
            r"`fake` must have the shape of `real`",
        ),
        (
            R1(1.0),
            {"real_scores": torch.zeros(4)},
            r"`real` must require gradients.*`real_scores`.*does not",
        ),
        (
            R2(1.0),
            {"fake": torch.zeros(4, 2, requires_grad=True), "fake_scores": torch.zeros(4)},
            r"`fake_scores` must depend on `fake`",
        ),
        (
            R1(1.0),
            {"critic": lambda x: torch.zeros(4)},
            r"`critic`'s scores must depend on `real`",
        ),
        (
            R1(1.0),
            {"critic": lambda x: torch.zeros(4, requires_grad=True)},
            r"`critic`'s scores must depend on `real`",
        ),
        (
            R2(1.0),
            {"fake": (torch.zeros(4, 2), torch.ones(4)), "critic": lambda x, y: linear(x)},
            r"`critic`'s scores must depend on part 1 of `fake`",
        ),
        (
            R1(1.0),
            {"critic": lambda x: linear(x).mean()},
            r"`critic`'s scores must have shape \[4\] or \[4, 1\].*was \[\]",
        ),
        (
            R1(1.0),
            {
                "real": torch.zeros(4, 2, requires_grad=True),
                "real_scores": torch.zeros(5),
            },
            r"`real_scores` must have shape \[4\] or \[4, 1\].*was \[5\]",
        ),
        (R1(1.0), {"real": torch.zeros(())}, r"`real` must have the same number of rows.*\[\[\]\]"),
        (R1(1.0), {"real": ()}, r"`real` must have the same number of rows.*\[\]"),
        (
            R1(1.0),
            {"real": (torch.zeros(4), torch.zeros(3))},
            r"`real` must have the same number of rows in each part, was \[\[4\], \[3\]\]",
        ),
    ],
)
def test_bad_values(penalty, change, match):
    arguments = {"critic": linear, "real": torch.zeros(4, 2), "fake": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=match):
        penalize(**(arguments | change | {"penalties": [penalty]}))


def test_unknown_point():
    class Elsewhere(Penalty):
        where = "middle"

    with pytest.raises(ValueError, match=r"`where` must be one of .* for a penalty, was 'middle'"):
        gradient_points([Elsewhere()])


def test_a_value_without_a_point():
    class Nowhere(Penalty):
        def value(self, squared_norm):
            return squared_norm.mean()

    with pytest.raises(ValueError, match=r"`where` must be .* for Nowhere\(\), .* was None"):
        gradient_points([Nowhere()])
    there = Nowhere()
    there.where = "fake"  # of one instance
    assert gradient_points([there]) == {"fake"}


def test_what_training_would_not_call_is_refused():
    with pytest.raises(TypeError, match=r"`__call__` of the penalty Drift .* `value`.*`constrain`"):

        class Drift(Penalty):
            def __call__(self, critic, real, fake):
                return critic(real).square().mean()

    class Called:
        def __call__(self, critic, real, fake): ...

    with pytest.raises(TypeError, match="`__call__` of the penalty Mixed"):
        type("Mixed", (Called, Penalty), {})
    type("Later", (R1,), {})  # inherits the one that is meant


def test_what_is_no_penalty():
    with pytest.raises(ValueError, match="`penalties` must be .* entry 1 is no Penalty, was func"):
        penalize(linear, [R1(1.0), linear], torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="entry 0 is no Penalty, was the class R1"):
        gradient_points([R1])


@pytest.mark.parametrize("rows", [1, 4])
def test_a_value_for_each_row(rows):
    class Each(R1):
        def value(self, squared_norm):
            return squared_norm

    values = torch.zeros(rows, 2)
    match = rf"`Each\.value` must return one number, .* returned .* of shape \({rows},\)"
    with pytest.raises(ValueError, match=match):
        Each(1.0)(linear, values, values)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "much", None])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (R1, "gamma"),
        (R2, "gamma"),
        (lambda v: GradientPenalty(weight=v), "weight"),
        (lambda v: GradientPenalty(target=v), "target"),
        (WeightClipping, "bound"),
    ],
)
def test_bad_weights(make, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number.*was {value!r}"):
        make(value)


def test_zero_weights():
    assert R1(0.0).gamma == R2(0).gamma == GradientPenalty(0.0, 0.0).weight == 0.0
    with pytest.raises(ValueError, match=r"`bound` must be a finite number above 0, was 0\.0"):
        WeightClipping(0.0)
