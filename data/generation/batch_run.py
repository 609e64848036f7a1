"""TODO data.generation.batch_run."""

from collections.abc import Iterator
from contextlib import closing
from itertools import chain, islice

from data.generation.call_queue import ROUND
from data.generation.calls import FILTERED, GenerationRun
from data.generation.methods import PassageRequest
from inference.batch_api import Batches
from inference.client import Client
from inference.completions import FILTERED as CODES_OF_FILTERS
from inference.completions import Reply, parse_chat_reply, parse_usage
from inference.prices import Usage
from utils.errors import UserError


class BatchRun(GenerationRun):
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
            print(f"{batch.id:40}{status:14}{completed:8,} of {len(batch.requests):,} done, {failed:,} failed")
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
                    usage, replies = usage + (parse_usage(body.get("usage")) or Usage()), replies + 1
                if id in missing:  # else recorded before a kill
                    self._take_of_batch(missing[id], response.get("status_code"), body)
            self.batches.collected(batch, usage, replies)
            print(f"{batch.id}: {status}, {replies:,} replies to {len(batch.requests):,} calls")
        left = sum(1 for _ in self._missing_requests()) - len(self.batches.requests_under_way())
        print(f"{max(0, left):,} calls are to be submitted" + (": --batch submit" if left > 0 else ""))

    def _take_of_batch(self, request: PassageRequest, status: int | None, body: dict) -> None:
        """Record what came; a call that was refused for a passing reason stays missing."""
        error = body.get("error") or {}
        if status == 200:
            try:
                reply = parse_chat_reply(body)
            except ValueError:
                return
            if not self.take(request, reply):
                self.record_failure(request, self.last_error, reply)
        elif status and 400 <= status < 500 and status != 429:
            filtered = Reply("", FILTERED, {}) if error.get("code") in CODES_OF_FILTERS else None
            self.record_failure(request, f"{status}: {error.get('message')}", filtered)

    def _missing_requests(self) -> Iterator[PassageRequest]:
        """In rounds over the documents, as live calls are made."""
        yield from filter(None, map(self.list_request, self.documents))
        for kind in range(len(self.recipe.kinds)):
            streams = [self.requests(uid, kind) for uid in self.documents]
            while streams:
                rounds = [list(islice(stream, ROUND)) for stream in streams]
                streams = [s for s, found in zip(streams, rounds, strict=True) if found]
                yield from chain.from_iterable(rounds)

    def _body(self, request: PassageRequest) -> dict:
        settings = self.settings(request)
        return self.client.request(request.text(), self.args.max_tokens, "", settings)
