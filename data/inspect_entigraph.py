"""Look at what step 1 gave: duplicates, refusals, copies, entities that are not in their document.

    python data/inspect_entigraph.py                               # QuALITY, gpt-4-turbo
    python data/inspect_entigraph.py --task example --input data/example/passages

Prints a table and, as its last line, its figures as JSON; writes out/inspection-<folder>.json, from
which notebooks/nb_entigraph.ipynb draws the entity graph of a document and the histograms.
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from data.generation import methods
from data.generation.corpus_stats import Inspection
from tasks.documents import load_task
from utils import paths
from utils.errors import UserError, run
from utils.io import write_json


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
        {"folder": str(folder), "figures": result, "passages": inspected.passages, "documents": inspected.documents},
    )
    print(target)
    print(json.dumps(result))


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
