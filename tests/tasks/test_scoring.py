import time

import numpy as np
import pytest

from tasks import intervals, scoring
from tasks.intervals import accuracy_interval, paired_difference
from tasks.multiple_choice import PromptedQuestion
from tasks.scoring import SELECTION_RULES, metrics, parse_answer, select

QUOTING = """A. Her wedding ring
B. Her hair
C. A gold watch
D. A set of combs
The combs are what she is given, so D is wrong, and A is not told. """


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # plain answers, with surrounding words
        ("Answer: B.", 1),
        ("Answer: B", 1),
        ("answer is (C).", 2),
        ("The answer is (D).", 3),
        ("The answer is: B", 1),
        ("Answer - C", 2),
        ("Answer:\nB", 1),
        ("Answer: [B]", 1),
        ("Answer: 'B'", 1),
        ("Answer: B) Her hair", 1),
        ("Answer: B. Her hair", 1),
        ("Answer: B, because she needs the money", 1),
        ("Final answer: D", 3),
        ("The correct answer is A.", 0),
        ("The answer would be B.", 1),
        ("the answer must be C", 2),
        ("The answer has to be D!", 3),
        ("The answer is option B.", 1),
        ("Answer: Option (C)", 2),
        ("Answer: $\\boxed{C}$", 2),
        # Markdown
        ("**Answer:** A", 0),
        ("**Answer: A**", 0),
        ("**Answer**: **D**", 3),
        ("### Answer: B", 1),
        ("Answer: `C`", 2),
        # lower case
        ("answer: b", 1),
        ("answer: c.", 2),
        ("ANSWER: D", 3),
        ("Answer: (d)", 3),
        ("The answer is a matter of taste, so C.", None),
        ("Answer: C. The answer is a bit odd", 2),
        # the last of several
        ("so it is C. Answer: C", 2),
        ("Answer: A. No, wait. Answer: D.", 3),
        ("The answer is not A. Answer: B.", 1),
        ("Answer: B. The answer is not A.", 1),
        ("Answer: A\nExplanation: the answer is B", 1),
        # options quoted in the reasoning
        (f"{QUOTING}Answer: B.", 1),
        (QUOTING, None),
        # two letters, or none
        ("Answer: AB.", None),
        ("Answer: A and B", None),
        ("Answer: A/B", None),
        ("Answer: B or C", None),
        ("Answer: B, C", None),
        ("Answer: A & D", None),
        ("Answer: E", None),
        ("Answer: Because", None),
        ("Answer: none of these", None),
        ("The answer is not A.", None),
        ("The answer is most likely B.", None),
        ("Answer: A dog", 0),
        ("To answer a question like this", None),
        ("B", None),
        ("The answer could be anything", None),
        ("Answer:", None),
        ("", None),
    ],
)
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer


HAIR = ("Her wedding ring", "Her hair", "A gold watch", "A set of combs")
ORR = ("Nobody", "Tobias Fenn", "A thief from Orr", "Aune Marrow")  # the case reply_option_text.txt
NAMES = ("D-Day", "C. S. Lewis", "B-17", "A man")
NONE = ("Orr’s", "Vell's", "Fenn's", "None")
LETTERED = ("C major", "A", "The letter B", "Neither A nor B")
NUMBERS = ("5%", "$5", "1.5", "15")
CHINESE = ("北灯塔", "雾钟", "两枚硬币", "没有人")


