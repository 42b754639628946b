"""Pearson's test, and how often a statistical test of the toys may fail."""

import torch

# Failure rate of each statistical test below, and its two-sided normal quantile.
RATE = 1e-5
Z = 4.417


def chi2_p_value(observed, expected):
    """p-value of Pearson's test; cells must expect at least 5."""
    assert expected.min() >= 5
    statistic = ((observed - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(
        torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), statistic / 2
    ).item()
