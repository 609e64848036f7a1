"""Step 3: replay text -> token files, so that the model keeps what it could do before.

    python data/tokenize_redpj.py                            # 1B tokens of general web text, streamed
    python data/tokenize_redpj.py --dataset allenai/c4:en --name c4
    python data/tokenize_redpj.py --text notes.txt more.jsonl --test_tokens 50000 \\
        --tokenizer ckpts/SmolLM2-135M-Instruct

Writes data/dataset/bins/togethercomputer_RedPajama_Data_1T_Sample_None_{train,test}.bin, or
<name>_{train,test}.bin. Where the RedPajama sample cannot be had (it was reported gone from the hub
in November 2025, and `datasets` refuses its loading script) FineWeb-Edu's sample-10BT takes its
place; the .json beside the files says which one was taken.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from utils import paths
from utils.errors import UserError, first_line, run
from utils.io import iterate_jsonl
from utils.tokenizer import load_tokenizer, write_documents

REDPAJAMA = "togethercomputer/RedPajama-Data-1T-Sample"
FINEWEB_EDU = "HuggingFaceFW/fineweb-edu:sample-10BT"
SHUFFLE_BUFFER = 10_000  # documents in memory while a stream is shuffled
PIECE_CHARACTERS = 1 << 16  # a .txt file has no documents: it is cut at line ends into such pieces


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset",
        metavar="NAME[:CONFIG]",
        help=f"a dataset of the hub with a column `text` (default {REDPAJAMA}, else {FINEWEB_EDU})",
    )
    source.add_argument(
        "--text",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="files of one's own: .txt, .jsonl, .parquet (column `text`)",
    )
    add = parser.add_argument
    add("--tokenizer", default=paths.DEFAULT_TOKENIZER, help="name or folder (default %(default)s)")
    add("--tokens", type=int, default=10**9, help="for training (default 1B)")
    add("--test_tokens", type=int, default=10**7, help="held out (default 10M)")
    add("--name", default=paths.DEFAULT_REPLAY, help="of the files (default %(default)s)")
    add("--seed", type=int, default=0, help="of the order of documents")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.tokens < 1 or args.test_tokens < 1:
        raise UserError("--tokens and --test_tokens: must be above 0")
    build, source = text_files(args.text) if args.text else hub_dataset(args.dataset)
    tokenizer = load_tokenizer(args.tokenizer)
    made = {"seed": args.seed, "sources": source}

    def documents(skipped: int) -> Callable[[], Iterable[str]]:
        return lambda: itertools.islice(shuffled(build(), args.seed), skipped, None)

    test_file, train_file = (paths.replay_bin(args.name, split) for split in ("test", "train"))
    test = write_documents(test_file, documents(0), tokenizer, made, args.test_tokens, leave_rest=True)
    write_documents(train_file, documents(test["documents"]), tokenizer, made, args.tokens)


def text_files(files: list[Path]) -> tuple[Callable[[], Iterable[str]], list[str]]:
    for file in files:
        if not file.is_file():
            raise UserError(f"--text {file}: no such file")
        if file.suffix not in (".txt", ".jsonl", ".parquet"):
            raise UserError(f"--text {file}: its name ends neither in .txt nor .jsonl nor .parquet")
    return lambda: (text for file in files for text in texts_of(file)), [str(file) for file in files]


def texts_of(file: Path) -> Iterator[str]:
    if file.suffix == ".txt":
        yield from pieces(file)
    elif file.suffix == ".jsonl":
        for _, record in iterate_jsonl(file):
            if not isinstance(record.get("text"), str):
                raise UserError(f"{file}: a record has no `text`")
            yield record["text"]
    else:
        import datasets

        stream = datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)
        yield from column_text(stream, str(file))


def pieces(file: Path) -> Iterator[str]:
    """A text file in pieces of at least PIECE_CHARACTERS, each ending with a line. A byte that is
    not UTF-8 becomes U+FFFD."""
    lines, size = [], 0
    with open(file, encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            lines.append(line)
            size += len(line)
            if size >= PIECE_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
    if lines:
        yield "".join(lines)


def hub_dataset(wanted: str | None) -> tuple[Callable[[], Iterable[str]], list[str]]:
    """A stream of the hub: the one asked for, or RedPajama's sample, or what stands in for it."""
    import datasets

    reasons = []
    for name in [wanted] if wanted else [REDPAJAMA, FINEWEB_EDU]:
        path, _, config = name.partition(":")
        try:
            stream = datasets.load_dataset(path, config or None, split="train", streaming=True)
            break
        except (OSError, RuntimeError, ValueError) as error:  # not there, not reached, a script
            reasons.append(f"{name}: {first_line(error)}")
    else:
        raise UserError(f"no replay text from the hub ({'; '.join(reasons)}); give your own with --text FILE")
    if reasons:
        print(f"{reasons[0]}; taking {name} in its place", file=sys.stderr)
    return lambda: column_text(stream, name), [name]


def column_text(stream: Iterable[dict], name: str) -> Iterator[str]:
    try:
        for row in stream:
            if "text" not in row:
                raise UserError(f"{name}: has no column `text`, only {', '.join(row)}")
            yield row["text"]
    except OSError as error:  # the net went away in the middle
        raise UserError(f"{name}: the stream broke off ({first_line(error)}); run it again") from error


def shuffled(texts: Iterable[str], seed: int) -> Iterator[str]:
    """A stream in a seeded order, through a buffer of SHUFFLE_BUFFER documents: each place of the
    buffer that is given out is filled with the next document of the stream."""
    rng = np.random.default_rng(seed)
    texts = iter(texts)
    buffer = list(itertools.islice(texts, SHUFFLE_BUFFER))
    for text in texts:
        place = rng.integers(len(buffer))
        buffer[place], text = text, buffer[place]
        yield text
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


if __name__ == "__main__":
    run(main)