@pytest.mark.parametrize(
    ("options", "text", "answer"),
    [
        # the options' own words count before a letter
        (ORR, "Somebody from another village took it. Answer: A thief from Orr.", 2),
        (ORR, "Answer: A thief", None),
        (ORR, "Answer: the thief from Orr", 2),
        (ORR, "**Answer:** *a thief from Orr*", 2),
        (ORR, "Answer: Nobody", 0),
        (ORR, "Answer: Nobody knows", None),
        (ORR, "Answer: Nobody, because it was never stolen.", 0),
        (ORR, "Answer: A stranger took it", None),
        (ORR, "Answer: Aune  MARROW!", 3),
        (ORR, "The answer is Tobias Fenn.", 1),
        (ORR, "The correct option is a thief from Orr.", 2),
        (ORR, "\\boxed{\\text{Tobias Fenn}}", 1),
        (NAMES, "Answer: D-Day", 0),
        (NAMES, "Answer: C. S. Lewis", 1),
        (NAMES, "Answer: C.S. Lewis", 1),
        (NAMES, "Answer: B-17.", 2),
        (NAMES, "Answer: B‑17", 2),  # a non-breaking hyphen
        (NAMES, "Answer: A man", 3),
        (NAMES, "Answer: C. Lewis", None),  # option C, or option B's author
        (HAIR, "Answer: D-Day", None),
        (HAIR, "Answer: C. S. Lewis", None),
        (HAIR, "Answer: B-17", None),
        (HAIR, "Answer: A man", None),
        (NONE, "Answer: None", 3),
        (NONE, "Answer: None of the above", None),
        (NONE, "Answer: Orr's.", 0),
        (NONE, "Answer: Fenn’s", 2),
        (NUMBERS, "Answer: 5%", 0),
        (NUMBERS, "Answer: $5", 1),
        (NUMBERS, "Answer: 1.5", 2),
        (CHINESE, "答案 Answer: 雾钟。", 1),
        (CHINESE, "Answer: Ｂ", 1),  # full width
        (("Café", "Tea", "Milk", "Rum"), "Answer: Cafe\u0301.", 0),  # NFD
        # an option whose text is a letter, or begins with one
        (LETTERED, "Answer: C major", 0),
        (LETTERED, "Answer: C", 2),
        (LETTERED, "Answer: A", None),  # the letter A, or option B
        (LETTERED, "Answer: B", 1),
        (LETTERED, "Answer: Neither A nor B", 3),
        # a letter
        (HAIR, "The correct option is B.", 1),
        (HAIR, "The correct choice would be (D).", 3),
        (HAIR, "The answer is (B)", 1),
        (HAIR, "So it is \\boxed{C}.", 2),
        (HAIR, "Answer: $\\boxed{\\text{C}}$", 2),
        (HAIR, "\\[\\boxed{\\textbf{(D)}}\\]", 3),
        (HAIR, "Final Answer: **B**", 1),
        (HAIR, "### Answer\n\n(B) Her hair", 1),
        (HAIR, '{"answer": "C"}', 2),
        (HAIR, "<answer>D</answer>", 3),
        (HAIR, "Answer: A because she keeps the ring", 0),
        (HAIR, "Answer: A Her wedding ring", 0),
        (HAIR, "Answer: B) her hair", 1),
        (HAIR, "Answer: B – it was cut off", 1),
        (HAIR, "(B)", 1),
        (HAIR, "**B**", 1),
        (HAIR, "B", None),  # as before: nothing marks it as an answer
        (HAIR, "B. Her hair", 1),
        # ambiguous
        (HAIR, "Answer: A or B", None),
        (HAIR, "Answer: A and C", None),
        (HAIR, "Answer: (A) and (C)", None),
        (HAIR, "Answer: both B and C", None),
        (HAIR, "Answer: either B or the combs", None),
        (HAIR, "Answer: B or her ring", None),
        (HAIR, "Answer: B. A gold watch", None),
        (HAIR, "Answer: B, the gold watch", None),
        (HAIR, "Answer: B. Gold watch.", None),
        (HAIR, "Answer: Her hair and a gold watch", None),
        (HAIR, "Answer: Her hair, a gold watch", None),
        (HAIR, "\\boxed{A} or \\boxed{B}", None),
        (HAIR, "Answer: B. On reflection, Answer: A or B", None),
        (HAIR, "Answer: B. Answer: None of the above.", None),
        (("A lamp", "The lamp", "A bell", "A flag"), "Answer: lamp", None),
        (("A lamp", "The lamp", "A bell", "A flag"), "Answer: The lamp", 1),
        # the option's words only, or the last of several
        (HAIR, "She sold her hair, so B is told.", None),
        (HAIR, "Answer: A gold watch. No: Answer: Her hair.", 1),
        (HAIR, "The answer is a matter of taste. Answer: D.", 3),
    ],
)
def test_parse_answer_with_options(options, text, answer):
    assert parse_answer(text, options) == answer


