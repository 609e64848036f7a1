"""Quality of step 1's passages: duplicates, refusals, loops, copies, and how much of the documents they tell.

    python data/inspect_entigraph.py                               # QuALITY, gpt-4-turbo
    python data/inspect_entigraph.py --task example --input data/example/passages
    python data/inspect_entigraph.py --task example --input data/example/passages --html     # a page to read them
    python data/inspect_entigraph.py --task example --input data/example/passages --show 0   # one document, here

Prints a table and writes out/inspection-<folder>.json, from which notebooks/nb_entigraph.ipynb draws histograms and
the entity graph of a document. --html writes out/<task>-passages.html in place of that: documents, entity graphs, and
each passage beside the sentences of its source.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from data.generation import methods
from data.generation.corpus_stats import CorpusStats
from data.generation.filters import entities_not_in
from data.generation.passage_details import Describer, Passage, read_document
from data.generation.passage_page import write_page
from data.generation.sections import document_uid
from inference.prices import find_price
from tasks.documents import Document, load_task
from utils import cli, paths
from utils.errors import UserError, run
from utils.io import write_json
from utils.progress import progress_bar

SHOWN_NAMES = 20
LABELS = {
    "documents": "documents",
    "passages": "passages",
    "stale": "not counted: about an earlier version of their document",
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
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--html", action="store_true", help="write a page with the passages beside their source")
    show_help = "print the passages of one document: its index from 0, its uid, or words of its title"
    form.add_argument("--show", metavar="DOCUMENT", help=show_help)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    folder = args.input or paths.passages_dir(args.task, args.model, args.method)
    files = sorted(folder.glob("*.jsonl"), key=lambda file: (document_uid(file.stem), file.stem))
    if not files:
        raise UserError(f"{folder}: contains no passages; run: python data/entigraph.py all")
    documents = {document.uid: document for document in load_task(args.task)}
    groups = {uid: list(group) for uid, group in itertools.groupby(files, key=lambda file: document_uid(file.stem))}
    if args.show is not None:
        print_document(choose_document(args.show, list(documents.values())), groups)
    elif args.html:
        known = [(documents[uid], group) for uid, group in groups.items() if uid in documents]
        bar = progress_bar(iterable=known, desc="reading", unit="document")
        target = paths.passage_page(args.task)
        price = None if args.input else find_price(paths.prices_file(), args.model)
        title = f"Passages of {args.task}" + ("" if args.input else f" by {args.model}")
        result = write_page(target, title, bar, len(known), price)
        cli.print_result(result, f"{result['shown']:,} of {result['passages']:,} passages -> {target}")
    else:
        print_statistics(folder, documents, groups)


def print_statistics(folder: Path, documents: dict[str, Document], groups: dict[str, list[Path]]) -> None:
    """Print the table, and write it with the values of each passage."""
    stats = CorpusStats()
    for uid, group in progress_bar(iterable=groups.items(), unit="document"):
        if uid in documents:
            stats.add(group, documents[uid])
        else:
            stats.unknown_files += len(group)
    figures = stats.figures()
    target = paths.out_dir() / f"inspection-{folder.name}.json"
    least_told, least_supported = stats.least_told(), stats.least_supported()
    details = {"passages": stats.passages, "documents": stats.documents, "least_told": least_told}
    details["least_supported"] = least_supported
    write_json(target, {"folder": str(folder), "figures": figures} | details)
    for name, label in LABELS.items():
        print(f"{label:60}{figures[name]:>12,}")
    absent = [f"{name} ({entry['title']})" for entry in stats.documents for name in entry["strangers"]]
    if absent:
        more = f", and {len(absent) - SHOWN_NAMES:,} more" if len(absent) > SHOWN_NAMES else ""
        print(
            f"\nEntities whose words are not in their document (invented, or a paraphrase): {', '.join(absent[:SHOWN_NAMES])}{more}"
        )
    print(f"\nThe {len(least_told)} least told statements (data/generation/coverage.py says what telling means):")
    for title, statement, count in least_told:
        print(f"{count:6}  {title}: {statement}")
    if least_supported:
        print("\nThe passages with the largest share of sentences that their document does not support:")
    for share, title, sentence, reason in least_supported:
        print(f"{share:6.0%}  {title}: {sentence} ({reason})")
    told = f"{figures['passages']:,} passages tell {figures['told_once']:.0%} of the statements"
    strange = f"{figures['entities_not_in_document']} of {figures['entities']} entities are not in their document"
    cli.print_result(figures, f"{told}; {strange} -> {target}")


def choose_document(wanted: str, documents: list[Document]) -> Document:
    if wanted.isdecimal() and int(wanted) < len(documents):
        return documents[int(wanted)]
    alike = [d for d in documents if wanted in (d.uid, d.title)] or [
        d for d in documents if wanted.lower() in d.title.lower()
    ]
    if len(alike) != 1:
        names = ", ".join(f"{n} {d.title}" for n, d in enumerate(documents) if d in (alike or documents))
        raise UserError(f"--show {wanted}: {len(alike)} documents match; name one by its number: {names}")
    return alike[0]


def print_document(document: Document, groups: dict[str, list[Path]]) -> None:
    """Print the passages of a document, each with the sentences of the source that it tells."""
    if document.uid not in groups:
        raise UserError(f"--show: no passages about {document.title}; run step 1 for it")
    journals, describer = read_document(groups[document.uid], sys.maxsize), Describer(document)
    print(f"{document.title} ({document.uid})")
    print(f"entities: {', '.join(journals.entities) or 'none'}")
    print(
        f"not in the document, or paraphrased: {', '.join(entities_not_in(journals.entities, document.text)) or 'none'}"
    )
    for record in journals.shown:
        print("\n".join(passage_lines(describer.describe(record), describer.statements.sentences)))
    print(f"\n{len(journals.shown):,} passages; python data/inspect_entigraph.py --html writes them as a page")


def passage_lines(passage: Passage, source: list[str]) -> Iterator[str]:
    flags = f"   [{', '.join(passage.flags)}]" if passage.flags else ""
    yield f"\n== {passage.kind}: {', '.join(passage.entities)}{flags}"
    for line in passage.lines:
        yield " ".join(f"{s.text} <<{s.reason}>>" if s.reason else s.text for s in line)
    yield from (f"  source: {source[number]}" for number in passage.told)
    if passage.duplicate_of:
        yield f"  repeats {passage.duplicate_of}"


if __name__ == "__main__":
    run(main)
