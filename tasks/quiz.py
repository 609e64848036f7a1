"""A quiz about documents of one's own: what is asked of the LLM, and which of its questions are kept."""

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from inference.client import Client, for_each
from inference.completions import CallFailed
from tasks import scoring
from tasks.documents import OPTIONS, Document, article_text
from tasks.prompts import fill, task_prompt
from utils.io import Journal

LONGER = 1.4  # times the longest wrong option: a right one beyond that gives itself away
SAME = 0.6  # of two questions' words: then they are one question


@dataclass(frozen=True)
class DraftQuestion:
    """A question as the LLM wrote it: `options` has the right one first."""

    id: str
    text: str
    options: tuple[str, ...]

    def shown(self, order: np.ndarray) -> dict[str, str]:
        """What fills a prompt, the options in that order."""
        options = [self.options[index] for index in order]
        return {"question": self.text} | dict(zip("abcd", options, strict=True))


def writing_prompt(document: Document, number: int) -> str:
    filling = {"document": article_text(document), "title": document.title, "number": str(number)}
    return fill(task_prompt("document") + task_prompt("quiz"), filling)


def open_prompt(document: Document, draft: DraftQuestion, order: np.ndarray) -> str:
    filling = {"document": article_text(document)} | draft.shown(order)
    return fill(task_prompt("document") + task_prompt("quiz_open"), filling)


def closed_prompt(draft: DraftQuestion, order: np.ndarray, continues: bool = False) -> str:
    """`continues`: for a model that continues a text, as base models do."""
    if continues:
        return fill(task_prompt("quiz_base"), draft.shown(order)).rstrip("\n")
    return fill(task_prompt("quiz_closed"), draft.shown(order))


def option_orders(draft: DraftQuestion, number: int, seed: int) -> list[np.ndarray]:
    """So many orders of the options, the right one at a different place in each."""
    rng = np.random.default_rng(list(f"{seed}/{draft.id}".encode()))
    found = []
    for place in rng.permutation(OPTIONS)[:number]:
        found.append(np.insert(rng.permutation(np.arange(1, OPTIONS)), place, 0))
    return found


def parse(reply: str, document: Document) -> list[DraftQuestion]:
    """The questions of a reply; ValueError where it is no JSON object with a list of them. What is no
    question with one right and three wrong answers is left out."""
    start, end = reply.find("{"), reply.rfind("}")
    value = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    if not isinstance(value, dict) or not isinstance(value.get("questions"), list):
        raise ValueError("the reply is not a JSON object with a list of questions")
    drafts = []
    for number, item in enumerate(value["questions"]):
        wrong = item.get("wrong") if isinstance(item, dict) else None
        texts = [item.get("question"), item.get("right"), *wrong] if isinstance(wrong, list) else []
        if len(texts) == 1 + OPTIONS and all(isinstance(text, str) and text.strip() for text in texts):
            text, *options = (" ".join(text.split()) for text in texts)
            drafts.append(DraftQuestion(f"{document.uid}-{number}", text, tuple(options)))
    return drafts


def screen_drafts(drafts: list[DraftQuestion], document: Document) -> tuple[list[DraftQuestion], dict[str, int]]:
    """The drafts worth checking, and how many others there are by what is wrong with them."""
    kept, dropped = [], {"unnamed": 0, "options alike": 0, "length gives it away": 0, "duplicate": 0}
    for draft in drafts:
        lengths = [len(option) for option in draft.options]
        if " ".join(words(document.title)) not in " ".join(words(draft.text)):
            dropped["unnamed"] += 1
        elif len({" ".join(words(option)) for option in draft.options}) < OPTIONS:
            dropped["options alike"] += 1
        elif not min(lengths[1:]) / LONGER <= lengths[0] <= max(lengths[1:]) * LONGER:
            dropped["length gives it away"] += 1
        elif any(near_duplicates(draft.text, other.text, document.title) for other in kept):
            dropped["duplicate"] += 1
        else:
            kept.append(draft)
    return kept, dropped


def near_duplicates(one: str, other: str, title: str) -> bool:
    """By the share of their words, the title's apart, that both have."""
    first, second = (set(words(text)) - set(words(title)) for text in (one, other))
    return len(first & second) >= SAME * len(first | second)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def build_records(kept: list[tuple[Document, DraftQuestion]], seed: int) -> list[dict]:
    """Records in QuALITY's schema, a document a line; over all questions the right answer stands as
    often at each of the four places as at any other, one at most apart."""
    rng = np.random.default_rng([seed, len(kept)])
    places = rng.permutation(np.arange(len(kept)) % OPTIONS)
    records: dict[str, dict] = {}
    for (document, draft), place in zip(kept, places.tolist(), strict=True):
        options = [draft.options[index] for index in rng.permutation(np.arange(1, OPTIONS))]
        options.insert(place, draft.options[0])
        head = {"title": document.title, "author": document.author, "year": document.year}
        record = records.setdefault(document.uid, head | {"article": document.text, "questions": []})
        record["questions"].append(
            {
                "question_unique_id": draft.id,
                "question": draft.text,
                "options": options,
                "gold_label": place + 1,
                "difficult": 0,
            }
        )
    return list(records.values())


