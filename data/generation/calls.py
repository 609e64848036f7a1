"""Step 1 at work, for entigraph.py: the calls that are missing are made, live or as batches, and every reply is kept."""

import argparse
from collections.abc import Iterator

from data.generation import methods
from data.generation.methods import GenerationSettings, PassageRequest
from data.generation.passages import FAILED, FINISHED, PassageStore
from inference.budget import Ledger
from inference.completions import Reply
from tasks.documents import Document
from utils.io import write_json

LIST_TRIES = 3  # a reply that lists nothing is paid for; three times, not for ever
FILTERED = "content_filter"  # a finish_reason


class GenerationRun:
    """What is missing, and where replies go: shared by both ways."""

    def __init__(
        self,
        args: argparse.Namespace,
        documents: list[Document],
        recipe: GenerationSettings,
        store: PassageStore,
        ledger: Ledger,
    ):
        self.args, self.recipe, self.store, self.ledger = args, recipe, store, ledger
        self.documents = {document.uid: document for document in documents}
        self.failed = self.poor = 0  # of this run: calls without a reply, replies that do not count
        self.last_error = ""

    def list_request(self, uid: str) -> PassageRequest | None:
        """The call that lists, where it is missing."""
        if not self.recipe.list_kind or uid in self.store.listed:
            return None
        request = methods.list_request(self.documents[uid], self.recipe)
        return None if request.id in self.store.done[uid] else request

    def requests(self, uid: str, kind: int) -> Iterator[PassageRequest]:
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

    def settings(self, request: PassageRequest, attempt: int = 0) -> dict:
        """The fields of the request beside its prompt."""
        settings = {"temperature": self.args.temperature, "seed": int(request.id[:6], 16) ^ self.args.seed + attempt}
        if request.kind == self.recipe.list_kind:
            settings["response_format"] = self._response_format()
        return settings

    def take(self, request: PassageRequest, reply: Reply) -> bool:
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
        self._append(request, content | {"finish_reason": reply.finish_reason, "usage": reply.usage})
        return True

    def record_failure(self, request: PassageRequest, error: str, reply: Reply | None = None) -> None:
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

    def _append(self, request: PassageRequest, content: dict) -> None:
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
        return {"type": "json_schema", "json_schema": {"name": kind, "strict": True, "schema": schema}}


def write_summary(store: PassageStore, ledger: Ledger) -> None:
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
