import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from pyro_sig.diagnostics import TwoSampleTest, c2st


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_and_far_laws(dtype):
    x = normal(1000, 2, dtype=dtype)
    good = c2st(x, normal(1000, 2, seed=1, dtype=dtype))
    assert isinstance(good, TwoSampleTest)
    # 1000 held-out rows, 500 of each: the accuracy of any classifier has a standard error below
    # sqrt(1/4 / 1000). Fails for one seed in 10^6.
    assert good.statistic == pytest.approx(0.5, abs=stats.norm.isf(5e-7) * math.sqrt(0.25 / 1000))
    far = c2st(x, x + 8)
    # Early stopping leaves an error or two in a hundred.
    assert far.statistic > 0.95 and far.p_value < 1e-200


def test_the_accuracy_of_the_best_classifier():
    # Normal(0, 1) against Normal(d, 1): the threshold at d/2 is right with probability Phi(d/2).
    d, count = 1.5, 4000
    x, y = normal(count, 1), d + normal(count, 1, seed=1)
    accuracy = c2st(x, y, LogisticRegression()).statistic
    best = stats.norm.cdf(d / 2)
    # Fails for one seed in 10^6. Two fitted coefficients cost less than 1/1000 of accuracy.
    error = stats.norm.isf(5e-7) * math.sqrt(best * (1 - best) / count)
    assert accuracy == pytest.approx(best, abs=error + 1e-3)


def with_correlation(n, rho, seed):
    z = normal(n, 2, seed=seed)
    return torch.stack([z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]], -1)


def with_modes(n, modes, seed):
    generator = torch.Generator().manual_seed(seed)
    mode = torch.tensor(modes)[torch.randint(len(modes), (n, 1), generator=generator)]
    return 4.0 * mode + 0.3 * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (normal(500, 2), 1 + normal(500, 2, seed=1)),
        (with_correlation(500, 0.9, 0), with_correlation(500, -0.9, 1)),
        (with_modes(500, [0, 1], 0), with_modes(500, [0], 1)),
    ],
    ids=["shift", "correlation", "missing mode"],
)
def test_bad_samples_are_told_apart(x, y):
    accuracy, p_value = c2st(x, y)
    assert accuracy > 0.6 and p_value < 1e-4


@pytest.mark.parametrize(
    "classifier",
    [
        KNeighborsClassifier(3),
        LogisticRegression(),
        # Always one class, and a coin whose sides are not fair.
        DummyClassifier(strategy="constant", constant=1),
        DummyClassifier(strategy="stratified", random_state=0),
    ],
    ids=["neighbours", "logistic", "constant", "coin"],
)
@pytest.mark.parametrize(("n", "m"), [(4, 4), (20, 31)])
def test_level(classifier, n, m):
    num_problems = 300
    p_values = torch.tensor(
        [
            c2st(normal(n, 2, seed=2 * s), normal(m, 2, seed=2 * s + 1), classifier, seed=s).p_value
            for s in range(num_problems)
        ]
    )
    # P(p <= a) <= a, with less for a law on few points. Each of the five checks fails for one set
    # of seeds in 10^6.
    for level in (0.05, 0.1, 0.3, 0.6, 0.9):
        rejected = int((p_values <= level).sum())
        assert rejected <= stats.binom(num_problems, level).isf(1e-6)


def test_p_is_uniform_under_the_null():
    # With its atoms spread out, p is uniform: P(H' > H) + U P(H' = H).
    num_problems, count = 300, 40
    uniform = np.random.default_rng(0).uniform(size=num_problems)
    spread = []
    for s in range(num_problems):
        x, y = normal(count, 2, seed=2 * s), normal(count, 2, seed=2 * s + 1)
        accuracy, p_value = c2st(x, y, HalfPlane(), seed=s)
        # HalfPlane calls half of the rows x, so the law of H is known.
        half = count // 2
        right = round(accuracy * half)
        law = stats.hypergeom(2 * half, half, half)
        assert p_value == pytest.approx(law.sf(right - 1))
        spread.append(law.sf(right) + uniform[s] * law.pmf(right))
    # Fails for one set of seeds in 10^5.
    assert stats.kstest(spread, "uniform").pvalue > 1e-5