QUESTION_TOKENS = 400  # room for a question with its options, as JSON
WRITINGS = 3  # tries to have questions written that can be read, each with a seed of its own
ORDERS = 2  # in which the base model must be right to have a question dropped: by chance 1 in 16


class QuizMaker:
    """Asks, through a journal of replies by what was asked."""

    def __init__(self, args: argparse.Namespace, journal: Journal):
        self.args, self._journal = args, journal
        self._replies = {record["key"]: record["text"] for record in journal.records}
        self.counts: Counter[str] = Counter({"written": 0})
        self.failures: list[str] = []

    async def run(self, documents: list) -> list[tuple]:
        """(document, question) of those that are kept, in the documents' order."""
        args = self.args
        self._writer = Client(args.model, args.base_url, timeout_s=args.timeout)
        base_url = args.base_model_url or args.base_url
        self._base = Client(args.base_model or args.model, base_url, timeout_s=args.timeout)
        found: dict[str, list] = {}
        with tqdm(total=len(documents), unit="document") as bar:

            async def work(document) -> None:
                try:
                    found[document.uid] = await self._questions(document)
                except CallFailed as error:
                    self.failures.append(f"{document.title}: {error}")
                bar.update()

            try:
                await for_each(documents, work, args.concurrency)
            finally:
                await self._writer.close()
                await self._base.close()
        return [(document, draft) for document in documents for draft in found.get(document.uid, [])]

    async def _questions(self, document) -> list[DraftQuestion]:
        """Those about a document that stand all checks."""
        drafts = await self._drafts(document)
        self.counts["written"] += len(drafts)
        drafts, dropped = screen_drafts(drafts, document)
        self.counts.update(dropped)
        kept = []
        for draft in drafts:
            why = await self._refused(document, draft)
            self.counts.update([why] if why else [])
            kept += [] if why else [draft]
        return kept

    async def _drafts(self, document) -> list[DraftQuestion]:
        """Of the first reply that can be read; none where WRITINGS cannot, which is counted."""
        prompt = writing_prompt(document, self.args.per_document)
        for attempt in range(WRITINGS):
            reply = await self._chat(self._writer, prompt, QUESTION_TOKENS * self.args.per_document, attempt)
            try:
                return parse(reply, document)
            except ValueError:
                self.counts["replies that could not be read"] += 1
        return []

    async def _refused(self, document, draft: DraftQuestion) -> str | None:
        """Why a question is not kept."""
        shuffled = option_orders(draft, ORDERS, self.args.seed)
        reply = await self._chat(self._writer, open_prompt(document, draft, shuffled[0]), 200)
        if not answered_correctly(reply, shuffled[0]):
            return "not answered with the document"
        replies = [await self._without_document(draft, order) for order in shuffled]
        if all(answered_correctly(reply, order) for reply, order in zip(replies, shuffled, strict=True)):
            return "answered without the document"
        return None

    async def _without_document(self, draft: DraftQuestion, order) -> str:
        """A base model has no chat template: it continues the question."""
        if not self.args.base_model:
            return await self._chat(self._base, closed_prompt(draft, order), 200)
        prompt = closed_prompt(draft, order, continues=True)
        settings = {"max_tokens": 8, "temperature": 0.0, "stop": ["\n"], "seed": self.args.seed}

        async def ask() -> str:
            return "Answer:" + (await self._base.complete(prompt, 1, **settings))[0]

        return await self._once([self._base.model, "continues", prompt, self.args.seed], ask)

    async def _chat(self, client: Client, prompt: str, max_tokens: int, attempt: int = 0) -> str:
        seed = self.args.seed + 1_000_003 * attempt
        settings = {"temperature": 1.0 if attempt else 0.0, "seed": seed}

        async def ask() -> str:
            return (await client.chat(prompt, max_tokens=max_tokens, **settings)).text

        return await self._once([client.model, prompt, max_tokens, seed], ask)

    async def _once(self, asked: list, ask: Callable[[], Awaitable[str]]) -> str:
        """The reply to what is asked, which is paid for the first time alone."""
        key = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:32]
        if key not in self._replies:
            self._replies[key] = await ask()
            self._journal.append({"key": key, "text": self._replies[key]})
        return self._replies[key]


def answered_correctly(reply: str, order) -> bool:
    answer = scoring.parse_answer(reply)
    return answer is not None and order[answer] == 0
