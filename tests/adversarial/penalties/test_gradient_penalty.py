import torch

from pyro_sig.adversarial.penalties import GradientPenalty


def test_a_flat_critic_has_finite_gradients():
    # A norm has no derivative at zero; one row of three is not flat.
    weight = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for target in (0.0, 1.0):
        value = GradientPenalty(3.0, target)(lambda x: (x @ weight).square().sum(-1), x, x)
        assert value == 3.0 * target**2
        (gradient,) = torch.autograd.grad(value, weight)
        assert bool(torch.isfinite(gradient).all())


def test_the_norm_is_exact_next_to_zero():
    squared = torch.tensor([0.0, 1e-30, 1e-12, 4.0], dtype=torch.float64, requires_grad=True)
    value = GradientPenalty(1.0, 0.5).value(squared)
    root = squared.detach().sqrt()
    torch.testing.assert_close(value.detach(), ((root - 0.5) ** 2).mean())
    (gradient,) = torch.autograd.grad(value, squared)
    torch.testing.assert_close(gradient[1:], (1 - 0.5 / root[1:]) / 4)
    assert gradient[0] == 0.0


def test_one_sided():
    squared = torch.tensor([0.25, 1.0, 4.0])
    assert GradientPenalty(3.0, one_sided=True).value(squared) == 1.0
    assert GradientPenalty(3.0, one_sided=False).value(squared) == 1.25
    assert repr(GradientPenalty(one_sided=True)) == (
        "GradientPenalty(weight=10.0, target=1.0, one_sided=True)"
    )


def test_interpolates():
    seen = []

    def critic(x, z):
        seen.append((x.detach(), z.detach()))
        return x.flatten(1).sum(-1) + z.sum(-1)

    size = 10_000
    real = torch.ones(size, 2, 2), torch.ones(size, 3).double()
    fake = torch.full((size, 2, 2), 3.0, requires_grad=True), torch.full((size, 3), 2.0).double()
    GradientPenalty()(critic, real, fake)
    ((x, z),) = seen
    assert x.dtype == torch.float32 and z.dtype == torch.float64
    # One share for each row, for all of its coordinates and parts.
    share = 2 - z[:, 0]
    torch.testing.assert_close(x, (3 - 2 * share).float().reshape(-1, 1, 1).expand(x.shape))
    torch.testing.assert_close(z, (2 - share)[:, None].expand(z.shape))
    # Uniform on [0, 1]: 5 standard errors of mean and mean square, 1 failure in 10^6.
    for power, sd in [(1, (1 / 12) ** 0.5), (2, (4 / 45) ** 0.5)]:
        assert abs(float((share**power).mean()) - 1 / (power + 1)) < 5 * sd / size**0.5
    assert len(share.unique()) > 0.99 * size
    assert fake[0].grad is None


def test_other_numbers_come_from_the_seed():
    critic = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    real, fake = torch.randn(2, 6, 2)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(float(GradientPenalty()(critic, real, fake).detach()))
    assert values[0] == values[1] != values[2]
