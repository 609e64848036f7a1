"""Coverage: how many passages tell each statement of a document.

A statement is a sentence, or a part of a long one between commas, dashes and semicolons. A passage tells it if two
adjacent sentences of the passage share MIN_SHARED of the weight of its words and numbers; a word's weight is its
inverse document frequency, log((statements + 1) / (statements with it + 0.5)), and words of the title do not count.
Calibrated on passages whose answers to 84 questions are known (LOG.md, 2026-11-27). Knows texts, nothing of journals.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise

import numpy as np

from utils.sentences import split_sentences
from utils.words import has_unspaced_script, words_of

MIN_SHARED = 0.24
STEM_LETTERS = 6  # words are compared by their beginnings: `lighthouses` and `lighthouse`, `painted` and `painting`
COMMON = 0.05  # words in more than this share of the statements do not count, unless it is MIN_COMMON or less
MIN_COMMON = 3  # statements
MIN_CONTENT_WORDS = 2  # of a statement; shorter parts of a sentence belong to the part before
# Frequent words of three letters and more in English; short documents have too few statements to show them.
FUNCTION_WORDS = frozenset(
    [
        "the",
        "and",
        "for",
        "was",
        "were",
        "are",
        "has",
        "had",
        "have",
        "been",
        "being",
        "not",
        "but",
        "with",
        "that",
        "this",
        "these",
        "those",
        "from",
        "into",
        "onto",
        "upon",
        "than",
        "then",
        "they",
        "them",
        "their",
        "there",
        "where",
        "when",
        "while",
        "which",
        "who",
        "whom",
        "whose",
        "what",
        "why",
        "how",
        "his",
        "her",
        "hers",
        "him",
        "she",
        "its",
        "our",
        "you",
        "your",
        "all",
        "any",
        "each",
        "both",
        "few",
        "more",
        "most",
        "some",
        "such",
        "only",
        "own",
        "same",
        "too",
        "very",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
        "did",
        "does",
        "done",
        "about",
        "above",
        "after",
        "again",
        "against",
        "because",
        "before",
        "below",
        "between",
        "down",
        "during",
        "here",
        "off",
        "once",
        "out",
        "over",
        "under",
        "until",
        "also",
        "just",
        "one",
        "two",
    ]
)
BREAK = re.compile(r"(?<=[,;:，；：、—–])\s*|\s+[—–-]\s+")


class Statements:
    """The statements of a document, and which passages tell them."""

    def __init__(self, title: str, text: str):
        self.sentences = split_sentences(text)
        parts = [(part, number) for number, sentence in enumerate(self.sentences) for part in split_parts(sentence)]
        self.texts = [part for part, _ in parts]
        self.sentence_of = np.array([number for _, number in parts], int)
        self.stems = [stems(text) for text in self.texts]
        self._title = stems(title)

    @cached_property
    def _weights(self):
        """(words, statements) sparse: each word's share of a statement's weight; the vocabulary is in _index."""
        from scipy.sparse import csc_array

        contents = [words - self._title or words for words in self.stems]
        distinct = set(map(frozenset, contents))  # a sentence that is repeated does not make its words common
        counts = Counter(word for words in distinct for word in words)
        limit = max(COMMON * len(distinct), MIN_COMMON)
        weight = {word: np.log((len(distinct) + 1) / (count + 0.5)) for word, count in counts.items()}
        self._index = {word: row for row, word in enumerate(sorted(weight))}
        rows, columns, values = [], [], []
        for column, words in enumerate(contents):
            known = sorted(word for word in words if counts[word] <= limit) or sorted(words)
            whole = sum(weight[word] for word in known)
            rows += [self._index[word] for word in known]
            columns += [column] * len(known)
            values += [weight[word] / whole for word in known]
        return csc_array((values, (rows, columns)), shape=(len(weight), len(contents)))

    def told_by(self, passage: str) -> np.ndarray:
        """(statements,) bool: those that a passage tells."""
        return self.shared_with(passage) >= MIN_SHARED

    def shared_with(self, passage: str) -> np.ndarray:
        """(statements,): the largest share of a statement's weight in two adjacent sentences of a passage."""
        from scipy.sparse import csr_array

        weights = self._weights
        sentences = [stems(sentence) for sentence in split_sentences(passage)]
        windows = [one | other for one, other in pairwise(sentences)] or sentences
        if not windows or not self.texts:
            return np.zeros(len(self.texts))
        places = [
            (row, self._index[word]) for row, words in enumerate(windows) for word in words if word in self._index
        ]
        rows, columns = zip(*places, strict=True) if places else ((), ())
        occurrences = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(windows), weights.shape[0]))
        return (occurrences @ weights).toarray().max(axis=0)

    def tellings(self, passages: Iterable[str]) -> np.ndarray:
        """(statements,) int: the number of passages that tell each."""
        return sum((self.told_by(passage).astype(int) for passage in passages), np.zeros(len(self.texts), int))


def split_parts(sentence: str) -> list[str]:
    """A sentence, split where it is long enough for parts of MIN_CONTENT_WORDS or more."""
    parts: list[str] = []
    for piece in filter(None, BREAK.split(sentence)):
        if parts and min(len(stems(parts[-1])), len(stems(piece))) < MIN_CONTENT_WORDS:
            parts[-1] += f" {piece}"
        else:
            parts.append(piece)
    return [part for part in parts if len(stems(part)) >= MIN_CONTENT_WORDS]


def stems(text: str) -> set[str]:
    """The beginnings of a text's content words, and its numbers; pairs of characters in scripts without spaces."""
    words = words_of(text)
    if has_unspaced_script(text):
        return {one + other for one, other in pairwise(words)}
    return {word[:STEM_LETTERS] for word in words if word.isdecimal() or (len(word) > 2 and word not in FUNCTION_WORDS)}
