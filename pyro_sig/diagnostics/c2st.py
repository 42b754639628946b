"""The classifier two-sample test."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from pyro_sig._arguments import check_integer, check_number, refusal
from pyro_sig._progress import Progress
from pyro_sig.diagnostics._samples import check_samples
from pyro_sig.diagnostics._streams import own_stream
from pyro_sig.diagnostics.permutation import TwoSampleTest

__all__ = ["c2st"]

# Rows that a network is trained on before some of them are set aside to stop it early.
_EARLY_STOPPING_ROWS = 200


def c2st(
    x: Tensor,
    y: Tensor,
    classifier: Any | None = None,
    *,
    held_out: float = 0.5,
    seed: int = 0,
    progress: bool | None = None,
) -> TwoSampleTest:
    r"""Tests whether a classifier can tell two samples apart.

    Of the larger sample as many random rows are kept as the smaller has, so that guessing is right
    half of the time. The classifier is fitted to a random part of each; the statistic is its
    accuracy on the :math:`k` rows of each that were held out,

    .. math::
        \hat a = \frac{H + (k - R + H)}{2 k}, \qquad
        p = P(H' \ge H), \quad H' \sim \mathrm{Hypergeometric}(2 k, k, R),

    with :math:`R` of the held-out rows called x, of them :math:`H` rightly. About 1/2 if the laws
    are equal, 1 if they have nothing in common. Given the fitted classifier and the held-out rows,
    that law of :math:`H` is exact under equal laws: the held-out labels are exchangeable, with
    :math:`k` of each. (The binomial law of :math:`2 k` fair coins would be for random class
    sizes.) So :math:`P(p \le \alpha) \le \alpha` at any sample size and for any classifier.

    :param x: shape ``[n, D]`` or ``[n]``.
    :param y: shape ``[m, D]`` or ``[m]``, with the same :math:`D`.
    :param classifier: a scikit-learn classifier, of which a clone is fitted; its
        ``random_state`` is set where it is ``None``. By default a network with two hidden layers
        of :math:`10 D` units (200 at most), trained by Adam and stopped early.
    :param held_out: share of each sample that is held out, in (0, 1).
    :param seed: of the choice of rows and of the classifier; torch's global stream is left alone.
    :param bool progress: show a bar over the passes of the default network; None does where someone
        watches: on a terminal or in a notebook, not under CI. Another classifier has its own ways.
    :return: the accuracy and its p-value.
    :raises ValueError: if a shape does not fit, a sample is not finite or has less than two rows,
        ``held_out`` is not in (0, 1), or ``classifier`` is no classifier.

    Source: D. Lopez-Paz and M. Oquab, "Revisiting Classifier Two-Sample Tests", 2017,
    https://arxiv.org/abs/1610.06545; the network as J.-M. Lueckmann et al., "Benchmarking
    Simulation-Based Inference", 2021, https://arxiv.org/abs/2101.04653.

    Example::

        >>> from sklearn.linear_model import LogisticRegression
        >>> x, y = torch.arange(20.0), torch.arange(100.0, 120.0)  # nothing in common
        >>> accuracy, p_value = c2st(x, y, LogisticRegression())
        >>> accuracy, round(p_value, 6)  # 1 / (20 choose 10)
        (1.0, 5e-06)
    """
    from scipy import stats
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, y = check_samples(x, y, least=2)
    held_out = check_number("held_out", held_out, above=0, below=1)
    check_integer("seed", seed, 0)
    needed = ("fit", "predict", "get_params", "set_params")
    is_estimator = all(hasattr(classifier, name) for name in needed)
    if classifier is not None and (isinstance(classifier, type) or not is_estimator):
        raise refusal("classifier", "a scikit-learn classifier or None", classifier)
    count = min(len(x), len(y))
    num_test = min(max(1, round(held_out * count)), count - 1)
    num_train = count - num_test

    generator = own_stream("c2st", seed)
    x, y = (
        sample.detach().cpu().double()[torch.randperm(len(sample), generator=generator)[:count]]
        for sample in (x, y)
    )
    # Shuffled: a classifier must not learn or guess from the position of a row.
    labels = torch.arange(2).repeat_interleave(num_train)
    shuffle = torch.randperm(2 * num_train, generator=generator)
    train, train_labels = torch.cat([y[num_test:], x[num_test:]])[shuffle], labels[shuffle]
    labels = torch.arange(2).repeat_interleave(num_test)
    shuffle = torch.randperm(2 * num_test, generator=generator)
    test, test_labels = torch.cat([y[:num_test], x[:num_test]])[shuffle], labels[shuffle]
    mean, spread = train.mean(0), train.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)

    with warnings.catch_warnings(), Progress(progress, None, "c2st") as bar:
        if classifier is None:
            width = min(10 * x.shape[1], 200)
            fitted = _counting(MLPClassifier, bar)(
                hidden_layer_sizes=(width, width),
                max_iter=1000,
                early_stopping=2 * num_train >= _EARLY_STOPPING_ROWS,
                n_iter_no_change=50,
                random_state=seed,
            )
            # Any classifier makes a valid test, one that could be trained longer too.
            warnings.simplefilter("ignore", ConvergenceWarning)
        else:
            fitted = clone(classifier)
            if fitted.get_params().get("random_state", seed) is None:
                fitted.set_params(random_state=seed)
        fitted.fit(((train - mean) / spread).numpy(), train_labels.numpy())
        called = torch.as_tensor(fitted.predict(((test - mean) / spread).numpy()))
    if called.shape != test_labels.shape:
        raise ValueError(
            f"`classifier` must predict one label for each of {len(test)} rows, but those "
            f"had shape {tuple(called.shape)}"
        )
    num_called_x = int((called == 1).sum())
    right = int(((called == 1) & (test_labels == 1)).sum())
    accuracy = (2 * right + num_test - num_called_x) / (2 * num_test)
    p_value = stats.hypergeom.sf(right - 1, 2 * num_test, num_test, num_called_x)
    return TwoSampleTest(accuracy, float(p_value))


def _counting(network: type[Any], bar: Progress) -> type[Any]:
    """A scikit-learn network that counts its passes through the data."""

    class Counting(network):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "n_iter_" and value:
                bar.update()
            super().__setattr__(name, value)

    return Counting
