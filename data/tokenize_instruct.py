"""Conversations -> token files with a loss mask, for instruction tuning.

    python data/tokenize_instruct.py                                  # UltraChat 200k from the Hub
    python data/tokenize_instruct.py --jsonl mine.jsonl --name mine   # your own: `messages` in every line
    python data/tokenize_instruct.py --jsonl data/example/conversations/train.jsonl \\
        --test_jsonl data/example/conversations/test.jsonl --name example_chat \\
        --tokenizer ckpts/SmolLM2-135M-Instruct --block_size 512

Writes data/dataset/bins/ultrachat_{train,test}.bin (or <name>_…) with .idx, .json and .mask, one byte per token: 1
for the assistant's tokens and the token that ends a reply, or with --train_on_all for every token. Conversations
longer than a block are split between a reply and the next question.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from utils import chat_template, paths
from utils.chat_template import conversation_error
from utils.cli import add_seed_flag, add_tokenizer_flag, make_parser, open_fraction, positive_int, print_result
from utils.errors import UserError, first_line, run
from utils.io import iterate_jsonl, sha256_text
from utils.token_file import write_tokens
from utils.tokenizer import load_tokenizer, vocabulary_sha256

ULTRACHAT = "HuggingFaceH4/ultrachat_200k"
BATCH = 512  # conversations in memory at a time: for UltraChat half a million tokens
Conversation = list[dict]  # messages
Build = Callable[[str], Iterable[Conversation]]  # split -> conversations


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dataset", default=ULTRACHAT, help="a dataset of the Hub with a column `messages`")
    jsonl_help = "your own files, with `messages` in every line"
    source.add_argument("--jsonl", type=Path, nargs="+", metavar="FILE", help=jsonl_help)
    add = parser.add_argument
    splits = ["train_sft", "test_sft"]
    add("--splits", nargs="+", default=splits, metavar="SPLIT", help="splits of --dataset to train on and to hold out")
    add("--test_jsonl", type=Path, nargs="+", metavar="FILE", help="held-out conversations")
    add("--test_share", type=open_fraction, default=0.05, help="fraction held out where no held-out part is given")
    add_tokenizer_flag(parser)
    template_help = "a Jinja chat template (default: the tokenizer's, else Llama 3.1's)"
    add("--template", type=Path, metavar="FILE", help=template_help)
    add("--train_on_all", action="store_true", help="also train on the user's tokens")
    add("--block_size", type=positive_int, default=2048, help="maximum tokens of a piece of a conversation")
    add("--name", default=paths.DEFAULT_CONVERSATIONS, help="name of the token files")
    add_seed_flag(parser, "of the choice of held-out conversations")
    args = parser.parse_args()
    if args.test_jsonl and not args.jsonl:
        raise UserError("--test_jsonl: give the conversations to train on with --jsonl FILE too")
    if len(args.splits) > 2:
        raise UserError("--splits: name one or two")
    return args


def main() -> None:
    args = parse_arguments()
    build, sources = from_files(args) if args.jsonl else from_hub(args)
    tokenizer = load_tokenizer(args.tokenizer)
    chat_template.set_template(tokenizer, args.template, f"--tokenizer {args.tokenizer}")
    result = {}
    for split in ("test", "train"):
        path = paths.conversations_bin(args.name, split)
        made = describe(tokenizer, args, sources)
        meta = write_tokens(path, pieces(build(split), tokenizer, args, made), made, masked=True)
        print(
            f"{path}: {meta['tokens']:,} tokens, {meta['learnt_tokens']:,} of them trained on, "
            f"{meta['conversations']:,} conversations in {meta['documents']:,} pieces"
        )
        result[split] = {"file": str(path)} | {key: meta[key] for key in ("tokens", "documents", "learnt_tokens")}
        if meta["left_out"] or meta["refused"]:
            print(
                f"left out: {meta['left_out']:,} exchanges longer than --block_size {args.block_size}, "
                f"{meta['refused']:,} records that are not conversations"
            )
    flags = f"--task_name instruct --conversations {args.name}"
    print_result(result["train"] | {"test": result["test"]}, f"train with: {flags}")


def describe(tokenizer, args: argparse.Namespace, sources: list[str]) -> dict:
    """The sidecar of a token file, with counts at 0."""
    counts = dict.fromkeys(("conversations", "refused", "cut", "left_out", "learnt_tokens"), 0)
    return {
        "tokenizer": tokenizer.name_or_path,
        "tokenizer_sha256": vocabulary_sha256(tokenizer),
        "vocab_size": len(tokenizer),
        "template": tokenizer.chat_template,
        "template_sha256": sha256_text(tokenizer.chat_template),
        "learnt": "all" if args.train_on_all else "assistant",
        "block_size": args.block_size,
        "seed": args.seed,
        "test_share": args.test_share,
        "sources": sources,
    } | counts


def from_files(args: argparse.Namespace) -> tuple[Build, list[str]]:
    """Conversations from the user's files, and the files' names."""
    files = [*args.jsonl, *(args.test_jsonl or [])]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; give JSONL files with `messages` in every line")

    def build(split: str) -> Iterator[Conversation]:
        if args.test_jsonl:
            yield from read_conversations(args.test_jsonl if split == "test" else args.jsonl)
        else:
            yield from hold_out(read_conversations(args.jsonl), split, args)

    return build, [str(file) for file in files]


def read_conversations(files: list[Path]) -> Iterator[Conversation]:
    for file in files:
        for number, (_, record) in enumerate(iterate_jsonl(file), 1):
            messages = record.get("messages")
            if error := conversation_error(messages):
                raise UserError(f"{file}, conversation {number}: {error}")
            yield messages


def from_hub(args: argparse.Namespace) -> tuple[Build, list[str]]:
    """Conversations streamed from a dataset of the Hub, and its splits."""
    import datasets

    def build(split: str) -> Iterator[Conversation]:
        single = len(args.splits) == 1
        name = args.splits[0 if single or split == "train" else 1]
        try:
            rows = datasets.load_dataset(args.dataset, split=name, streaming=True)
            conversations = (row.get("messages") for row in rows)
            yield from hold_out(conversations, split, args) if single else conversations
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--dataset {args.dataset}, split {name}: could not be loaded from the Hub ({first_line(error)}); "
                "give your own conversations with --jsonl FILE"
            ) from error

    return build, [f"{args.dataset}:{name}" for name in args.splits]


def hold_out(conversations: Iterable[Conversation], split: str, args: argparse.Namespace) -> Iterator[Conversation]:
    """The conversations of a split; each is held out with probability --test_share."""
    rng = np.random.default_rng(args.seed)
    for messages in conversations:
        if (rng.random() < args.test_share) == (split == "test"):
            yield messages


def pieces(
    conversations: Iterable[Conversation], tokenizer, args: argparse.Namespace, counts: dict
) -> Iterator[list[np.ndarray]]:
    """Batches of conversations, or pieces of long ones, as (2, tokens) ids and mask; updates `counts`."""
    conversations = iter(conversations)
    while batch := list(itertools.islice(conversations, BATCH)):
        valid = [messages for messages in batch if not conversation_error(messages)]
        counts["conversations"] += len(valid)
        counts["refused"] += len(batch) - len(valid)
        encoded = []
        for messages, rows in zip(valid, chat_template.encode_with_mask(tokenizer, valid), strict=True):
            fits = rows.shape[1] <= args.block_size
            encoded += [rows] if fits else split_conversation(tokenizer, messages, args.block_size, counts)
        if args.train_on_all:
            for rows in encoded:
                rows[1] = 1
        counts["learnt_tokens"] += sum(int(rows[1].sum()) for rows in encoded)
        yield encoded
    if not counts["learnt_tokens"]:
        raise UserError("no conversation is left to write; give more, or a larger --block_size or --test_share")


def split_conversation(tokenizer, messages: list[dict], limit: int, counts: dict) -> list[np.ndarray]:
    """Split a conversation into pieces of whole exchanges, as many as fit `limit` tokens, each with the system message.
    An exchange that alone exceeds the limit is left out."""
    counts["cut"] += 1
    start = messages[0]["role"] == "system"
    system, turns = messages[:start], messages[start:]
    parts: list[list[dict]] = []
    for index in range(0, len(turns), 2):
        exchange = turns[index : index + 2]
        if parts and len(chat_template.encode(tokenizer, parts[-1] + exchange)) <= limit:
            parts[-1] += exchange
        else:
            parts.append(system + exchange)
    rows = chat_template.encode_with_mask(tokenizer, parts)
    kept = [row for row in rows if row.shape[1] <= limit]
    counts["left_out"] += len(rows) - len(kept)
    return kept


if __name__ == "__main__":
    run(main)
