"""Step 1 at work, for entigraph.py: the calls that are missing are made, live or as batches, and every reply is kept."""

import argparse
import asyncio
import hashlib
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path

from data.generation import methods
from data.generation.call_queue import ROUND, Schedule, for_each
from data.generation.methods import Recipe, Request
from data.generation.passages import FAILED, FINISHED, Store
from inference.batch_api import Batches
from inference.budget import BudgetSpent, Ledger
from inference.client import Client
from inference.completions import FILTERED as CODES_OF_FILTERS
from inference.completions import CallFailed, Reply, Stopped, reply_of, usage_of
from inference.prices import Usage
from inference.rate_limiter import Pace
from tasks.documents import Document, uid_of
from utils.io import UserError, read_json, write_json
from utils.progress import Progress

LIST_TRIES = 3  # a reply that lists nothing is paid for; three times, not for ever
FILTERED = "content_filter"  # a finish_reason


class Work:
    """What is missing, and where replies go: shared by both ways."""

    def __init__(
        self,
        args: argparse.Namespace,
        documents: list[Document],
        recipe: Recipe,
        store: Store,
        ledger: Ledger,
    ):
        self.args, self.recipe, self.store, self.ledger = args, recipe, store, ledger
        self.documents = {document.uid: document for document in documents}
        self.failed = self.poor = 0  # of this run: calls without a reply, replies that do not count
        self.last_error = ""

    def list_request(self, uid: str) -> Request | None:
        """The call that lists, where it is missing."""
        if not self.recipe.list_kind or uid in self.store.listed:
            return None
        request = methods.list_request(self.documents[uid], self.recipe)
        return None if request.id in self.store.done[uid] else request

    def requests(self, uid: str, kind: int) -> Iterator[Request]:
        """The calls of a kind of passage that are missing."""
        listed = self.store.listed.get(uid, [])[: self.recipe.max_listed]
        if self.recipe.list_kind and not listed:
            return
        done, name = self.store.done[uid], self.recipe.kinds[kind]
        for request in methods.passage_requests(self.documents[uid], name, listed, self.recipe):
            if request.id not in done:
                yield request

    def missing(self, uid: str) -> int:
        return sum(1 for kind in range(len(self.recipe.kinds)) for _ in self.requests(uid, kind))

    def settings(self, request: Request, attempt: int = 0) -> dict:
        """The fields of the request beside its prompt."""
        settings = {
            "temperature": self.args.temperature,
            "seed": int(request.id[:6], 16) ^ self.args.seed + attempt,
        }
        if request.kind == self.recipe.list_kind:
            settings["response_format"] = self._response_format()
        return settings

    def take(self, request: Request, reply: Reply) -> bool:
        """Record a reply; False for one that should list and does not."""
        content = {"text": reply.text}
        if request.kind == self.recipe.list_kind:
            try:
                summary, listed = methods.parse_list(reply.text, request.kind)
            except ValueError as error:
                self.last_error = f"{request.document.title}: {error}"
                return False
            content = {"entities": listed, "summary": summary}
        self.poor += reply.finish_reason != FINISHED
        self._append(
            request, content | {"finish_reason": reply.finish_reason, "usage": reply.usage}
        )
        return True

    def record_failure(self, request: Request, error: str, reply: Reply | None = None) -> None:
        """Of a call without a usable reply. What a filter stopped is not asked for again without
        --retry_failed; the rest is, at the next start."""
        self.failed += 1
        self.last_error = error
        content = {"finish_reason": FAILED, "error": error}
        if reply:
            content |= {"reply": reply.text, "usage": reply.usage}
            if reply.finish_reason == FILTERED:
                content["finish_reason"] = FILTERED
        self._append(request, content)

    def _append(self, request: Request, content: dict) -> None:
        head = {
            "id": request.id,
            "kind": request.kind,
            "entities": list(request.entities),
            "model": request.model,
            "prompt": request.prompt,
        }
        listing = request.id if request.kind == self.recipe.list_kind else None
        self.store.append(request.document.uid, head | content, listing)

    def _response_format(self) -> dict:
        if self.args.response_format == "json_object":
            return {"type": "json_object"}
        kind = self.recipe.list_kind
        schema = methods.list_schema(kind, self.recipe.max_listed)
        return {
            "type": "json_schema",
            "json_schema": {"name": kind, "strict": True, "schema": schema},
        }


