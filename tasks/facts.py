"""Sentences and facts of documents: which to ask about, and whether a text states an answer."""

import functools
import math
import re

import numpy as np

from tasks.documents import Document
from utils.sentences import split_sentences
from utils.words import words_of

# Content words of a sentence to ask about, if it has a name or number, and if not: `It lies before me now, good as new`
# says little.
MIN_CONTENT_WORDS, MIN_PLAIN_WORDS = 5, 8
GOLDEN = (math.sqrt(5) - 1) / 2
STOPWORDS = frozenset(
    words_of(
        "a an the of in on at to by for from with and or but as is are was were be been it its his her their this that "
        "these those which who whom whose what when where why how did does do had has have not no than then into about "
        "after before because so he she they them him i you we there one"
    )
)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text that state something: with MIN_CONTENT_WORDS content words, a name or number among
    them, or with MIN_PLAIN_WORDS."""
    sentences = split_sentences(text)
    return [sentence for sentence in sentences if len(content_words(sentence)) >= _least_words(sentence)]


def _least_words(sentence: str) -> int:
    named = re.search(r"\d|(?<=[^\W\d_][ ,])[^\Wa-z_]\w", sentence)
    return MIN_CONTENT_WORDS if named else MIN_PLAIN_WORDS


def choose_sentences(document: Document, number: int, seed: int) -> list[tuple[int, str]]:
    """`number` sentences of a document (or all, if it has fewer) with their indices, spread over the whole of it.

    The order is an additive sequence with the golden ratio from a seeded start, whose beginnings are evenly spread
    too: a larger number extends the sequence of a smaller one, so that its replies are used again.
    """
    sentences = sentences_of(document.text)
    start = np.random.default_rng(list(f"{seed}/{document.uid}/sentences".encode())).random()
    free, chosen = list(range(len(sentences))), []
    for step in range(min(number, len(sentences))):
        place = (start + step * GOLDEN) % 1 * len(sentences)
        chosen.append(min(free, key=lambda index: (abs(index + 0.5 - place), index)))
        free.remove(chosen[-1])
    return [(index, sentences[index]) for index in chosen]


def content_words(text: str) -> set[str]:
    """The words of a text without English function words; all of them if it has no others."""
    words = set(words_of(text))
    return words - STOPWORDS or words


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"\d+", text))


def contains(text: str, phrase: str) -> bool:
    """True if the words of a phrase stand in a text in their order; case and punctuation do not count."""
    words = words_of(phrase)
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(words_of(text))} "


@functools.lru_cache(maxsize=4096)
def stems(text: str) -> frozenset[str]:
    """The content words of a text without English endings."""
    import Stemmer

    return frozenset(Stemmer.Stemmer("english").stemWords(sorted(content_words(text))))


def support(answer: str, source: str) -> float:
    """The fraction of the answer's content words that a text has. 0 if it lacks a number of the answer."""
    if not numbers_in(answer) <= numbers_in(source) or not stems(answer):
        return 0.0
    return len(stems(answer) & stems(source)) / len(stems(answer))


def are_alike(one: str, other: str) -> bool:
    """True if one of two answers has all content words of the other: `Admiral` and `a goose called Admiral`."""
    first, second = stems(one), stems(other)
    return first <= second or second <= first