class HalfPlane(DummyClassifier):
    """Calls x the half of the rows with the largest first column."""

    def predict(self, rows):
        return (rows[:, 0] > np.median(rows[:, 0])).astype(int)


@pytest.mark.slow
def test_the_network_holds_the_level():
    num_problems = 100
    p_values = torch.tensor(
        [c2st(normal(30, 1, seed=2 * s), normal(30, 1, seed=2 * s + 1)).p_value
         for s in range(num_problems)]
    )  # fmt: skip
    # Fails for one set of seeds in 10^5.
    assert int((p_values <= 0.1).sum()) <= stats.binom(num_problems, 0.1).isf(1e-5)


def test_classes_are_balanced():
    # A classifier that only knows the class sizes would be right for 9 of 10 rows.
    x, y = normal(1000, 1), normal(100, 1, seed=1)
    assert c2st(x, y, DummyClassifier(strategy="most_frequent")) == (0.5, 1.0)


def test_columns_of_different_units():
    # The column that matters is 10^6 times smaller than the other, and the offset is large.
    x = normal(500, 2) * torch.tensor([1e3, 1e-3]) + 1e3
    y = normal(500, 2, seed=1) * torch.tensor([1e3, 1e-3]) + 1e3
    y[:, 1] += 5e-3
    assert c2st(x, y, KNeighborsClassifier()).statistic > 0.95
    constant = torch.ones(500, 1)
    assert c2st(torch.cat([x, constant], -1), torch.cat([y, constant], -1), LogisticRegression())[0]


def test_the_seed_alone_decides():
    x, y = normal(60, 2), 0.5 + normal(60, 2, seed=1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for classifier in (None, RandomForestClassifier(10)):
        first, second = (c2st(x, y, classifier, seed=3) for _ in range(2))
        assert first == second
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()
    assert len({c2st(x, y, LogisticRegression(), seed=s).statistic for s in range(5)}) > 1


def test_the_classifier_is_a_clone():
    classifier = RandomForestClassifier(5)
    c2st(normal(20, 2), normal(20, 2), classifier)
    assert classifier.random_state is None and not hasattr(classifier, "classes_")
    # One without a random state, and a pipeline.
    pipeline = make_pipeline(PolynomialFeatures(2), LogisticRegression())
    x, y = with_correlation(500, 0.9, 0), with_correlation(500, -0.9, 1)
    assert c2st(x, y, pipeline).statistic > 0.8
    assert c2st(x, y, LogisticRegression()).statistic < 0.6


def test_held_out():
    x, y = torch.arange(20.0), torch.arange(100.0, 120.0)
    for held_out, count in ((0.5, 10), (0.2, 4), (1e-9, 1), (1 - 1e-9, 19)):
        accuracy, p_value = c2st(x, y, LogisticRegression(), held_out=held_out)
        assert accuracy == 1.0
        assert p_value == pytest.approx(1 / math.comb(2 * count, count))


def test_small_samples_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < c2st(torch.zeros(2), torch.zeros(2)).p_value <= 1


@pytest.mark.cuda
def test_device():
    x, y = normal(50, 2), normal(50, 2, seed=1)
    assert c2st(x.cuda(), y) == c2st(x, y)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": [1.0]}, "`x` must be a tensor"),
        ({"x": torch.zeros(1, 2)}, "`x` must have at least 2 rows, had 1"),
        ({"y": torch.zeros(4, 3)}, "`y` must have as many columns as `x`, 2, had 3"),
        ({"y": torch.full((4, 2), math.inf)}, "`y` must be finite"),
        (
            {"x": torch.zeros(4, 2, device="meta")},
            "`x` must be a tensor .* on meta",
        ),
        ({"classifier": "network"}, "`classifier` must be a scikit-learn classifier .* 'network'"),
        ({"held_out": "half"}, "`held_out` must be a number above 0 and below 1, was 'half'"),
        ({"held_out": 0.0}, r"`held_out` must be a number above 0 and below 1, was 0\.0"),
        ({"held_out": math.nan}, "`held_out` must be .* was nan"),
    ],
)
def test_bad_arguments(change, match):
    with pytest.raises(ValueError, match=match):
        c2st(**{"x": torch.zeros(4, 2), "y": torch.zeros(4, 2), **change})
