"""TRC2's tagged news: clean it, and split it into files to train and to validate on.

    python gptj/trc2.py clean data/example/news.txt /tmp/news
    python gptj/trc2.py split --input_file /tmp/news/news.txt.clean --out_dir /tmp/news

`clean` takes a file or a folder of them and writes OUT/<name>.clean. It makes the six substitutions
of the published recipe, each on the first match in a line and byte for byte, then drops what is not
UTF-8. The third eats the number a story begins with ("10 people killed"); --keep_numbers lets it take
only lines that are nothing but digits, dashes and colons, such as a date.

`split` writes OUT/split_files/<name>-<n>.txt, and train_meta.txt and val_meta.txt with their names,
relative to OUT, one a line. Every line of the input is in exactly one of them; at least one file is
for validation.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.errors import UserError, run
from utils.io import atomic_write

# In this order, each on the first match in a line.
SUBSTITUTIONS = [
    rb"</[A-Z0-9]*>",
    rb"<[A-Z0-9]*>",
    rb"[-0-9: ]*",  # matches at the line's begin, be it nothing
    rb"TRC2-[-0-9]*",
    rb"\[.*\]",
    rb"\(Click on the Z.*",
]
WHOLE_LINE_OF_NUMBERS = rb"^[-0-9: ]*$"  # --keep_numbers has it in the third one's place
# What glibc's `iconv -c` lets through: UTF-8, and four-byte forms beyond U+10FFFF, but no surrogates.
VALID = re.compile(
    rb"[\x00-\x7f]+|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf7][\x80-\xbf]{3}"
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    clean = commands.add_parser("clean", help="tagged text -> plain text")
    clean.add_argument("raw", type=Path, help="a file, or a folder of files")
    clean.add_argument("out", type=Path, help="folder for the .clean files")
    clean.add_argument("--keep_numbers", action="store_true", help="leave the number that a story begins with")
    split = commands.add_parser("split", help="one text -> files to train and to validate on")
    split.add_argument("--input_file", type=Path, required=True)
    split.add_argument("--out_dir", type=Path, required=True)
    split.add_argument("--buffer_len", type=int, default=10_000, help="lines a file (default 10000)")
    split.add_argument(
        "--val_split_ratio", type=float, default=0.1, help="share of the files for validation (default 0.1)"
    )
    split.add_argument(
        "--by_article", action="store_true", help="cut between articles alone, those of validation drawn by chance"
    )
    split.add_argument("--seed", type=int, default=0, help="of --by_article (default 0)")
    return parser.parse_args()


def clean_line(line: bytes, patterns: list[re.Pattern]) -> bytes:
    """A line without its newline."""
    for pattern in patterns:
        line = pattern.sub(b"", line, count=1)
    return line


def clean_file(source: Path, target: Path, keep_numbers: bool) -> None:
    kept = list(SUBSTITUTIONS)
    if keep_numbers:
        kept[2] = WHOLE_LINE_OF_NUMBERS
    # Newlines are no part of a line here, and . is any other byte, as for sed.
    patterns = [re.compile(pattern, re.DOTALL) for pattern in kept]
    with open(source, "rb") as file, atomic_write(target) as out:
        for line in file:
            body = line.removesuffix(b"\n")
            end = line[len(body) :]
            out.write(b"".join(VALID.findall(clean_line(body, patterns))) + end)


def clean(args: argparse.Namespace) -> None:
    if not args.raw.exists():
        raise UserError(f"{args.raw}: not there; name TRC2's text, or data/example/news.txt")
    found = sorted(args.raw.iterdir()) if args.raw.is_dir() else [args.raw]
    files = [path for path in found if path.is_file() and path.suffix != ".clean"]
    if not files:
        raise UserError(f"{args.raw}: no files in this folder")
    for path in tqdm(files, desc="cleaning", unit="file", disable=None):
        clean_file(path, args.out / f"{path.name}.clean", args.keep_numbers)
    print(f"{args.out}: {len(files)} files cleaned")


def shards_of_lines(lines: Iterable[bytes], length: int) -> Iterator[list[bytes]]:
    lines = iter(lines)
    while shard := list(islice(lines, length)):
        yield shard


def articles(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines grouped by article: one begins with a <DOC> tag, and in cleaned text, where tags are
    blank lines, after two blank lines or more."""
    article, blank = [], 0
    for line in lines:
        text = line.strip()
        begins = text.startswith(b"<DOC>") or (text and blank > 1)
        if begins and any(part.strip() for part in article):
            yield article
            article = []
        blank = 0 if text else blank + 1
        article.append(line)
    if article:
        yield article


