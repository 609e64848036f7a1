"""Calls that write and check a quiz: one question per call, each reply journaled, so that none is paid for twice."""

import asyncio
from argparse import Namespace
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, fields

import numpy as np

from inference.client import Client
from inference.completions import CallFailed
from inference.parallel import for_each
from inference.served_model import OTHER_MODEL, ServedModel, identify_by_chat, identify_by_completion
from inference.server_facts import read_facts
from tasks import facts, quiz, wrong_options
from tasks.documents import Document
from tasks.quiz import DraftQuestion
from utils.cli import settings_from_args
from utils.errors import UserError, name_damage
from utils.io import Journal, json_digest
from utils.progress import progress_bar

QUESTION_TOKENS = 400  # for a question with its fact and options, as JSON
CHECK_TOKENS, LETTER_TOKENS, SHORT_TOKENS = 200, 8, 32
WRITING_TRIES = 3  # each with its own seed, until a reply can be parsed
CHECKED_ORDERS = 2  # of the options; a question that the base model answers in all of them (by chance 1/16) is dropped
MAX_UNREADABLE = 100  # replies without a question among them, before the run is given up
UNREADABLE, EMPTY = "replies that could not be read", "empty replies"
EARLIER_LIST = '"questions"'  # in a reply of an earlier version, which asked for all questions of a document at once
Drafts = dict[str, list[DraftQuestion]]  # by document


@dataclass(frozen=True)
class QuizSettings:
    """Models that write and check a quiz: `model` with the documents, `base_model` without them (None: `model`, by
    chat). `kind` is one of quiz.KINDS, `wrong_options` one of wrong_options.SOURCES."""

    kind: str
    wrong_options: str
    per_document: int
    model: str
    base_url: str | None
    base_model: str | None
    base_model_url: str | None
    concurrency: int
    timeout_s: float
    max_wait_s: float
    seed: int

    @classmethod
    def from_args(cls, args: Namespace) -> "QuizSettings":
        values = {"base_model_url": args.base_model_url or args.base_url, "timeout_s": args.timeout}
        values |= {"max_wait_s": args.max_wait}
        return settings_from_args(cls, args, wrong_options=args.wrong_options or "auto", **values)

    @property
    def prompt(self) -> str:
        """The prompt of one question, without wrong options where those of the model are not used."""
        return "quiz" if self.kind == "choice" and self.wrong_options != "documents" else "quiz_short"

    @property
    def needs_options(self) -> bool:
        """True if a reply without three wrong options is of no use."""
        return self.kind == "choice" and self.wrong_options == "model"


