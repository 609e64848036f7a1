"""A multiple-choice quiz about the user's own documents: writing prompts, screening, checking by an LLM."""

import asyncio
import json
from argparse import Namespace
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import numpy as np

from inference.client import Client, for_each
from inference.completions import CallFailed, json_object_in, text_of
from inference.served_model import OTHER_MODEL, identify_by_chat, identify_by_completion
from tasks.documents import OPTIONS, Document, article_text
from tasks.prompts import fill, task_prompt
from tasks.scoring import parse_answer
from utils.cli import progress_bar, settings_from_args
from utils.io import Journal, json_digest
from utils.words import words_of

MAX_LENGTH_RATIO = 1.4  # of the correct option to the longest (or shortest) wrong one: beyond, its length reveals it
MIN_OVERLAP = 0.6  # of two questions' words: they count as duplicates
QUESTION_TOKENS = 400  # for a question with its options, as JSON
WRITING_TRIES = 3  # each with its own seed, until a reply can be parsed
CHECKED_ORDERS = 2  # of the options; a question that the base model answers in all of them (by chance 1/16) is dropped


@dataclass(frozen=True)
class QuizSettings:
    """Models that write and check a quiz: `model` with the documents, `base_model` without them (None: `model`, by chat)."""

    per_document: int
    model: str
    base_url: str | None
    base_model: str | None
    base_model_url: str | None
    concurrency: int
    timeout_s: float
    seed: int

    @classmethod
    def from_args(cls, args: Namespace) -> "QuizSettings":
        base_model_url = args.base_model_url or args.base_url
        return settings_from_args(cls, args, base_model_url=base_model_url, timeout_s=args.timeout)


@dataclass(frozen=True)
class DraftQuestion:
    """A question as the LLM wrote it; the first of `options` is correct."""

    id: str
    text: str
    options: tuple[str, ...]

    def prompt_values(self, order: np.ndarray) -> dict[str, str]:
        options = [self.options[index] for index in order]
        return {"question": self.text} | dict(zip("abcd", options, strict=True))


def writing_prompt(document: Document, number: int) -> str:
    values = {"document": article_text(document), "title": document.title, "number": str(number)}
    return fill(task_prompt("document") + task_prompt("quiz"), values)


def open_prompt(document: Document, draft: DraftQuestion, order: np.ndarray) -> str:
    values = {"document": article_text(document)} | draft.prompt_values(order)
    return fill(task_prompt("document") + task_prompt("quiz_open"), values)


def closed_prompt(draft: DraftQuestion, order: np.ndarray, base_model: bool = False) -> str:
    """The question without its document, for a chat model or for a base model, which continues text."""
    if base_model:
        return fill(task_prompt("quiz_base"), draft.prompt_values(order)).rstrip("\n")
    return fill(task_prompt("quiz_closed"), draft.prompt_values(order))


def option_orders(draft: DraftQuestion, number: int, seed: int) -> list[np.ndarray]:
    """`number` orders of the options, each with the correct one at a different place."""
    rng = np.random.default_rng(list(f"{seed}/{draft.id}".encode()))
    places = rng.permutation(OPTIONS)[:number]
    return [np.insert(rng.permutation(np.arange(1, OPTIONS)), place, 0) for place in places]


def parse(reply: str, document: Document) -> list[DraftQuestion]:
    """The questions of a reply, without those that do not have one correct and three wrong options. Raises ValueError
    unless the reply is a JSON object with a list of questions."""
    value = json_object_in(reply, "questions")
    if not isinstance(value.get("questions"), list):
        raise ValueError("the reply is not a JSON object with a list of questions")
    drafts = []
    for number, item in enumerate(value["questions"]):
        wrong = item.get("wrong") if isinstance(item, dict) else None
        texts = [item.get("question"), item.get("right"), *wrong] if isinstance(wrong, list) else []
        texts = [text_of(text) for text in texts]
        if len(texts) == 1 + OPTIONS and all(texts):
            text, *options = texts
            drafts.append(DraftQuestion(f"{document.uid}-{number}", text, tuple(options)))
    return drafts


