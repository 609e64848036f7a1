"""Statistics of a corpus of passages: duplicates, faults, copied text, absent entities, coverage of the documents."""

import functools
import itertools
from collections import Counter
from pathlib import Path

import numpy as np

from data.generation import filters
from data.generation.coverage import Statements
from data.generation.methods import distinct_names
from data.generation.passages import (
    BLANK,
    CUT,
    FAILED,
    FILTERED,
    FINISHED,
    finish_reason,
    is_stale,
    read_records,
    training_text,
)
from data.generation.support import Source
from tasks.documents import Document
from utils import paths
from utils.io import read_text

SHOWN = 10  # statements and passages


@functools.cache
def prompt_ngrams() -> set[tuple[str, ...]]:
    """The n-grams of all prompts of step 1, without the text and the names that are filled in."""
    files = sorted(paths.generation_prompts_dir().rglob("*.md"))
    words = [filters.words_of(read_text(file, "it ships with the repository")) for file in files]
    return {gram for listed in words for gram in filters.ngrams(listed, filters.PROMPT_N)}


class CorpusStats:
    """Counts over the journals of all documents; notebooks draw `passages` and `documents`."""

    def __init__(self):
        self.finish_reasons: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.grams: set[int] = set()  # hashes of 3-grams: 30 bytes each instead of 200
        self.gram_count = self.entities = self.absent_entities = self.unknown_files = 0
        self.passages: dict[str, list] = {"kind": [], "words": [], "copied": [], "distinct": []}
        self.documents: list[dict] = []
        self.sentences = self.unsupported = 0
        self._least_supported: list[tuple[float, str, str, str]] = []  # share, title, sentence, reason
        self.statements: list[tuple[str, str, int]] = []  # title, statement, passages that tell it
        self.duplicates = filters.Duplicates()

    def add(self, files: list[Path], document: Document) -> None:
        """Count the journals of a document, several if it was split into sections."""
        source = set(filters.ngrams(filters.words_of(document.text), filters.COPIED_N))
        statements, known, tellings = Statements(document.title, document.text), Source(document), []
        entities, pairs = [], []
        for record in itertools.chain.from_iterable(map(read_records, files)):
            reason = finish_reason(record)
            self.finish_reasons[reason] += 1
            if record.get("kind") == "entities":
                entities += record.get("entities", [])
            elif record.get("kind") == "pair" and reason == FINISHED:
                pairs.append(record["entities"])
            if is_stale(record, document.source_sha256):
                self.flags["stale"] += bool(training_text(record))
            elif text := training_text(record):
                self.flags["trimmed"] += reason == CUT
                self._add_passage(f"{document.uid}/{record['id']}", record["kind"], text, source)
                self._add_support(document.title, known.check(text))
                tellings.append(text)
        entities = distinct_names(entities)
        absent = filters.entities_not_in(entities, document.text)
        self.entities += len(entities)
        self.absent_entities += len(absent)
        self.documents.append(
            {"uid": document.uid, "title": document.title, "entities": entities, "pairs": pairs, "strangers": absent}
        )
        counts = statements.tellings(tellings)
        self.statements += zip([document.title] * len(counts), statements.texts, counts.tolist(), strict=True)

    def least_told(self, number: int = SHOWN) -> list[tuple[str, str, int]]:
        """Title, statement and tellings of the statements told by the fewest passages."""
        return sorted(self.statements, key=lambda row: row[2])[:number]

    def least_supported(self, number: int = SHOWN) -> list[tuple[float, str, str, str]]:
        """Of the passages with the largest share of unsupported sentences: that share, the title, and the first of those
        sentences with the reason."""
        return sorted(self._least_supported, key=lambda row: -row[0])[:number]

    def _add_support(self, title: str, checked: tuple[int, list[tuple[str, str]]]) -> None:
        count, faults = checked
        self.sentences += count
        self.unsupported += len(faults)
        if faults:
            self._least_supported.append((round(len(faults) / count, 4), title, *faults[0]))

    def figures(self) -> dict:
        total = len(self.passages["words"])
        counts = np.array([count for _, _, count in self.statements], int)
        means = {name: sum(self.passages[name]) / max(1, total) for name in ("words", "copied", "distinct")}
        return {
            "documents": len(self.documents),
            "passages": total,
            "stale": self.flags["stale"],
            "truncated": self.finish_reasons[CUT],
            "trimmed": self.flags["trimmed"],
            "filtered": self.finish_reasons[FILTERED],
            "blank": self.finish_reasons[BLANK],
            "failed": self.finish_reasons[FAILED],
            "refusals": self.flags["refusal"],
            "looping": self.flags["looping"],
            "repeat_prompt": self.flags["prompt"],
            "exact_duplicates": self.flags["exact"],
            "near_duplicates": self.flags["near"],
            "entities": self.entities,
            "entities_not_in_document": self.absent_entities,
            "words_mean": round(means["words"], 1),
            "copied_8grams": round(means["copied"], 4),
            "distinct_3_passage": round(means["distinct"], 4),
            "distinct_3_corpus": round(len(self.grams) / max(1, self.gram_count), 4),
            "unknown_files": self.unknown_files,
            "supported_sentences": round(1 - self.unsupported / max(1, self.sentences), 4),
            "statements": len(counts),
            "told_once": round(float(np.mean(counts > 0)), 4) if len(counts) else 0.0,
            "tellings_median": float(np.median(counts)) if len(counts) else 0.0,
        }

    def _add_passage(self, name: str, kind: str, text: str, source: set) -> None:
        words = filters.words_of(text)
        self.flags["refusal"] += filters.is_refusal(text)
        self.flags["looping"] += filters.is_looping(words)
        self.flags["prompt"] += filters.repeats_prompt(words, prompt_ngrams())
        self.flags[self.duplicates.add(name, words)] += 1
        grams = [hash(gram) for gram in filters.ngrams(words, filters.DISTINCT_N)]
        self.grams.update(grams)
        self.gram_count += len(grams)
        copied, distinct = filters.copied_share(words, source), filters.distinct_share(words)
        row = (kind, len(words), round(copied, 4), round(distinct, 4))
        for values, value in zip(self.passages.values(), row, strict=True):
            values.append(value)
