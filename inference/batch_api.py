"""OpenAI's Batch API: half the price, an answer within a day.

It knows requests and replies by their ids, nothing of what they are about. What was submitted is in a
journal, so that a kill at any moment neither forgets a batch nor submits it again.
"""

import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from inference.budget import Ledger
from inference.client import TEMPLATE_TOKENS, Client
from inference.prices import Usage
from utils.io import Journal, read_journal

MOST_REQUESTS, MOST_BYTES = 50_000, 190 * 10**6  # of a file; OpenAI takes 200 MB
ENDED = {"completed", "expired", "cancelled", "failed"}
LOOK_BACK = 100  # batches listed when a submission was interrupted


@dataclass
class Batch:
    """`id` is the server's; None until it is known. `most`: tokens that it can be billed for."""

    token: str
    requests: list[str]
    most: Usage
    id: str | None = None
    collected: bool = False


def pending_calls(path: Path) -> int:
    """Calls in batches that are not collected, by the journal alone."""
    batches: dict[str, int] = {}
    for line in read_journal(path) if path.exists() else []:
        if "requests" in line:
            batches[line["token"]] = len(line["requests"])
        elif "collected" in line or not line["batch"]:
            batches.pop(line["token"])
    return sum(batches.values())


class Batches:
    """The batches of one folder of passages."""

    def __init__(self, path: Path, client: Client, ledger: Ledger):
        self._client, self._ledger = client, ledger
        self._journal = Journal(path)
        self._batches: dict[str, Batch] = {}
        for line in self._journal.records:
            self._take_in(line)
        self._journal.records.clear()
        ledger.batch_reserved = sum((batch.most for batch in self.pending()), Usage())

    def close(self) -> None:
        self._journal.close()

    def pending(self) -> list[Batch]:
        """Submitted, perhaps, and not collected."""
        return [batch for batch in self._batches.values() if not batch.collected]

    def requests_under_way(self) -> set[str]:
        return {id for batch in self.pending() for id in batch.requests}

    async def submit(self, requests: Iterable[tuple[str, dict]]) -> int:
        """Submit (id, body) pairs, file by file, as far as the budget goes; how many went."""
        sent, source = 0, iter(requests)
        while True:
            with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
                batch = self._fill(source, file)
                if not batch.requests:
                    return sent
                file.flush()
                await self._create(batch, Path(file.name))
            sent += len(batch.requests)

    async def adopt(self) -> None:
        """Find out what became of a submission that was interrupted: its batch is on the server, and
        bears its token, or it is not there and its requests are free again."""
        unsure = [batch for batch in self.pending() if not batch.id]
        if not unsure:
            return
        page = await self._client.call(self._client.api.batches.list(limit=LOOK_BACK))
        found = {(batch.metadata or {}).get("scp"): batch.id for batch in page.data}
        for batch in unsure:
            self._note({"token": batch.token, "batch": found.get(batch.token)})
        self._ledger.batch_reserved = sum((batch.most for batch in self.pending()), Usage())

    async def status(self) -> list[tuple[Batch, str, int, int]]:
        """Every pending batch: its state, requests done, requests failed."""
        found = []
        for batch in self.pending():
            state = await self._client.call(self._client.api.batches.retrieve(batch.id))
            counts = state.request_counts
            found.append((batch, state.status, counts.completed if counts else 0, counts.failed if counts else 0))
        return found

    async def collect(self) -> AsyncIterator[tuple[Batch, str, list[dict]]]:
        """Every batch that has ended, its state, and the lines of its output and error files. To be marked with
        `collected` once its replies are safe."""
        for batch in self.pending():
            state = await self._client.call(self._client.api.batches.retrieve(batch.id))
            if state.status not in ENDED:
                continue
            lines = []
            for file in filter(None, (state.output_file_id, state.error_file_id)):
                content = await self._client.call(self._client.api.files.content(file))
                lines += [json.loads(line) for line in content.text.split("\n") if line.strip()]
            errors = [error.message for error in (state.errors and state.errors.data) or []]
            yield batch, "; ".join([state.status, *filter(None, errors)]), lines

    def collected(self, batch: Batch, usage: Usage, calls: int) -> None:
        """Note what a batch was billed for, once, and that it is done with."""
        self._ledger.batch_answered(batch.id, usage, calls)
        self._note({"token": batch.token, "collected": True})
        self._ledger.batch_reserved -= batch.most

    def _fill(self, source, file) -> Batch:
        """Write requests into `file` until it is full, the budget is, or there are no more."""
        ids, most, size = [], Usage(), 0
        while len(ids) < MOST_REQUESTS and size < MOST_BYTES:
            id, body = next(source, (None, None))
            if id is None:
                break
            more = _most(body)
            if not self._ledger.fits_batch(most + more):
                break
            line = {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            data = json.dumps(line).encode() + b"\n"
            file.write(data)
            ids.append(id)
            most += more
            size += len(data)
        return Batch(secrets.token_hex(12), ids, most)

    async def _create(self, batch: Batch, path: Path) -> None:
        self._note({"token": batch.token, "requests": batch.requests, "most": astuple(batch.most)})
        self._ledger.batch_reserved += batch.most
        api = self._client.api.with_options(max_retries=0)  # a second try could make a second batch
        uploaded = await self._client.call(api.files.create(file=path, purpose="batch"))
        created = await self._client.call(
            api.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"scp": batch.token},
            )
        )
        self._note({"token": batch.token, "batch": created.id})

    def _note(self, line: dict) -> None:
        self._journal.append(line)
        self._take_in(line)

    def _take_in(self, line: dict) -> None:
        token = line["token"]
        if "requests" in line:
            self._batches[token] = Batch(token, line["requests"], Usage(*line["most"]))
        elif "collected" in line:
            self._batches[token].collected = True
        elif line["batch"]:
            self._batches[token].id = line["batch"]
        else:
            del self._batches[token]


def _most(body: dict) -> Usage:
    prompt = body["messages"][0]["content"]
    longest = body.get("max_tokens") or body["max_completion_tokens"]
    return Usage(len(prompt.encode()) + TEMPLATE_TOKENS, 0, longest)