def test_selection_rules():
    attempts = [None, 2, 1, 1, None, 3]
    assert select(attempts, "first", [0]) == 2
    assert select(attempts, "majority", [0]) == 1
    assert select([3, 0, 0, 3], "majority", [0]) == 3
    selected = [select(attempts, "random", [0, n]) for n in range(400)]
    assert selected == [select(attempts, "random", [0, n]) for n in range(400)]
    assert 160 < selected.count(1) < 240  # half of the parsed attempts
    assert None not in selected
    for rule in SELECTION_RULES:
        assert select([None, None], rule, [0]) is None
        assert select([], rule, [0]) is None


def simulated_answers(rng, articles: int, questions: int, accuracy: float, correlation: float):
    """Simulated answers (1 or 0) and the article of each. The articles' accuracies have a beta distribution of mean
    `accuracy`, such that two answers of one article have the given `correlation`."""
    strength = 1 / correlation - 1
    own = rng.beta(accuracy * strength, (1 - accuracy) * strength, articles)
    right = rng.random((articles, questions)) < own[:, None]
    return right.ravel().astype(float), np.repeat(np.arange(articles), questions).tolist()


def test_interval_coverage():
    """1,000 evaluations of 80 articles with 17 questions each, true accuracy 0.56, correlation 0.1 within articles: 93 to
    97% of the 95% intervals contain 0.56. Intervals that treat questions as independent contain it far less often."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for repetition in range(1000):
        right, documents = simulated_answers(rng, 80, 17, 0.56, 0.1)
        low, high = accuracy_interval(right, documents, seed=repetition)
        covered += low <= 0.56 <= high
        half = 1.96 * right.std() / len(right) ** 0.5  # questions as independent
        naive += abs(right.mean() - 0.56) <= half
    assert 930 <= covered <= 970
    assert naive < 850


@pytest.mark.parametrize("questions", [7, 17])
@pytest.mark.parametrize("articles", [8, 12, 30, 130])
def test_interval_coverage_by_number_of_articles(articles, questions):
    """The same simulation: 93 to 97% with few articles, too, and with the quickstart's twelve of seven questions."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = accuracy_interval(*simulated_answers(rng, articles, questions, 0.56, 0.1))
        covered += low <= 0.56 <= high
    assert 930 <= covered <= 970


@pytest.mark.parametrize("gain", [0, 0.2])
@pytest.mark.parametrize("articles", [8, 12, 30, 130])
def test_coverage_of_the_difference(articles, gain, monkeypatch):
    """Intervals of paired differences: `other` answers 30% of the questions anew, at random, and 40% of those that are
    then wrong correctly with `gain` 0.2."""
    monkeypatch.setattr(intervals, "FLIPS", 1)  # the p-value is not tested here
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        one, documents = simulated_answers(rng, articles, 10, 0.5, 0.1)
        other = np.where(rng.random(len(one)) < 0.3, rng.random(len(one)) < 0.5, one).astype(float)
        other = np.maximum(other, rng.random(len(one)) < 2 * gain)
        low, high = paired_difference(one, other, documents)[1]
        covered += low <= gain <= high
    assert 930 <= covered <= 970