def screen_drafts(drafts: list[DraftQuestion], document: Document) -> tuple[list[DraftQuestion], dict[str, int]]:
    """The drafts worth checking, and counts of the others by reason."""
    kept, dropped = [], {"unnamed": 0, "options alike": 0, "length gives it away": 0, "duplicate": 0}
    for draft in drafts:
        lengths = [len(option) for option in draft.options]
        if " ".join(words_of(document.title)) not in " ".join(words_of(draft.text)):
            dropped["unnamed"] += 1
        elif len({" ".join(words_of(option)) for option in draft.options}) < OPTIONS:
            dropped["options alike"] += 1
        elif not min(lengths[1:]) / MAX_LENGTH_RATIO <= lengths[0] <= max(lengths[1:]) * MAX_LENGTH_RATIO:
            dropped["length gives it away"] += 1
        elif any(near_duplicates(draft.text, other.text, document.title) for other in kept):
            dropped["duplicate"] += 1
        else:
            kept.append(draft)
    return kept, dropped


def near_duplicates(one: str, other: str, title: str) -> bool:
    """True if two questions share MIN_OVERLAP of their words; words of the title do not count."""
    first, second = (set(words_of(text)) - set(words_of(title)) for text in (one, other))
    return len(first & second) >= MIN_OVERLAP * len(first | second)


def build_records(kept: list[tuple[Document, DraftQuestion]], seed: int) -> list[dict]:
    """Records in QuALITY's schema. The correct option is at each of the four places equally often, up to one."""
    rng = np.random.default_rng([seed, len(kept)])
    places = rng.permutation(np.arange(len(kept)) % OPTIONS)
    records: dict[str, dict] = {}
    for (document, draft), place in zip(kept, places.tolist(), strict=True):
        options = [draft.options[index] for index in rng.permutation(np.arange(1, OPTIONS))]
        options.insert(place, draft.options[0])
        head = {"title": document.title, "author": document.author, "year": document.year}
        record = records.setdefault(document.uid, head | {"article": document.text, "questions": []})
        question = {"question_unique_id": draft.id, "question": draft.text, "options": options}
        record["questions"].append(question | {"gold_label": place + 1, "difficult": 0})
    return list(records.values())


