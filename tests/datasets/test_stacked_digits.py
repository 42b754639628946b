import pytest
import torch

from pyro_sig.datasets import StackedDigits


def digits(n=50):
    labels = torch.arange(n) % 10
    images = (25 * labels).to(torch.uint8)[:, None, None].expand(n, 4, 4)
    return images, labels


def test_channels_are_the_digits_of_the_class():
    stacked = StackedDigits(*digits(), batch_size=64, seed=3)
    images, classes = stacked(7), stacked.classes(7)
    assert images.shape == (64, 3, 4, 4)
    named = ((images[:, :, 0, 0] + 1) * 127.5 / 25).round().long()
    assert torch.equal(100 * named[:, 0] + 10 * named[:, 1] + named[:, 2], classes)


def test_pixels_span_the_range():
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None]
    pixels = StackedDigits(images, torch.tensor([0, 1]), batch_size=50)(0)
    assert pixels.unique().tolist() == [-1.0, 1.0]


def test_a_batch_depends_on_seed_and_step_alone():
    first = StackedDigits(*digits(), batch_size=16, seed=1)
    torch.manual_seed(0)
    batch = first(5)
    torch.rand(3)
    assert torch.equal(batch, StackedDigits(*digits(), batch_size=16, seed=1)(5))
    assert not torch.equal(batch, first(6))
    assert not torch.equal(batch, StackedDigits(*digits(), batch_size=16, seed=2)(5))
    # Seed and step must not be interchangeable.
    assert not torch.equal(
        StackedDigits(*digits(), batch_size=16, seed=5)(1).flatten(), batch.flatten()
    )


def test_all_classes_are_equally_frequent():
    stacked = StackedDigits(*digits(1000), batch_size=200_000)
    counts = torch.bincount(stacked.classes(0), minlength=1000).double()
    chi_square = ((counts - 200) ** 2 / 200).sum()
    # 999 degrees of freedom: mean 999, standard deviation 45; 4.5 of them fail 1 run in 10^5.
    assert abs(chi_square - 999) < 4.5 * 45


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    StackedDigits(*digits(), batch_size=4)(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": torch.zeros(50, 4, 4)}, "images"),
        ({"images": torch.zeros(0, 4, 4, dtype=torch.uint8)}, "images"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"labels": torch.full((50,), 10)}, "labels"),
        ({"labels": torch.zeros(50)}, "labels"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(change, named):
    images, labels = digits()
    arguments = {"images": images, "labels": labels, "batch_size": 4, **change}
    with pytest.raises(ValueError, match=f"`{named}`"):
        StackedDigits(**arguments)


def test_bad_step():
    with pytest.raises(ValueError, match="`step`"):
        StackedDigits(*digits(), batch_size=4)(-1)
