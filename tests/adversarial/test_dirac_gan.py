r"""The Dirac-GAN: data are a point at 0, the generator a point at theta, the critic is psi x + c.

Of a loss only its slope in the score counts at the equilibrium (0, 0), where both points have the
score c of equal laws: a = dL_D / dv of a fake score, b = -dL_G / dv. With the steps h

    psi' = psi - h a theta, theta' = theta + h b psi,

so that the eigenvalues are 1 +- i h sqrt(a b) for simultaneous steps. If the generator takes the
new psi, their product is 1 and their sum 2 - h^2 a b: both are on the unit circle as long as
h sqrt(a b) <= 2. R1 and R2 add -h gamma psi, which makes the product 1 - h gamma.
"""

import functools
import math

import pytest
import torch
from torch import nn

from pyro_sig.adversarial.objectives import (
    FDivergence,
    Hinge,
    LeastSquares,
    MaximumLikelihood,
    Minimax,
    NonSaturating,
    Relativistic,
    Wasserstein,
)
from pyro_sig.adversarial.penalties import R1, R2, GradientPenalty, WeightClipping, penalize
from pyro_sig.adversarial.unrolling import unrolled

# Objective, score of equal laws, slopes a and b.
GAMES = [
    (Minimax(), 0.0, 0.5, 0.5),
    (NonSaturating(), 0.0, 0.5, 0.5),
    (MaximumLikelihood(), 0.0, 0.5, 1.0),
    (LeastSquares(), 0.5, 0.5, 0.5),
    (Hinge(), 0.0, 1.0, 1.0),
    (Wasserstein(), 0.0, 1.0, 1.0),
    (Relativistic(), 0.0, 0.5, 0.5),
    (FDivergence("kl"), 1.0, 1.0, 1.0),
    (FDivergence("reverse_kl"), 0.0, 1.0, 1.0),
    (FDivergence("pearson_chi2"), 0.0, 1.0, 1.0),
    (FDivergence("squared_hellinger"), 0.0, 1.0, 1.0),
    (FDivergence("total_variation"), 0.0, 0.5, 0.5),
    (FDivergence("jensen_shannon"), 0.0, 0.5, 0.5),
    (FDivergence("gan"), 0.0, 0.5, 0.5),
    (FDivergence("gan", heuristic=True), 0.0, 0.5, 0.5),
]
EACH = pytest.mark.parametrize(("objective", "level", "a", "b"), GAMES, ids=lambda v: str(v))
BOTH = pytest.mark.parametrize("alternating", [False, True])


def step(point, objective, h, alternating, level=0.0, penalties=(), learn_level=False):
    """Return (theta, psi, c) after a step of gradient descent, differentiably."""
    theta, phi = point[:1], point[1:]
    real = torch.zeros_like(theta)

    def score(phi, x):
        return phi[0] * x + phi[1] + level

    # Partial derivatives: of a shift, that theta and phi do not depend on.
    shift = torch.zeros_like(phi).requires_grad_()
    loss = objective.critic_loss(score(phi + shift, real), score(phi + shift, theta))
    loss = loss + penalize(lambda x: score(phi + shift, x), penalties, real, theta)
    (slope,) = torch.autograd.grad(loss, shift, create_graph=True)
    if not learn_level:
        slope = slope * slope.new_tensor([1.0, 0.0])
    after = phi - h * slope
    shift = torch.zeros_like(theta).requires_grad_()
    seen = after if alternating else phi
    loss = objective.generator_loss(score(seen, real), score(seen, theta + shift))
    (slope,) = torch.autograd.grad(loss, shift, create_graph=True)
    return torch.cat([theta - h * slope, after])


def eigenvalues(*args, size=2, **kwargs):
    """Return the eigenvalues at the equilibrium, sorted, of theta and psi or with c too."""
    origin = torch.zeros(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda p: step(p, *args, **kwargs), origin)
    return ordered(torch.linalg.eigvals(jacobian[:size, :size]))


def ordered(values):
    values = torch.as_tensor(values, dtype=torch.complex128)
    return torch.stack(sorted(values, key=lambda v: (round(float(v.real), 9), float(v.imag))))


def path(start, num_steps, *args, **kwargs):
    point = torch.tensor([*start, 0.0], dtype=torch.float64)
    points = [point]
    for _ in range(num_steps):
        points.append(step(points[-1].requires_grad_(), *args, **kwargs).detach())
    return torch.stack([p.detach()[:2] for p in points])


def roots(total, product):
    """Return the two numbers with this sum and product."""
    half = complex(total) / 2
    root = (half**2 - product) ** 0.5
    return ordered([half + root, half - root])


# ----------------------------------------------------------------------------------- eigenvalues


@EACH
@pytest.mark.parametrize("h", [0.1, 1.0])
def test_simultaneous_steps_spiral_outwards(objective, level, a, b, h):
    found = eigenvalues(objective, h, False, level)
    rate = h * math.sqrt(a * b)
    torch.testing.assert_close(found, ordered([1 + 1j * rate, 1 - 1j * rate]))
    assert float(found.abs().max()) == pytest.approx(math.sqrt(1 + h**2 * a * b))


