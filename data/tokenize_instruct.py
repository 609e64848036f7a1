"""Conversations -> token files with a loss mask, for instruction tuning.

    python data/tokenize_instruct.py                                  # UltraChat 200k from the Hub
    python data/tokenize_instruct.py --jsonl mine.jsonl --name mine   # your own: `messages` in every line
    python data/tokenize_instruct.py --jsonl data/example/conversations/train.jsonl \\
        --test_jsonl data/example/conversations/test.jsonl --name example_chat \\
        --tokenizer ckpts/SmolLM2-135M-Instruct --block_size 512

Writes data/dataset/bins/ultrachat_{train,test}.bin (or <name>_…) with .idx, .json and .mask, one byte per token: 1
for the assistant's tokens and the token that ends a reply, or with --train_on_all for every token; 0 for a reply with
`"weight": 0`. Conversations longer than a block are split between a reply and the next question. Conversations with
tool calls or images are left out and counted.
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data.conversations import from_files, from_hub, print_left_out, select_conversations, without_copies
from utils import chat_template, paths
from utils.chat_template import encode_with_mask
from utils.cli import (
    add_seed_flag,
    add_tokenizer_flag,
    file_name,
    make_parser,
    open_fraction,
    positive_int,
    print_result,
    refuse_without_effect,
)
from utils.errors import UserError, run
from utils.io import sha256_text
from utils.progress import progress_bar
from utils.token_file import HELD_OUT_KEY, refuse_other_kind, write_tokens
from utils.tokenizer import load_tokenizer, vocabulary_sha256

ULTRACHAT = "HuggingFaceH4/ultrachat_200k"
BATCH = 512  # conversations in memory at a time: for UltraChat half a million tokens


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
    add("--name", type=file_name, default=paths.DEFAULT_CONVERSATIONS, help="name of the token files")
    add_seed_flag(parser, "of the choice of held-out conversations")
    args = parser.parse_args()
    if args.test_jsonl and not args.jsonl:
        raise UserError("--test_jsonl: give the conversations to train on with --jsonl FILE too")
    if len(args.splits) > 2:
        raise UserError("--splits: name one or two")
    if args.jsonl:
        refuse_without_effect(parser, args, "splits", "with --jsonl")
    if args.test_jsonl:
        refuse_without_effect(parser, args, "test_share", "with --test_jsonl")
    return args


def main() -> None:
    args = parse_arguments()
    build, sources = from_files(args) if args.jsonl else from_hub(args)
    tokenizer = load_tokenizer(args.tokenizer)
    chat_template.set_template(tokenizer, args.template, f"--tokenizer {args.tokenizer}")
    result, held_out, known = {}, {}, set()  # known: digests of the held-out conversations
    with ExitStack() as pair:
        for split in ("test", "train"):
            path = paths.conversations_bin(args.name, split)
            refuse_other_kind(path, args.name, masked=True)
            made = describe(tokenizer, args, sources) | held_out
            records = without_copies(build(split), split, known, made, drop=not names_held_out(args))
            meta = write_tokens(path, pieces(records, tokenizer, args, made), made, masked=True, pair=pair)
            print(
                f"{path}: {meta['tokens']:,} tokens, {meta['learnt_tokens']:,} of them trained on, "
                f"{meta['conversations']:,} conversations in {meta['documents']:,} pieces"
            )
            held_out = {HELD_OUT_KEY: meta["sha256"]}
            result[split] = {"file": str(path)} | {key: meta[key] for key in ("tokens", "documents", "learnt_tokens")}
            print_left_out(meta, args.block_size)
    flags = f"--task_name instruct --conversations {args.name}"
    print_result(
        result["train"] | {"test": result["test"]},
        f"{result['train']['learnt_tokens']:,} tokens trained on; train with: {flags}",
    )


def names_held_out(args: argparse.Namespace) -> bool:
    """True if the user, or the dataset, says which conversations are held out."""
    return bool(args.test_jsonl) if args.jsonl else len(args.splits) == 2


def describe(tokenizer, args: argparse.Namespace, sources: list[str]) -> dict:
    """The sidecar of a token file, with counts at 0."""
    counts = dict.fromkeys(("conversations", "refused", "cut", "left_out", "learnt_tokens", "in_both"), 0)
    counts |= {"skipped": {}, "dropped": {}}
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


def pieces(records: Iterable[dict], tokenizer, args: argparse.Namespace, counts: dict) -> Iterator[list[np.ndarray]]:
    """Batches of conversations, or pieces of long ones, as (2, tokens) ids and mask; updates `counts`."""
    records = iter(progress_bar(iterable=records, desc="encoding", unit="conversation"))
    while batch := list(itertools.islice(records, BATCH)):
        selected = select_conversations(batch, tokenizer, counts)
        encoded = []
        for messages, rows in zip(selected, encode_with_mask(tokenizer, selected, args.train_on_all), strict=True):
            fits = rows.shape[1] <= args.block_size
            encoded += [rows] if fits else split_conversation(tokenizer, messages, args, counts)
        learnt = [rows for rows in encoded if rows[1].any()]
        if len(learnt) < len(encoded):
            reason = "in which every reply has the weight 0"
            counts["skipped"][reason] = counts["skipped"].get(reason, 0) + len(encoded) - len(learnt)
        counts["learnt_tokens"] += sum(int(rows[1].sum()) for rows in learnt)
        yield learnt
    if not counts["learnt_tokens"]:
        reasons = "".join(f"; {count} {reason}" for reason, count in counts["skipped"].items())
        raise UserError(
            f"no conversation is left to write{reasons}; give more, or a larger --block_size or --test_share"
        )


def split_conversation(tokenizer, messages: list[dict], args: argparse.Namespace, counts: dict) -> list[np.ndarray]:
    """Split a conversation into pieces of whole exchanges, as many as fit a block, each with the system message. An
    exchange that alone is longer than a block is left out."""
    limit = args.block_size
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
    rows = encode_with_mask(tokenizer, parts, args.train_on_all)
    kept = [row for row in rows if row.shape[1] <= limit]
    counts["left_out"] += len(rows) - len(kept)
    return kept


if __name__ == "__main__":
    run(main, "starts over; the files of an earlier run are kept until then")
