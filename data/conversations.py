"""Conversation records from files and the Hub: reading, the held-out split, loss masks, records that are left out."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from utils import chat_template
from utils.chat_template import conversation_error
from utils.errors import UserError, first_line
from utils.io import iterate_jsonl, json_digest

KNOWN_KEYS = {"role", "content", "weight"}  # of a message; whether others count depends on the chat template
Record = dict  # with `messages`, in OpenAI's form for fine-tuning
Build = Callable[[str], Iterable[Record]]  # split -> records


def from_files(args: argparse.Namespace) -> tuple[Build, list[str]]:
    """Records from the user's files, and the files' names."""
    files = [*args.jsonl, *(args.test_jsonl or [])]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; give JSONL files with `messages` in every line")

    def build(split: str) -> Iterator[Record]:
        if args.test_jsonl:
            yield from read_records(args.test_jsonl if split == "test" else args.jsonl)
        else:
            yield from hold_out(read_records(args.jsonl), split, args)

    return build, [str(file) for file in files]


def read_records(files: list[Path]) -> Iterator[Record]:
    """The records of JSONL files. Raises UserError for one that is no conversation, but not for tool calls or images,
    which are left out later."""
    for file in files:
        for number, (offset, record) in enumerate(iterate_jsonl(file), 1):
            messages, reason = prepare_messages(record.get("messages"))
            if not reason and (error := conversation_error(messages)):
                with open(file, "rb") as start:
                    line = start.read(offset).count(b"\n") + 1
                raise UserError(f"{file}, conversation {number}: {error} (line {line})")
            yield record


def from_hub(args: argparse.Namespace) -> tuple[Build, list[str]]:
    """Records streamed from a dataset of the Hub, and its splits."""
    import datasets

    def build(split: str) -> Iterator[Record]:
        single = len(args.splits) == 1
        name = args.splits[0 if single or split == "train" else 1]
        try:
            rows = datasets.load_dataset(args.dataset, split=name, streaming=True)
            yield from hold_out(rows, split, args) if single else rows
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--dataset {args.dataset}, split {name}: could not be loaded from the Hub ({first_line(error)}); "
                "give your own conversations with --jsonl FILE"
            ) from error

    return build, [f"{args.dataset}:{name}" for name in args.splits]


def hold_out(records: Iterable[Record], split: str, args: argparse.Namespace) -> Iterator[Record]:
    """The records of a split; each is held out with probability --test_share."""
    rng = np.random.default_rng(args.seed)
    for record in records:
        if (rng.random() < args.test_share) == (split == "test"):
            yield record


def without_copies(
    records: Iterable[Record], split: str, held_out: set[str], counts: dict, drop: bool
) -> Iterator[Record]:
    """The records of a split, of the training split without copies of those of the held-out one, whose digests
    `held_out` collects. Without `drop`, where the user has named both, they stay and are counted."""
    for record in records:
        digest = json_digest(record.get("messages"), 20)
        if split == "test":
            held_out.add(digest)
        elif digest in held_out:
            counts["in_both"] += not drop
            if drop:
                _count(counts["skipped"], "that are held out as well")
                continue
        yield record


def select_conversations(records: list[Record], tokenizer, counts: dict) -> list[list[dict]]:
    """The messages of the records to train on. Counts conversations, records that are `refused` as none,
    `skipped` ones by reason, and `dropped` keys that the chat template does not render."""
    kept = []
    for record in records:
        messages, reason = prepare_messages(record.get("messages"))
        if reason:
            _count(counts["skipped"], reason)
        elif conversation_error(messages):
            counts["refused"] += 1
        else:
            counts["conversations"] += 1
            for key in ("tools", "functions"):  # offered, and not called
                _count(counts["dropped"], key, bool(record.get(key)))
            kept.append(_without_unused_keys(messages, tokenizer, counts["dropped"]))
    return kept


def prepare_messages(messages: object) -> tuple[object, str | None]:
    """The messages with content as a string, and developers as systems; and the reason why a conversation cannot be
    learnt although it is one, if any. What are no messages is returned unchanged."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages, None
    if any(m.get("tool_calls") or m.get("function_call") or m.get("role") in ("tool", "function") for m in messages):
        return messages, "with tool calls"
    if any(m.get("role") == "assistant" and is_blank(m.get("content")) for m in messages):
        return messages, "with an empty reply"
    prepared = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            texts = [part.get("text") if isinstance(part, dict) else None for part in content]
            if not all(isinstance(text, str) for text in texts):
                return messages, "with content that is not text"
            content = "".join(texts)
        role = "system" if message.get("role") == "developer" else message.get("role")
        prepared.append({key: value for key, value in message.items() if value is not None})
        prepared[-1] |= {"role": role, "content": content}
    return prepared, None


def is_blank(content: object) -> bool:
    return isinstance(content, str) and not content.strip()


def _without_unused_keys(messages: list[dict], tokenizer, dropped: dict[str, int]) -> list[dict]:
    """The messages without keys, such as `name` or `reasoning_content`, that do not change the rendered text."""
    kept = [dict(message) for message in messages]
    for message in kept:
        for key in [key for key in message if key not in KNOWN_KEYS]:
            rendered = chat_template.render(tokenizer, kept)
            value = message.pop(key)
            if value and rendered != chat_template.render(tokenizer, kept):
                message[key] = value
            else:
                _count(dropped, key, bool(value))
    return kept


def _count(counts: dict[str, int], name: str, number: int = 1) -> None:
    if number:
        counts[name] = counts.get(name, 0) + number


def print_left_out(meta: dict, block_size: int) -> None:
    """Report what a token file does not contain."""
    if meta["left_out"] or meta["refused"]:
        print(
            f"left out: {meta['left_out']:,} exchanges longer than --block_size {block_size}, "
            f"{meta['refused']:,} records that are not conversations"
        )
    if meta["in_both"]:
        print(f"{meta['in_both']:,} conversations to train on are among the held-out ones too", file=sys.stderr)
    if meta["skipped"]:
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in meta["skipped"].items())
        print(f"left out: of the conversations {skipped}", file=sys.stderr)
    if meta["dropped"]:
        dropped = ", ".join(f"{name} ({count:,})" for name, count in meta["dropped"].items())
        print(f"dropped, as the chat template does not render it: {dropped}", file=sys.stderr)