@EACH
@pytest.mark.parametrize("share", [0.05, 0.9, 1.1])
def test_alternating_steps_stay_on_a_circle(objective, level, a, b, share):
    h = 2 * share / math.sqrt(a * b)
    found = eigenvalues(objective, h, True, level)
    torch.testing.assert_close(found, roots(2 - h**2 * a * b, 1.0))
    if share < 1:
        torch.testing.assert_close(found.abs(), torch.ones(2, dtype=torch.float64))
    else:
        assert float(found.abs().max()) > 1.5


@EACH
@BOTH
@pytest.mark.parametrize("gamma", [0.3, 5.0])
@pytest.mark.parametrize("kind", [R1, R2])
def test_zero_centred_penalties_contract(objective, level, a, b, alternating, gamma, kind):
    h = 0.1
    found = eigenvalues(objective, h, alternating, level, [kind(gamma)])
    square = h**2 * a * b
    if alternating:
        expected = roots(2 - h * gamma - square, 1 - h * gamma)
    else:
        expected = roots(2 - h * gamma, 1 - h * gamma + square)
    torch.testing.assert_close(found, expected)
    assert float(found.abs().max()) < 1


def test_zero_centred_penalties_need_small_steps():
    # Simultaneous: |eigenvalue|^2 = 1 - h gamma + h^2 a b, below 1 for h < gamma / (a b).
    for share, contracts in [(0.9, True), (1.1, False)]:
        found = eigenvalues(Wasserstein(), share * 0.3, False, 0.0, [R1(0.3)])
        assert (float(found.abs().max()) < 1) == contracts


def test_a_level_that_is_learned_converges_by_itself():
    # The second derivatives of the least squares loss with respect to c add up to 2.
    h = 0.1
    found = eigenvalues(LeastSquares(), h, False, 0.5, learn_level=True, size=3)
    torch.testing.assert_close(found, ordered([1 - 2 * h, 1 + 0.5j * h, 1 - 0.5j * h]))


def test_least_squares_without_its_level():
    # With scores 0 for equal laws the critic calls all of them fake: it does not turn back.
    found = eigenvalues(LeastSquares(), 0.1, False, 0.0)
    torch.testing.assert_close(found, ordered([1.0, 1.0]))
    end = path((0.5, 0.5), 4000, LeastSquares(), 0.2, True, 0.0)[-1]
    assert abs(float(end[1])) < 0.05 < 0.5 < abs(float(end[0]))  # psi = 0 at a wrong theta


# ---------------------------------------------------------------------------------- trajectories

MAIN = pytest.mark.parametrize(("objective", "level", "a", "b"), GAMES[:7], ids=lambda v: str(v))


@MAIN
def test_paths_without_a_penalty(objective, level, a, b):
    h, num_steps = 0.1, 600
    # So near to the equilibrium that the map is linear. Simultaneous steps keep to a form ...
    theta, psi = path((1e-3, 1e-3), num_steps, objective, h, False, level).T
    energy = theta.square() / b + psi.square() / a
    factors = (1 + h**2 * a * b) ** torch.arange(num_steps + 1.0).double()
    torch.testing.assert_close(energy / energy[0], factors, rtol=0.02, atol=0)
    # ... that alternating steps keep with a mixed term: an ellipse, gone around several times.
    theta, psi = path((1e-3, 1e-3), num_steps, objective, h, True, level).T
    energy = theta.square() / b + psi.square() / a - h * theta * psi
    torch.testing.assert_close(energy, energy[0].expand(num_steps + 1), rtol=0.02, atol=0)
    turns = float((theta[1:].sign() != theta[:-1].sign()).sum()) / 2
    assert turns == pytest.approx(num_steps * h * math.sqrt(a * b) / (2 * math.pi), abs=1.0)


@pytest.mark.parametrize("objective", [Minimax(), Hinge(), Wasserstein()], ids=str)
def test_zero_sum_games_keep_their_radius(objective):
    # The flow has psi psi' = -theta theta', at any distance. (Slopes a(v) and b(v) that differ
    # away from v = 0 make it contract, though more slowly than any exponential.)
    radii = path((0.5, 0.5), 600, objective, 0.05, True).norm(dim=-1)
    assert 0.95 < float(radii.min() / radii[0]) and float(radii.max() / radii[0]) < 1.05


@MAIN
@BOTH
def test_paths_with_r1_end_at_the_solution(objective, level, a, b, alternating):
    h, gamma = 0.2, 1.0
    points = path((0.5, 0.5), 300, objective, h, alternating, level, [R1(gamma)])
    assert float(points[-1].norm()) < 1e-5
    # In the end with the eigenvalues of the equilibrium.
    largest = float(eigenvalues(objective, h, alternating, level, [R1(gamma)]).abs().max())
    rate = math.log(float(points[200].norm() / points[100].norm())) / 100
    assert rate == pytest.approx(math.log(largest), abs=0.02)


