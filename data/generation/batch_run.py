"""Batch runs: submit missing requests to the Batch API, show their status, collect their replies."""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple, replace
from itertools import chain, islice

from data.generation.call_queue import ROUND
from data.generation.calls import GenerationRun
from data.generation.methods import PassageRequest, list_request, passage_requests
from data.generation.passages import FILTERED
from inference.batch_api import Batch, Batches
from inference.client import Client
from inference.completions import FILTERED as FILTER_CODES
from inference.completions import PROMPT_CUT, FieldRefused, Reply, parse_chat_reply, parse_usage
from inference.prices import Usage
from inference.server_habits import refused_field, surely_cut
from utils.errors import UserError


class BatchRun(GenerationRun):
    """One action (`submit`, `status`, `collect` or `abandon`) on the batches of a folder of passages."""

    async def run(self, action: str) -> None:
        actions = {"submit": self._submit, "status": self._status, "collect": self._collect, "abandon": self._abandon}
        self.client = Client(self.settings.model, self.call_settings.base_url, ledger=self.ledger)
        try:
            with closing(Batches(self.store.folder / "batches.state", self.client, self.ledger)) as self.batches:
                if action != "abandon":
                    await self.batches.adopt()
                await actions[action]()
        finally:
            await self.client.close()

    async def _submit(self) -> None:
        submitted = self.batches.requests_under_way()
        new = (request for request in self._all_missing_requests() if not request.is_answered(submitted))
        sent = await self.batches.submit((request.id, self.sent_body(request)) for request in new)
        print(f"{sent:,} calls submitted in batches, {len(submitted):,} were under way before")
        if not sent and not submitted:
            print("No request is missing, or the budget has no room for one.")

    def sent_body(self, request: PassageRequest) -> dict:
        # Other seeds than in the batches before: a server that honours them would repeat what could not be read.
        fields = self.request_fields(request, attempt=len(self.ledger.totals.batches))
        return self.client.fields.adapt(
            self.client.request(request.prompt(), self.call_settings.max_tokens, "", fields)
        )

    async def _status(self) -> None:
        rows = await self.batches.status()
        for batch, status, completed, failed in rows:
            print(f"{batch.id:40}{status:14}{completed:8,} of {len(batch.requests):,} done, {failed:,} failed")
        if not rows:
            print("no batch is under way")

    async def _abandon(self) -> None:
        try:
            await self._collect_ended(whatever=True)  # what has been paid for
        except UserError as error:
            print(f"not collected: {error}")
        count = 0
        async for batch, said in self.batches.abandon():
            count += 1
            print(
                f"{batch.id or batch.token}: {said}; its {len(batch.requests):,} calls count at the most they can cost"
            )
        print(f"{count} batches abandoned; their calls are missing again" if count else "no batch is under way")

    async def _collect(self) -> None:
        unknown = await self._collect_ended()
        remaining = sum(1 for _ in self._all_missing_requests()) - len(self.batches.requests_under_way())
        print(f"{max(0, remaining):,} calls are to be submitted" + (": --batch submit" if remaining > 0 else ""))
        if unknown:
            raise UserError(
                f"{', '.join(unknown)}: {sum(unknown.values())} replies answer other requests than these articles and "
                "options make; run --batch collect with those of the submission, or, where documents were edited since, "
                "--batch abandon; all other replies are recorded"
            )

    async def _collect_ended(self, whatever: bool = False) -> dict[str, int]:
        """Record the replies of all batches that have ended. Returns the number of replies of each batch to requests that
        are not among ours; such a batch stays pending, unless `whatever` ends it."""
        missing = {request.id: request for request in self._all_missing_requests()}
        missing |= {earlier.id: earlier for request in missing.values() if (earlier := request.earlier())}
        unknown: dict[str, int] = {}
        async for batch, status, lines, whole in self.batches.collect():
            responses = responses_by_id(lines)
            # Asked for again with --retry_failed, or a larger --max_tokens, which this command need not have.
            again = responses.keys() & self.store.unfinished.keys() - missing.keys()
            missing |= {request.id: request for request in self._all_requests() if request.id in again} if again else {}
            foreign = responses.keys() - missing.keys() - set().union(*self.store.done.values())
            if foreign and not whatever:
                unknown[batch.id] = len(foreign)
            self._record_batch(batch, status, responses, missing, whole, is_last=batch.id not in unknown)
        return unknown

    def _record_batch(
        self, batch: Batch, status: str, responses: dict, missing: dict[str, PassageRequest], whole: bool, is_last: bool
    ) -> None:
        """Record every reply of a batch, then, where it `is_last`, its bill; replies recorded before are only billed. Of
        a batch whose files are not `whole`, requests without a line count at the most they can cost."""
        most = Usage(*(math.ceil(count / len(batch.requests)) for count in astuple(batch.max_usage)))
        unread = 0 if whole else len(set(batch.requests) - responses.keys())
        usage, replies = Usage(*(unread * count for count in astuple(most))), 0
        for id, response in responses.items():
            code, body = response["status_code"], as_object(response.get("body"))
            if code == 200:  # a reply without counts has cost the most, as a live one
                usage, replies = usage + (parse_usage(body.get("usage")) or most), replies + 1
            if id in missing:
                self._record_response(missing[id], code, body)
        if not is_last:
            return
        self.batches.collected(batch, usage, replies + unread)
        lost = f"; {unread:,} that cannot be read count at the most they can cost" if unread else ""
        print(f"{batch.id}: {status}, {replies:,} replies to {len(batch.requests):,} calls{lost}")

    def _record_response(self, request: PassageRequest, code: int | None, body: dict) -> None:
        """Record one response; after an unreadable reply or a transient error the request stays missing."""
        error = body.get("error")
        error = error if isinstance(error, dict) else {"message": error}
        if code == 200:
            try:
                reply = parse_chat_reply(body, request.prompt())
            except ValueError:
                return
            self.client.say(reply.notes)
            if surely_cut(request.prompt(), reply.tokens_read):
                error = f"the server cut the prompt: it read {reply.tokens_read:,} tokens, which is its context"
                self.client.say([error])
                self.record_failure(request, error, replace(reply, finish_reason=PROMPT_CUT))
            elif not self.record_reply(request, reply):
                self.record_failure(request, self.last_error, reply)
        elif refused := self._refused_field(request, code, body):
            self.batches.record_refused_field(refused)  # the request stays missing
        elif isinstance(code, int) and 400 <= code < 500 and code != 429:
            filtered = Reply("", FILTERED, {}) if error.get("code") in FILTER_CODES else None
            self.record_failure(request, f"{code}: {error.get('message')}", filtered)

    def _refused_field(self, request: PassageRequest, code: int | None, body: dict) -> FieldRefused | None:
        refused = refused_field(
            code if isinstance(code, int) else 0, json.dumps(body).encode(), self.sent_body(request)
        )
        return None if refused and refused.field in self.client.fields.changes.values() else refused

    def _all_requests(self) -> Iterator[PassageRequest]:
        """The requests of all documents, answered or not."""
        for uid, document in self.documents.items():
            if self.settings.list_kind:
                yield list_request(document, self.settings)
            items = self.store.listed_items.get(uid, [])[: self.settings.max_listed_items]
            for kind in self.settings.kinds if items or not self.settings.list_kind else ():
                yield from passage_requests(document, kind, items, self.settings)

    def _all_missing_requests(self) -> Iterator[PassageRequest]:
        """Missing requests of all documents, in the rounds of CallQueue."""
        yield from filter(None, map(self.missing_list_request, self.documents))
        for kind_index in range(len(self.settings.kinds)):
            streams = [self.missing_requests(uid, kind_index) for uid in self.documents]
            while streams:
                rounds = [list(islice(stream, ROUND)) for stream in streams]
                streams = [stream for stream, requests in zip(streams, rounds, strict=True) if requests]
                yield from chain.from_iterable(rounds)


def responses_by_id(lines: list[dict]) -> dict[str, dict]:
    """The response to each request; of several the one with a reply. Its status is a number, also where it is a text."""
    responses: dict[str, dict] = {}
    for line in lines:
        response = as_object(line.get("response"))
        code = response.get("status_code")
        code = int(code) if isinstance(code, str) and code.isdecimal() else code
        if responses.get(line["custom_id"], {}).get("status_code") != 200:
            responses[line["custom_id"]] = response | {"status_code": code}
    return responses


def as_object(value: object) -> dict:
    """A value of a reply that should be an object; empty for any other."""
    return value if isinstance(value, dict) else {}
