"""Your own documents: read a folder, and show what step 1 will work on and what is left out.

    python data/read_documents.py DIR             # txt, md, html, pdf and jsonl files under DIR

Writes data/dataset/raw/NAME.jsonl, where NAME is the folder's name and the task of all other steps, as --corpus DIR
does, and out/NAME/left_out.json. A file that cannot be read is left out with one line that says why; --strict makes it an error.
"""

import argparse
from pathlib import Path

from tasks.documents import load_task
from tasks.readers import write_corpus
from utils import cli, paths
from utils.errors import run
from utils.io import write_json
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
    task, left_out = write_corpus(args.folder, args.strict)
    write_json(paths.report_dir(task) / "left_out.json", left_out)
    documents = load_task(task)
    sizes = [len(document.text.encode()) for document in documents]
    largest = sorted(range(len(documents)), key=lambda index: -sizes[index])[:SHOWN]
    print(f"{'document':60}{'words':>12}{'tokens, about':>16}")
    for index in largest:
        document = documents[index]
        print(f"{document.title[:58]:60}{len(words_of(document.text)):12,}{tokens(sizes[index]):16,}")
    if len(documents) > SHOWN:
        print(f"and {len(documents) - SHOWN:,} shorter ones")
    figures = {"task": task, "documents": len(documents), "left_out": len(left_out), "tokens": tokens(sum(sizes))}
    longest = tokens(max(sizes))
    summary = f"{len(documents):,} documents, about {figures['tokens']:,} tokens, the longest {longest:,}"
    target = paths.corpus_file(task)
    cli.print_result(figures | {"longest": longest, "file": str(target)}, f"{summary} -> {target}")


def tokens(size: int) -> int:
    return round(size / BYTES_PER_TOKEN)


if __name__ == "__main__":
    run(main)