def shards_of_articles(parts: Iterable[list[bytes]], length: int) -> Iterator[list[bytes]]:
    """Whole articles, until a file has `length` lines or more."""
    shard = []
    for article in parts:
        shard += article
        if len(shard) >= length:
            yield shard
            shard = []
    if shard:
        yield shard


def write_shards(shards: Iterable[list[bytes]], args: argparse.Namespace, first: int) -> list[str]:
    """Writes files numbered from `first`; returns their names relative to --out_dir."""
    names = []
    for number, shard in enumerate(shards, first):
        name = f"split_files/{args.input_file.name}-{number}.txt"
        with atomic_write(args.out_dir / name) as file:
            file.writelines(shard)
        names.append(name)
    return names


def split_lines(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The last tenth of the files is for validation; a text of one file is cut in two."""
    with open(args.input_file, "rb") as file:
        lines = sum(1 for _ in file)
    if lines < 2:
        raise UserError(f"{args.input_file}: {lines} lines, and one alone cannot be split")
    files = -(-lines // args.buffer_len)
    validation = min(max(1, int(files * args.val_split_ratio)), max(1, files - 1))
    with open(args.input_file, "rb") as file:
        shards = shards_of_lines(file, args.buffer_len)
        if files == 1:
            (whole,) = shards
            cut = lines - max(1, int(lines * args.val_split_ratio))
            shards = iter([whole[:cut], whole[cut:]])
        names = write_shards(shards, args, 0)
    return names[:-validation], names[-validation:]


def split_articles(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    with open(args.input_file, "rb") as file:
        number = sum(1 for _ in articles(file))
    if number < 2:
        raise UserError(f"{args.input_file}: {number} article, and one alone cannot be split")
    wanted = min(max(1, round(number * args.val_split_ratio)), number - 1)
    chosen = np.zeros(number, bool)
    chosen[np.random.default_rng(args.seed).permutation(number)[:wanted]] = True
    names: list[list[str]] = []
    for part in (False, True):
        with open(args.input_file, "rb") as file:
            mine = (a for a, held in zip(articles(file), chosen, strict=True) if held == part)
            shards = shards_of_articles(mine, args.buffer_len)
            names.append(write_shards(shards, args, sum(map(len, names))))
    return names[0], names[1]


def split(args: argparse.Namespace) -> None:
    if not args.input_file.is_file():
        raise UserError(f"{args.input_file}: not there; run: python gptj/trc2.py clean RAW OUT")
    if args.buffer_len < 1:
        raise UserError(f"--buffer_len {args.buffer_len}: must be above 0")
    if not 0 < args.val_split_ratio < 1:
        raise UserError(f"--val_split_ratio {args.val_split_ratio}: above 0 and below 1")
    training, validation = (split_articles if args.by_article else split_lines)(args)
    for name, names in (("train_meta.txt", training), ("val_meta.txt", validation)):
        with atomic_write(args.out_dir / name) as file:
            file.write("".join(f"{name}\n" for name in names).encode())
    mine = re.compile(re.escape(args.input_file.name) + r"-\d+\.txt")
    for path in (args.out_dir / "split_files").iterdir():
        left_over = f"split_files/{path.name}" not in training + validation
        if mine.fullmatch(path.name) and left_over:
            path.unlink()  # of an earlier split into more files
    print(f"{args.out_dir}: {len(training)} files to train on, {len(validation)} to validate")


def main() -> None:
    args = parse_arguments()
    {"clean": clean, "split": split}[args.command](args)


if __name__ == "__main__":
    run(main)
