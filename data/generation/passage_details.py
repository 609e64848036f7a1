"""The passages of one document beside the source: unsupported and copied sentences, what each rests on, duplicates.

Knows journals and documents, nothing of how they are shown.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data.generation import filters
from data.generation.coverage import Statements
from data.generation.methods import distinct_names
from data.generation.passages import CUT, FAILED, FINISHED, finish_reason, is_stale, read_records, training_text
from data.generation.support import MARKUP, Source
from inference.completions import PROMPT_CUT
from inference.prices import Usage
from tasks.documents import Document
from utils.sentences import split_sentences

STALE = "about an earlier version of the document"
UNUSED = "not trained on"  # flag of a reply that is not in the training corpus
UNSUPPORTED = 0.2  # fraction of a passage's sentences, above which it has the flag


@dataclass
class Sentence:
    """A sentence of a passage. `reason` says why the document does not support it; empty if it does."""

    text: str
    reason: str
    copied: bool  # COPIED_N or more consecutive words of the document


@dataclass
class Passage:
    """A reply, as it is shown. `lines` are its lines, as sentences; `told` the numbers of the document's sentences that
    it tells; `duplicate_of` the record id of an earlier passage."""

    id: str
    kind: str
    entities: list[str]
    flags: list[str]
    lines: list[list[Sentence]]
    told: list[int]
    duplicate_of: str = ""


@dataclass
class Journals:
    """Counts over all records of a document, the listed entities, and the records that are shown."""

    entities: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    usage: Usage = Usage()
    pairs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    shown: list[dict] = field(default_factory=list)


def read_document(files: list[Path], limit: int) -> Journals:
    """Read the journals of a document, one record in memory at a time. Of more than `limit` passages those with the
    smallest record ids are kept, which are hashes: a random choice, and the same every time."""
    journals = Journals()

    def passages() -> Iterator[dict]:
        for record in itertools.chain.from_iterable(map(read_records, files)):
            journals.reasons[finish_reason(record)] += 1
            journals.usage += billed(record)
            if record["kind"] in ("entities", "strategies"):
                journals.entities += record["entities"]
            elif record["text"]:
                journals.kinds[record["kind"]] += 1
                if record["kind"] == "pair":
                    journals.pairs[tuple(record["entities"])] += 1
                yield record

    journals.shown = heapq.nsmallest(limit, passages(), key=lambda record: record["id"])
    journals.entities = distinct_names(journals.entities)
    return journals


def billed(record: dict) -> Usage:
    usage = record.get("usage")
    counts = (
        (usage.get(f"{name}_tokens") for name in ("prompt", "cached", "completion")) if isinstance(usage, dict) else ()
    )
    return Usage(*(count if isinstance(count, int) else 0 for count in counts))


class Describer:
    """Describes the passages of one document, in order; duplicates are those of earlier ones."""

    def __init__(self, document: Document):
        self.document = document
        self.statements = Statements(document.title, document.text)
        self._source = Source(document)
        self._duplicates = filters.Duplicates()

    @cached_property
    def _grams(self) -> set[tuple[str, ...]]:
        return set(filters.ngrams(filters.words_of(self.document.text), filters.COPIED_N))

    def describe(self, record: dict) -> Passage:
        text, is_old = record["text"], is_stale(record, self.document.source_sha256)
        used = "" if is_old else training_text(record)
        lines = [self._sentences(line) for line in text.split("\n")]
        words = filters.words_of(text)
        told = sorted(set(self.statements.sentence_of[self.statements.told_by(used)].tolist())) if used else []
        passage = Passage(record["id"], record["kind"], record["entities"], [], lines, told)
        if used:
            kind = self._duplicates.add(passage.id, words)
            passage.duplicate_of = self._duplicates.originals.get(passage.id, "") if kind else ""
        passage.flags = self._flags(record, passage, words, text, used)
        return passage

    def _sentences(self, line: str) -> list[Sentence]:
        heading, sentences = line.lstrip().startswith("#"), []
        for text in split_sentences(line):
            plain = MARKUP.sub(" ", text)
            reason = "" if heading else self._source.fault(plain)
            copied = any(gram in self._grams for gram in filters.ngrams(filters.words_of(plain), filters.COPIED_N))
            sentences.append(Sentence(text, reason, copied))
        return sentences

    def _flags(self, record: dict, passage: Passage, words: list[str], text: str, used: str) -> list[str]:
        reason = finish_reason(record)
        flags = {FAILED: ["failed"], PROMPT_CUT: ["prompt cut"], CUT: ["cut"], FINISHED: []}.get(reason, [reason])
        sentences = list(itertools.chain.from_iterable(passage.lines))
        unsupported = sum(bool(sentence.reason) for sentence in sentences)
        checks = {
            UNUSED: not used,
            STALE: is_stale(record, self.document.source_sha256),
            "refused": filters.is_refusal(text),
            "looping": filters.is_looping(words),
            "copied": any(sentence.copied for sentence in sentences),
            "unsupported": unsupported > UNSUPPORTED * len(sentences),
            "duplicate": bool(passage.duplicate_of),
        }
        return flags + [flag for flag, holds in checks.items() if holds]
