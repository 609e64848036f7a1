"""Estimated cost of a generation run: calls, tokens, dollars and wall time (--dry_run)."""

from collections import Counter
from dataclasses import dataclass

from data.generation import methods
from data.generation.methods import GenerationSettings
from data.generation.passages import PassageStore
from inference.prices import Price, Usage
from tasks.documents import Document, article_text
from utils.cli import print_result

BYTES_PER_TOKEN = 4.3  # English prose; replaced by the servers' own counts once there are replies
ITEMS_PER_DOCUMENT = 30  # guess; replaced by the mean of the lists that are known
# Completion tokens by kind: guesses; replaced by the mean of the replies.
COMPLETION_TOKENS = {"entities": 500, "strategies": 400, "pair": 900, "triple": 1100, "strategy": 900}
REPHRASED_LENGTH = 1.0  # of the document's length
TOKENS_PER_S = 30.0  # of one reply: a guess
MIN_CACHED_TOKENS = 1024  # OpenAI caches no shorter prefix


@dataclass
class CostRow:
    """Requests of one kind; `calls` are those still to make, and tokens are of those."""

    kind: str
    done: int = 0
    calls: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0


def print_estimate(
    documents: list[Document], settings: GenerationSettings, store: PassageStore, price: Price | None, concurrency: int
) -> None:
    store.open_all(documents, settings)
    rows, guessed = estimate_costs(documents, settings, store)
    print(f"{'kind':22}{'done':>10}{'calls':>10}{'prompt tokens':>17}{'of them cached':>17}{'reply tokens':>15}")
    for row in rows:
        print(f"{row.kind:22}{row.done:10,}{row.calls:10,}{row.prompt:17,}{row.cached:17,}{row.completion:15,}")
    usd, seconds = dollars(rows, price) if price else {}, wall_seconds(rows, concurrency)
    print("" if price else f"\nno price for {settings.model}; add it to --prices")
    for mode, amount in usd.items():
        if mode == "live" or amount != usd["live"]:
            print(f"{mode:22}${amount:>12,.{2 if amount >= 1 else 4}f}")
    time = f"{seconds / 3600:>13,.1f} h" if seconds >= 3600 else f"{seconds / 60:>13,.1f} min"
    sentence = f"{'wall time, live':22}{time} at --concurrency {concurrency}"
    if guessed:
        unknown = f"The {settings.list_kind} of {guessed} of {len(documents)} articles"
        sentence += f"\n{unknown} are not known yet and are guessed;\nthe number of calls is exact once they are "
        sentence += "(a first run with --max_pairs 0 --max_triples 0)."
    result = {"calls": sum(row.calls for row in rows), "usd": usd.get("live"), "seconds": round(seconds)}
    print_result(result, sentence)


def estimate_costs(documents: list, settings: GenerationSettings, store: PassageStore) -> tuple[list[CostRow], int]:
    """One row per kind of request, and the number of documents whose list is guessed."""
    estimator = _Estimator(documents, settings, store)
    kinds = ([settings.list_kind] if settings.list_kind else []) + settings.kinds
    rows = {kind: CostRow(kind) for kind in kinds}
    for document in documents:
        for kind in kinds:
            estimator.add(rows[kind], document)
    guessed = sum(document.uid not in store.listed_items for document in documents)
    return list(rows.values()), guessed if settings.list_kind else 0


def dollars(rows: list[CostRow], price: Price) -> dict[str, float]:
    """The price of the calls to make: live, live with cached prefixes, and through the Batch API."""
    usage = sum((Usage(row.prompt, row.cached, row.completion) for row in rows), Usage())
    uncached = price.usd(Usage(usage.prompt, 0, usage.completion))
    return {"live": uncached, "with cached prefixes": price.usd(usage), "as a batch": uncached * price.batch}


def wall_seconds(rows: list[CostRow], concurrency: int) -> float:
    """At TOKENS_PER_S per reply and without a rate limit."""
    return sum(row.completion for row in rows) / TOKENS_PER_S / concurrency


class _Estimator:
    """Token counts from the replies in a store, else from the guesses above."""

    def __init__(self, documents: list[Document], settings: GenerationSettings, store: PassageStore):
        self.settings, self.store = settings, store
        lengths = [len(store.listed_items[d.uid]) for d in documents if d.uid in store.listed_items]
        self.list_length = round(sum(lengths) / len(lengths)) if lengths else ITEMS_PER_DOCUMENT
        self.bytes_per_token = BYTES_PER_TOKEN
        counted = [d for d in documents if store.list_prompt_tokens.get(d.uid)]
        if counted and settings.list_kind:
            size = sum(_bytes(methods.list_request(d, settings).prompt()) for d in counted)
            self.bytes_per_token = size / sum(store.list_prompt_tokens[d.uid] for d in counted)
        self._task_tokens: Counter[str] = Counter()

    def add(self, row: CostRow, document: Document) -> None:
        """Add a document's requests to the row of their kind."""
        done = self._done(document, row.kind)
        calls = self._wanted(document, row.kind) - done
        prefix = self._prefix_tokens(document)
        row.done += done
        row.calls += calls
        row.prompt += calls * (prefix + self._tokens_after_prefix(row.kind))
        # A document's first call finds its prefix uncached.
        first_kind = self.settings.list_kind or self.settings.kinds[0]
        warm = calls - (not self.store.done.get(document.uid) and row.kind == first_kind)
        row.cached += max(0, warm) * (prefix if prefix >= MIN_CACHED_TOKENS else 0)
        row.completion += calls * self._completion_tokens(row.kind, document)

    def _wanted(self, document: Document, kind: str) -> int:
        if kind == self.settings.list_kind:
            return 1
        length = len(self.store.listed_items.get(document.uid, [])) or self.list_length
        return methods.passage_count(kind, min(length, self.settings.max_listed_items or length), self.settings)

    def _done(self, document: Document, kind: str) -> int:
        done = self.store.done.get(document.uid, set())
        if kind == self.settings.list_kind:
            return methods.list_request(document, self.settings).id in done
        items = self.store.listed_items.get(document.uid, [])[: self.settings.max_listed_items]
        if not done or (self.settings.list_kind and not items):
            return 0
        return sum(r.is_answered(done) for r in methods.passage_requests(document, kind, items, self.settings))

    def _prefix_tokens(self, document: Document) -> int:
        """Length of the prompt prefix that all requests about a document share."""
        return round(_bytes(article_text(document)) / self.bytes_per_token)

    def _tokens_after_prefix(self, kind: str) -> int:
        if kind not in self._task_tokens:
            empty, names = Document("", "A title", "", "", ""), ("the name of an entity",) * 2
            prompt = methods.PassageRequest(empty, kind, names, self.settings.model, self.settings.method).prompt()
            self._task_tokens[kind] = round(_bytes(prompt) / self.bytes_per_token)
        return self._task_tokens[kind]

    def _completion_tokens(self, kind: str, document: Document) -> int:
        if usage := self.store.usage.get(kind):
            return round(usage["completion_tokens"] / usage["records"])
        return COMPLETION_TOKENS.get(kind) or round(self._prefix_tokens(document) * REPHRASED_LENGTH)


def _bytes(text: str) -> int:
    return len(text.encode())