def test_paths_with_a_gradient_penalty_miss_the_solution():
    # Norms are drawn to 1: on the side psi > 0 the flow, with w the weight,
    #     theta' = psi, psi' = -theta - 2 w (psi - 1),
    # is a damped turn about (2 w, 0), on the other side about (-2 w, 0).
    game = functools.partial(path, objective=Wasserstein(), h=0.05, alternating=True)
    # For w < 1 it turns around one, then the other: a cycle, from inside and from outside.
    radii = []
    for start in [(0.05, 0.0), (1.5, 0.0)]:
        points = game(start, 1500, penalties=[GradientPenalty(0.1)])
        late = points[1000:]
        assert float(late.norm(dim=-1).min()) > 0.5
        assert float(late[:, 0].min()) < -0.5 < 0.5 < float(late[:, 0].max())
        radii.append(late.abs().max(0).values)
    torch.testing.assert_close(*radii, rtol=0.05, atol=0)
    # For w > 1 it ends there, with a flat critic at a wrong theta.
    theta, psi = game((0.5, 0.5), 1500, penalties=[GradientPenalty(1.5)])[-1]
    assert abs(float(theta)) == pytest.approx(3.0, abs=1e-3) and abs(float(psi)) < 1e-3
    # With norms drawn to 0 it converges, as with R1.
    assert float(game((0.5, 0.5), 600, penalties=[GradientPenalty(1.0, 0.0)])[-1].norm()) < 1e-3


def test_clipping_bounds_the_critic_and_does_not_converge():
    critic, theta = nn.Linear(1, 1, bias=False), nn.Parameter(torch.tensor([[0.5]]))
    optimizers = [torch.optim.SGD([p], lr=0.05) for p in (critic.weight, theta)]
    clipping, points = WeightClipping(0.3), []
    for _ in range(1000):
        train_step(critic, theta, Wasserstein(), *optimizers)
        clipping.constrain(critic)
        points.append((theta.item(), critic.weight.item()))
    late = torch.tensor(points[500:])
    assert float(late[:, 1].abs().max()) == pytest.approx(0.3)
    assert float(late.norm(dim=-1).min()) > 0.1


# --------------------------------------------------------------- modules and optimisers of torch


def train_step(critic, theta, objective, critic_optimizer, generator_optimizer, penalties=()):
    """Make an alternating step of modules, as a training loop would."""
    real, fake = torch.zeros_like(theta), theta.detach()
    critic_optimizer.zero_grad()
    loss = objective.critic_loss(critic(real), critic(fake))
    (loss + penalize(critic, penalties, real, fake)).backward()
    critic_optimizer.step()
    generator_optimizer.zero_grad()
    objective.generator_loss(critic(real), critic(theta)).backward()
    generator_optimizer.step()


@MAIN
def test_modules_follow_the_map(objective, level, a, b):
    critic = nn.Linear(1, 1, dtype=torch.float64)
    theta = nn.Parameter(torch.full((1, 1), 0.5, dtype=torch.float64))
    critic.weight.data.fill_(0.3)
    critic.bias.requires_grad_(False).fill_(level)
    optimizers = [torch.optim.SGD([p], lr=0.2) for p in (critic.weight, theta)]
    expected = path((0.5, 0.3), 20, objective, 0.2, True, level, [R1(1.0)])
    for point in expected[1:]:
        train_step(critic, theta, objective, *optimizers, [R1(1.0)])
        torch.testing.assert_close(torch.cat([theta, critic.weight]).detach().squeeze(-1), point)


@pytest.mark.parametrize(("objective", "level", "a", "b"), GAMES[:6], ids=lambda v: str(v))
@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_unrolling_damps_the_generator(objective, level, a, b, num_steps):
    # With psi_K = psi - K r a theta the generator's slope is -b (psi - 2 K r a theta): with r = h
    # the product of the eigenvalues is 1 - (2 K - 1) h^2 a b.
    h = 0.1

    def move(point):
        critic = nn.Linear(1, 1, dtype=torch.float64)
        critic.weight.data.fill_(point[1])
        critic.bias.requires_grad_(False).fill_(level)
        optimizer = torch.optim.SGD([critic.weight], lr=h)
        theta = point[:1, None].clone().requires_grad_()
        real = torch.zeros_like(theta)

        def loss(d):
            return objective.critic_loss(d(real), d(theta))

        ahead = unrolled(critic, loss, optimizer, num_steps)
        value = objective.generator_loss(ahead(real), ahead(theta))
        (slope,) = torch.autograd.grad(value, theta)
        loss(critic).backward()
        optimizer.step()
        return torch.cat([theta - h * slope, critic.weight]).detach().squeeze(-1)

    step = 1e-4
    columns = [(move(step * e) - move(-step * e)) / (2 * step) for e in torch.eye(2).double()]
    jacobian = torch.stack(columns, -1)
    square = h**2 * a * b
    expected = torch.tensor(
        [[1 - 2 * num_steps * square, h * b], [-h * a, 1.0]], dtype=torch.float64
    )
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-7)
    largest = float(torch.linalg.eigvals(jacobian).abs().max())
    assert (largest < 1) == (num_steps > 0)
    assert largest == pytest.approx(math.sqrt(1 - (2 * num_steps - 1) * square), abs=1e-6)
