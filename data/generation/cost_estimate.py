"""What a run will cost, before it is paid: calls, tokens, dollars, time."""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data.generation import methods
from data.generation.methods import GenerationSettings
from data.generation.passages import PassageStore, open_all
from inference.prices import Price, Usage, find_price
from tasks.documents import Document, article_text

BYTES_A_TOKEN = 4.3  # English prose; taken from the replies' own counts once there are any
LISTED_A_DOCUMENT = 30  # entities: a guess, until the mean of the documents asked about is known
# Tokens of a reply by kind: guesses, until there are replies.
COMPLETION_TOKENS = {"entities": 500, "strategies": 400, "pair": 900, "triple": 1100, "strategy": 900}
LENGTH_OF_REPHRASED = 1.0  # of the document's
TOKENS_A_SECOND = 30.0  # of one reply: a guess
CACHED_FROM = 1024  # tokens: OpenAI caches no shorter prefix


@dataclass
class CostRow:
    """The calls of one kind; tokens are of the calls to make."""

    kind: str
    done: int = 0
    calls: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0


def estimate_costs(
    documents: list[Document], recipe: GenerationSettings, store: PassageStore
) -> tuple[list[CostRow], int]:
    """A row for each kind of call, and the number of documents whose list had to be guessed."""
    estimate = _Estimate(documents, recipe, store)
    kinds = ([recipe.list_kind] if recipe.list_kind else []) + recipe.kinds
    rows = {kind: CostRow(kind) for kind in kinds}
    for document in documents:
        for kind in kinds:
            _add(rows[kind], document, recipe, store, estimate)
    guessed = sum(document.uid not in store.listed for document in documents)
    return list(rows.values()), guessed if recipe.list_kind else 0


def dollars(rows: list[CostRow], price: Price) -> dict[str, float]:
    """Of the calls to make: live without a cache, live with cached prefixes, as a batch."""
    usage = sum((Usage(r.prompt, r.cached, r.completion) for r in rows), Usage())
    plain = price.usd(Usage(usage.prompt, 0, usage.completion))
    return {"live": plain, "with cached prefixes": price.usd(usage), "as a batch": plain * price.batch}


def wall_seconds(rows: list[CostRow], concurrency: int) -> float:
    """At TOKENS_A_SECOND a reply, and no rate limit."""
    return sum(row.completion for row in rows) / TOKENS_A_SECOND / concurrency


def _add(
    row: CostRow, document: Document, recipe: GenerationSettings, store: PassageStore, estimate: "_Estimate"
) -> None:
    uid, is_list = document.uid, row.kind == recipe.list_kind
    listed = len(store.listed.get(uid, [])) or estimate.listed
    listed = min(listed, recipe.max_listed or listed)
    wanted = 1 if is_list else methods.passage_count(row.kind, listed, recipe)
    done = _done(document, row.kind, recipe, store) if uid in store.done else 0
    calls = wanted - done
    prefix = estimate.prefix(document)
    row.done += done
    row.calls += calls
    row.prompt += calls * (prefix + estimate.task(row.kind))
    # One call finds a cold cache: the first of a document.
    warm = calls - (not store.done.get(uid) and row.kind == (recipe.list_kind or recipe.kinds[0]))
    row.cached += max(0, warm) * (prefix if prefix >= CACHED_FROM else 0)
    row.completion += calls * estimate.completion(row.kind, document)


def _done(document: Document, kind: str, recipe: GenerationSettings, store: PassageStore) -> int:
    done = store.done[document.uid]
    if kind == recipe.list_kind:
        return methods.list_request(document, recipe).id in done
    listed = store.listed.get(document.uid, [])[: recipe.max_listed]
    if recipe.list_kind and not listed:
        return 0
    return sum(r.id in done for r in methods.passage_requests(document, kind, listed, recipe))


class _Estimate:
    """Tokens as the replies that are there counted them, else by the figures above."""

    def __init__(self, documents: list[Document], recipe: GenerationSettings, store: PassageStore):
        self.recipe, self.store = recipe, store
        lengths = [len(store.listed[d.uid]) for d in documents if d.uid in store.listed]
        self.listed = round(sum(lengths) / len(lengths)) if lengths else LISTED_A_DOCUMENT
        self.bytes_a_token = BYTES_A_TOKEN
        counted = [d for d in documents if store.list_prompt_tokens.get(d.uid)]
        if counted and recipe.list_kind:
            size = sum(_bytes(methods.list_request(d, recipe).text()) for d in counted)
            self.bytes_a_token = size / sum(store.list_prompt_tokens[d.uid] for d in counted)
        self._tasks: Counter[str] = Counter()

    def prefix(self, document: Document) -> int:
        """The part of the prompt that all calls about a document share."""
        return round(_bytes(article_text(document)) / self.bytes_a_token)

    def task(self, kind: str) -> int:
        """The rest of it."""
        if kind not in self._tasks:
            empty = Document("", "A title", "", "", "")
            things = ("the name of an entity",) * 2
            text = methods.PassageRequest(empty, kind, things, self.recipe.model, self.recipe.method).text()
            self._tasks[kind] = round(_bytes(text) / self.bytes_a_token)
        return self._tasks[kind]

    def completion(self, kind: str, document: Document) -> int:
        seen = self.store.usage.get(kind)
        if seen:
            return round(seen["completion_tokens"] / seen["records"])
        return COMPLETION_TOKENS.get(kind) or round(self.prefix(document) * LENGTH_OF_REPHRASED)


def _bytes(text: str) -> int:
    return len(text.encode())


def print_estimate(args: argparse.Namespace, documents: list, recipe: methods.GenerationSettings, folder: Path) -> None:
    store = PassageStore(folder, args.retry_failed, read_only=True)
    open_all(store, documents, recipe)
    rows, guessed = estimate_costs(documents, recipe, store)
    print(f"{'kind':22}{'done':>10}{'calls':>10}{'prompt tokens':>17}{'of them cached':>17}{'reply tokens':>15}")
    for row in rows:
        print(f"{row.kind:22}{row.done:10,}{row.calls:10,}{row.prompt:17,}{row.cached:17,}{row.completion:15,}")
    print()
    if price := find_price(args.prices, args.model):
        for way, usd in dollars(rows, price).items():
            print(f"{way:22}${usd:>12,.2f}")
    else:
        print(f"{args.prices} has no price for {args.model}: no dollars")
    print(
        f"{'wall time, live':22}{wall_seconds(rows, args.concurrency) / 3600:>13,.1f} h at --concurrency {args.concurrency}"
    )
    if guessed:
        print(f"The {recipe.list_kind} of {guessed} of {len(documents)} articles are not known yet and are guessed;")
        print("the number of calls is exact once they are (a first run with --max_pairs 0 --max_triples 0).")
