import math
import warnings

import pytest
import torch
from torchmetrics.image.inception import InceptionScore as TorchmetricsScore

from pyro_sig.diagnostics import InceptionScore, inception_score


def probabilities(n, num_classes, sharpness=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, num_classes, generator=generator, dtype=torch.float64)
    return (sharpness * logits).softmax(-1)


@pytest.mark.parametrize("num_splits", [1, 4, 10])
def test_it_agrees_with_torchmetrics(num_splits):
    p = probabilities(200, 6)

    class Logits(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `InceptionScore` will save all")
        metric = TorchmetricsScore(Logits(), normalize=False, splits=num_splits)
    metric.set_dtype(torch.float64)
    metric.update(p.log()[:, :, None, None])
    # It shuffles, with torch's global stream.
    torch.manual_seed(3)
    order = torch.randperm(len(p))
    torch.manual_seed(3)
    with warnings.catch_warnings():
        # Of the standard deviation of a single split.
        warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")
        mean, std = metric.compute()
    ours = inception_score(p[order], num_splits)
    assert isinstance(ours, InceptionScore)
    assert ours.mean == pytest.approx(float(mean))
    if num_splits > 1:  # it divides by one less
        factor = math.sqrt((num_splits - 1) / num_splits)
        assert ours.std == pytest.approx(factor * float(std))
    else:
        assert ours.std == 0.0


def test_the_factors():
    p = probabilities(50, 5)
    marginal = p.mean(0)
    entropy = -float((marginal * marginal.log()).sum())
    conditional = -float((p * p.log()).sum(-1).mean())
    score = inception_score(p, 1)
    assert score.exp_marginal_entropy == pytest.approx(math.exp(entropy))
    assert score.exp_conditional_entropy == pytest.approx(math.exp(conditional))
    assert score.mean == pytest.approx(score.exp_marginal_entropy / score.exp_conditional_entropy)
    # The factors are those of all rows, whatever the splits.
    assert inception_score(p, 5)[2:] == score[2:]


def test_extremes():
    certain = torch.eye(10).repeat(30, 1)
    assert inception_score(certain) == pytest.approx((10.0, 0.0, 10.0, 1.0))
    # One class only, or no class in particular: 1, for opposite reasons.
    assert inception_score(certain[:1].repeat(50, 1)) == pytest.approx((1.0, 0.0, 1.0, 1.0))
    assert inception_score(torch.full((50, 10), 0.1)) == pytest.approx((1.0, 0.0, 10.0, 10.0))


def test_good_and_bad():
    good = inception_score(probabilities(2000, 10, sharpness=20.0))
    blurred = inception_score(probabilities(2000, 10, sharpness=1.0))
    p = probabilities(20000, 10, sharpness=20.0)
    missing = inception_score(p[p.argmax(-1) < 3])
    assert good.mean > 2 * blurred.mean and good.mean > 2 * missing.mean
    # Which of the two it is, the factors tell.
    assert blurred.exp_conditional_entropy > 3 * good.exp_conditional_entropy
    assert missing.exp_marginal_entropy < 0.5 * good.exp_marginal_entropy


def test_unequal_splits_and_dtypes():
    p = probabilities(23, 4)
    parts = [inception_score(part, 1).mean for part in p.tensor_split(5)]
    score = inception_score(p, 5)
    assert score.mean == pytest.approx(sum(parts) / 5)
    assert inception_score(p.float(), 5) == pytest.approx(score, rel=1e-5)
    assert inception_score(p.half(), 5) == pytest.approx(score, rel=1e-2)


@pytest.mark.cuda
def test_device():
    p = probabilities(23, 4)
    assert inception_score(p.cuda()) == pytest.approx(inception_score(p))


@pytest.mark.parametrize(
    ("p", "num_splits", "match"),
    [
        ([[1.0]], 1, r"`probabilities` must be a floating tensor of .*, was \[\[1\.0\]\]"),
        (torch.ones(3), 1, r"`probabilities` must .* \[N, C\] .*\(3,\)"),
        (torch.ones(0, 3), 1, r"`probabilities` must .* not empty, was .*\(0, 3\)"),
        (torch.ones(3, 1, dtype=torch.long), 1, "`probabilities` must be a floating .*int64"),
        (torch.tensor([[1.5, -0.5]]), 1, "`probabilities` must be finite and not negative"),
        (torch.tensor([[math.nan, 1.0]]), 1, "`probabilities` must be finite"),
        (torch.ones(3, 2), 1, "`probabilities` must have rows that sum to 1, but one is off by 1"),
        (torch.ones(3, 1), 0, "`num_splits` must be a positive integer, was 0"),
        (torch.ones(3, 1), 4, "`num_splits` must be at most the number of rows, 3, was 4"),
    ],
)
def test_bad_arguments(p, num_splits, match):
    with pytest.raises(ValueError, match=match):
        inception_score(p, num_splits)
