import math

import pytest
import torch

from pyro_sig.diagnostics import class_coverage


def test_one_class_of_many():
    found = class_coverage(torch.zeros(40, dtype=torch.int64), 8)
    assert found.covered == 1
    assert found.kl == pytest.approx(math.log(8))
    assert found.counts.tolist() == [40] + [0] * 7


def test_equal_shares_have_no_divergence():
    found = class_coverage(torch.arange(10).repeat(7), 10)
    assert found.covered == 10
    assert found.kl == pytest.approx(0, abs=1e-12)


def test_by_hand():
    found = class_coverage(torch.tensor([0, 0, 0, 1]), 4)
    assert found.kl == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1))


def test_floor_of_26000_samples_is_the_published_one():
    found = class_coverage(torch.zeros(26_000, dtype=torch.int32), 1000)
    assert found.floor == pytest.approx(0.0193, abs=1e-4)
    assert found.floor_std == pytest.approx(0.0009, abs=1e-4)


def test_floor_is_what_a_perfect_sampler_scores():
    torch.manual_seed(0)
    runs = 400
    found = [class_coverage(torch.randint(20, (300,)), 20) for _ in range(runs)]
    kl = torch.tensor([f.kl for f in found], dtype=torch.float64)
    error = found[0].floor_std / math.sqrt(runs)
    assert abs(kl.mean() - found[0].floor) < 4.5 * error
    # The spread of a standard deviation is 1 / sqrt(2 runs), and that of chi-square adds to it.
    assert kl.std().item() == pytest.approx(found[0].floor_std, rel=0.25)


def test_a_single_class_is_exact():
    found = class_coverage(torch.zeros(5, dtype=torch.int64), 1)
    assert (found.kl, found.floor, found.floor_std) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("classes", "num_classes", "named"),
    [
        (torch.zeros(3), 2, "classes"),
        (torch.zeros(2, 2, dtype=torch.int64), 2, "classes"),
        (torch.zeros(0, dtype=torch.int64), 2, "classes"),
        (torch.tensor([0, 2]), 2, "classes"),
        (torch.tensor([-1, 0]), 2, "classes"),
        (torch.tensor([0]), 0, "num_classes"),
    ],
)
def test_bad_arguments(classes, num_classes, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        class_coverage(classes, num_classes)


def test_repr_is_short():
    text = repr(class_coverage(torch.tensor([0, 1]), 2))
    assert "covered=2 of 2" in text
    assert "counts" not in text
