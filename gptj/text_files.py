"""Documents of .txt, .jsonl and .csv files."""

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.io import read_text as text_of_file
from utils.io import report_left_out, usable_texts
from utils.json_text import parse_json

LISTS = ("train_meta.txt", "val_meta.txt")  # written by trc2.py; not documents
MAX_FIELD_BYTES = 1 << 30
BEYOND_UNICODE = re.compile(rb"\xf4[\x90-\xbf][\x80-\xbf]{2}|[\xf5-\xf7][\x80-\xbf]{3}")  # beyond U+10FFFF


@dataclass(frozen=True)
class Source:
    """Where documents come from: files in a folder, or the rows of a CSV file."""

    input_dir: Path | None
    metadata_files: list[Path] | None  # lists of files in input_dir; None: all
    csv: Path | None
    text_column: str
    jsonl_key: str
    report: bool = True  # print how many rows have no text: in one of several processes


def read_documents(source: Source) -> Iterator[str]:
    """All documents, in the same order in every process. Raises UserError naming file and line."""
    left_out: dict[str, list[int]] = {}
    if source.csv:
        yield from usable_texts(read_csv(source.csv, source.text_column), str(source.csv), left_out)
    else:
        yield from read_files(source, left_out)
    if source.report:
        report_left_out(left_out)


def read_files(source: Source, left_out: dict) -> Iterator[str]:
    for path in list_files(source):
        try:
            if path.suffix == ".jsonl":
                yield from usable_texts(read_jsonl(path, source.jsonl_key), str(path), left_out)
            else:
                yield read_text(path, source.report)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from error


def read_text(path: Path, report: bool) -> str:
    """A text file, without what trc2.py's cleaning keeps as iconv does: forms of UTF-8 beyond the last code point."""
    content, left_out = BEYOND_UNICODE.subn(b"", path.read_bytes())
    if left_out and report:
        print(f"{path}: {left_out:,} code points beyond U+10FFFF are left out", file=sys.stderr)
    return content.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def list_files(source: Source) -> list[Path]:
    folder = source.input_dir
    if source.metadata_files:
        names = [line.strip() for path in source.metadata_files for line in text_of_file(path, "write it").split("\n")]
        files = [folder / name for name in names if name]
        if outside := [file for file in files if not file.resolve().is_relative_to(folder.resolve())]:
            raise UserError(f"{outside[0]}: --metadata_files lists it, but it is not in {folder}")
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".jsonl") and p.name not in LISTS)
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file, although --metadata_files lists it")
    if not files:
        raise UserError(f"{folder}: contains no .txt or .jsonl files")
    return files


def read_csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if column not in header:
                raise UserError(f"--text_column {column}: the columns of {path} are {', '.join(header)}")
            position = header.index(column)
            for number, row in enumerate(reader, 1):
                if row and len(row) != len(header):
                    raise UserError(f"{path}: row {number} has {len(row)} columns, the header has {len(header)}")
                if row:
                    yield row[position]
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: row {number + 1}: not UTF-8") from error


def read_jsonl(path: Path, key: str) -> Iterator[object]:
    """The values of `key`, of which usable_texts leaves out what is no text."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield parse_json(line)[key]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: line {number}: not a JSON object with a text {key!r}") from error
