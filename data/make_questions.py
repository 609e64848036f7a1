"""Questions about a corpus of one's own -> a closed-book quiz of four options, as QuALITY's.

    python data/make_questions.py --corpus DIR --per_document 10
    python data/make_questions.py --task NAME --base_model Meta-Llama-3-8B --base_model_url http://127.0.0.1:8000/v1

One call a document writes questions that name it. Dropped, and counted: those that do not, those whose
right option gives itself away by its length, duplicates; then those that a second call does not answer
rightly with the document, and those that the base model answers rightly without it in two orders of
the options. Writes data/dataset/raw/<task>_questions.jsonl, which `--task` finds in every step; step 1
never sees it. Every reply is kept at once in <task>_questions.calls.jsonl, and none is paid for twice.
"""

import argparse
import asyncio
import json
from pathlib import Path

from tasks import quiz, readers
from tasks.documents import load_documents
from tasks.quiz import QuizMaker
from utils import paths
from utils.errors import UserError, run
from utils.io import Journal, atomic_write


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", type=Path, metavar="DIR", help="a folder of documents (txt, md, jsonl, html, pdf)")
    add("--task", help="or a corpus that is in data/dataset/raw/<task>.jsonl already")
    add("--per_document", type=int, default=10, help="questions asked for (default 10); fewer are kept")
    add("--model", default=paths.DEFAULT_GENERATOR, help="writes and checks (default %(default)s)")
    add("--base_url", help="its OpenAI-compatible server (default $OPENAI_BASE_URL, else OpenAI)")
    add(
        "--base_model",
        help="who must not know the answers without the document, by /completions (default: --model, by chat)",
    )
    add("--base_model_url", help="its server (default: --base_url)")
    add("--concurrency", type=int, default=16, help="documents under way at once (default 16)")
    add("--timeout", type=float, default=600.0, help="seconds for one try of a call (default 600)")
    add("--seed", type=int, default=0, help="of the options' order, and sent with each call")
    args = parser.parse_args()
    if bool(args.corpus) == bool(args.task):
        raise UserError("--corpus DIR or --task NAME: which documents?")
    if args.task in readers.TAKEN:
        raise UserError(f"--task {args.task}: has its questions already")
    for name in ("per_document", "concurrency"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if args.base_model_url and not args.base_model:
        raise UserError("--base_model_url: which of its models? --base_model")
    return args


def main() -> None:
    args = parse_arguments()
    if args.corpus:
        args.task = readers.import_corpus(args.corpus)
    documents = load_documents([paths.corpus_file(args.task)], "write it, or use --corpus DIR")
    target = paths.questions_file(args.task)
    with Journal(target.with_suffix(".calls.jsonl")) as journal:
        maker = QuizMaker(args, journal)
        kept = asyncio.run(maker.run(documents))
    print("\n".join(f"{number:6} {what}" for what, number in maker.counts.items()))
    print(f"{len(kept):6} kept, about {len({document.uid for document, _ in kept})} of {len(documents)} documents")
    failed = (
        f"{len(maker.failures)} documents failed (the last, {maker.failures[-1]}); the replies are kept, and the same command asks for the rest"
        if maker.failures
        else ""
    )
    if not kept:
        raise UserError(failed or "no question was kept; a stronger --model, or more --per_document")
    with atomic_write(target) as file:
        file.writelines(
            json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in quiz.build_records(kept, args.seed)
        )
    if failed:
        raise UserError(f"{failed}; {target} has the questions about the others")
    print(f"{target}\n{json.dumps(maker.counts | {'kept': len(kept)})}")


if __name__ == "__main__":
    run(main)
