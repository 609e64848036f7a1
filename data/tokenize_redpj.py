"""Step 3: replay text -> token files. Replay keeps the model's general abilities during continued pretraining.

    python data/tokenize_redpj.py                            # 1B tokens of general web text, streamed
    python data/tokenize_redpj.py --dataset allenai/c4:en --name c4
    python data/tokenize_redpj.py --text notes.txt more.jsonl --test_tokens 50000 \\
        --tokenizer ckpts/SmolLM2-135M-Instruct

Writes data/dataset/bins/togethercomputer_RedPajama_Data_1T_Sample_None_{train,test}.bin, or <name>_{train,test}.bin.
If the RedPajama sample cannot be loaded (it was reported missing from the Hub in November 2025, and `datasets` rejects
its loading script), FineWeb-Edu's sample-10BT is used; the .json files name the source.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from data.plain_text import pieces
from utils import paths
from utils.cli import (
    add_seed_flag,
    add_tokenizer_flag,
    file_name,
    make_parser,
    positive_int,
    print_result,
    refuse_repeated,
)
from utils.errors import UserError, first_line, run
from utils.io import iterate_jsonl, report_left_out, sha256_text, usable_texts
from utils.token_file import HELD_OUT_KEY, refuse_other_kind
from utils.tokenizer import load_tokenizer, write_documents

REDPAJAMA = "togethercomputer/RedPajama-Data-1T-Sample"
FINEWEB_EDU = "HuggingFaceFW/fineweb-edu:sample-10BT"
SHUFFLE_BUFFER = 10_000  # documents in memory while a stream is shuffled
TEST_TOKENS = 10**7
BYTES_PER_TOKEN = 4  # English prose


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    source = parser.add_mutually_exclusive_group()
    dataset_help = f"a dataset of the Hub with a column `text` (default: {REDPAJAMA}, else {FINEWEB_EDU})"
    source.add_argument("--dataset", metavar="NAME[:CONFIG]", help=dataset_help)
    text_help = "your own files: .txt, .jsonl or .parquet (column `text`)"
    source.add_argument("--text", type=Path, nargs="+", metavar="FILE", help=text_help)
    add_tokenizer_flag(parser)
    parser.add_argument("--tokens", type=positive_int, default=10**9, help="training tokens")
    test_help = "held-out tokens (default: 10 million, of your own files a hundredth if that is less)"
    parser.add_argument("--test_tokens", type=positive_int, help=test_help)
    parser.add_argument("--name", type=file_name, default=paths.DEFAULT_REPLAY, help="name of the token files")
    add_seed_flag(parser, "of the order of documents")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    refuse_repeated("--text", args.text or [])
    left_out: dict[str, list[int]] = {}
    small_pieces = args.test_tokens is None  # so that a hundredth of a small file can be held out
    build, source = text_files(args.text, left_out, small_pieces) if args.text else hub_dataset(args.dataset, left_out)
    tokenizer = load_tokenizer(args.tokenizer)
    made = {"seed": args.seed, "sources": source}

    test_file, train_file = (paths.replay_bin(args.name, split) for split in ("test", "train"))
    refuse_other_kind(train_file, args.name, masked=False)
    test_tokens = args.test_tokens or default_test_tokens(args.text)
    texts = partial(shuffled, seed=args.seed)
    with ExitStack() as pair:
        held_out = {"enough": test_tokens, "leave_rest": True}
        test = write_documents(test_file, lambda: texts(build()), tokenizer, made, pair=pair, **held_out)
        made |= {HELD_OUT_KEY: test["sha256"]}
        rest = partial(without_held_out, number=test["documents"])
        train = write_documents(train_file, lambda: rest(texts(build())), tokenizer, made, args.tokens, pair=pair)
    report_left_out(left_out)
    counts = {"tokens": train["tokens"], "documents": train["documents"], "test_tokens": test["tokens"]}
    print_result(
        {"file": str(train_file)} | counts,
        f"{train['tokens']:,} tokens, {test['tokens']:,} held out; replay with: --replay {args.name}",
    )


def default_test_tokens(files: list[Path] | None) -> int:
    """A hundredth of the tokens of your own files, by their bytes, and at most TEST_TOKENS."""
    if not files:
        return TEST_TOKENS
    if not any(file.stat().st_size for file in files if file.is_file()):
        raise UserError(f"--text {files[0]}: empty; name a file with text")
    return min(TEST_TOKENS, max(1, sum(file.stat().st_size for file in files) // BYTES_PER_TOKEN // 100))


def text_files(files: list[Path], left_out: dict, small_pieces: bool) -> tuple[Callable[[], Iterable[str]], list[str]]:
    for file in files:
        if not file.is_file():
            raise UserError(f"--text {file}: no such file")
        if file.suffix not in (".txt", ".jsonl", ".parquet"):
            raise UserError(f"--text {file}: must end in .txt, .jsonl or .parquet")
    return lambda: (text for file in files for text in texts_of(file, left_out, small_pieces)), [
        str(file) for file in files
    ]


def texts_of(file: Path, left_out: dict, small_pieces: bool) -> Iterator[str]:
    """The texts of a file; rows without one are counted in `left_out`."""
    if file.suffix == ".txt":
        yield from pieces(file, small_pieces)
    elif file.suffix == ".jsonl":
        yield from usable_texts((record.get("text") for _, record in iterate_jsonl(file)), str(file), left_out)
    else:
        import datasets

        try:
            stream = datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)
            yield from column_text(stream, str(file), left_out)
        except ValueError as error:  # pyarrow's own is one
            raise UserError(f"--text {file}: not a Parquet file ({first_line(error)})") from error


def hub_dataset(wanted: str | None, left_out: dict) -> tuple[Callable[[], Iterable[str]], list[str]]:
    """A stream from the Hub: the dataset asked for, else RedPajama's sample, else FineWeb-Edu."""
    import datasets

    reasons = []
    for name in [wanted] if wanted else [REDPAJAMA, FINEWEB_EDU]:
        path, _, config = name.partition(":")
        try:
            stream = datasets.load_dataset(path, config or None, split="train", streaming=True)
            break
        except (OSError, RuntimeError, ValueError) as error:  # missing, unreachable, or a loading script
            reasons.append(f"{name}: {first_line(error)}")
    else:
        raise UserError(f"no replay text from the Hub ({'; '.join(reasons)}); give your own with --text FILE")
    if reasons:
        print(f"{reasons[0]}; using {name} instead", file=sys.stderr)
    return lambda: column_text(stream, name, left_out), [name]


