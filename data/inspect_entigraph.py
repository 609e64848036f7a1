"""Look at what step 1 gave: duplicates, refusals, copies, entities that are not in their document.

    python data/inspect_entigraph.py                               # QuALITY, gpt-4-turbo
    python data/inspect_entigraph.py --task example --input data/example/passages

Prints a table and, as its last line, its figures as JSON; writes out/inspection-<folder>.json, from
which notebooks/nb_entigraph.ipynb draws the entity graph of a document and the histograms.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data.generation import filters, methods
from data.generation.passages import FINISHED, passage_of
from tasks.documents import Document, load_task
from utils import paths
from utils.io import UserError, read_journal, run, write_json


# fmt: off
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="quality", help="quality, example or your own (default quality)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="whose passages (default %(default)s)")
    add("--method", choices=methods.METHODS, default="entigraph", help="default %(default)s")
    add("--input", type=Path, metavar="FOLDER", help="a folder of passages (default: step 1's)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    folder = args.input or paths.passages_dir(args.task, args.model, args.method)
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"{folder}: holds no passages; run: python data/entigraph.py all")
    documents = {document.uid: document for document in load_task(args.task)}
    inspected = Inspection()
    for file in tqdm(files, unit="document", disable=None):
        if file.stem in documents:
            inspected.add(file, documents[file.stem])
        else:
            inspected.unknown += 1
    result = inspected.figures()
    print_table(result)
    target = paths.out_dir() / f"inspection-{folder.name}.json"
    write_json(
        target,
        {"folder": str(folder), "figures": result, "passages": inspected.passages,
         "documents": inspected.documents},
    )  # fmt: skip
    print(target)
    print(json.dumps(result))


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
            if text := passage_of(record):
                self._add_passage(f"{document.uid}/{record['id']}", record["kind"], text, source)
        strange = filters.strangers(entities, document.text)
        self.entities += len(entities)
        self.strangers += [f"{entity} ({document.title})" for entity in strange]
        self.documents.append(
            {"uid": document.uid, "title": document.title, "entities": entities, "pairs": pairs,
             "strangers": strange}
        )  # fmt: skip

    def figures(self) -> dict:
        """The counts and means of the table."""
        total = len(self.passages["words"])
        means = {
            name: sum(self.passages[name]) / max(1, total)
            for name in ("words", "copied", "distinct")
        }
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
        found = (kind, len(words), round(filters.copied_share(words, source), 4),
                 round(filters.distinct_share(words), 4))  # fmt: skip
        for values, value in zip(self.passages.values(), found, strict=True):
            values.append(value)


def print_table(figures: dict) -> None:
    labels = {
        "documents": "documents",
        "passages": "passages that ended well",
        "truncated": "cut at the longest reply",
        "filtered": "stopped by a content filter",
        "failed": "failed calls",
        "refusals": "refusals",
        "exact_duplicates": "exact duplicates of an earlier passage",
        "near_duplicates": "near duplicates (Jaccard 0.8 of 5-word shingles)",
        "entities": "entities",
        "entities_not_in_document": "of them not in their document",
        "words_mean": "words of a passage, mean",
        "copied_8grams": "8-grams copied from the source, mean share",
        "distinct_3_passage": "distinct-3 within a passage, mean",
        "distinct_3_corpus": "distinct-3 of all passages together",
        "unknown_files": "files of documents that the task does not have",
    }
    for name, label in labels.items():
        print(f"{label:52}{figures[name]:>12,}")


if __name__ == "__main__":
    run(main)
