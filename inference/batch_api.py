"""OpenAI's Batch API: calls at half the price, answered within a day.

Knows requests and replies by their ids, nothing of their content. Submissions are kept in a journal, so that a kill
at any moment neither forgets a batch nor submits it twice.
"""

import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from inference.budget import Ledger
from inference.client import TEMPLATE_TOKENS, Client
from inference.completions import FieldRefused
from inference.prices import ZERO, Usage
from utils.errors import UserError
from utils.io import Journal, read_journal
from utils.json_text import parse_json

MAX_REQUESTS_PER_FILE, MAX_BYTES_PER_FILE = 50_000, 190 * 10**6  # OpenAI's limits are 50,000 and 200 MB
FINAL_STATUSES = {"completed", "expired", "cancelled", "failed"}
BATCHES_LISTED = 100  # searched for an interrupted submission
ENDPOINT = "/v1/chat/completions"


@dataclass
class Batch:
    """`token` identifies a submission; `id` is the server's, None until it is known; `max_usage` is the largest
    number of tokens the batch can be billed for."""

    token: str
    requests: list[str]
    max_usage: Usage
    id: str | None = None
    collected: bool = False


def pending_calls(path: Path) -> int:
    """Number of calls in batches that are not collected, by the journal alone."""
    batches: dict[str, int] = {}
    for record in read_journal(path) if path.exists() else []:
        if "requests" in record:
            batches[record["token"]] = len(record["requests"])
        elif "refused" in record:
            continue
        elif "collected" in record or not record["batch"]:
            batches.pop(record["token"])
    return sum(batches.values())


