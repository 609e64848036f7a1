"""A conversation that goes on: what was said, what still fits into a model's context, and its file.

It knows messages, {"role": "system" | "user" | "assistant", "content": text}, nothing of models.
"""

import json
from collections.abc import Callable
from pathlib import Path

from utils.io import UserError, read_jsonl, replacing


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
        with replacing(path.absolute()) as file:
            file.write(
                json.dumps({"messages": self.messages()}, ensure_ascii=False).encode() + b"\n"
            )

    def load(self, path: Path) -> None:
        """Go on from the first conversation of a JSONL file; UserError where there is none."""
        records = read_jsonl(path, "name a file that /save wrote")
        messages = records[0].get("messages") if records else None
        if problem := problem_of(messages):
            raise UserError(f"{path}: {problem}")
        first = messages[0] if messages[0]["role"] == "system" else None
        self.system = whole(first["content"]) if first else ""
        self.turns = [_said(m["role"], m["content"]) for m in messages[bool(first) :]]


def _said(role: str, content: str) -> dict:
    return {"role": role, "content": whole(content)}


def whole(text: str) -> str:
    """A text without halves of surrogate pairs, which no file, terminal or tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def problem_of(messages: object) -> str | None:
    """What keeps a value from being a finished conversation; None where nothing does."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return "has no list `messages`"
    if not all(isinstance(m.get("content"), str) for m in messages):
        return "a message has no text in `content`"
    roles = [m.get("role") for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        return "after a system message, if any, user and assistant must take turns, and the assistant end"
    return None


def fit(
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
