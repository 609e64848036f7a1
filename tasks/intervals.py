"""Confidence intervals and p-values of accuracies, resampling whole documents."""

import numpy as np

RESAMPLES = 10_000


def accuracy_interval(right: np.ndarray, documents: list, seed: int = 0) -> list[float] | None:
    """95% percentile bootstrap interval of the accuracy, resampling whole documents: answers about one document are
    correlated, so resampling questions would give too narrow an interval."""
    if not len(right):
        return None
    groups = _groups(documents)
    totals = np.bincount(groups)
    hits = np.bincount(groups, weights=right)
    drawn = np.random.default_rng(seed).integers(len(totals), size=(RESAMPLES, len(totals)))
    accuracies = hits[drawn].sum(1) / totals[drawn].sum(1)
    return [round(float(edge), 4) for edge in np.quantile(accuracies, [0.025, 0.975])]


def paired_difference(one: np.ndarray, other: np.ndarray, documents: list, seed: int = 0) -> tuple[float, list, float]:
    """The accuracy of `other` minus that of `one` on the same questions, its 95% interval, and the p-value of no
    difference.

    one, other: (questions,) 1 or 0; documents: (questions,) the document of each question. The interval is the
    percentile bootstrap over documents; the p-value is that of the two-sided sign-flip test over documents, with one
    added to numerator and denominator.
    """
    groups = _groups(documents)
    totals = np.bincount(groups)
    gains = np.bincount(groups, weights=other - one)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(totals), size=(RESAMPLES, len(totals)))
    resampled = gains[drawn].sum(1) / totals[drawn].sum(1)
    signs = rng.integers(2, size=(RESAMPLES, len(totals)), dtype=np.int8) * 2 - 1
    flipped = np.abs(signs @ gains)
    # Equal sums of integers in floating point may differ in the last bit.
    p = (1 + (flipped >= abs(gains.sum()) - 1e-9).sum()) / (1 + RESAMPLES)
    edges = [round(float(edge), 4) for edge in np.quantile(resampled, [0.025, 0.975])]
    return round(float(gains.sum() / totals.sum()), 4), edges, round(float(p), 5)


def _groups(documents: list) -> np.ndarray:
    """(questions,): the index of each question's document."""
    names = {name: number for number, name in enumerate(dict.fromkeys(documents))}
    return np.array([names[name] for name in documents])
