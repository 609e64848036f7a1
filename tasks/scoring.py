"""How answers are judged: pure functions, no files, no model."""

import re

import numpy as np

LETTERS = "ABCD"
RESAMPLES = 10_000
# `Answer: B`, `answer is (C).`, `**Answer:** D`, `answer would be option B`, `Answer: \\boxed{C}`, `answer: b.`;
# a letter that a word goes on with is none, nor is the article in `the answer is a matter of taste`, nor
# one of two letters. tests/test_scoring.py has every case that was decided.
ANSWER = re.compile(
    r"(?i:answer(?:\s+(?:is|(?:would|must|should|has\s+to)\s+be))?)"
    r"\W{0,6}(?i:(?:option|choice|boxed)\W{1,3})?"
    r"\b([A-D]\b|[a-d](?=[.)*\]}]|\s*(?:\n|\Z)))"
    r"(?!\s*(?:and|or|/|&|,)\s*[A-D]\b)"
)
SELECTS = ("first", "random", "majority")


def parse_answer(text: str) -> int | None:
    """The option, 0 to 3, that a reply ends with: the last `Answer: X` in it, None without one."""
    found = ANSWER.findall(text)
    return LETTERS.index(found[-1].upper()) if found else None


def select(answers: list[int | None], how: str, seed: list[int]) -> int | None:
    """The answer that counts among attempts, of those that could be read: the `first`, one at `random`
    (the paper's, of 64), or that of the `majority` (of equally many, the one that came first). None
    where none could be read."""
    read = [answer for answer in answers if answer is not None]
    if not read:
        return None
    if how == "random":
        return read[int(np.random.default_rng(seed).integers(len(read)))]
    if how == "majority":
        return max(dict.fromkeys(read), key=read.count)
    return read[0]


def metrics(questions: list[dict], seed: int = 0) -> dict:
    """Accuracy over all questions, an unanswered one counting as wrong, with a 95% interval.

    Each question: `document` (any hashable), `gold` and `answer` (0 to 3, or None where no attempt
    could be read), `hard` (bool), `split` (`val` or `test`). All results are fractions; a group
    without questions has None.
    """
    right = np.array([question["answer"] == question["gold"] for question in questions], float)
    attempted = np.array([question["answer"] is not None for question in questions], bool)
    hard = np.array([question["hard"] for question in questions], bool)
    validation = np.array([question["split"] == "val" for question in questions], bool)
    return {
        "n": len(questions),
        "accuracy": _mean(right),
        "ci95": interval(right, [question["document"] for question in questions], seed),
        "attempt_rate": _mean(attempted.astype(float)),
        "accuracy_attempted": _mean(right[attempted]),  # the paper's figure
        "hard": _mean(right[hard]),
        "non_hard": _mean(right[~hard]),
        "val": _mean(right[validation]),
        "test": _mean(right[~validation]),
    }


def interval(right: np.ndarray, documents: list, seed: int = 0) -> list[float] | None:
    """95% percentile bootstrap interval of the accuracy that resamples whole documents: questions
    about one article are right or wrong together, so resampling questions would flatter."""
    if not len(right):
        return None
    groups = _groups(documents)
    totals = np.bincount(groups)
    hits = np.bincount(groups, weights=right)
    drawn = np.random.default_rng(seed).integers(len(totals), size=(RESAMPLES, len(totals)))
    accuracies = hits[drawn].sum(1) / totals[drawn].sum(1)
    return [round(float(edge), 4) for edge in np.quantile(accuracies, [0.025, 0.975])]


def paired(
    one: np.ndarray, other: np.ndarray, documents: list, seed: int = 0
) -> tuple[float, list[float], float]:
    """How much more of the same questions `other` has right than `one`: the difference of accuracies,
    its 95% interval, and the p-value of no difference.

    one, other: (questions,) 1 or 0; documents: whose question each is. The interval is the percentile
    bootstrap over whole documents; the p-value that of the sign-flip test over them (if there were no
    difference, each document's would have either sign alike), two-sided, with one added to both counts.
    """
    groups = _groups(documents)
    totals = np.bincount(groups)
    gains = np.bincount(groups, weights=other - one)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(totals), size=(RESAMPLES, len(totals)))
    resampled = gains[drawn].sum(1) / totals[drawn].sum(1)
    signs = rng.integers(2, size=(RESAMPLES, len(totals)), dtype=np.int8) * 2 - 1
    flipped = np.abs(signs @ gains)
    # Sums of whole numbers in floating point: equal ones may differ in the last bit.
    p = (1 + (flipped >= abs(gains.sum()) - 1e-9).sum()) / (1 + RESAMPLES)
    edges = [round(float(edge), 4) for edge in np.quantile(resampled, [0.025, 0.975])]
    return round(float(gains.sum() / totals.sum()), 4), edges, round(float(p), 5)


def _groups(documents: list) -> np.ndarray:
    """(questions,): the number of the document that each belongs to."""
    names = {name: number for number, name in enumerate(dict.fromkeys(documents))}
    return np.array([names[name] for name in documents])


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None