class Live(Work):
    """Calls answered one by one, as many at once as --concurrency says."""

    async def run(self) -> None:
        args = self.args
        _allow_connections(args.concurrency)
        pace = Pace(args.requests_per_minute, args.tokens_per_minute)
        self.client = Client(args.model, args.base_url, pace, self.ledger, args.timeout)
        self.schedule = Schedule(
            list(self.documents), self.list_request, self.requests, len(self.recipe.kinds)
        )
        self.refusal: UserError | None = None
        self.budget_spent = self.interrupted = False
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        async with Progress("call", self._figures) as self.progress:
            for uid in self.documents:
                self.progress.total += self.missing(uid) + bool(self.list_request(uid))
            try:
                await for_each(range(args.concurrency), self._work, args.concurrency)
            finally:
                await self.client.close()
        self._report()

    async def _work(self, _: int) -> None:
        while request := await self.schedule.next():
            uid, goes_on = request.document.uid, False
            try:
                goes_on = await self._answer(request)
                self.progress.done += 1
                if request.kind == self.recipe.list_kind:
                    self.progress.total += self.missing(uid)
            except BudgetSpent:
                self.budget_spent = True
                self._stop()
            except UserError as error:
                self.refusal = self.refusal or error
                self._stop()
            except Stopped:
                pass
            self.schedule.ended(request, uid, goes_on)

    async def _answer(self, request: Request) -> bool:
        """Ask, and record what comes; whether that was what was asked for."""
        reply = None
        for attempt in range(LIST_TRIES):
            try:
                reply = await self.client.chat(
                    request.text(),
                    max_tokens=self.args.max_tokens,
                    id=request.id,
                    cache_key=request.document.uid,
                    **self.settings(request, attempt),
                )
            except CallFailed as error:
                self.record_failure(request, str(error))
                return False
            if self.take(request, reply):
                return True
            if reply.finish_reason == FILTERED:
                break
        self.record_failure(request, self.last_error, reply)
        return False

    def _stop(self) -> None:
        """Begin nothing more; what is under way is paid for, and may end."""
        self.schedule.stop()
        self.client.stop()

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # the next one leaves
        print(
            "\nwaiting for the calls that are under way, which are paid for; Ctrl-C again leaves now",
            file=sys.stderr,
        )

    def _figures(self) -> str:
        figures = self.ledger.summary()
        tokens = figures["prompt_tokens"] + figures["completion_tokens"]
        parts = [f"{tokens / 1e6:.2f}M tokens"]
        if figures["usd"] is not None:
            parts.append(f"${figures['usd']:.2f}")
        if figures["prompt_tokens"]:
            parts.append(f"{figures['cached_tokens'] / figures['prompt_tokens']:.0%} cached")
        parts += [f"{self.failed} failed"]
        if self.client.refused:
            parts.append(f"{self.client.refused} asked to wait")
        return " · ".join(parts)

    def _report(self) -> None:
        """Say how the run ended; raise where it did not end well."""
        if self.poor:
            print(
                f"{self.poor} replies of this run did not end by themselves; step 2 leaves them out"
            )
        if self.refusal:
            raise self.refusal
        if self.interrupted:
            raise KeyboardInterrupt
        if self.budget_spent:
            print("The budget is spent; the same command with a larger one goes on from here.")
        if self.failed:
            raise UserError(
                f"{self.failed} calls failed (the last: {self.last_error}); the others are saved, "
                "and the same command tries the failed ones again"
            )


