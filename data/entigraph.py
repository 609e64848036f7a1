"""Step 1: documents -> synthetic passages (EntiGraph).

For every article: one call names its entities, then one call for every pair of entities and for a
seeded sample of the triples retells the article from their angle. Every reply is in the article's
journal, data/dataset/raw/<task>_entigraph_<model>/<uid>.jsonl, as soon as it is there; the same
command goes on where the last one stopped and pays for nothing twice.

    python data/entigraph.py 0                     # the first article of QuALITY, gpt-4-turbo
    python data/entigraph.py all --max_triples 200
    python data/entigraph.py 0-2 --task example --model Llama-3.1-8B-Instruct \\
        --base_url http://127.0.0.1:8000/v1        # any OpenAI-compatible server
"""

import argparse
import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack

from tqdm import tqdm

from utils import corpus, paths, quality
from utils.client import CallFailed, Client, Reply, for_each
from utils.io import Journal, UserError, run

EXTRACTION_TRIES = 3  # a reply that names no entities is paid for; three times, not for ever
FAILED = "error"  # the finish_reason of a record that holds no reply


# fmt: off
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("articles", help="which, by number from 0: 7, 0-9, 0,3,7 or all")
    add("--task", default="quality", help="quality or example (default quality)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="the generator (default %(default)s)")
    add("--base_url", help="an OpenAI-compatible server (default $OPENAI_BASE_URL, else OpenAI)")
    add("--max_entities", type=positive, help="entities per article, the first named (default all)")
    add("--max_pairs", type=count, help="pairs per article (default all)")
    add("--max_triples", type=count, default=1000, help="triples per article (default 1000; 40 entities have 9,880)")
    add("--concurrency", type=positive, default=16, help="calls under way at once (default 16)")
    add("--max_tokens", type=positive, default=4096, help="longest reply (default 4096)")
    add("--temperature", type=float, default=1.0, help="default 1.0, as in the paper")
    add("--response_format", choices=["json_object", "json_schema"], default="json_object",
        help="how the entity call asks for JSON (small local models need json_schema)")
    add("--seed", type=int, default=0, help="of the samples, and sent with each call")
    return parser.parse_args()
# fmt: on


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def main() -> None:
    args = parse_arguments()
    documents = quality.load_task(args.task)
    chosen = [documents[index] for index in parse_indices(args.articles, len(documents))]
    asyncio.run(Generation(args).run(chosen))


def parse_indices(text: str, total: int) -> list[int]:
    """`7`, `0-9`, `0,3,7` and mixtures, or `all`, as indices below `total`."""
    if text == "all":
        return list(range(total))
    indices: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match:
            raise UserError(
                f"article {part!r}: write a number, a range like 0-9, a list like 0,3,7, or all"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= total:
            raise UserError(
                f"article {part}: out of range, this task has articles 0 to {total - 1}"
            )
        indices |= set(range(first, last + 1))
    return sorted(indices)


class Generation:
    """One run over some documents: a client, a journal a document, and the counts on the bar."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.client = Client(args.model, args.base_url)
        self.folder = paths.passages_dir(args.task, args.model)
        self.journals: dict[str, Journal] = {}
        self.done: dict[str, set[str]] = {}  # record ids by document
        self.entities: dict[str, list[str]] = {}  # by document, where they are known
        self.failed = self.cut = self.tokens = 0
        self.last_error = ""

    async def run(self, documents: list[quality.Document]) -> None:
        args = self.args
        with ExitStack() as stack:
            for document in documents:
                self.journals[document.uid] = stack.enter_context(self.open_journal(document))
            self.bar = stack.enter_context(tqdm(desc="entities", total=len(documents), unit="call"))
            await for_each(documents, self.extract, args.concurrency)
            counts = [len(entities) for entities in self.entities.values()]
            self.bar.set_description("passages")
            self.bar.reset(
                sum(corpus.passage_count(n, args.max_pairs, args.max_triples) for n in counts)
            )
            await for_each(self.missing_requests(documents), self.ask_passage, args.concurrency)
        await self.client.close()
        print(f"{sum(map(len, self.done.values()))} records in {self.folder}")
        if self.cut:
            print(
                f"{self.cut} replies of this run did not end by themselves; step 2 leaves them out"
            )
        if self.failed:
            raise UserError(
                f"{self.failed} calls failed (the last: {self.last_error}); the others are saved, "
                "and the same command tries the failed ones again"
            )

    def open_journal(self, document: quality.Document) -> Journal:
        """Open it and note what is done; the texts themselves are not kept in memory."""
        path = self.folder / f"{document.uid}.jsonl"
        journal = Journal(path, keep=lambda record: record.get("finish_reason") != FAILED)
        extraction = corpus.entity_request(document, self.args.model).id
        for record in journal.records:
            if record.get("id") == extraction:
                self.entities[document.uid] = record["entities"][: self.args.max_entities]
        self.done[document.uid] = {record.get("id") for record in journal.records}
        journal.records.clear()
        return journal

    def missing_requests(self, documents: list[quality.Document]) -> Iterator[corpus.Request]:
        """Document by document, so that a server's prefix cache meets one article at a time."""
        args = self.args
        for document in documents:
            entities = self.entities.get(document.uid, [])
            for request in corpus.passage_requests(
                document, entities, args.model, args.max_pairs, args.max_triples, args.seed
            ):
                if request.id in self.done[document.uid]:
                    self.bar.update()
                else:
                    yield request

    async def extract(self, document: quality.Document) -> None:
        if document.uid in self.entities:
            self.bar.update()
            return
        request = corpus.entity_request(document, self.args.model)
        for attempt in range(EXTRACTION_TRIES):
            reply = await self.ask(request, attempt, response_format=self.response_format())
            if reply is None:
                return
            try:
                summary, entities = corpus.parse_entities(reply.text)
            except ValueError as error:
                self.last_error = f"{document.title}: {error}"
                continue
            self.record(request, reply, {"entities": entities, "summary": summary})
            self.entities[document.uid] = entities[: self.args.max_entities]
            return
        self.record_failure(request, self.last_error, reply=reply.text)

    async def ask_passage(self, request: corpus.Request) -> None:
        if reply := await self.ask(request):
            self.record(request, reply, {"text": reply.text})

    async def ask(
        self, request: corpus.Request, attempt: int = 0, **settings: object
    ) -> Reply | None:
        """One reply; where the call failed for good that is recorded, and there is none."""
        seed = int(request.id[:6], 16) ^ self.args.seed + attempt
        try:
            reply = await self.client.chat(
                request.text(),
                temperature=self.args.temperature,
                max_tokens=self.args.max_tokens,
                seed=seed,
                **settings,
            )
        except CallFailed as error:
            self.record_failure(request, str(error))
            return None
        self.tokens += sum(reply.usage.values())
        return reply

    def response_format(self) -> dict:
        if self.args.response_format == "json_object":
            return {"type": "json_object"}
        return {
            "type": "json_schema",
            "json_schema": {
                "name": "entities",
                "strict": True,
                "schema": corpus.extraction_schema(self.args.max_entities),
            },
        }

    def record(self, request: corpus.Request, reply: Reply, content: dict) -> None:
        self.append(request, content | {"finish_reason": reply.finish_reason, "usage": reply.usage})
        self.done[request.document.uid].add(request.id)
        self.cut += reply.finish_reason != corpus.FINISHED

    def record_failure(self, request: corpus.Request, error: str, **reply: str) -> None:
        self.failed += 1
        self.last_error = error
        self.append(request, {"finish_reason": FAILED, "error": error} | reply)

    def append(self, request: corpus.Request, content: dict) -> None:
        head = {
            "id": request.id,
            "kind": request.kind,
            "entities": list(request.entities),
            "model": request.model,
            "prompt": request.prompt,
        }
        self.journals[request.document.uid].append(head | content)
        self.bar.update()
        self.bar.set_postfix(failed=self.failed, tokens=self.tokens, retries=self.client.retries)


if __name__ == "__main__":
    run(main)
