"""Write a closed-book quiz about your own corpus: four-option questions in QuALITY's format, or short answers.

    python data/make_questions.py --corpus DIR --per_document 10
    python data/make_questions.py --task NAME --base_model Meta-Llama-3-8B --base_model_url http://127.0.0.1:8000/v1
    python data/make_questions.py --task NAME --model SMALL_MODEL --wrong_options documents
    python data/make_questions.py --task NAME --kind short        # then: evaluation.py --task NAME --kind short
    python data/make_questions.py --task NAME --from_file FILE    # your own questions, checked; no LLM is asked

An LLM writes one question per call, each about a sentence chosen from all over the document, with that fact and the
right answer in the document's words. Dropped and counted: questions that do not name their document; whose answer is
not in the text, or stands in the question; with options alike, or of telling lengths; duplicates; that a second call
does not answer correctly with the document; that the base model answers correctly without it, in two orders of the
options. Writes data/dataset/raw/<task>_questions.jsonl (<task>_questions.short.jsonl), which --task finds in every
step; step 1 never sees it. Replies are journaled in <task>_questions.calls.jsonl, and none is paid for twice. Another
quiz of the same task is moved to earlier/.
"""

import argparse
import asyncio
from pathlib import Path

from tasks import readers
from tasks.documents import Document, load_documents
from tasks.quiz import KINDS, build_records, jsonl
from tasks.quiz_maker import QuizMaker, QuizSettings
from tasks.wrong_options import SOURCES
from utils import paths
from utils.cli import (
    add_base_url_flag,
    add_seed_flag,
    add_strict_flag,
    add_wait_flag,
    call_count,
    make_parser,
    positive_float,
    positive_int,
    print_result,
    refuse_without_effect,
)
from utils.errors import RESUMES, UserError, run
from utils.io import Journal, atomic_write, json_digest, read_jsonl, sha256_file


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--corpus", type=Path, metavar="DIR", help="a folder of your own documents (txt, md, jsonl, html, pdf)")
    add_strict_flag(parser)
    add("--task", help="or a corpus that is in data/dataset/raw/<task>.jsonl")
    add("--kind", choices=KINDS, default="choice", help="four options, or a short answer")
    per_document_help = "questions to ask for, at most one per sentence; fewer are kept"
    add("--from_file", type=Path, metavar="FILE", help="your own questions in this format, in place of an LLM's")
    add("--per_document", type=positive_int, default=10, help=per_document_help)
    wrong_help = "the model's, answers to questions about other documents, or those where the model's are no good"
    add("--wrong_options", choices=SOURCES, help=f"{wrong_help} (default: auto)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="the LLM that writes and checks")
    add_base_url_flag(parser)
    base_help = "must not know the answers without the document, by /completions (default: --model, by chat)"
    add("--base_model", help=base_help)
    add("--base_model_url", help="server of --base_model (default: --base_url)")
    add("--concurrency", type=call_count, default=16, help="documents in flight")
    add("--timeout", type=positive_float, default=600.0, help="seconds per try of a call")
    add_wait_flag(parser)
    add_seed_flag(parser, "of the order of options; also sent with each call")
    args = parser.parse_args()
    validate(args)
    if not args.corpus:
        refuse_without_effect(parser, args, "strict", "without --corpus")
    if args.from_file:
        others = "per_document wrong_options model base_url base_model base_model_url concurrency timeout seed"
        refuse_without_effect(parser, args, others, "with --from_file")
    return args


def validate(args: argparse.Namespace) -> None:
    if bool(args.corpus) == bool(args.task):
        raise UserError("--corpus DIR or --task NAME: name the documents by one of them")
    if args.task in readers.RESERVED_TASKS:
        raise UserError(f"--task {args.task}: has its questions already")
    if args.kind == "short" and args.wrong_options:
        raise UserError("--wrong_options: for --kind choice")
    if args.base_model_url and not args.base_model:
        raise UserError("--base_model_url: name the server's model with --base_model")


def main() -> None:
    args = parse_arguments()
    task = readers.import_corpus(args.corpus, args.strict) if args.corpus else args.task
    documents = load_documents([paths.corpus_file(task)], "write it, or use --corpus DIR")
    target = paths.questions_file(task, args.kind)
    if args.from_file:
        take_questions(args.from_file, args.kind, documents, target)
        return
    with Journal(paths.quiz_journal(task)) as journal:
        maker = QuizMaker(QuizSettings.from_args(args), journal)
        kept = asyncio.run(maker.run(documents))
    print("\n".join(f"{count:6} {reason}" for reason, count in maker.counts.items()))
    failed = ""
    if maker.failures:
        failed = f"{len(maker.failures)} documents failed (the last, {maker.failures[-1]}); the replies are kept, and "
        failed += "the same command asks for the rest"
    if not kept:
        raise UserError(failed or "no question was kept; try a stronger --model, or more --per_document")
    records = build_records(kept, args.seed, args.kind)
    keep_earlier_quiz(target, records)
    with atomic_write(target) as file:
        file.write(jsonl(records))
    covered = len({document.uid for document, _ in kept})
    result = maker.counts | {"kept": len(kept), "file": str(target)}
    print_result(result, f"{len(kept):6} kept, about {covered} of {len(documents)} documents -> {target}")
    if failed:
        raise UserError(f"{failed}; {target} has the questions about the other documents")


def take_questions(file: Path, kind: str, documents: list[Document], target: Path) -> None:
    """Check a file of questions, and put it where every step finds it."""
    asked = load_documents([file], "give a file in QuALITY's format", kind)
    titles = {(document.title, document.author) for document in documents}
    total = sum(len(document.questions) for document in asked)
    matching = sum(len(document.questions) for document in asked if (document.title, document.author) in titles)
    if not matching:
        raise UserError(
            f"--from_file {file}: {total} questions, none about one of the {len(documents)} documents of the corpus; titles "
            f"and authors must be the same, such as {documents[0].title!r}"
        )
    content = file.read_bytes()
    keep_earlier_quiz(target, read_jsonl(file, ""))
    with atomic_write(target) as copy:
        copy.write(content)
    result = {"kept": matching, "about_no_document": total - matching, "file": str(target)}
    print_result(result, f"{matching} of {total} questions are about these documents -> {target}")


def keep_earlier_quiz(target: Path, records: list[dict]) -> None:
    """Move a quiz with questions, options or answers that `records` do not have to earlier/."""
    if not target.is_file():
        return
    new, earlier = ({json_digest(item) for item in questions_of(some)} for some in (records, read_jsonl(target, "")))
    if not earlier <= new:
        archive = target.parent / "earlier" / f"{target.stem}.{sha256_file(target)[:12]}.jsonl"
        archive.parent.mkdir(exist_ok=True)
        target.rename(archive)
        print(f"{target} had other questions; moved to {archive}")


def questions_of(records: list[dict]) -> list[dict]:
    return [question for record in records for question in record.get("questions") or []]


if __name__ == "__main__":
    run(main, RESUMES)
