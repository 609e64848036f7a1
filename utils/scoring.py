"""How answers are judged: pure functions, no files, no model."""

import re

import numpy as np

LETTERS = "ABCD"
RESAMPLES = 10_000
# `Answer: B`, `answer is (C).`, `**Answer:** D`, `answer: b.`; a letter that a word goes on with is
# none, nor is the article in `the answer is a matter of taste`, nor one of two letters.
ANSWER = re.compile(
    r"(?i:answer(?:\s+is)?)\W{0,6}\b([A-D]\b|[a-d](?=[.)*\]]|\s*(?:\n|\Z)))"
    r"(?!\s*(?:and|or|/|&|,)\s*[A-D]\b)"
)


def parse_answer(text: str) -> int | None:
    """The option, 0 to 3, that a reply ends with: the last `Answer: X` in it, None without one."""
    found = ANSWER.findall(text)
    return LETTERS.index(found[-1].upper()) if found else None


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
    names = {name: number for number, name in enumerate(dict.fromkeys(documents))}
    groups = np.array([names[name] for name in documents])
    totals = np.bincount(groups)
    hits = np.bincount(groups, weights=right)
    drawn = np.random.default_rng(seed).integers(len(totals), size=(RESAMPLES, len(totals)))
    accuracies = hits[drawn].sum(1) / totals[drawn].sum(1)
    return [round(float(edge), 4) for edge in np.quantile(accuracies, [0.025, 0.975])]


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None
