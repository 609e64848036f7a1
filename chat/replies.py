"""Replies of the chat page: a visitor's request, and the events of the answer as they come."""

import argparse
import asyncio
import contextlib
import html
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

from chat.compare import Corpus, Side, no_passages, side_by_side, with_titles
from chat.conversation import Conversation, ReplyStatus, Sampling, parse_temperature
from inference.completions import strip_reasoning
from inference.retrieval import Chunk
from utils.errors import UserError

ROLES = ("user", "assistant", "notice")  # of a history's messages; notices are not the model's
SECONDS_PER_EVENT = 0.05  # of a growing reply, at least
LEAVING_S = 1.0  # a model that is writing stops sooner; one that does not answer is left behind
MAX_SYSTEM_CHARS = 100_000


@dataclass(frozen=True)
class Request:
    """A visitor's message, with a history for each model."""

    message: str
    histories: list[list[dict]]
    sampling: Sampling
    system: str


def parse_request(body: bytes, sides: list[Side], sampling: Sampling) -> Request:
    """The visitor's request. Raises UserError for anything but what the page sends."""
    try:
        data = json.loads(body)
        message, histories, system = data["message"], data["histories"], data["system"]
        temperature = parse_temperature(str(data["temperature"]))
        is_text = isinstance(message, str) and isinstance(system, str) and len(system) <= MAX_SYSTEM_CHARS
        sizes = [len(history) for history in histories]
        is_valid = is_text and all(is_message(entry) for history in histories for entry in history)
    except (ValueError, KeyError, TypeError, RecursionError, argparse.ArgumentTypeError) as error:
        raise UserError(f"not a request of this page: {error}") from error
    if not is_valid or len(sizes) != len(sides) or not message.strip():
        raise UserError("not a request of this page: a message, and a history for each model, are expected")
    return Request(message, histories, replace(sampling, temperature=temperature), system)


def is_message(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("role") in ROLES and isinstance(entry.get("content"), str)


async def stream_lines(
    asked: Request, sides: list[Side], corpus: Corpus | None, turns: asyncio.Semaphore
) -> AsyncIterator[bytes]:
    """The events of a reply as lines of JSON, when it is this visitor's turn. A visitor who leaves ends it."""
    if turns.locked():
        yield b'{"waiting": true}\n'
    await turns.acquire()
    loop, events = asyncio.get_running_loop(), asyncio.Queue()
    has_left, finished = threading.Event(), asyncio.Event()

    def tell(function, *values) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended, and its loop is closed
            loop.call_soon_threadsafe(function, *values)

    def answer() -> None:
        """Run in a thread of its own, which neither other replies nor the end of the server wait for. The turn ends with
        the model's work: a server that does not answer keeps it."""
        try:
            with contextlib.closing(reply_events(asked, sides, corpus)) as replies:
                for event in itertools.takewhile(lambda _: not has_left.is_set(), replies):
                    tell(events.put_nowait, event)
        finally:
            for function in (lambda: events.put_nowait(None), finished.set, turns.release):
                tell(function)

    threading.Thread(target=answer, daemon=True).start()
    try:
        while (event := await events.get()) is not None:
            yield json.dumps(event).encode() + b"\n"
    finally:
        has_left.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(finished.wait(), LEAVING_S)


def reply_events(asked: Request, sides: list[Side], corpus: Corpus | None) -> Iterator[dict]:
    """The passages found for a comparison, then notices and growing texts, each with the index of its side."""
    passages = corpus.search(asked.message) if corpus and len(sides) > 1 else []
    if len(sides) > 1:
        yield {"found": passages_html(corpus, passages)}
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(contextlib.closing(side_events(side, asked, history, passages)))
            for side, history in zip(sides, asked.histories, strict=True)
        ]
        sent: list = [None] * len(streams)
        for latest in side_by_side(streams):
            for index, event in enumerate(latest):
                if event is not None and event is not sent[index]:
                    sent[index] = event
                    yield {"side": index} | event


def side_events(side: Side, asked: Request, history: list[dict], passages: list[Chunk]) -> Iterator[dict]:
    """Yield what one model answers: {"notices", "text", "html"} so far, and at the end the same with "done"."""
    from chat.markdown import to_html

    base = side.engine.is_base_model
    conversation = to_conversation([] if base else history, "" if base else asked.system)
    conversation.add_user(asked.message)
    status, notices, text = ReplyStatus(), [], ""
    pieces = replace(side, conversation=conversation).stream(passages, asked.sampling, status, notices.append)

    def event(**more) -> dict:
        return {"notices": list(notices), "text": text, "html": to_html(text)} | more

    try:
        sent_at = 0.0
        with contextlib.closing(pieces):
            for piece in pieces:
                text += piece
                if time.monotonic() - sent_at >= SECONDS_PER_EVENT:
                    sent_at = time.monotonic()
                    yield event()
        text = strip_reasoning(text, asked.message)
        if not text:
            notices.append("the reply is empty")
        if status.finish_reason == "length":
            notices.append("reply cut off at the longest length")
    except UserError as error:  # an incomplete reply becomes part of the notice, not of the history
        notices.append(f"{text} … {error}" if text else str(error))
        text = ""
    yield event(done=True)


def to_conversation(history: list[dict], system: str) -> Conversation:
    """A history without notices, and without messages that only received a notice."""
    conversation = Conversation(system)
    unanswered = None
    for message in history:
        if message["role"] == "user":
            unanswered = message["content"]
        elif unanswered is not None and message["role"] == "assistant":
            conversation.add_user(unanswered)
            conversation.add_assistant(strip_reasoning(message["content"], unanswered))
            unanswered = None
    return conversation


def passages_html(corpus: Corpus | None, passages: list[Chunk] | None) -> str:
    """The passages found, escaped; before the first message (None) what will stand there."""
    if corpus and passages is None:
        return f"<p>Passages of {html.escape(corpus.task)} that a search finds for your message will be shown here.</p>"
    if not passages:
        return f"<p>{html.escape(no_passages(corpus))}</p>"
    parts = [
        f"{f'<h4>{html.escape(name)}</h4>' if name else ''}<p>{html.escape(text)}</p>"
        for name, text in with_titles(passages)
    ]
    return f'<h3>Passages found in {html.escape(corpus.task)}</h3><div class="passages">{"".join(parts)}</div>'
