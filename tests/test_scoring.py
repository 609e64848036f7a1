import numpy as np
import pytest

from utils.scoring import interval, metrics, parse_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: B.", 1),
        ("so it is C. Answer: C", 2),
        ("The answer is (D).", 3),
        ("**Answer:** A", 0),
        ("answer: b", 1),
        ("Answer: A. No, wait. Answer: D.", 3),
        ("Answer: AB.", None),
        ("Answer: A and B", None),
        ("Answer: A/B", None),
        ("Answer: Because", None),
        ("Answer: A dog", 0),
        ("answer: c.", 2),
        ("The answer is a matter of taste, so C.", None),
        ("Answer: C. The answer is a bit odd", 2),
        ("To answer a question like this", None),
        ("B", None),
        ("The answer could be anything", None),
        ("", None),
    ],
)
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer


def question(document, gold, answer, hard=False, split="test"):
    return {"document": document, "gold": gold, "answer": answer, "hard": hard, "split": split}


def test_every_question_counts():
    result = metrics([
        question("a", 0, 0, hard=True, split="val"),
        question("a", 1, None),
        question("b", 2, 3),
        question("b", 3, 3),
    ])  # fmt: skip
    assert result["n"] == 4
    assert result["accuracy"] == 0.5
    assert result["attempt_rate"] == 0.75
    assert result["accuracy_attempted"] == pytest.approx(2 / 3, abs=1e-4)
    assert (result["hard"], result["non_hard"]) == (1, pytest.approx(1 / 3, abs=1e-4))
    assert (result["val"], result["test"]) == (1, pytest.approx(1 / 3, abs=1e-4))


def test_no_attempt_is_zero_and_not_nan():
    result = metrics([question("a", 0, None)])
    assert (result["accuracy"], result["attempt_rate"], result["accuracy_attempted"]) == (
        0,
        0,
        None,
    )


def test_the_interval_resamples_articles():
    """Articles that are all right or all wrong: ten articles of ten questions are worth ten."""
    right = np.repeat([0.0, 1.0] * 5, 10)
    clustered = interval(right, [number // 10 for number in range(100)])
    alone = interval(right, list(range(100)))
    assert clustered == interval(right, [number // 10 for number in range(100)])
    assert clustered[1] - clustered[0] > 2.5 * (alone[1] - alone[0])
    assert clustered[0] <= 0.5 <= clustered[1]
