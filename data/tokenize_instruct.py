"""Conversations -> token files with a loss mask, for instruction tuning.

    python data/tokenize_instruct.py                                  # UltraChat 200k, from the hub
    python data/tokenize_instruct.py --jsonl mine.jsonl --name mine   # one's own: `messages` in every line
    python data/tokenize_instruct.py --jsonl data/example/conversations/train.jsonl \\
        --test_jsonl data/example/conversations/test.jsonl --name example_chat \\
        --tokenizer ckpts/SmolLM2-135M-Instruct --block_size 512

Writes data/dataset/bins/ultrachat_{train,test}.bin (or <name>_…) with .idx and .json, and .mask: a byte a
token, 1 where the model is to learn it. These are the assistant's words and the token that ends them,
or with --train_on_all every token. A conversation longer than a block is cut between a reply and the
next question.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from utils import chat_template, paths
from utils.chat_template import conversation_error
from utils.errors import UserError, first_line, run
from utils.io import iterate_jsonl
from utils.token_file import write_tokens
from utils.tokenizer import load_tokenizer, vocabulary_sha256

ULTRACHAT = "HuggingFaceH4/ultrachat_200k"
BATCH = 512  # conversations in memory at a time; of UltraChat half a million tokens
Conversation = list[dict]  # its messages


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset", default=ULTRACHAT, help="of the hub, with a column `messages` (default %(default)s)"
    )
    source.add_argument(
        "--jsonl", type=Path, nargs="+", metavar="FILE", help="files of one's own, `messages` in every line"
    )
    add = parser.add_argument
    add(
        "--splits",
        nargs="+",
        default=["train_sft", "test_sft"],
        metavar="SPLIT",
        help="of the dataset: to train on, and held out (default train_sft test_sft)",
    )
    add("--test_jsonl", type=Path, nargs="+", metavar="FILE", help="held out")
    add(
        "--test_share", type=float, default=0.05, help="held out of what has no held-out part of its own (default 0.05)"
    )
    add("--tokenizer", default=paths.DEFAULT_TOKENIZER, help="name or folder (default %(default)s)")
    add(
        "--template",
        type=Path,
        metavar="FILE",
        help="a Jinja chat template (default the tokenizer's own, else Llama 3.1's)",
    )
    add("--train_on_all", action="store_true", help="learn the user's words too")
    add("--block_size", type=int, default=2048, help="the longest piece of a conversation, in tokens (default 2048)")
    add("--name", default=paths.DEFAULT_CONVERSATIONS, help="of the files (default %(default)s)")
    add("--seed", type=int, default=0, help="of what is held out")
    args = parser.parse_args()
    if not 0 < args.test_share < 1:
        raise UserError(f"--test_share {args.test_share}: between 0 and 1")
    if args.test_jsonl and not args.jsonl:
        raise UserError("--test_jsonl: what is trained on is missing; give --jsonl FILE too")
    if args.block_size < 1 or len(args.splits) > 2:
        raise UserError("--block_size: above 0; --splits: one or two")
    return args


def main() -> None:
    args = parse_arguments()
    build, sources = from_files(args) if args.jsonl else from_hub(args)
    tokenizer = load_tokenizer(args.tokenizer)
    chat_template.set_template(tokenizer, args.template, f"--tokenizer {args.tokenizer}")
    for split in ("test", "train"):
        path = paths.conversations_bin(args.name, split)
        made = {
            "tokenizer": tokenizer.name_or_path,
            "tokenizer_sha256": vocabulary_sha256(tokenizer),
            "vocab_size": len(tokenizer),
            "template": tokenizer.chat_template,
            "template_sha256": chat_template.digest(tokenizer.chat_template),
            "learnt": "all" if args.train_on_all else "assistant",
            "block_size": args.block_size,
            "seed": args.seed,
            "test_share": args.test_share,
            "sources": sources,
        } | dict.fromkeys(("conversations", "refused", "cut", "left_out", "learnt_tokens"), 0)
        pieces = documents(build(split), tokenizer, args, made)
        meta = write_tokens(path, pieces, made, masked=True)
        print(
            f"{path}: {meta['tokens']:,} tokens, {meta['learnt_tokens']:,} of them to learn, "
            f"{meta['conversations']:,} conversations in {meta['documents']:,} pieces"
        )
        if meta["left_out"] or meta["refused"]:
            print(
                f"left out: {meta['left_out']:,} exchanges longer than --block_size {args.block_size}, "
                f"{meta['refused']:,} records that are no conversation"
            )


def from_files(args: argparse.Namespace) -> tuple[Callable[[str], Iterable[Conversation]], list]:
    """Conversations of a split, out of the user's files; and the files' names."""
    for file in [*args.jsonl, *(args.test_jsonl or [])]:
        if not file.is_file():
            raise UserError(f"{file}: no such file; give JSONL files with `messages` in every line")

    def build(split: str) -> Iterator[Conversation]:
        if args.test_jsonl:
            yield from of_files(args.test_jsonl if split == "test" else args.jsonl)
        else:
            yield from share(of_files(args.jsonl), split, args)

    return build, [str(file) for file in [*args.jsonl, *(args.test_jsonl or [])]]


def of_files(files: list[Path]) -> Iterator[Conversation]:
    for file in files:
        for number, (_, record) in enumerate(iterate_jsonl(file), 1):
            messages = record.get("messages")
            if problem := conversation_error(messages):
                raise UserError(f"{file}, conversation {number}: {problem}")
            yield messages


def from_hub(args: argparse.Namespace) -> tuple[Callable[[str], Iterable[Conversation]], list]:
    """The same out of a dataset of the hub, streamed."""
    import datasets

    def build(split: str) -> Iterator[Conversation]:
        alone = len(args.splits) == 1
        name = args.splits[0 if alone or split == "train" else 1]
        try:
            rows = datasets.load_dataset(args.dataset, split=name, streaming=True)
            conversations = (row.get("messages") for row in rows)
            yield from share(conversations, split, args) if alone else conversations
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--dataset {args.dataset}, split {name}: not to be had from the hub "
                f"({first_line(error)}); give your own conversations with --jsonl FILE"
            ) from error

    return build, [f"{args.dataset}:{name}" for name in args.splits]


def share(conversations: Iterable[Conversation], split: str, args: argparse.Namespace) -> Iterator[Conversation]:
    """Of all conversations those that are held out, each by its own draw, or the others."""
    rng = np.random.default_rng(args.seed)
    for messages in conversations:
        if (rng.random() < args.test_share) == (split == "test"):
            yield messages


def documents(
    conversations: Iterable[Conversation], tokenizer, args: argparse.Namespace, counts: dict
) -> Iterator[list[np.ndarray]]:
    """Batches of pieces of conversations, each (2, tokens): ids and mask; counts what it meets."""
    conversations = iter(conversations)
    while batch := list(itertools.islice(conversations, BATCH)):
        good = [messages for messages in batch if not conversation_error(messages)]
        counts["conversations"] += len(good)
        counts["refused"] += len(batch) - len(good)
        found = []
        for messages, rows in zip(good, chat_template.encode_with_mask(tokenizer, good), strict=True):
            if rows.shape[1] <= args.block_size:
                found.append(rows)
            else:
                found += cut(tokenizer, messages, args.block_size, counts)
        if args.train_on_all:
            for rows in found:
                rows[1] = 1
        counts["learnt_tokens"] += sum(int(rows[1].sum()) for rows in found)
        yield found
    if not counts["learnt_tokens"]:
        raise UserError("no conversation is left to write; give more, or a larger --block_size or --test_share")


def cut(tokenizer, messages: list[dict], longest: int, counts: dict) -> list[np.ndarray]:
    """A long conversation in pieces of whole exchanges, as many in each as fit, the system message
    before every one. An exchange that does not fit by itself is left out."""
    counts["cut"] += 1
    system, turns = ([], messages) if messages[0]["role"] == "user" else (messages[:1], messages[1:])
    pieces: list[list[dict]] = []
    for index in range(0, len(turns), 2):
        exchange = turns[index : index + 2]
        if pieces and len(chat_template.encode(tokenizer, pieces[-1] + exchange)) <= longest:
            pieces[-1] += exchange
        else:
            pieces.append(system + exchange)
    rows = chat_template.encode_with_mask(tokenizer, pieces)
    kept = [row for row in rows if row.shape[1] <= longest]
    counts["left_out"] += len(rows) - len(kept)
    return kept


if __name__ == "__main__":
    run(main)
