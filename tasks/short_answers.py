"""Short answers: SQuAD's normalisation, exact match and token F1, metrics with intervals. Pure functions."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from tasks.documents import ShortQuestion
from tasks.intervals import accuracy_interval
from utils.words import has_unspaced_script, words_of

PUNCTUATION = str.maketrans("", "", string.punctuation)
MEASURES = ("exact_match", "f1")


def normalize_answer(text: str) -> str:
    """A text as SQuAD compares it: lower case, without ASCII punctuation, without a, an and the, single spaces. Two
    spellings of a letter, such as an accent of its own, are one (NFC)."""
    text = unicodedata.normalize("NFC", text.lower()).translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_tokens(text: str) -> list[str]:
    """The tokens of F1: words between white space, and in scripts without spaces the characters, as in MLQA."""
    text = normalize_answer(text)
    return words_of(text) if has_unspaced_script(text) else text.split()


def exact_match(answer: str, reference: str) -> float:
    return float(normalize_answer(answer) == normalize_answer(reference))


def f1(answer: str, reference: str) -> float:
    """F1 of two bags of tokens; if one is empty, 1 where both are, else 0 (SQuAD 2.0)."""
    said, expected = answer_tokens(answer), answer_tokens(reference)
    if not said or not expected:
        return float(said == expected)
    common = sum((Counter(said) & Counter(expected)).values())
    return 2 * common / (len(said) + len(expected))


def best_exact_match(answer: str, references: Iterable[str]) -> float:
    return max(exact_match(answer, reference) for reference in references)


def best_f1(answer: str, references: Iterable[str]) -> float:
    return max(f1(answer, reference) for reference in references)


def short_attempt(_: object, text: str) -> dict:
    """A reply as an attempt: its first line is the answer."""
    return {"text": text, "short_answer": text.strip().partition("\n")[0].strip()}


def score(question: ShortQuestion, attempts: Sequence[dict]) -> dict:
    """The first attempt against all right answers; a call that failed is an empty answer, which is wrong even where a
    right answer is empty once normalised, as `A` is."""
    answer = attempts[0].get("short_answer", "")
    return {
        "hard": question.hard,
        "answer": answer,
        "exact_match": best_exact_match(answer, question.answers) if answer else 0.0,
        "f1": round(best_f1(answer, question.answers), 4) if answer else 0.0,
    }


def metrics(questions: list[dict], seed: int = 0) -> dict:
    """Means over all questions, an empty answer being wrong, with 95% intervals that resample documents.

    Each question has `document`, `answer`, `exact_match` and `f1`, as `score` returns them. `ci95` is the interval of
    `exact_match`, `f1_ci95` that of `f1`.
    """
    documents = [question["document"] for question in questions]
    result: dict = {"n": len(questions)}
    for name, interval in zip(MEASURES, ("ci95", "f1_ci95"), strict=True):
        values = np.array([question[name] for question in questions], float)
        result |= {name: round(float(values.mean()), 4), interval: accuracy_interval(values, documents, seed)}
    answered = np.array([bool(question["answer"]) for question in questions], float)
    return result | {"attempt_rate": round(float(answered.mean()), 4)}