def column_text(stream: Iterable[dict], name: str, left_out: dict) -> Iterator[str]:
    try:
        yield from usable_texts((text_of(row, name) for row in stream), name, left_out)
    except OSError as error:  # the connection was lost
        raise UserError(f"{name}: the stream was interrupted ({first_line(error)}); run it again") from error


def text_of(row: dict, name: str) -> object:
    if "text" not in row:
        raise UserError(f"{name}: has no column `text`, only {', '.join(row)}")
    return row["text"]


def shuffled(texts: Iterable[str], seed: int) -> Iterator[str]:
    """Shuffle a stream through a buffer of SHUFFLE_BUFFER documents: a random document of the buffer is yielded and
    replaced by the next one of the stream."""
    rng = np.random.default_rng(seed)
    texts = iter(texts)
    buffer = list(itertools.islice(texts, SHUFFLE_BUFFER))
    for text in texts:
        place = rng.integers(len(buffer))
        buffer[place], text = text, buffer[place]
        yield text
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


def without_held_out(texts: Iterable[str], number: int) -> Iterator[str]:
    """The texts after the first `number`, which are held out, without copies of those."""
    held_out, copies, others = set(), 0, 0
    for place, text in enumerate(texts):
        key = sha256_text(" ".join(text.split()))
        if place < number:
            held_out.add(key)
        elif key not in held_out:
            others += 1
            yield text
        else:
            copies += 1
    if copies and not others:
        raise UserError("every other document is a copy of a held-out one; give more text")
    if copies:
        print(f"{copies} documents that are copies of held-out ones are left out", file=sys.stderr)


if __name__ == "__main__":
    run(main, "starts over; the files of an earlier run are kept until then")