class Batched(Work):
    """Calls through the Batch API: submitted, looked at, collected."""

    async def run(self) -> None:
        self.client = Client(self.args.model, self.args.base_url, ledger=self.ledger)
        state = self.store.folder / "batches.state"
        actions = {"submit": self._submit, "status": self._status, "collect": self._collect}
        try:
            with closing(Batches(state, self.client, self.ledger)) as self.batches:
                await self.batches.adopt()
                await actions[self.args.batch]()
        finally:
            await self.client.close()

    async def _submit(self) -> None:
        under_way = self.batches.requests_under_way()
        missing = self._missing_requests()
        sent = await self.batches.submit(
            (request.id, self._body(request)) for request in missing if request.id not in under_way
        )
        print(f"{sent:,} calls submitted in batches, {len(under_way):,} were under way before")
        if not sent and not under_way:
            print("Nothing is missing, or the budget has no room.")

    async def _status(self) -> None:
        found = await self.batches.status()
        for batch, status, completed, failed in found:
            print(
                f"{batch.id:40}{status:14}{completed:8,} of {len(batch.requests):,} done, {failed:,} failed"
            )
        if not found:
            print("no batch is under way")

    async def _collect(self) -> None:
        missing = {request.id: request for request in self._missing_requests()}
        async for batch, status, lines in self.batches.collect():
            answered = {line["custom_id"]: line.get("response") or {} for line in lines}
            strange = answered.keys() - missing.keys() - set().union(*self.store.done.values())
            if strange:
                raise UserError(
                    f"{batch.id}: {len(strange)} of its replies are to other calls than these articles "
                    "and options ask for; --batch collect with those of the submission"
                )
            usage, replies = Usage(), 0
            for id, response in answered.items():
                body = response.get("body") or {}
                if response.get("status_code") == 200:
                    usage, replies = usage + (usage_of(body.get("usage")) or Usage()), replies + 1
                if id in missing:  # else recorded before a kill
                    self._take_of_batch(missing[id], response.get("status_code"), body)
            self.batches.collected(batch, usage, replies)
            print(f"{batch.id}: {status}, {replies:,} replies to {len(batch.requests):,} calls")
        left = sum(1 for _ in self._missing_requests()) - len(self.batches.requests_under_way())
        print(
            f"{max(0, left):,} calls are to be submitted" + (": --batch submit" if left > 0 else "")
        )

    def _take_of_batch(self, request: Request, status: int | None, body: dict) -> None:
        """Record what came; a call that was refused for a passing reason stays missing."""
        error = body.get("error") or {}
        if status == 200:
            try:
                reply = reply_of(body)
            except ValueError:
                return
            if not self.take(request, reply):
                self.record_failure(request, self.last_error, reply)
        elif status and 400 <= status < 500 and status != 429:
            filtered = Reply("", FILTERED, {}) if error.get("code") in CODES_OF_FILTERS else None
            self.record_failure(request, f"{status}: {error.get('message')}", filtered)

    def _missing_requests(self) -> Iterator[Request]:
        """In rounds over the documents, as live calls are made."""
        yield from filter(None, map(self.list_request, self.documents))
        for kind in range(len(self.recipe.kinds)):
            streams = [self.requests(uid, kind) for uid in self.documents]
            while streams:
                rounds = [list(islice(stream, ROUND)) for stream in streams]
                streams = [s for s, found in zip(streams, rounds, strict=True) if found]
                yield from chain.from_iterable(rounds)

    def _body(self, request: Request) -> dict:
        settings = self.settings(request)
        return self.client.request(request.text(), self.args.max_tokens, "", settings)


def summarize(store: Store, ledger: Ledger) -> None:
    """Write summary.json, over all runs, and say the most of it."""
    store.read_only, store.retry_failed = True, False
    for path in store.folder.glob("*.jsonl"):  # the documents that this run was not about
        if path.stem not in store.done:
            store.open(path.stem, None)
    figures = ledger.summary() | {
        "failed": store.reasons[FAILED],
        "documents": sum(map(bool, store.done.values())),
        "finish_reasons": dict(sorted(store.reasons.items())),
    }
    write_json(store.folder / "summary.json", figures)
    records = sum(map(len, store.done.values()))
    usd = "" if figures["usd"] is None else f", ${figures['usd']:.2f}"
    tokens = figures["prompt_tokens"] + figures["completion_tokens"]
    print(f"{records:,} records in {store.folder} ({tokens:,} tokens{usd} in all; summary.json)")


def import_published(folder: Path, documents: list[Document], recipe: Recipe, store: Store) -> None:
    """Take over passages published as JSON files, one a document: a list of the entities (a list),
    the summary, and the texts. A file named like a title of the task goes to that document, so that
    generation goes on from its entities; which entities a text was about is not known."""
    if recipe.method != "entigraph":
        raise UserError("--import_json: what was published is EntiGraph's; leave --method out")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"--import_json {folder}: holds no .json file")
    titles = {document.title: document for document in documents}
    for file in files:
        value = read_json(file, "name the folder of the published corpus")
        if not _is_published(value):
            raise UserError(f"{file}: not a JSON list of entities (a list), summary and texts")
        document = titles.get(file.stem) or Document(uid_of(file.stem), file.stem, "", "", "")
        listing = methods.list_request(document, recipe)
        store.open(document.uid, listing.id)
        entities = methods.distinct([" ".join(name.split()) for name in value[0]])
        head = {"kind": "entities", "entities": entities, "summary": value[1]}
        records = [head | {"id": listing.id}]
        for text in value[2:]:
            id = hashlib.sha256(f"{document.uid}\n{text}".encode()).hexdigest()[:24]
            records.append({"id": id, "kind": "imported", "entities": [], "text": text})
        for record in records:
            if record["id"] not in store.done[document.uid]:
                tail = {
                    "model": recipe.model,
                    "prompt": "imported",
                    "finish_reason": FINISHED,
                    "usage": {},
                }
                store.append(document.uid, record | tail, listing.id)
    print(
        f"{len(files)} documents, {sum(map(len, store.done.values())):,} records in {store.folder}"
    )


def _is_published(value: object) -> bool:
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], list):
        return False
    return all(isinstance(text, str) for text in value[0] + value[1:])


def _allow_connections(concurrency: int) -> None:
    """Raise the limit of open files, which is often 1,024, where the calls need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = concurrency + 256
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