class Batches:
    """Batches of one folder of passages."""

    def __init__(self, path: Path, client: Client, ledger: Ledger):
        self._client, self._ledger = client, ledger
        self._journal = Journal(path)
        self._batches: dict[str, Batch] = {}
        for record in self._journal.records:
            self._apply(record)
        self._journal.records.clear()
        self._reserve_pending()

    def close(self) -> None:
        self._journal.close()

    def pending(self) -> list[Batch]:
        """Batches whose submission has begun and that are not collected."""
        return [batch for batch in self._batches.values() if not batch.collected]

    def requests_under_way(self) -> set[str]:
        return {id for batch in self.pending() for id in batch.requests}

    async def submit(self, requests: Iterable[tuple[str, dict]]) -> int:
        """Submit (id, body) pairs, file by file, as far as the budget allows; returns the number of requests sent."""
        sent, remaining = 0, iter(requests)
        while True:
            with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
                batch = self._write_requests(remaining, file)
                if not batch.requests:
                    return sent
                file.flush()
                await self._create(batch, Path(file.name))
            sent += len(batch.requests)

    async def adopt(self) -> None:
        """Resolve interrupted submissions: the server lists a batch with their token, or the requests are free again."""
        unknown = [batch for batch in self.pending() if not batch.id]
        if not unknown:
            return
        page = await self._client.call(self._client.api.batches.list(limit=BATCHES_LISTED))
        ids = {(batch.metadata or {}).get("scp"): batch.id for batch in page.data}
        for batch in unknown:
            self._record({"token": batch.token, "batch": ids.get(batch.token)})
        self._reserve_pending()

    async def status(self) -> list[tuple[Batch, str, int, int]]:
        """Each pending batch with its status, requests completed and requests failed."""
        rows = []
        for batch in self.pending():
            state = await self._client.call(self._client.api.batches.retrieve(batch.id))
            counts = state.request_counts
            rows.append((batch, state.status, counts.completed if counts else 0, counts.failed if counts else 0))
        return rows

    async def collect(self) -> AsyncIterator[tuple[Batch, str, list[dict], bool]]:
        """Each batch that has ended, with its status, the lines of its output and error files, and whether they are
        whole. The caller marks it with `collected` once its replies are saved."""
        for batch in self.pending():
            state = await self._client.call(self._client.api.batches.retrieve(batch.id))
            if state.status not in FINAL_STATUSES:
                continue
            lines, notes = [], []
            for file in filter(None, (state.output_file_id, state.error_file_id)):
                content = await self._client.call(self._client.api.files.content(file), or_none=True)
                read, torn = parse_lines(content.text) if content else ([], 0)
                lines += read
                notes += [f"{file} is gone"] * (not content) + [f"{torn} lines of {file} cannot be read"] * (torn > 0)
            errors = [error.message for error in (state.errors and state.errors.data) or []]
            yield batch, "; ".join([state.status, *filter(None, errors), *notes]), lines, not notes

    async def abandon(self) -> AsyncIterator[tuple[Batch, str]]:
        """Cancel every pending batch, and record the upper bound of its cost. Yields each batch and the server's
        answer."""
        for batch in self.pending():
            said = "its submission was interrupted"
            if batch.id:
                try:
                    await self._client.call(self._client.api.batches.cancel(batch.id))
                    said = "cancelled"
                except UserError as error:
                    said = str(error)
            self._ledger.record_batch(batch.id or batch.token, batch.max_usage, len(batch.requests))
            self._record({"token": batch.token, "collected": True})
            self._ledger.batch_reserved -= batch.max_usage
            yield batch, said

    def collected(self, batch: Batch, usage: Usage, calls: int) -> None:
        """Bill a batch in the ledger, once, and mark it as collected."""
        self._ledger.record_batch(batch.id, usage, calls)
        self._record({"token": batch.token, "collected": True})
        self._ledger.batch_reserved -= batch.max_usage

    def record_refused_field(self, refused: FieldRefused) -> None:
        """Submit no further request with a field that the server refused, in later runs either."""
        if refused.field not in self._client.fields.changes:
            self._record({"refused": refused.field, "reason": str(refused)})

    def _reserve_pending(self) -> None:
        self._ledger.batch_reserved = sum((batch.max_usage for batch in self.pending()), ZERO)

    def _write_requests(self, requests, file) -> Batch:
        """Write requests until the file is full, the budget is exhausted, or there are no more."""
        ids, max_usage, size = [], ZERO, 0
        while len(ids) < MAX_REQUESTS_PER_FILE and size < MAX_BYTES_PER_FILE:
            id, body = next(requests, (None, None))
            if id is None:
                break
            total = max_usage + _max_usage(body)
            if not self._ledger.fits_batch(total):
                break
            line = {"custom_id": id, "method": "POST", "url": ENDPOINT, "body": body}
            size += file.write(json.dumps(line).encode() + b"\n")
            ids.append(id)
            max_usage = total
        return Batch(secrets.token_hex(12), ids, max_usage)

    async def _create(self, batch: Batch, path: Path) -> None:
        """Create a batch on the server; its token is in the journal before anything is sent."""
        self._record({"token": batch.token, "requests": batch.requests, "most": astuple(batch.max_usage)})
        self._ledger.batch_reserved += batch.max_usage
        api = self._client.api.with_options(max_retries=0)  # a retry could create a second batch
        uploaded = await self._client.call(api.files.create(file=path, purpose="batch"))
        created = await self._client.call(
            api.batches.create(
                input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h", metadata={"scp": batch.token}
            )
        )
        self._record({"token": batch.token, "batch": created.id})

    def _record(self, record: dict) -> None:
        self._journal.append(record)
        self._apply(record)

    def _apply(self, record: dict) -> None:
        if "refused" in record:
            self._client.say([self._client.fields.change(record["refused"], record["reason"])])
            return
        token = record["token"]
        if "requests" in record:
            self._batches[token] = Batch(token, record["requests"], Usage(*record["most"]))
        elif "collected" in record:
            self._batches[token].collected = True
        elif record["batch"]:
            self._batches[token].id = record["batch"]
        else:
            del self._batches[token]


def parse_lines(text: str) -> tuple[list[dict], int]:
    """The lines of an output file that are objects with a `custom_id`, and the number of the others."""
    lines, torn = [], 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        usable = isinstance(value, dict) and isinstance(value.get("custom_id"), str)
        lines += [value] if usable else []
        torn += not usable
    return lines, torn


def _max_usage(body: dict) -> Usage:
    prompt = body["messages"][0]["content"]
    max_tokens = body.get("max_tokens") or body["max_completion_tokens"]
    return Usage(len(prompt.encode()) + TEMPLATE_TOKENS, 0, max_tokens)
