"""TODO data.generation.corpus_stats."""

from collections import Counter
from pathlib import Path

from data.generation import filters
from data.generation.passages import FINISHED, training_text
from tasks.documents import Document
from utils.io import read_journal


class Inspection:
    """Counts over all documents; `passages` and `documents` are what the notebook draws."""

    def __init__(self):
        self.reasons: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.grams: set[int] = set()  # hashes of 3-grams: 30 bytes each, not 200
        self.gram_count = self.entities = self.unknown = 0
        self.passages: dict[str, list] = {"kind": [], "words": [], "copied": [], "distinct": []}
        self.documents: list[dict] = []
        self.strangers: list[str] = []
        self.duplicates = filters.Duplicates()

    def add(self, file: Path, document: Document) -> None:
        source = set(filters.ngrams(filters.words_of(document.text), filters.COPIED_N))
        entities, pairs = [], []
        for record in read_journal(file):
            self.reasons[record.get("finish_reason", "")] += 1
            if record.get("kind") == "entities":
                entities = record.get("entities", [])
            elif record.get("kind") == "pair" and record.get("finish_reason") == FINISHED:
                pairs.append(record["entities"])
            if text := training_text(record):
                self._add_passage(f"{document.uid}/{record['id']}", record["kind"], text, source)
        strange = filters.entities_not_in(entities, document.text)
        self.entities += len(entities)
        self.strangers += [f"{entity} ({document.title})" for entity in strange]
        self.documents.append(
            {"uid": document.uid, "title": document.title, "entities": entities, "pairs": pairs, "strangers": strange}
        )

    def figures(self) -> dict:
        """The counts and means of the table."""
        total = len(self.passages["words"])
        means = {name: sum(self.passages[name]) / max(1, total) for name in ("words", "copied", "distinct")}
        return {
            "documents": len(self.documents),
            "passages": total,
            "truncated": self.reasons["length"],
            "filtered": self.reasons["content_filter"],
            "failed": self.reasons["error"],
            "refusals": self.flags["refusal"],
            "exact_duplicates": self.flags["exact"],
            "near_duplicates": self.flags["near"],
            "entities": self.entities,
            "entities_not_in_document": len(self.strangers),
            "words_mean": round(means["words"], 1),
            "copied_8grams": round(means["copied"], 4),
            "distinct_3_passage": round(means["distinct"], 4),
            "distinct_3_corpus": round(len(self.grams) / max(1, self.gram_count), 4),
            "unknown_files": self.unknown,
        }

    def _add_passage(self, name: str, kind: str, text: str, source: set) -> None:
        words = filters.words_of(text)
        self.flags["refusal"] += filters.is_refusal(text)
        self.flags[self.duplicates.add(name, words)] += 1
        grams = [hash(gram) for gram in filters.ngrams(words, filters.DISTINCT_N)]
        self.grams.update(grams)
        self.gram_count += len(grams)
        found = (
            kind,
            len(words),
            round(filters.copied_share(words, source), 4),
            round(filters.distinct_share(words), 4),
        )
        for values, value in zip(self.passages.values(), found, strict=True):
            values.append(value)