class QuizMaker:
    """Writes the questions about all documents, then checks them. The calls about a document follow one another, so
    that a server has it in its cache."""

    def __init__(self, settings: QuizSettings, journal: Journal):
        self.settings, self._journal = settings, journal
        with name_damage(journal.path, "move it away, and the same command begins anew"):
            self._replies = {record["key"]: record["text"] for record in journal.records if "key" in record}
            self._servers = [record["server"] for record in journal.records if "server" in record]
            self._earlier_lists = sum(EARLIER_LIST in text for text in self._replies.values())
            for server in self._servers:  # complete, or a KeyError or TypeError
                [server[field.name] for field in fields(ServedModel)]
        self._server_of: dict[Client, dict] = {}
        self._failed: set[str] = set()
        self.counts: Counter[str] = Counter({"written": 0})
        self.failures: list[str] = []

    async def run(self, documents: list[Document]) -> list[tuple[Document, DraftQuestion]]:
        """The questions that are kept, in the order of documents."""
        settings = self.settings
        times = {"timeout_s": settings.timeout_s, "max_wait_s": settings.max_wait_s}
        self._writer = Client(settings.model, settings.base_url, **times)
        base_model = settings.base_model or settings.model
        self._base = Client(base_model, settings.base_model_url, **times)
        try:
            await self._identify()
            self._in_flight = settings.concurrency
            if slots := (await read_facts(self._writer)).slots:  # a slot holds one document
                self._in_flight = min(slots, settings.concurrency)
            written = await self._for_documents("writing", documents, self._write)
            drafts = self._screen(written, documents)
            kept = await self._for_documents("checking", documents, lambda one: self._check(one, drafts[one.uid]))
        finally:
            await asyncio.gather(self._writer.close(), self._base.close())
        return [(document, draft) for document in documents for draft in kept.get(document.uid, [])]

    async def _for_documents(self, desc: str, documents: list[Document], work: Callable) -> Drafts:
        """The results of `work` by document. A failed call does not stop the other documents."""
        results: Drafts = {}
        with progress_bar(total=len(documents), desc=desc, unit="document") as bar:

            async def one(document: Document) -> None:
                try:
                    if document.uid not in self._failed:
                        results[document.uid] = await work(document)
                except CallFailed as error:
                    self._failed.add(document.uid)
                    self.failures.append(f"{document.title}: {error}")
                    self._writer.check_context()
                bar.update()

            await for_each(documents, one, self._in_flight)
        return results

    async def _identify(self) -> None:
        """Identify the served models, whose replies must not be mixed with those of others of the same name."""
        writer = await identify_by_chat(self._writer, "--model")
        base = await identify_by_completion(self._base, "--base_model") if self.settings.base_model else writer
        for client, served in ((self._writer, writer), (self._base, base)):
            known = [record for record in self._servers if served.is_same_at_any_port(record) is not False]
            if not known:
                if any(
                    (record["address"], record["model"]) == (served.address, served.model) for record in self._servers
                ):
                    client.say([f"{served.model}: {OTHER_MODEL}"])
                known = [asdict(served)]
                self._servers += known
                self._journal.append({"server": known[0]})
            self._server_of[client] = known[0]

    async def _write(self, document: Document) -> list[DraftQuestion]:
        """A question about each of the chosen sentences. Replies that cannot be parsed are counted."""
        drafts = []
        for index, sentence in facts.choose_sentences(document, self.settings.per_document, self.settings.seed):
            if draft := await self._write_one(document, index, sentence):
                drafts.append(draft)
        return drafts

    async def _write_one(self, document: Document, index: int, sentence: str) -> DraftQuestion | None:
        """The question of the first reply that can be parsed."""
        prompt, schema = self.settings.prompt, quiz.reply_schema(self.settings.prompt)
        fields = {"type": "json_schema", "json_schema": {"name": "question", "strict": True, "schema": schema}}
        text = quiz.writing_prompt(document, sentence, prompt)
        for attempt in range(WRITING_TRIES):
            reply = await self._chat(self._writer, text, QUESTION_TOKENS, attempt, response_format=fields)
            try:
                draft = quiz.parse(reply, document, index, sentence, self.settings.needs_options)
            except ValueError:
                self.counts[UNREADABLE if reply.strip() else EMPTY] += 1
                self._give_up_on_unreadable(reply)
            else:
                self.counts["written"] += 1
                return draft
        return None

    def _give_up_on_unreadable(self, reply: str) -> None:
        count = self.counts[UNREADABLE] + self.counts[EMPTY]
        if count >= MAX_UNREADABLE and not self.counts["written"]:
            last = " ".join(reply.split())[:80] or "empty"
            raise UserError(
                f"--model {self.settings.model}: none of its first {count} replies is a question in JSON (the last: "
                f"{last}); use another --model, or a server that enforces a JSON schema"
            )

    def _screen(self, written: Drafts, documents: list[Document]) -> Drafts:
        """The questions worth checking, with their options. The others are counted by reason."""
        settings, screened = self.settings, {document.uid: [] for document in documents}
        for document in documents:
            drafts, own_options = written.get(document.uid, []), settings.wrong_options == "model"
            screened[document.uid], dropped = quiz.screen_drafts(drafts, document, settings.kind, own_options)
            self.counts.update(dropped)
        if settings.kind == "choice":
            screened, counts = wrong_options.choose_options(screened, documents, settings.wrong_options, settings.seed)
            self.counts.update(counts)
        return screened

    async def _check(self, document: Document, drafts: list[DraftQuestion]) -> list[DraftQuestion]:
        """The questions that are answered with the document and not without it. Calls with the document come first,
        since those without it may take its place in a server's cache."""
        orders = {draft.id: self._orders(draft) for draft in drafts}
        answered = [draft for draft in drafts if await self._is_answered(document, draft, orders[draft.id][0])]
        self.counts["not answered with the document"] += len(drafts) - len(answered)
        kept = [draft for draft in answered if not await self._is_known(draft, orders[draft.id])]
        self.counts["answered without the document"] += len(answered) - len(kept)
        return kept

    def _orders(self, draft: DraftQuestion) -> list[np.ndarray] | list[None]:
        """The orders of the options in which a question is asked; a short answer has none."""
        return (
            quiz.option_orders(draft, CHECKED_ORDERS, self.settings.seed) if self.settings.kind == "choice" else [None]
        )

    async def _is_answered(self, document: Document, draft: DraftQuestion, order: np.ndarray | None) -> bool:
        reply = await self._chat(self._writer, quiz.open_prompt(document, draft, order), CHECK_TOKENS)
        return quiz.is_correct(reply, draft, order)

    async def _is_known(self, draft: DraftQuestion, orders: list) -> bool:
        """True if the question is answered without its document in all orders of its options."""
        replies = [await self._answer_without_document(draft, order) for order in orders]
        return all(quiz.is_correct(reply, draft, order) for reply, order in zip(replies, orders, strict=True))

    async def _answer_without_document(self, draft: DraftQuestion, order: np.ndarray | None) -> str:
        if not self.settings.base_model:
            return await self._chat(self._base, quiz.closed_prompt(draft, order), CHECK_TOKENS)
        prompt = quiz.closed_prompt(draft, order, base_model=True)
        max_tokens = SHORT_TOKENS if order is None else LETTER_TOKENS
        sampling = {"max_tokens": max_tokens, "temperature": 0.0, "stop": ["\n"], "seed": self.settings.seed}

        async def ask() -> str:
            return "Answer:" + (await self._base.complete(prompt, 1, **sampling))[0]

        return await self._once(self._base, [self._base.model, "continues", prompt, self.settings.seed], ask)

    async def _chat(self, client: Client, prompt: str, max_tokens: int, attempt: int = 0, **fields: dict) -> str:
        seed = self.settings.seed + 1_000_003 * attempt
        sampling = {"temperature": 1.0 if attempt else 0.0, "seed": seed}

        async def ask() -> str:
            if fields:
                self._say_earlier_lists(client)
            return (await client.chat(prompt, max_tokens=max_tokens, **sampling, **fields)).text

        return await self._once(client, [client.model, prompt, max_tokens, seed], ask)

    def _say_earlier_lists(self, client: Client) -> None:
        """Say, before the first call that asks for a question anew, that an earlier version paid for others."""
        if self._earlier_lists:
            note = "replies by an earlier version, each a list of all questions about a document, are kept and not used"
            client.say([f"{self._journal.path}: {self._earlier_lists} {note}; a call asks for one question now"])

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
