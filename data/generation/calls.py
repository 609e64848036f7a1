"""Requests without a reply yet, and records of replies, shared by live and batch runs."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

from data.generation import methods
from data.generation.methods import GenerationSettings, PassageRequest
from data.generation.passages import BLANK, CUT, FAILED, FILTERED, FINISHED, SOURCE_DIGITS, PassageStore
from inference.budget import Ledger
from inference.completions import PROMPT_CUT, Reply
from tasks.documents import Document
from utils.cli import settings_from_args
from utils.io import write_json

MAX_TOKENS = 4096  # of a reply


@dataclass(frozen=True)
class CallSettings:
    """Options of the model server and of the calls to it."""

    base_url: str | None  # None: $OPENAI_BASE_URL, else OpenAI
    concurrency: int
    timeout_s: float
    max_wait_s: float
    max_tokens: int
    temperature: float
    response_format: str  # of list requests: json_object or json_schema
    requests_per_minute: float | None  # None: adapted to the server's refusals
    tokens_per_minute: float | None
    target_tokens: int | None  # of passages; then no further call is started

    @classmethod
    def from_args(cls, args: Namespace) -> "CallSettings":
        """From the options of entigraph.py."""
        return settings_from_args(cls, args, timeout_s=args.timeout, max_wait_s=args.max_wait)


class GenerationRun:
    """Missing requests and recorded replies of one run; subclasses send the requests.

    `failed` counts calls without a usable reply, `incomplete` replies with a finish_reason other than `stop`.
    """

    def __init__(
        self, documents: list, settings: GenerationSettings, calls: CallSettings, store: PassageStore, ledger: Ledger
    ):
        self.documents: dict[str, Document] = {document.uid: document for document in documents}
        self.settings, self.call_settings, self.store, self.ledger = settings, calls, store, ledger
        self.failed = self.incomplete = 0
        self.last_error = ""

    def missing_list_request(self, uid: str) -> PassageRequest | None:
        """The list request of a document, None if it is answered or the method has none."""
        if not self.settings.list_kind or uid in self.store.listed_items:
            return None
        request = methods.list_request(self.documents[uid], self.settings)
        longer = self.call_settings.max_tokens > self.store.cut_lists.get(uid, self.call_settings.max_tokens)
        return None if request.id in self.store.done[uid] and not longer else request

    def missing_requests(self, uid: str, kind_index: int) -> Iterator[PassageRequest]:
        """Unanswered requests for one kind of passage; none with --aim_tellings, which plans its own."""
        items = self.store.listed_items.get(uid, [])[: self.settings.max_listed_items]
        if self.settings.aim_tellings or (self.settings.list_kind and not items):
            return
        done, kind = self.store.done[uid], self.settings.kinds[kind_index]
        for request in methods.passage_requests(self.documents[uid], kind, items, self.settings):
            if not request.is_answered(done):
                yield request

    def count_missing(self, uid: str) -> int:
        """The number of missing requests for passages."""
        return sum(1 for index in range(len(self.settings.kinds)) for _ in self.missing_requests(uid, index))

    def request_fields(self, request: PassageRequest, attempt: int = 0) -> dict:
        """Fields of a chat completion request besides model, prompt and max_tokens."""
        seed = int(request.id[:6], 16) ^ (self.settings.seed + attempt)
        fields = {"temperature": self.call_settings.temperature, "seed": seed}
        if request.kind == self.settings.list_kind:
            fields["response_format"] = self._response_format()
        return fields

    def record_reply(self, request: PassageRequest, reply: Reply) -> bool:
        """Record a reply; False, and no record, if it is blank or answers a list request without a list."""
        content = {"text": reply.text}
        if is_blank(reply):
            self.last_error = f"{request.document.title}: the reply is blank"
            return False
        if request.kind == self.settings.list_kind:
            try:
                summary, items = methods.parse_list(reply.text, request.kind)
            except ValueError as error:
                self.last_error = f"{request.document.title}: {error}"
                return False
            content = {"entities": items, "summary": summary}
        self.incomplete += reply.finish_reason != FINISHED
        self._append(request, content | {"finish_reason": reply.finish_reason, "usage": reply.usage})
        return True

    def record_failure(self, request: PassageRequest, error: str, reply: Reply | None = None, tries: int = 0) -> None:
        """Record a call without a usable reply. The next run repeats it; only with --retry_failed where the content
        filter blocked it, or the server cut its prompt and was paid; and a list that was cut, only with a larger
        --max_tokens too. `tries` counts those of a list request, each of which has a seed of its own."""
        self.failed += 1
        self.last_error = error
        content = {"finish_reason": FAILED, "error": error}
        if reply:
            content |= {"reply": reply.text, "usage": reply.usage}
            if reply.finish_reason in (FILTERED, PROMPT_CUT):
                content["finish_reason"] = reply.finish_reason
            elif reply.finish_reason == CUT and request.kind == self.settings.list_kind:
                content |= {"finish_reason": CUT, "max_tokens": self.call_settings.max_tokens}
            elif is_blank(reply):
                content["finish_reason"] = BLANK
        self._append(request, content | ({"tries": tries} if tries else {}))

    def _append(self, request: PassageRequest, content: dict) -> None:
        head = {
            "id": request.id,
            "kind": request.kind,
            "entities": list(request.entities),
            "model": request.model,
            "prompt": request.prompt_file,
            "source": request.document.source_sha256[:SOURCE_DIGITS],
        }
        list_id = request.id if request.kind == self.settings.list_kind else None
        self.store.append(request.document.uid, head | content, list_id)

    def _response_format(self) -> dict:
        if self.call_settings.response_format == "json_object":
            return {"type": "json_object"}
        kind = self.settings.list_kind
        schema = methods.list_schema(kind, self.settings.max_listed_items)
        return {"type": "json_schema", "json_schema": {"name": kind, "strict": True, "schema": schema}}


def is_blank(reply: Reply) -> bool:
    """True for a reply without text that the model ended by itself. It is a failure, and asked for again."""
    return not reply.text.strip() and reply.finish_reason in (FINISHED, BLANK)


def write_summary(store: PassageStore, ledger: Ledger) -> dict:
    """Write summary.json, the figures of all runs and all documents of a folder, and return them."""
    store.open_remaining()
    figures = ledger.summary() | {
        "failed": store.finish_reasons[FAILED] + store.finish_reasons[BLANK],
        "documents": sum(map(bool, store.done.values())),
        "records": sum(map(len, store.done.values())),
        "finish_reasons": dict(sorted(store.finish_reasons.items())),
    }
    write_json(store.folder / "summary.json", figures)
    return figures
