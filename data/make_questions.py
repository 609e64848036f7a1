"""Write a closed-book quiz about your own corpus: four-option questions in QuALITY's format.

    python data/make_questions.py --corpus DIR --per_document 10
    python data/make_questions.py --task NAME --base_model Meta-Llama-3-8B --base_model_url http://127.0.0.1:8000/v1

An LLM writes questions that name their document, one call per document. These questions are dropped and counted: those
that do not name it; with duplicate options; whose correct option is recognisable by its length; duplicates; that a
second call does not answer correctly with the document; that the base model answers correctly without it, in two
orders of the options. Writes data/dataset/raw/<task>_questions.jsonl, which --task finds in every step; step 1 never
sees it. Replies are journaled in <task>_questions.calls.jsonl, and none is paid for twice.
"""

import argparse
import asyncio
from pathlib import Path

from tasks import readers
from tasks.documents import load_documents
from tasks.quiz import QuizMaker, QuizSettings, build_records, jsonl
from utils import paths
from utils.cli import add_base_url_flag, add_seed_flag, make_parser, positive_float, positive_int, print_result
from utils.errors import UserError, run
from utils.io import Journal, atomic_write


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--corpus", type=Path, metavar="DIR", help="a folder of your own documents (txt, md, jsonl, html, pdf)")
    add("--task", help="or a corpus that is in data/dataset/raw/<task>.jsonl")
    add("--per_document", type=positive_int, default=10, help="questions to ask for; fewer are kept")
    add("--model", default=paths.DEFAULT_GENERATOR, help="the LLM that writes and checks")
    add_base_url_flag(parser)
    base_help = "must not know the answers without the document, by /completions (default: --model, by chat)"
    add("--base_model", help=base_help)
    add("--base_model_url", help="server of --base_model (default: --base_url)")
    add("--concurrency", type=positive_int, default=16, help="documents in flight")
    add("--timeout", type=positive_float, default=600.0, help="seconds per try of a call")
    add_seed_flag(parser, "of the order of options; also sent with each call")
    args = parser.parse_args()
    validate(args)
    return args


def validate(args: argparse.Namespace) -> None:
    if bool(args.corpus) == bool(args.task):
        raise UserError("--corpus DIR or --task NAME: name the documents by one of them")
    if args.task in readers.RESERVED_TASKS:
        raise UserError(f"--task {args.task}: has its questions already")
    if args.base_model_url and not args.base_model:
        raise UserError("--base_model_url: name the server's model with --base_model")


def main() -> None:
    args = parse_arguments()
    task = readers.import_corpus(args.corpus) if args.corpus else args.task
    documents = load_documents([paths.corpus_file(task)], "write it, or use --corpus DIR")
    target = paths.questions_file(task)
    with Journal(target.with_suffix(".calls.jsonl")) as journal:
        maker = QuizMaker(QuizSettings.from_args(args), journal)
        kept = asyncio.run(maker.run(documents))
    print("\n".join(f"{count:6} {reason}" for reason, count in maker.counts.items()))
    failed = ""
    if maker.failures:
        failed = f"{len(maker.failures)} documents failed (the last, {maker.failures[-1]}); the replies are kept, and "
        failed += "the same command asks for the rest"
    if not kept:
        raise UserError(failed or "no question was kept; try a stronger --model, or more --per_document")
    with atomic_write(target) as file:
        file.write(jsonl(build_records(kept, args.seed)))
    if failed:
        raise UserError(f"{failed}; {target} has the questions about the other documents")
    covered = len({document.uid for document, _ in kept})
    result = maker.counts | {"kept": len(kept), "file": str(target)}
    print_result(result, f"{len(kept):6} kept, about {covered} of {len(documents)} documents -> {target}")


if __name__ == "__main__":
    run(main)
