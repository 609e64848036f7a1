"""Quality of step 1's passages: duplicates, refusals, loops, copies, and how much of the documents they tell.

    python data/inspect_entigraph.py                               # QuALITY, gpt-4-turbo
    python data/inspect_entigraph.py --task example --input data/example/passages

Prints a table and writes out/inspection-<folder>.json, from which notebooks/nb_entigraph.ipynb draws histograms and
the entity graph of a document.
"""

import argparse
import itertools
from pathlib import Path

from data.generation import methods
from data.generation.corpus_stats import CorpusStats
from data.generation.sections import document_uid
from tasks.documents import load_task
from utils import cli, paths
from utils.errors import UserError, run
from utils.io import write_json

LABELS = {
    "documents": "documents",
    "passages": "passages",
    "truncated": "cut at --max_tokens",
    "trimmed": "of them kept up to their last complete sentence",
    "filtered": "blocked by a content filter",
    "blank": "replies without text",
    "failed": "failed calls",
    "refusals": "refusals",
    "looping": "passages that repeat themselves (distinct-3 below 0.5)",
    "repeat_prompt": "passages that repeat the prompt",
    "exact_duplicates": "exact duplicates of an earlier passage",
    "near_duplicates": "near duplicates (Jaccard 0.8 of 5-word shingles)",
    "entities": "entities",
    "entities_not_in_document": "entities that are not in their document",
    "words_mean": "words per passage, mean",
    "copied_8grams": "8-grams copied from the source, mean fraction",
    "distinct_3_passage": "distinct-3 within a passage, mean",
    "distinct_3_corpus": "distinct-3 over all passages",
    "unknown_files": "files of documents that are not in the task",
    "supported_sentences": "sentences of passages that their document supports, fraction",
    "statements": "statements of the documents",
    "told_once": "of them told by at least one passage, fraction",
    "tellings_median": "passages that tell a statement, median",
}


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    cli.add_task_flag(parser)
    cli.add_generator_flag(parser)
    parser.add_argument("--method", choices=methods.METHODS, default="entigraph", help="generation method")
    parser.add_argument("--input", type=Path, metavar="FOLDER", help="a folder of passages (default: step 1's)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    folder = args.input or paths.passages_dir(args.task, args.model, args.method)
    files = sorted(folder.glob("*.jsonl"), key=lambda file: (document_uid(file.stem), file.stem))
    if not files:
        raise UserError(f"{folder}: contains no passages; run: python data/entigraph.py all")
    documents = {document.uid: document for document in load_task(args.task)}
    stats = CorpusStats()
    journals = itertools.groupby(files, key=lambda file: document_uid(file.stem))
    for uid, group in cli.progress_bar(iterable=journals, unit="document"):
        if uid in documents:
            stats.add(list(group), documents[uid])
        else:
            stats.unknown_files += len(list(group))
    figures = stats.figures()
    target = paths.out_dir() / f"inspection-{folder.name}.json"
    least_told, least_supported = stats.least_told(), stats.least_supported()
    details = {"passages": stats.passages, "documents": stats.documents, "least_told": least_told}
    details["least_supported"] = least_supported
    write_json(target, {"folder": str(folder), "figures": figures} | details)
    for name, label in LABELS.items():
        print(f"{label:60}{figures[name]:>12,}")
    print(f"\nThe {len(least_told)} least told statements (data/generation/coverage.py says what telling means):")
    for title, statement, count in least_told:
        print(f"{count:6}  {title}: {statement}")
    if least_supported:
        print("\nThe passages with the largest share of sentences that their document does not support:")
    for share, title, sentence, reason in least_supported:
        print(f"{share:6.0%}  {title}: {sentence} ({reason})")
    cli.print_result(figures, str(target))


if __name__ == "__main__":
    run(main)
