"""Scoring rules: parse an answer, select the attempt that counts, compute metrics. Pure functions."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from tasks.intervals import accuracy_interval
from tasks.multiple_choice import PromptedQuestion

LETTERS = "ABCD"
SELECTION_RULES = ("first", "random", "majority")
AMBIGUOUS = -1  # more than one option is named
QUOTES = str.maketrans("’‘ʼ“”„«»‑", '\'\'\'"""""-')
_IS = r"(?:\s+(?:is|(?:would|must|should|has\s+to)\s+be))?"
# Words that introduce an answer, on the cleaned text. With a colon, or alone on a line, nothing but an answer can
# follow, so one that cannot be read makes the reply unread; `the answer is a matter of taste` is passed over.
CUE = re.compile(
    rf"(?im)(?:(?P<heading>^\W*(?:(?:the|final|correct|my)\s+)*answer\W*\n)"
    rf"|answer(?:\s+to\s+(?:the|this|that)\s+question)?{_IS}"
    rf"|\b(?:correct|right|best|final)\s+(?:option|choice|letter){_IS}|\\boxed\{{)"
    r"(?P<colon>[\s\"')\]]{0,3}:)?"
)
LEAD = re.compile(
    r"(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:option|choice|letter)\b(?:\s+is\b)?\W{0,3}", re.IGNORECASE
)
OPENING = " \t\"'([{<>=|:-–—"  # before an answer, on its line
SEVERAL = re.compile(r"(?:both|either|neither|none|all)\b", re.IGNORECASE)
# After a letter: `D-Day`, `B's`, `A.M.`, `C++` and `C. S. Lewis` are words; `B or`, `B, C` and `A/B` are two answers.
NO_LETTER = re.compile(r"\w|['&-]\w|[+#]|\.\w|\.\s*[A-Z]\.")
MORE_LETTERS = re.compile(r"\W{0,3}\s*(?:(?:or|nor)\b|(?:and|[&,/+])\s*\W{0,2}[A-D]\b(?!['-]))")
LOWER_CASE_LETTER = re.compile(r"[.)\]}:](?!\w)|\s*\Z")
# A word that may follow an answer directly. `A thief` is a noun, `A because she is poor` an answer.
EXPLAINS = {"because", "since", "as", "is", "was", "for", "due", "which", "that", "with", "not", "rather", "instead"}
ARTICLES = {"a", "an", "the"}


def parse_answer(text: str, options: Sequence[str] = ()) -> int | None:
    """The option, 0 to 3, that a reply names last, as in `Answer: B.`; None if it names none or more than one.

    The options' own words count before a letter: `Answer: A thief from Orr.` is C if that is option C's text, and
    `Answer: B. A thief from Orr.` is none then. tests/tasks/test_scoring.py lists every decided case.
    """
    reply, text, options = text.strip(), plain_text(text), [plain_text(option) for option in options]
    for cue in reversed(list(CUE.finditer(text))):
        certain = bool(cue["colon"] or cue["heading"])
        claim = text[cue.end() :].lstrip(OPENING + "\n\r" if certain else OPENING).partition("\n")[0].strip()
        answer = read_claim(claim, options)
        if answer is not None or (certain and claim):
            return None if answer == AMBIGUOUS else answer
    return _letter_alone(text.strip(), options) if len(reply) > 1 else None