class QuizMaker:
    """Writes and checks questions; every reply is journaled by its request, so that none is paid for twice."""

    def __init__(self, settings: QuizSettings, journal: Journal):
        self.settings, self._journal = settings, journal
        self._replies = {record["key"]: record["text"] for record in journal.records if "key" in record}
        self._servers = [record["server"] for record in journal.records if "server" in record]
        self._server_of: dict[Client, dict] = {}
        self.counts: Counter[str] = Counter({"written": 0})
        self.failures: list[str] = []

    async def run(self, documents: list[Document]) -> list[tuple[Document, DraftQuestion]]:
        """The questions that are kept, in the order of documents."""
        settings = self.settings
        self._writer = Client(settings.model, settings.base_url, timeout_s=settings.timeout_s)
        base_model = settings.base_model or settings.model
        self._base = Client(base_model, settings.base_model_url, timeout_s=settings.timeout_s)
        kept: dict[str, list[DraftQuestion]] = {}
        with progress_bar(total=len(documents), unit="document") as bar:

            async def work(document: Document) -> None:
                try:
                    kept[document.uid] = await self._questions(document)
                except CallFailed as error:
                    self.failures.append(f"{document.title}: {error}")
                    self._writer.check_context()
                bar.update()

            try:
                await self._identify()
                await for_each(documents, work, settings.concurrency)
            finally:
                await asyncio.gather(self._writer.close(), self._base.close())
        return [(document, draft) for document in documents for draft in kept.get(document.uid, [])]

    async def _identify(self) -> None:
        """Identify the served models, whose replies must not be mixed with those of others of the same name."""
        writer = await identify_by_chat(self._writer, "--model")
        base = await identify_by_completion(self._base, "--base_model") if self.settings.base_model else writer
        for client, served in ((self._writer, writer), (self._base, base)):
            known = [record for record in self._servers if served.is_same(record) is not False]
            if not known:
                if any(
                    (record["address"], record["model"]) == (served.address, served.model) for record in self._servers
                ):
                    client.say([f"{served.model}: {OTHER_MODEL}"])
                known = [asdict(served)]
                self._servers += known
                self._journal.append({"server": known[0]})
            self._server_of[client] = known[0]

    async def _questions(self, document: Document) -> list[DraftQuestion]:
        """The questions about a document that pass all checks."""
        drafts = await self._drafts(document)
        self.counts["written"] += len(drafts)
        drafts, dropped = screen_drafts(drafts, document)
        self.counts.update(dropped)
        kept = []
        for draft in drafts:
            if reason := await self._rejection(document, draft):
                self.counts[reason] += 1
            else:
                kept.append(draft)
        return kept

    async def _drafts(self, document: Document) -> list[DraftQuestion]:
        """The questions of the first reply that can be parsed; unparsable replies are counted."""
        prompt = writing_prompt(document, self.settings.per_document)
        for attempt in range(WRITING_TRIES):
            reply = await self._chat(self._writer, prompt, QUESTION_TOKENS * self.settings.per_document, attempt)
            try:
                return parse(reply, document)
            except ValueError:
                self.counts["replies that could not be read"] += 1
        return []

    async def _rejection(self, document: Document, draft: DraftQuestion) -> str | None:
        """The reason to drop a question, None to keep it."""
        orders = option_orders(draft, CHECKED_ORDERS, self.settings.seed)
        reply = await self._chat(self._writer, open_prompt(document, draft, orders[0]), 200)
        if not is_correct(reply, draft, orders[0]):
            return "not answered with the document"
        replies = [await self._answer_without_document(draft, order) for order in orders]
        if all(is_correct(reply, draft, order) for reply, order in zip(replies, orders, strict=True)):
            return "answered without the document"
        return None

    async def _answer_without_document(self, draft: DraftQuestion, order: np.ndarray) -> str:
        if not self.settings.base_model:
            return await self._chat(self._base, closed_prompt(draft, order), 200)
        prompt = closed_prompt(draft, order, base_model=True)
        sampling = {"max_tokens": 8, "temperature": 0.0, "stop": ["\n"], "seed": self.settings.seed}

        async def ask() -> str:
            return "Answer:" + (await self._base.complete(prompt, 1, **sampling))[0]

        return await self._once(self._base, [self._base.model, "continues", prompt, self.settings.seed], ask)

    async def _chat(self, client: Client, prompt: str, max_tokens: int, attempt: int = 0) -> str:
        seed = self.settings.seed + 1_000_003 * attempt
        sampling = {"temperature": 1.0 if attempt else 0.0, "seed": seed}

        async def ask() -> str:
            return (await client.chat(prompt, max_tokens=max_tokens, **sampling)).text

        return await self._once(client, [client.model, prompt, max_tokens, seed], ask)

    async def _once(self, client: Client, request: list, ask: Callable[[], Awaitable[str]]) -> str:
        """The journaled reply of a served model to a request, asked for if there is none."""
        earlier, key = json_digest(request, 32), json_digest([self._server_of[client], request], 32)
        if key not in self._replies and earlier in self._replies:
            client.say([f"{self._journal.path}: by an earlier version, perhaps of another model of this name; used"])
            return self._replies[earlier]
        if key not in self._replies:
            self._replies[key] = await ask()
            self._journal.append({"key": key, "text": self._replies[key]})
        return self._replies[key]


def is_correct(reply: str, draft: DraftQuestion, order: np.ndarray) -> bool:
    answer = parse_answer(reply, [draft.options[index] for index in order])
    return answer is not None and order[answer] == 0


def jsonl(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
