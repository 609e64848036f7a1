"""A conversation that goes on: what was said, what still fits into a model's context, and its file.

It knows messages, {"role": "system" | "user" | "assistant", "content": text}, nothing of models.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.chat_template import conversation_error, replace_surrogates
from utils.errors import UserError
from utils.io import atomic_write, read_jsonl


class Conversation:
    """A system message, where there is one, and what user and assistant said in turns."""

    def __init__(self, system: str = ""):
        self.system, self.turns = system, []

    def messages(self) -> list[dict]:
        """All of it, as models take it."""
        return ([_said("system", self.system)] if self.system else []) + self.turns

    def ask(self, question: str) -> None:
        self.turns.append(_said("user", question))

    def answer(self, text: str) -> None:
        self.turns.append(_said("assistant", text))

    def take_back(self) -> str | None:
        """Forget the last question and its answer, if it has one; returns the question."""
        while self.turns:
            message = self.turns.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def reset(self) -> None:
        self.turns = []

    def save(self, path: Path) -> None:
        """One line of JSONL, as data/tokenize_instruct.py takes it. Raises UserError where the file is
        there already."""
        if path.exists():
            raise UserError(f"{path}: is there already; name another file")
        with atomic_write(path.absolute()) as file:
            file.write(json.dumps({"messages": self.messages()}, ensure_ascii=False).encode() + b"\n")

    def load(self, path: Path) -> None:
        """Go on from the first conversation of a JSONL file; UserError where there is none."""
        records = read_jsonl(path, "name a file that /save wrote")
        messages = records[0].get("messages") if records else None
        if problem := conversation_error(messages):
            raise UserError(f"{path}: {problem}")
        first = messages[0] if messages[0]["role"] == "system" else None
        self.system = replace_surrogates(first["content"]) if first else ""
        self.turns = [_said(m["role"], m["content"]) for m in messages[bool(first) :]]


def _said(role: str, content: str) -> dict:
    return {"role": role, "content": replace_surrogates(content)}


def drop_oldest_turns(
    messages: list[dict], room: int, count: Callable[[list[dict]], int]
) -> tuple[list[dict], int] | None:
    """The messages without as many of the oldest turns (question and answer) as it takes to make them
    at most `room` tokens, and how many these are; None where the last question alone is longer.

    `count` gives the tokens of messages. The system message and the last question stay.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = messages[len(system) :]
    for dropped in range(0, len(turns), 2):
        kept = system + turns[dropped:]
        if count(kept) <= room:
            return kept, dropped // 2
    return None


UNKNOWN = 1 << 30  # tokens of a context of which nobody said how long it is


@dataclass
class Sampling:
    """How words are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0


@dataclass
class ReplyStatus:
    """What is known of an answer besides its words. One record an answer: a page has several visitors."""

    ending: str = ""  # stop, or length where it was cut
    tokens: int = 0


class ContextExceeded(UserError):
    """More than the model's context holds."""


def prompt_budget(context: int | None, sampling: Sampling) -> int:
    """Tokens that a question may have: the rest, up to a quarter, is the answer's."""
    context = context or UNKNOWN
    return context - min(sampling.max_tokens, context // 4)


def stream_reply(
    speaker, messages: list[dict], sampling: Sampling, answer: ReplyStatus, notice: Callable[[str], None]
) -> Iterator[str]:
    """The answer to the last message, in pieces. What does not fit into the context is left out by
    whole turns, the oldest first, and `notice` is told. Raises TooLong where the last message (and the
    system message) alone do not fit, UserError where the server fails."""
    refused, room = None, speaker.room(sampling)
    while fitting := drop_oldest_turns(messages, room, speaker.count):
        kept, dropped = fitting
        with contextlib.closing(speaker.stream(kept, sampling, answer)) as pieces:
            try:
                first = next(pieces, "")
            except ContextExceeded as error:  # a server knows better than our guess of tokens
                refused, room = error, speaker.count(kept) - 1
                continue
            if dropped:
                earlier = sum(message["role"] == "user" for message in messages) - 1
                notice(f"the model's context is full: the oldest {dropped} of {earlier} turns are left out")
            yield first
            yield from pieces
            return
    alone = [message for message in messages[:1] if message["role"] == "system"] + messages[-1:]
    what = "the message has" if len(alone) == 1 else "system message and message together have"
    raise refused or ContextExceeded(
        f"too long for the model: {what} {speaker.count(alone):,} tokens, and its context has room for "
        f"{room:,}; send a shorter message"
    )
