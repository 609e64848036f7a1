"""Clean the tagged news of TRC2, and split them into training and validation files.

    python gptj/trc2.py clean data/example/news.txt /tmp/news
    python gptj/trc2.py split --input_file /tmp/news/news.txt.clean --out_dir /tmp/news

`clean` reads a file, or all files of a folder, and writes OUT/<name>.clean. It applies the six substitutions of the
published recipe, each to its first match in a line and byte for byte, then drops bytes that are not UTF-8. The third
substitution removes the number at the start of a story ("10 people killed"); with --keep_numbers it removes only
lines of nothing but digits, dashes and colons, such as a date.

`split` writes OUT/split_files/<name>-<n>.txt, and train_meta.txt and val_meta.txt with their names relative to OUT,
one per line. Every line of the input is in exactly one file; at least one file is for validation.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from utils.cli import HelpFormatter, add_seed_flag, make_parser, open_fraction, positive_int, print_result
from utils.errors import UserError, run
from utils.io import atomic_write
from utils.progress import progress_bar

# In this order, each on the first match in a line.
SUBSTITUTIONS = [
    rb"</[A-Z0-9]*>",
    rb"<[A-Z0-9]*>",
    rb"[-0-9: ]*",  # matches at the start of the line, possibly empty
    rb"TRC2-[-0-9]*",
    rb"\[.*\]",
    rb"\(Click on the Z.*",
]
LINE_OF_NUMBERS = rb"^[-0-9: ]*$"  # replaces the third with --keep_numbers
# Accepted by glibc's `iconv -c`: UTF-8, and four-byte forms beyond U+10FFFF, but no surrogates.
VALID = re.compile(
    rb"[\x00-\x7f]+|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf7][\x80-\xbf]{3}"
)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    clean = commands.add_parser("clean", help="tagged text -> plain text", formatter_class=HelpFormatter)
    clean.add_argument("raw", type=Path, help="a file, or a folder of files")
    clean.add_argument("out", type=Path, help="folder for the .clean files")
    clean.add_argument("--keep_numbers", action="store_true", help="keep the number at the start of a story")
    split = commands.add_parser("split", help="training and validation files", formatter_class=HelpFormatter)
    add = split.add_argument
    add("--input_file", type=Path, required=True, help="a .clean file")
    add("--out_dir", type=Path, required=True, help="folder for the texts, and lists of them")
    add("--buffer_len", type=positive_int, default=10_000, help="lines per file")
    add("--val_split_ratio", type=open_fraction, default=0.1, help="fraction of the files for validation")
    add("--by_article", action="store_true", help="cut between articles only, and draw those for validation randomly")
    add_seed_flag(split, "of --by_article")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    {"clean": clean, "split": split}[args.command](args)


def clean(args: argparse.Namespace) -> None:
    if not args.raw.exists():
        raise UserError(f"{args.raw}: no such file; name the text of TRC2, or data/example/news.txt")
    paths = sorted(args.raw.iterdir()) if args.raw.is_dir() else [args.raw]
    files = [path for path in paths if path.is_file() and path.suffix != ".clean"]
    if not files:
        raise UserError(f"{args.raw}: this folder contains no files")
    for path in progress_bar(iterable=files, desc="cleaning", unit="file"):
        clean_file(path, args.out / f"{path.name}.clean", args.keep_numbers)
    print_result({"files": len(files)}, f"{args.out}: {len(files)} files cleaned")


def clean_file(source: Path, target: Path, keep_numbers: bool) -> None:
    substitutions = list(SUBSTITUTIONS)
    if keep_numbers:
        substitutions[2] = LINE_OF_NUMBERS
    # As in sed: a line ends before its newline, and . matches any other byte.
    patterns = [re.compile(pattern, re.DOTALL) for pattern in substitutions]
    with open(source, "rb") as file, atomic_write(target) as out:
        for line in file:
            text = line.removesuffix(b"\n")
            newline = line[len(text) :]
            for pattern in patterns:
                text = pattern.sub(b"", text, count=1)
            out.write(b"".join(VALID.findall(text)) + newline)


def split(args: argparse.Namespace) -> None:
    if not args.input_file.is_file():
        raise UserError(f"{args.input_file}: no such file; run python gptj/trc2.py clean RAW OUT")
    training, validation = (split_articles if args.by_article else split_lines)(args)
    shard = re.compile(re.escape(args.input_file.name) + r"-\d+\.txt")
    for list_name, names in (("train_meta.txt", training), ("val_meta.txt", validation)):
        path = args.out_dir / list_name
        listed = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        others = [name for name in listed if not shard.fullmatch(Path(name).name)]  # split from another input file
        with atomic_write(path) as file:
            file.write("".join(f"{name}\n" for name in others + names).encode())
    for path in (args.out_dir / "split_files").iterdir():
        if shard.fullmatch(path.name) and f"split_files/{path.name}" not in training + validation:
            path.unlink()  # left by an earlier split into more files
    print_result(
        {"train": len(training), "val": len(validation)},
        f"{args.out_dir}: {len(training)} training files, {len(validation)} validation files",
    )


def split_lines(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Validate on the last files; a text that fits one file is cut in two. Returns the names of both kinds."""
    with open(args.input_file, "rb") as file:
        lines = sum(1 for _ in file)
    if lines < 2:
        raise UserError(f"{args.input_file}: {lines} lines cannot be split")
    files = -(-lines // args.buffer_len)
    validation = min(max(1, int(files * args.val_split_ratio)), max(1, files - 1))
    with open(args.input_file, "rb") as file:
        shards = shards_of_lines(file, args.buffer_len)
        if files == 1:
            (shard,) = shards
            cut = lines - max(1, int(lines * args.val_split_ratio))
            shards = iter([shard[:cut], shard[cut:]])
        names = write_shards(shards, args, 0)
    return names[:-validation], names[-validation:]


def split_articles(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Validate on random articles. Returns the names of the training and of the validation files."""
    with open(args.input_file, "rb") as file:
        number = sum(1 for _ in read_articles(file))
    if number < 2:
        raise UserError(f"{args.input_file}: {number} article cannot be split")
    validation = min(max(1, round(number * args.val_split_ratio)), number - 1)
    held_out = np.zeros(number, bool)
    held_out[np.random.default_rng(args.seed).permutation(number)[:validation]] = True
    names: list[list[str]] = []
    for part in (False, True):
        with open(args.input_file, "rb") as file:
            articles = (a for a, held in zip(read_articles(file), held_out, strict=True) if held == part)
            shards = shards_of_articles(articles, args.buffer_len)
            names.append(write_shards(shards, args, sum(map(len, names))))
    return names[0], names[1]


def shards_of_lines(lines: Iterable[bytes], length: int) -> Iterator[list[bytes]]:
    lines = iter(lines)
    while shard := list(islice(lines, length)):
        yield shard


def shards_of_articles(articles: Iterable[list[bytes]], length: int) -> Iterator[list[bytes]]:
    """Complete articles, `length` lines or more per shard."""
    shard = []
    for article in articles:
        shard += article
        if len(shard) >= length:
            yield shard
            shard = []
    if shard:
        yield shard


def read_articles(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines of one article at a time. An article starts at a <DOC> tag or, in cleaned text, where tags are blank
    lines, after two or more blank lines."""
    article, blank = [], 0
    for line in lines:
        text = line.strip()
        starts = text.startswith(b"<DOC>") or (text and blank > 1)
        if starts and any(part.strip() for part in article):
            yield article
            article = []
        blank = 0 if text else blank + 1
        article.append(line)
    if article:
        yield article


def write_shards(shards: Iterable[list[bytes]], args: argparse.Namespace, first: int) -> list[str]:
    """Write files numbered from `first`; returns their names relative to --out_dir."""
    names = []
    for number, shard in enumerate(shards, first):
        name = f"split_files/{args.input_file.name}-{number}.txt"
        with atomic_write(args.out_dir / name) as file:
            file.writelines(shard)
        names.append(name)
    return names


if __name__ == "__main__":
    run(main)
