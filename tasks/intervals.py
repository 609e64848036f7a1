"""Confidence intervals and p-values of accuracies, with documents as the sampling unit."""

import numpy as np

FLIPS = 10_000
CONFIDENCE = 0.95


def accuracy_interval(right: np.ndarray, documents: list, seed: int = 0) -> list[float] | None:
    """95% interval of the accuracy, by document: answers about one document are correlated, so an interval that treats
    questions as independent would be too narrow. None without questions.

    right: (questions,) 1 or 0; documents: (questions,) the document of each. `seed` changes nothing, since no random
    number is drawn; callers that resample may pass it.
    """
    if not len(right):
        return None
    return [round(edge, 4) for edge in mean_interval(right, _groups(documents))]


def paired_difference(one: np.ndarray, other: np.ndarray, documents: list, seed: int = 0) -> tuple[float, list, float]:
    """The accuracy of `other` minus that of `one` on the same questions, its 95% interval, and the p-value of no
    difference.

    one, other: (questions,) 1 or 0; documents: (questions,) the document of each question. The interval is that of
    `mean_interval` for the differences, -1, 0 or 1, mapped to 0..1; it is 0 to 0 if no question is answered
    differently. The p-value is that of the two-sided sign-flip test over documents, with one added to numerator and
    denominator.
    """
    groups = _groups(documents)
    gains = np.bincount(groups, weights=other - one)
    signs = np.random.default_rng(seed).integers(2, size=(FLIPS, len(gains)), dtype=np.int8) * 2 - 1
    flipped = np.abs(signs @ gains)
    # Equal sums of integers in floating point may differ in the last bit.
    p = (1 + (flipped >= abs(gains.sum()) - 1e-9).sum()) / (1 + FLIPS)
    edges = mean_interval((1 + other - one) / 2, groups) if np.any(one != other) else (0.5, 0.5)
    difference = float(gains.sum() / len(groups))
    return round(difference, 4), [round(2 * edge - 1, 4) for edge in edges], round(float(p), 5)


def mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of `values`, each in 0..1, that come in groups: Wilson's score interval for the number of
    independent values whose mean has the jackknife variance over groups (the effective sample size of Korn and
    Graubard, 1998), with Student's t for the normal quantile. A single group says nothing about others: 0 to 1.

    values: (questions,); groups: (questions,) index of the document.
    """
    from scipy.special import stdtrit  # not at the top: --help would wait for it

    sizes, sums = np.bincount(groups), np.bincount(groups, weights=values)
    count, mean = len(sizes), float(values.mean())
    if count == 1:
        return 0.0, 1.0
    without = (sums.sum() - sums) / (len(values) - sizes)  # the mean without each group
    variance = (count - 1) / count * float(((without - mean) ** 2).sum())
    if variance < 1e-12:  # equal means: as if the values were independent
        variance = float(values.var()) / len(values)
    binomial = mean * (1 - mean)
    share = variance / binomial if binomial > 1e-12 else 1 / len(values)  # 1 / effective number of values
    t = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    centre, scale = mean + t**2 * share / 2, 1 + t**2 * share
    half = t * (binomial * share + (t * share / 2) ** 2) ** 0.5
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _groups(documents: list) -> np.ndarray:
    """(questions,): the index of each question's document."""
    names = {name: number for number, name in enumerate(dict.fromkeys(documents))}
    return np.array([names[name] for name in documents])
