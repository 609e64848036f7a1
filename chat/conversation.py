"""Conversation state, sampling settings, the engine interface, and replies that fit into the context window.

Messages are dictionaries {"role": "system" | "user" | "assistant", "content": text}. Models are known by the
`Engine` interface alone.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from utils.chat_template import conversation_error, replace_surrogates
from utils.cli import number_type
from utils.errors import UserError
from utils.io import atomic_write, read_jsonl

UNKNOWN_CONTEXT = 1 << 30  # tokens

parse_temperature = number_type(float, "a number from 0 to 5", lambda t: 0 <= t <= 5)  # argument type


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a reply; temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0


@dataclass
class ReplyStatus:
    """Metadata of one reply, filled in while it streams. Visitors of the web page have one each."""

    finish_reason: str = ""  # "stop", or "length" at max_tokens
    tokens: int = 0


class Engine(Protocol):
    """A model that replies to messages; see LocalEngine and ApiEngine."""

    name: str
    context: int  # tokens of prompt and reply
    is_base_model: bool  # continues the last message's text, without a chat template
    concurrency: int  # replies generated at the same time

    def count_tokens(self, messages: list[dict]) -> int: ...

    def stream(self, messages: list[dict], sampling: Sampling, status: ReplyStatus) -> Iterator[str]:
        """Yield the reply in pieces and update `status`. Raises ContextExceeded or another UserError."""

    def with_own_cache(self) -> "Engine":
        """The same model for a second conversation that takes turns with the first."""


class ContextExceeded(UserError):
    """A prompt longer than the context window."""


class Conversation:
    """An optional system message and the turns so far, each a user message and its reply."""

    def __init__(self, system: str = ""):
        self.system, self.turns = system, []  # turns: user and assistant messages

    def messages(self) -> list[dict]:
        return ([make_message("system", self.system)] if self.system else []) + self.turns

    def add_user(self, text: str) -> None:
        self.turns.append(make_message("user", text))

    def add_assistant(self, text: str) -> None:
        self.turns.append(make_message("assistant", text))

    def pop_turn(self) -> str | None:
        """Remove the last user message and its reply, if any; returns the message's text."""
        while self.turns:
            message = self.turns.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def last_message(self) -> str | None:
        """The text of the last user message."""
        users = [message["content"] for message in self.turns if message["role"] == "user"]
        return users[-1] if users else None

    def reset(self) -> None:
        self.turns = []

    def save(self, path: Path) -> None:
        """Write one line of JSONL, as read by data/tokenize_instruct.py. Raises UserError if the file exists."""
        save_records(path, [{"messages": self.messages()}])

    def load(self, path: Path) -> None:
        """Continue the first conversation of a JSONL file. Raises UserError if it has none."""
        records = load_records(path)
        self.load_messages(path, records[0].get("messages") if records else None)

    def load_messages(self, path: Path, messages: object) -> None:
        """Continue the messages of a record in `path`. Raises UserError if they are no conversation."""
        if problem := conversation_error(messages):
            raise UserError(f"{path}: {problem}")
        first = messages[0] if messages[0]["role"] == "system" else None
        self.system = replace_surrogates(first["content"]) if first else ""
        self.turns = [make_message(m["role"], m["content"]) for m in messages[bool(first) :]]


def save_records(path: Path, records: list[dict]) -> None:
    """Write conversations as lines of JSONL. Raises UserError if the file exists."""
    if path.exists():
        raise UserError(f"{path}: exists already; name another file")
    with atomic_write(path.absolute()) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def load_records(path: Path) -> list[dict]:
    return read_jsonl(path, "name a file that /save wrote")


def reply_budget(engine: Engine, max_tokens: int) -> int:
    """Tokens of the context window that a prompt may have, a quarter or `max_tokens` being kept for the reply."""
    return engine.context - min(max_tokens, engine.context // 4)


def stream_reply(
    engine: Engine, messages: list[dict], sampling: Sampling, status: ReplyStatus, notice: Callable[[str], None]
) -> Iterator[str]:
    """Yield the reply to the last message in pieces.

    Turns that exceed the context window are dropped, oldest first, and `notice` receives a sentence about it.
    Raises ContextExceeded if the last message and the system message alone are too long, UserError if the
    server fails.
    """
    refusal, budget = None, reply_budget(engine, sampling.max_tokens)
    while fitting := drop_oldest_turns(messages, budget, engine.count_tokens):
        kept, dropped = fitting
        with contextlib.closing(engine.stream(kept, sampling, status)) as pieces:
            try:
                first = next(pieces, "")
            except ContextExceeded as error:  # the server counts tokens, an ApiEngine estimates them
                refusal, budget = error, engine.count_tokens(kept) - 1
                continue
            if dropped:
                earlier = sum(message["role"] == "user" for message in messages) - 1
                notice(f"context window full: the oldest {dropped} of {earlier} turns were dropped")
            yield first
            yield from pieces
            return
    kept = [message for message in messages[:1] if message["role"] == "system"] + messages[-1:]
    subject = "the message has" if len(kept) == 1 else "system message and message have"
    raise refusal or ContextExceeded(
        f"message too long: {subject} {engine.count_tokens(kept):,} tokens, the context window has room for "
        f"{budget:,}; send a shorter message"
    )


def drop_oldest_turns(
    messages: list[dict], budget: int, count_tokens: Callable[[list[dict]], int]
) -> tuple[list[dict], int] | None:
    """Drop the oldest turns until the messages have at most `budget` tokens.

    Returns the messages kept, always with the system message and the last message, and the number of turns
    dropped; None if these two alone are longer.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    for start in range(0, len(turns), 2):
        kept = system + turns[start:]
        if count_tokens(kept) <= budget:
            return kept, start // 2
    return None


def make_message(role: str, text: str) -> dict:
    return {"role": role, "content": replace_surrogates(text)}
