"""TODO gptj.text_files."""

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

LISTS = ("train_meta.txt", "val_meta.txt")  # gptj/trc2.py's: no text


@dataclass(frozen=True)
class Document:
    """`where` names it in an error."""

    where: str
    text: str


def find_files(args: argparse.Namespace) -> list[Path]:
    if args.metadata_files:
        names = [line for meta in args.metadata_files for line in meta.read_text().splitlines()]
        files = [args.input_dir / name.strip() for name in names if name.strip()]
    else:
        files = sorted(
            path for path in args.input_dir.rglob("*") if path.suffix in (".txt", ".jsonl") and path.name not in LISTS
        )
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: named in the list, but not there")
    if not files:
        raise UserError(f"{args.input_dir}: no .txt or .jsonl files in it")
    return files


def read_documents(args: argparse.Namespace) -> Iterator[Document]:
    """All documents, in one order for any number of processes."""
    if args.csv:
        yield from csv_documents(args.csv, args.text_column)
        return
    for path in find_files(args):
        try:
            if path.suffix == ".jsonl":
                yield from jsonl_documents(path, args.jsonl_key)
            else:
                yield Document(str(path), path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from error


def csv_documents(path: Path, column: str) -> Iterator[Document]:
    csv.field_size_limit(1 << 30)
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if column not in header:
                raise UserError(f"--text_column {column}: {path} has {', '.join(header)}")
            at = header.index(column)
            for number, row in enumerate(reader, 1):
                if row and len(row) != len(header):
                    raise UserError(f"{path}: row {number} has {len(row)} columns, the header has {len(header)}")
                if row:
                    yield Document(f"{path} row {number}", row[at])
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: row {number + 1}: not UTF-8") from error


def jsonl_documents(path: Path, key: str) -> Iterator[Document]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[key]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: line {number}: no JSON object with a text {key!r}") from error
            if not isinstance(text, str):
                raise UserError(f"{path}: line {number}: {key!r} is no text")
            yield Document(f"{path} line {number}", text)
