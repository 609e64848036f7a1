"""Scoring rules: parse an answer, select the attempt that counts, compute metrics. Pure functions."""

import re

import numpy as np

from tasks.intervals import accuracy_interval
from tasks.multiple_choice import PromptedQuestion

LETTERS = "ABCD"
# Matches `Answer: B`, `answer is (C).`, `**Answer:** D`, `answer would be option B`, `Answer: \\boxed{C}` and
# `answer: b.`; not a letter that starts a word, the article in `the answer is a matter of taste`, or one of two
# letters. tests/tasks/test_scoring.py lists every decided case.
ANSWER = re.compile(
    r"(?i:answer(?:\s+(?:is|(?:would|must|should|has\s+to)\s+be))?)"
    r"\W{0,6}(?i:(?:option|choice|boxed)\W{1,3})?"
    r"\b([A-D]\b|[a-d](?=[.)*\]}]|\s*(?:\n|\Z)))"
    r"(?!\s*(?:and|or|/|&|,)\s*[A-D]\b)"
)
SELECTION_RULES = ("first", "random", "majority")


def parse_answer(text: str) -> int | None:
    """The option, 0 to 3, of the last `Answer: X` in a reply; None without one."""
    found = ANSWER.findall(text)
    return LETTERS.index(found[-1].upper()) if found else None


def select(answers: list[int | None], rule: str, seed: list[int]) -> int | None:
    """The answer that counts among the attempts that could be parsed: the `first`, a `random` one (the paper's rule,
    of 64), or the `majority`'s (ties go to the earliest). None where no attempt could be parsed."""
    parsed = [answer for answer in answers if answer is not None]
    if not parsed:
        return None
    if rule == "random":
        return parsed[int(np.random.default_rng(seed).integers(len(parsed)))]
    if rule == "majority":
        return max(dict.fromkeys(parsed), key=parsed.count)
    return parsed[0]


def metrics(questions: list[dict], seed: int = 0) -> dict:
    """Accuracy over all questions, with a 95% interval; unanswered questions are wrong.

    Each question has `document` (any hashable), `gold` and `answer` (0 to 3, or None where no attempt could be
    parsed), `hard` (bool) and `split` (`val` or `test`). All results are fractions, None for an empty group.
    """
    right = np.array([question["answer"] == question["gold"] for question in questions], float)
    attempted = np.array([question["answer"] is not None for question in questions], bool)
    hard = np.array([question["hard"] for question in questions], bool)
    validation = np.array([question["split"] == "val" for question in questions], bool)
    return {
        "n": len(questions),
        "accuracy": _mean(right),
        "ci95": accuracy_interval(right, [question["document"] for question in questions], seed),
        "attempt_rate": _mean(attempted.astype(float)),
        "accuracy_attempted": _mean(right[attempted]),  # the paper's figure
        "hard": _mean(right[hard]),
        "non_hard": _mean(right[~hard]),
        "val": _mean(right[validation]),
        "test": _mean(right[~validation]),
    }


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def loglik_attempt(question: PromptedQuestion, texts: list[str], sums: list[float]) -> dict:
    """The option with the highest log-likelihood per byte (acc_norm of lm-evaluation-harness)."""
    scores = [total / len(text.encode()) for total, text in zip(sums, texts, strict=True)]
    rounded = [round(score, 6) for score in scores]
    return make_attempt(question, "", scores.index(max(scores))) | {"scores": rounded}


def cot_attempt(question: PromptedQuestion, text: str) -> dict:
    return make_attempt(question, text, parse_answer(text))


def make_attempt(question: PromptedQuestion, reasoning: str, answer: int | None) -> dict:
    content = None if answer is None else question.options[answer]
    return {"reasoning": reasoning, "answer_index": answer, "answer_content": content}
