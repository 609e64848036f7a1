"""Sentences of a passage that its document does not support: names and numbers that it does not have, foreign words.

Calibrated on the shipped passages with planted errors (LOG.md, 2026-11-27).
"""

import re

from data.generation.coverage import STEM_LETTERS, stems
from tasks.documents import Document, article_text
from utils.sentences import split_sentences
from utils.words import words_of

MIN_KNOWN = 0.25  # of a sentence's content words; a writer's own words are not in the document
MIN_CONTENT_WORDS = 4
CAPITALISED = re.compile(r"(?<![.!?:…\"“”'‘’(\[]\s)(?<!^)(?<=\s)[^\Wa-z_\d][\w'’-]+")  # not at the start of a sentence
NUMBER = re.compile(r"\d[\d.,]*\d|\d")
MARKUP = re.compile(r"^\s*(?:[-•]|\d+[.)])\s+|[#*_`>|]+")
UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


class Source:
    """Words and numbers of a document, and the check of sentences against them."""

    def __init__(self, document: Document):
        whole = article_text(document)
        self._stems = stems(whole)
        self._words = set(words_of(whole))
        self._numbers = numbers_of(whole) | spelled_numbers(whole)

    def check(self, passage: str) -> tuple[int, list[tuple[str, str]]]:
        """The number of sentences of a passage, and (sentence, reason) of those that the document does not support."""
        count, faults = 0, []
        for line in passage.split("\n"):
            if line.lstrip().startswith("#"):
                continue  # a heading
            for sentence in split_sentences(MARKUP.sub(" ", line)):
                count += 1
                if reason := self.fault(sentence):
                    faults.append((sentence, reason))
        return count, faults

    def fault(self, sentence: str) -> str:
        """The reason why a sentence is not supported; empty if it is."""
        if foreign := sorted(numbers_of(sentence) - self._numbers):
            return f"{foreign[0]} is not in the document"
        for name in CAPITALISED.findall(sentence):
            if not any(word in self._words or word[:STEM_LETTERS] in self._stems for word in words_of(name)):
                return f"{name} is not in the document"
        content = stems(sentence)
        if len(content) >= MIN_CONTENT_WORDS and len(content & self._stems) < MIN_KNOWN * len(content):
            return "few of its words are in the document"
        return ""


def spelled_numbers(text: str) -> set[str]:
    """Numbers below 100 that are written in English words, in digits."""
    words, numbers = words_of(text), set()
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in UNITS:
            numbers.add(str(UNITS.index(word)))
        elif word in TENS:
            tens = 10 * TENS.index(word) + 20
            numbers.add(str(tens + UNITS.index(following) if following in UNITS[1:10] else tens))
    return numbers


def numbers_of(text: str) -> set[str]:
    """Numbers without separators of thousands."""
    return {re.sub(r"(?<=\d)[,.](?=\d{3}\b)", "", number) for number in NUMBER.findall(text)}
