"""How answers are judged: pure functions, no files, no model."""

import re

import numpy as np

from tasks.intervals import accuracy_interval
from tasks.multiple_choice import PromptedQuestion

LETTERS = "ABCD"
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
    """The text of the highest log-likelihood per byte of it (as lm-evaluation-harness' acc_norm), so that
    a long option is not punished for its length; letters are all of one."""
    scores = [total / len(text.encode()) for total, text in zip(sums, texts, strict=True)]
    rounded = [round(score, 6) for score in scores]
    return make_attempt(question, "", scores.index(max(scores))) | {"scores": rounded}


def cot_attempt(question: PromptedQuestion, text: str) -> dict:
    return make_attempt(question, text, parse_answer(text))


def make_attempt(question: PromptedQuestion, reasoning: str, answer: int | None) -> dict:
    content = None if answer is None else question.options[answer]
    return {"reasoning": reasoning, "answer_index": answer, "answer_content": content}