def plain_text(text: str) -> str:
    """The text without Markdown's and LaTeX's markup, in NFKC, with ASCII quotation marks."""
    text = unicodedata.normalize("NFKC", text).translate(QUOTES)
    text = re.sub(r"\*|`|__|\$|\\[()\[\]]", "", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf)[a-z]*\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\}\s*(or|and|,|/)\s*\\boxed\{", r" \1 ", text)


def read_claim(claim: str, options: Sequence[str]) -> int | None:
    """The option named at the beginning of `claim`; AMBIGUOUS for several, None for none."""
    bare = LEAD.sub("", claim, count=1) if LEAD.match(claim) else claim
    named = option_at_start(claim, options)
    named = option_at_start(bare, options) if named is None else named
    letter = letter_at_start(bare, options)
    if named is None:
        return AMBIGUOUS if letter is None and SEVERAL.match(bare) else letter
    is_letter = named != AMBIGUOUS and len(words_of(options[named])) == 1 and letter is not None
    return AMBIGUOUS if is_letter and letter != named else named  # an option whose text is the letter of another


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _without_article(words: list[str]) -> list[str]:
    return words[1:] if len(words) > 1 and words[0] in ARTICLES else words


def option_at_start(claim: str, options: Sequence[str]) -> int | None:
    """The option whose text `claim` begins with, the longest of several; AMBIGUOUS if another's follows it."""
    bare = [text.casefold().strip(" .,!?;\"'()[]{}") for text in (claim, *options)]
    if bare[0] and bare.count(bare[0]) == 2:
        return bare.index(bare[0], 1) - 1
    claim = claim.casefold()
    spans = list(re.finditer(r"\w+", claim))
    said = [span[0] for span in spans]
    skipped = len(said) - len(_without_article(said))
    matches = []
    for index, option in enumerate(options):
        words = _without_article(words_of(option))
        end = skipped + len(words)
        if words and said[skipped:end] == words and (rest := _rest_of_claim(claim[spans[end - 1].end() :])) is not None:
            exact = said[: len(words_of(option))] == words_of(option)
            matches.append((len(words), exact, index, rest))
    if not matches:
        return None
    best = max(match[:2] for match in matches)
    first, *others = [match for match in matches if match[:2] == best]
    joined = re.match(r"\s*(?:[,;/&]|and\b|or\b|nor\b)[\s,]*(?:and\b|or\b)?\s*", first[3])
    if others or (joined and option_at_start(first[3][joined.end() :], options) is not None):
        return AMBIGUOUS
    return None if re.match(r"\s*(?:and|or|nor)\b", first[3]) else first[2]


def _rest_of_claim(rest: str) -> str | None:
    """The text after an option's words if they may end there, else None: the option `Nobody` in `Nobody knows`."""
    following = re.match(r"\s*(\w+)", rest)
    word_follows = following and following[1] not in EXPLAINS | {"and", "or", "nor"}
    return None if word_follows or re.match(r"['&/+-]\w", rest) else rest


def letter_at_start(claim: str, options: Sequence[str]) -> int | None:
    """The letter that `claim` begins with, as an index; AMBIGUOUS if more follow, or the text of another option."""
    letter, after = claim[:1], claim[1:]
    if not letter or letter.upper() not in LETTERS or NO_LETTER.match(after):
        return None
    if letter.islower() and not LOWER_CASE_LETTER.match(after):
        return None
    if MORE_LETTERS.match(after):
        return AMBIGUOUS
    index = LETTERS.index(letter.upper())
    if not options:
        return index
    rest = re.sub(r"^[\W_]+(?:and\s+)?", "", after)
    named, words = option_at_start(rest, options), words_of(rest)
    follows_directly = re.match(r"\s+(\w+)", after)
    if follows_directly and named != index and words[0] not in EXPLAINS:
        names_word = any(_contains(words_of(option), [letter.lower(), words[0]]) for option in options)
        if letter == "A" or names_word:  # `A thief`, `C major`
            return None
    phrase = words_of(re.split(r"[.,;:(]", rest)[0])
    owners = [number for number, option in enumerate(options) if phrase and _contains(words_of(option), phrase)]
    other_text = named is not None if named != index else False
    return AMBIGUOUS if other_text or (owners and index not in owners) else index


def _contains(words: list[str], phrase: list[str]) -> bool:
    return any(words[start : start + len(phrase)] == phrase for start in range(len(words)))


def _letter_alone(reply: str, options: Sequence[str]) -> int | None:
    """The answer of a reply that is nothing but `(B)`, `**B**`, `B.` or `B. ` and that option's text."""
    if not re.fullmatch(r"\W*[A-D](?:[.)\]}].*)?", reply):
        return None
    reply = reply.lstrip(OPENING)
    index, rest = letter_at_start(reply, options), reply[1:].strip(" .)]}:-")
    alone = not words_of(rest) or (index is not None and option_at_start(rest, options) == index)
    return index if alone and index != AMBIGUOUS else None


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
    return make_attempt(question, text, parse_answer(text, question.options))


def reparse_attempt(question: PromptedQuestion, attempt: dict) -> dict:
    """A journaled attempt, with its answer as the parser now reads it: an earlier version may have written it."""
    if {"scores", "error", "short_answer"} & attempt.keys():
        return attempt
    return attempt | cot_attempt(question, attempt["reasoning"])


def make_attempt(question: PromptedQuestion, reasoning: str, answer: int | None) -> dict:
    content = None if answer is None else question.options[answer]
    return {"reasoning": reasoning, "answer_index": answer, "answer_content": content}