def test_intervals_at_the_edges():
    """All right, all wrong, one document, no questions, two questions: inside 0..1, and never of zero width."""
    twelve = [number // 7 for number in range(84)]
    low, high = accuracy_interval(np.ones(84), twelve)
    assert 0.9 < low < 0.96
    assert high == 1
    assert accuracy_interval(np.zeros(84), twelve) == pytest.approx([0, 1 - low])
    one_wrong = np.ones(84)
    one_wrong[0] = 0
    assert accuracy_interval(one_wrong, twelve)[0] < low
    assert accuracy_interval(np.ones(10), ["a"] * 10) == [0, 1]
    assert accuracy_interval(np.array([]), []) is None
    low, high = accuracy_interval(np.array([1.0, 0.0]), ["a", "b"])
    assert 0 <= low < 0.1
    assert 0.9 < high <= 1
    alike = accuracy_interval(np.array([1.0, 0.0] * 12), [number // 2 for number in range(24)])  # half of each document
    assert alike == pytest.approx([0.5 - 0.2, 0.5 + 0.2], abs=0.02)


def test_differences_at_the_edges():
    """One document says nothing about others; a model that is right everywhere against one that never is stays below
    +1; one question of 84 is no difference."""
    twelve = [number // 7 for number in range(84)]
    zeros, ones = np.zeros(84), np.ones(84)
    difference, (low, high), _ = paired_difference(zeros, ones, twelve)
    assert (difference, high) == (1, 1)
    assert 0.8 < low < 0.95
    assert paired_difference(ones, zeros, twelve)[1] == pytest.approx([-1, -low])
    assert paired_difference(zeros, ones, ["a"] * 84)[1] == [-1, 1]
    assert paired_difference(ones, ones, ["a"] * 84)[1] == [0, 0]
    one = zeros.copy()
    one[0] = 1
    low, high = paired_difference(zeros, one, twelve)[1]
    assert -0.05 < low < 0 < high < 0.05


def test_paired_difference():
    """A more accurate model is detected. Without a difference, p is uniformly distributed: 5% are below 0.05."""
    rng = np.random.default_rng(0)
    small, detected = [], []
    for repetition in range(300):
        one, documents = simulated_answers(rng, 60, 10, 0.5, 0.1)
        other = np.where(rng.random(600) < 0.3, rng.random(600) < 0.5, one).astype(float)
        _, edges, p = paired_difference(one, other, documents, seed=repetition)
        small.append(p < 0.05)
        better = np.maximum(other, rng.random(600) < 0.15)
        difference, (low, high), p = paired_difference(one, better, documents, seed=repetition)
        assert low <= difference <= high
        detected.append(p < 0.05)
    assert 0.02 < np.mean(small) < 0.09
    assert np.mean(detected) > 0.9
    same = paired_difference(one, one, documents)
    assert same == (0, [0, 0], 1)


def test_ten_thousand_resamples_take_under_two_seconds():
    rng = np.random.default_rng(0)
    documents = rng.integers(265, size=4609).tolist()
    one, other = (rng.random((2, 4609)) < 0.5).astype(float)
    begun = time.monotonic()
    paired_difference(one, other, documents)
    assert time.monotonic() - begun < 2


def question(document, gold, answer, hard=False, split="test"):
    return {"document": document, "gold": gold, "answer": answer, "hard": hard, "split": split}


def test_every_question_counts():
    result = metrics(
        [question("a", 0, 0, hard=True, split="val"), question("a", 1, None), question("b", 2, 3), question("b", 3, 3)]
    )
    assert result["n"] == 4
    assert result["accuracy"] == 0.5
    assert result["attempt_rate"] == 0.75
    assert result["accuracy_attempted"] == pytest.approx(2 / 3, abs=1e-4)
    assert (result["hard"], result["non_hard"]) == (1, pytest.approx(1 / 3, abs=1e-4))
    assert (result["val"], result["test"]) == (1, pytest.approx(1 / 3, abs=1e-4))


def test_no_attempt_is_zero_and_not_nan():
    result = metrics([question("a", 0, None)])
    assert (result["accuracy"], result["attempt_rate"], result["accuracy_attempted"]) == (0, 0, None)


def test_interval_resamples_articles():
    """With articles entirely right or wrong, ten articles of ten questions are as informative as ten questions."""
    right = np.repeat([0.0, 1.0] * 5, 10)
    clustered = accuracy_interval(right, [number // 10 for number in range(100)])
    alone = accuracy_interval(right, list(range(100)))
    assert clustered == accuracy_interval(right, [number // 10 for number in range(100)])
    assert clustered[1] - clustered[0] > 2.5 * (alone[1] - alone[0])
    assert clustered[0] <= 0.5 <= clustered[1]


def test_journaled_attempts_are_read_by_this_parser():
    question = PromptedQuestion("q", "", ("A lamp", "The keeper", "A thief from Orr", "Nobody"))
    earlier = scoring.make_attempt(question, "Somebody took it. Answer: A thief from Orr.", 0)
    assert scoring.reparse_attempt(question, earlier)["answer_content"] == "A thief from Orr"
    scored = scoring.loglik_attempt(question, ["a", "b", "c", "d"], [-1.0, -2.0, -3.0, -4.0])
    assert scoring.reparse_attempt(question, scored) == scored
