"""Your own documents: read a folder, and show what step 1 will work on and what is left out.

    python data/read_documents.py DIR             # txt, md, html, pdf and jsonl files under DIR

Writes data/dataset/raw/NAME.jsonl, where NAME is the folder's name and the task of all other steps, as --corpus DIR
does. A file that cannot be read is left out with one line that says why; --strict makes it an error.
"""

import argparse
from pathlib import Path

from reports.tables import print_table
from tasks.documents import load_task
from tasks.readers import import_corpus
from utils import cli, paths
from utils.errors import run
from utils.words import words_of

SHOWN = 20  # documents in the table
BYTES_PER_TOKEN = 4.3  # English prose


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="the folder of documents")
    cli.add_strict_flag(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    task = import_corpus(args.folder, args.strict)
    documents = load_task(task)
    sizes = [len(document.text.encode()) for document in documents]
    largest = sorted(range(len(documents)), key=lambda index: -sizes[index])[:SHOWN]
    rows = [
        (documents[index].title[:60], f"{len(words_of(documents[index].text)):,}", f"{tokens(sizes[index]):,}")
        for index in largest
    ]
    print_table([("document", "words", "tokens, about"), *rows])
    if len(documents) > SHOWN:
        print(f"and {len(documents) - SHOWN:,} shorter ones")
    figures = {"task": task, "documents": len(documents), "tokens": tokens(sum(sizes))}
    longest = tokens(max(sizes))
    summary = f"{len(documents):,} documents, about {figures['tokens']:,} tokens, the longest {longest:,}"
    target = paths.corpus_file(task)
    cli.print_result(figures | {"longest": longest, "file": str(target)}, f"{summary} -> {target}")


def tokens(size: int) -> int:
    return round(size / BYTES_PER_TOKEN)


if __name__ == "__main__":
    run(main)
