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
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from tqdm import tqdm

from data.generation.call_queue import for_each
from inference.client import Client
from inference.completions import CallFailed
from tasks import quiz, readers, scoring
from tasks.documents import load_documents
from utils import paths
from utils.io import Journal, UserError, replacing, run

QUESTION_TOKENS = 400  # room for a question with its options, as JSON
WRITINGS = 3  # tries to have questions written that can be read, each with a seed of its own
ORDERS = 2  # in which the base model must be right to have a question dropped: by chance 1 in 16


def parse_arguments() -> argparse.Namespace:
    # fmt: off
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", type=Path, metavar="DIR", help="a folder of documents (txt, md, jsonl, html, pdf)")
    add("--task", help="or a corpus that is in data/dataset/raw/<task>.jsonl already")
    add("--per_document", type=int, default=10, help="questions asked for (default 10); fewer are kept")
    add("--model", default=paths.DEFAULT_GENERATOR, help="writes and checks (default %(default)s)")
    add("--base_url", help="its OpenAI-compatible server (default $OPENAI_BASE_URL, else OpenAI)")
    add("--base_model", help="who must not know the answers without the document, by /completions (default: --model, by chat)")
    add("--base_model_url", help="its server (default: --base_url)")
    add("--concurrency", type=int, default=16, help="documents under way at once (default 16)")
    add("--timeout", type=float, default=600.0, help="seconds for one try of a call (default 600)")
    add("--seed", type=int, default=0, help="of the options' order, and sent with each call")
    # fmt: on
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
        args.task = readers.take_in(args.corpus)
    documents = load_documents([paths.corpus_file(args.task)], "write it, or use --corpus DIR")  # fmt: skip
    target = paths.questions_file(args.task)
    with Journal(target.with_suffix(".calls.jsonl")) as journal:
        maker = Maker(args, journal)
        kept = asyncio.run(maker.run(documents))
    print("\n".join(f"{number:6} {what}" for what, number in maker.counts.items()))
    print(f"{len(kept):6} kept, about {len({document.uid for document, _ in kept})} of {len(documents)} documents")  # fmt: skip
    failed = f"{len(maker.failures)} documents failed (the last, {maker.failures[-1]}); the replies are kept, and the same command asks for the rest" if maker.failures else ""  # fmt: skip
    if not kept:
        raise UserError(
            failed or "no question was kept; a stronger --model, or more --per_document"
        )
    with replacing(target) as file:
        file.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in quiz.lay_out(kept, args.seed))  # fmt: skip
    if failed:
        raise UserError(f"{failed}; {target} has the questions about the others")
    print(f"{target}\n{json.dumps(maker.counts | {'kept': len(kept)})}")


class Maker:
    """Asks, through a journal of replies by what was asked."""

    def __init__(self, args: argparse.Namespace, journal: Journal):
        self.args, self._journal = args, journal
        self._replies = {record["key"]: record["text"] for record in journal.records}
        self.counts: Counter[str] = Counter({"written": 0})
        self.failures: list[str] = []

    async def run(self, documents: list) -> list[tuple]:
        """(document, question) of those that are kept, in the documents' order."""
        args = self.args
        self._writer = Client(args.model, args.base_url, timeout_s=args.timeout)
        base_url = args.base_model_url or args.base_url
        self._base = Client(args.base_model or args.model, base_url, timeout_s=args.timeout)
        found: dict[str, list] = {}
        with tqdm(total=len(documents), unit="document") as bar:

            async def work(document) -> None:
                try:
                    found[document.uid] = await self._questions(document)
                except CallFailed as error:
                    self.failures.append(f"{document.title}: {error}")
                bar.update()

            try:
                await for_each(documents, work, args.concurrency)
            finally:
                await self._writer.close()
                await self._base.close()
        return [(document, draft) for document in documents for draft in found.get(document.uid, [])]  # fmt: skip

    async def _questions(self, document) -> list[quiz.Draft]:
        """Those about a document that stand all checks."""
        drafts = await self._drafts(document)
        self.counts["written"] += len(drafts)
        drafts, dropped = quiz.screen(drafts, document)
        self.counts.update(dropped)
        kept = []
        for draft in drafts:
            why = await self._refused(document, draft)
            self.counts.update([why] if why else [])
            kept += [] if why else [draft]
        return kept

    async def _drafts(self, document) -> list[quiz.Draft]:
        """Of the first reply that can be read; none where WRITINGS cannot, which is counted."""
        prompt = quiz.writing_prompt(document, self.args.per_document)
        for attempt in range(WRITINGS):
            reply = await self._chat(
                self._writer, prompt, QUESTION_TOKENS * self.args.per_document, attempt
            )
            try:
                return quiz.parse(reply, document)
            except ValueError:
                self.counts["replies that could not be read"] += 1
        return []

    async def _refused(self, document, draft: quiz.Draft) -> str | None:
        """Why a question is not kept."""
        orders = quiz.orders(draft, ORDERS, self.args.seed)
        reply = await self._chat(self._writer, quiz.open_prompt(document, draft, orders[0]), 200)
        if not is_right(reply, orders[0]):
            return "not answered with the document"
        replies = [await self._without_document(draft, order) for order in orders]
        if all(is_right(reply, order) for reply, order in zip(replies, orders, strict=True)):
            return "answered without the document"
        return None

    async def _without_document(self, draft: quiz.Draft, order) -> str:
        """A base model has no chat template: it continues the question."""
        if not self.args.base_model:
            return await self._chat(self._base, quiz.closed_prompt(draft, order), 200)
        prompt = quiz.closed_prompt(draft, order, continues=True)
        settings = {"max_tokens": 8, "temperature": 0.0, "stop": ["\n"], "seed": self.args.seed}

        async def ask() -> str:
            return "Answer:" + (await self._base.complete(prompt, 1, **settings))[0]

        return await self._once([self._base.model, "continues", prompt, self.args.seed], ask)

    async def _chat(self, client: Client, prompt: str, max_tokens: int, attempt: int = 0) -> str:
        seed = self.args.seed + 1_000_003 * attempt
        settings = {"temperature": 1.0 if attempt else 0.0, "seed": seed}

        async def ask() -> str:
            return (await client.chat(prompt, max_tokens=max_tokens, **settings)).text

        return await self._once([client.model, prompt, max_tokens, seed], ask)

    async def _once(self, asked: list, ask: Callable[[], Awaitable[str]]) -> str:
        """The reply to what is asked, which is paid for the first time alone."""
        key = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]
        if key not in self._replies:
            self._replies[key] = await ask()
            self._journal.append({"key": key, "text": self._replies[key]})
        return self._replies[key]


def is_right(reply: str, order) -> bool:
    answer = scoring.parse_answer(reply)
    return answer is not None and order[answer] == 0


if __name__ == "__main__":
    run(main)
