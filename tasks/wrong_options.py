"""Wrong options from the answers about other documents, for generators too small to write good ones."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from tasks.documents import OPTIONS, Document, article_text
from tasks.facts import STOPWORDS, are_alike, contains, stems
from tasks.quiz import DraftQuestion, option_fault, plain_options
from utils.words import words_of

SOURCES = ("auto", "model", "documents")
NAMES = ("person", "place", "name")
PARTICLES = {"of", "the", "and", "de", "la", "van", "von", "der", "di", "al", "at", "on", "&"}
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
NUMBER_WORDS = frozenset(
    words_of(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion "
        "half dozen once twice"
    )
)
YEAR = re.compile(r"(?:in |since |from |until |by |the )*(?:1\d{3}|20\d\d)s?", re.I)
DATE = re.compile(rf"\b(?:{MONTHS})\b.*\d|\d.*\b(?:{MONTHS})\b|\b\d{{4}}-\d\d-\d\d\b")
PERSON_QUESTION, PLACE_QUESTION = (
    re.compile(r"\b(?:who|whom|whose)\b", re.I),
    re.compile(r"\b(?:where|(?:which|what) (?:town|place|city|village|country|island|harbou?r|river|street))\b", re.I),
)
LENGTH_STEP = 4  # characters: smaller differences of length do not matter
OWN, DRAWN = "with the model's wrong options", "with wrong options from other documents"
TOO_FEW = "too few wrong options"


@dataclass(frozen=True)
class Answer:
    """The right answer of a question, as it is written in the middle of a sentence."""

    text: str
    kind: str
    uid: str  # of its document


def answer_kind(right: str, question: str, text: str) -> str:
    """`year`, `date`, `number`, `person`, `place`, `name` or `phrase`; `text` is the document's."""
    if YEAR.fullmatch(right):
        return "year"
    if DATE.search(right):
        return "date"
    if re.search(r"\d", right) or NUMBER_WORDS & set(words_of(right)):
        return "number"
    if not is_name(right, text):
        return "phrase"
    return "person" if PERSON_QUESTION.search(question) else "place" if PLACE_QUESTION.search(question) else "name"


def is_name(right: str, text: str) -> bool:
    """True if all words but particles have a capital letter, also within the sentences of the text."""
    words = [word for word in re.findall(r"[\w&'’-]+", right) if word.lower() not in PARTICLES | {"a", "an"}]
    return bool(words) and all(word[0].isupper() and not has_word(text, word.lower()) for word in words)


def has_word(text: str, word: str) -> bool:
    """True if a text has a word with exactly these letters, upper or lower case as given."""
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text))


def uncapitalized(text: str, source: str) -> str:
    """A text without the capital letter of a beginning; that of a name is kept."""
    first = re.match(r"\w*", text)[0]
    lower = first.lower()
    is_common = lower in STOPWORDS | NUMBER_WORDS or has_word(source, lower)
    return lower + text[len(first) :] if is_common else text


def collect_answers(drafts: Iterable[tuple[Document, DraftQuestion]]) -> list[Answer]:
    """The right answers of all questions, without repetitions."""
    answers: dict[tuple[str, str], Answer] = {}
    for document, draft in drafts:
        text, right = article_text(document), draft.options[0]
        kind = answer_kind(right, draft.text, text)
        answers.setdefault((right.lower(), kind), Answer(uncapitalized(right, text), kind, document.uid))
    return list(answers.values())


def draw_options(draft: DraftQuestion, document: Document, answers: list[Answer], seed: int) -> DraftQuestion | None:
    """The question with three wrong options from `answers`; None if too few fit.

    They are of the right answer's kind, from other documents, and not said in this one. The most alike in form are
    taken (same first function word or unit, similar length), in a seeded order among equals.
    """
    text, right = article_text(document), draft.options[0]
    kind = answer_kind(right, draft.text, text)
    rng = np.random.default_rng(list(f"{seed}/{draft.id}/wrong".encode()))
    others = [answer for answer in answers if answer.uid != document.uid and not is_said(answer.text, text)]
    shuffled = [others[index] for index in rng.permutation(len(others))]
    for kinds in ((kind,), NAMES) if kind in NAMES else ((kind,),):
        fitting = [answer.text for answer in shuffled if answer.kind in kinds]
        fitting.sort(key=lambda other: unlikeness(right, other, kind))
        wrong: list[str] = []
        for other in fitting:
            if len(wrong) < OPTIONS - 1 and not any(are_alike(other, known) for known in (right, *wrong)):
                wrong.append(other)
        drawn = replace(draft, options=tuple(plain_options(right, *(like_case(other, right) for other in wrong))))
        if len(wrong) == OPTIONS - 1 and not option_fault(drawn):
            return drawn
    return None


def is_said(answer: str, text: str) -> bool:
    """True if a text has an answer's words in their order, or all its content words: it may be right there too."""
    return contains(text, answer) or stems(answer) <= stems(text)


def unlikeness(right: str, other: str, kind: str) -> tuple[int, int]:
    """Difference of form of two answers of one kind: function word at the beginning, or unit of a number; length."""
    place = -1 if kind == "number" else 0
    edges = [words_of(text)[place] if words_of(text) else "" for text in (right, other)]
    if kind != "number":
        edges = [edge if edge in STOPWORDS else "" for edge in edges]
    return int(edges[0] != edges[1]), abs(len(right) - len(other)) // LENGTH_STEP


def like_case(other: str, right: str) -> str:
    """A wrong option that begins with a capital letter if the correct one does."""
    return other[:1].upper() + other[1:] if right[:1].isupper() else other


def choose_options(
    drafts: dict[str, list[DraftQuestion]], documents: list[Document], source: str, seed: int
) -> tuple[dict[str, list[DraftQuestion]], Counter]:
    """The questions by document with their wrong options, and counts. `source` is one of SOURCES; auto keeps the
    model's options if they pass screening. Questions for which too few other answers fit are dropped."""
    pairs = [(document, draft) for document in documents for draft in drafts.get(document.uid, [])]
    answers = collect_answers(pairs)
    chosen: dict[str, list[DraftQuestion]] = {document.uid: [] for document in documents}
    counts = Counter({OWN: 0, DRAWN: 0, TOO_FEW: 0})
    for document, draft in pairs:
        own = source == "model" or (source == "auto" and not option_fault(draft))
        result = draft if own else draw_options(draft, document, answers, seed)
        counts[OWN if own else DRAWN if result else TOO_FEW] += 1
        if result:
            chosen[document.uid].append(result)
    return chosen, counts
