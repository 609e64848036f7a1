"""Readers of txt, Markdown, HTML, PDF and JSONL: a folder of documents -> articles in QuALITY's schema."""

import json
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from tasks.documents import check_task_name
from tasks.line_structure import is_fixed, split_blocks
from utils import paths
from utils.errors import UserError, first_line
from utils.io import atomic_write, read_jsonl, read_text
from utils.json_text import mend
from utils.progress import progress_bar
from utils.words import without_controls

SUFFIXES = (".txt", ".md", ".jsonl", ".html", ".htm", ".pdf")
MAX_FILE_BYTES = 32 << 20  # of one document: ten million tokens of English
BROKEN = (  # what the readers of PDF and HTML raise
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
ENCODINGS = ["utf_16", "cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "gb18030", "big5"]
ENCODINGS += ["shift_jis", "euc_jp", "euc_kr"]
RESERVED_TASKS = ("quality", "example")


def import_corpus(folder: Path, strict: bool = True) -> str:
    """As write_corpus; returns the task alone."""
    return write_corpus(folder, strict)[0]


def write_corpus(folder: Path, strict: bool = True) -> tuple[str, list[str]]:
    """Read all documents under a folder, sorted by path, into data/dataset/raw/NAME.jsonl, where NAME is the
    folder's name; returns NAME, the task, and a sentence about each file that was left out.

    What cannot be read is left out, with one line on stderr for each; with `strict` it raises UserError. Raises
    UserError too where nothing is left, and where NAME.jsonl was made from something else.
    """
    folder = Path(folder).absolute()
    task = folder.name
    if not folder.is_dir():
        raise UserError(f"--corpus {folder}: no such folder")
    if task in RESERVED_TASKS:
        raise UserError(f"--corpus {folder}: {task} is the name of a built-in task; rename the folder")
    check_task_name(task, f"--corpus {folder}")
    articles, left_out = read_folder(folder, strict)
    if not articles:
        reason = f": {left_out[0]}" if left_out else f" ({', '.join(SUFFIXES)})"
        raise UserError(f"--corpus {folder}: no documents found{reason}")
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    target = paths.corpus_file(task)
    if target.is_file() and any(line.get("corpus") != mend(str(folder)) for line in read_jsonl(target, "")):
        raise UserError(
            f"--corpus {folder}: {target} exists and was not made from this folder; rename the folder, or use --task {task}"
        )
    with atomic_write(target) as file:
        for article in articles:
            line = json.dumps(article | {"corpus": str(folder)}, ensure_ascii=False)
            file.write(mend(line).encode() + b"\n")
    return task, left_out


def read_folder(folder: Path, strict: bool = False) -> tuple[list[dict], list[str]]:
    """The documents under a folder, sorted by path, and a sentence about each file that was left out."""
    articles: list[dict] = []
    dead = [] if strict else _dead_links(folder)
    left_out = [mend(f"{path}: a link that leads nowhere, or to a folder") for path in dead]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    hidden = {path: first for path in files if (first := _hidden_part(path.relative_to(folder)))}
    for first, number in sorted(Counter(hidden.values()).items()):
        left_out.append(mend(f"{folder / first}: hidden, since its name begins with a dot ({number} files)"))
    files = [path for path in files if path not in hidden]
    for path in progress_bar(iterable=files, unit="file", desc="reading documents"):
        try:
            if not strict and path.suffix.lower() != ".jsonl" and (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise UserError(f"{path}: {size >> 20} MiB is too long for one document; split it, or make it a .jsonl")
            articles += read_file(path, folder, strict)
        except UserError as error:
            if strict:
                raise
            left_out.append(mend(str(error)))
    return distinct_articles(articles, folder, strict, left_out), left_out


def _hidden_part(path: Path) -> Path | None:
    """The first folder or file of a path whose name begins with a dot."""
    return next((part for part in [*reversed(path.parents), path] if part.name.startswith(".")), None)


def _dead_links(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() and not path.is_file())


def distinct_articles(articles: list[dict], folder: Path, strict: bool, left_out: list[str]) -> list[dict]:
    """Documents of different title or author. Of two with the same, the second gets the name of its file as well, or is
    left out if the texts are the same; with `strict` they raise UserError."""
    seen: dict[tuple[str, str], dict] = {}
    for article in articles:
        article["title"] = without_controls(article["title"]).strip() or Path(article["source"]).stem
        key = (article["title"], article.get("author", "").strip())
        if first := seen.get(key):
            both = f"{first['source']} and {article['source']} have the same title and author, {article['title']!r}"
            if strict:
                raise UserError(f"--corpus {folder}: {both}; change one of them")
            if first["article"] == article["article"]:
                left_out.append(f"{both}, and the same text; the second")
                continue
            article["title"] = f"{article['title']} ({article['source']})"
            while (article["title"], key[1]) in seen:
                article["title"] += " (2)"
            print(f"{both}; the second is named {article['title']!r}", file=sys.stderr)
        seen[(article["title"], article.get("author", "").strip())] = article
    return list(seen.values())


def read_file(path: Path, folder: Path, strict: bool = True) -> Iterator[dict]:
    """Yield the documents of a file: one per line of a .jsonl, one of any other kind. Without `strict`, text that is not
    UTF-8 is read in the encoding that fits best."""
    source = str(path.relative_to(folder))
    kind = path.suffix.lower()
    if kind == ".jsonl":
        yield from read_records(path, source, strict)
        return
    if kind in (".html", ".htm", ".pdf"):
        title, text, *details = read_pdf(path) if kind == ".pdf" else read_html(path)
    else:
        title, text, *details = (read_markdown if kind == ".md" else read_plain)(path, strict)
    if not text.strip():
        hint = " (scanned pages? they need text recognition first)" if kind == ".pdf" else ""
        raise UserError(f"{path}: no text found{hint}; fix it or remove it from the folder")
    document = {"title": " ".join(title.split()) or path.stem, "article": text, "source": source}
    yield document | (details[0] if details else {})


def read_records(path: Path, source: str, strict: bool = True) -> Iterator[dict]:
    """Yield the documents of a JSONL file. Records without a text (null, blank, or a list) are left out and reported, and
    malformed ones too unless `strict`."""
    bad: list[str] = []
    records, skipped = read_jsonl(path, "name another folder", None if strict else bad), 0
    for number, line in enumerate(records, 1):
        text = line.get("article") or line.get("text")
        if not (isinstance(text, str) and text.strip()) and ("article" in line or "text" in line):
            skipped += 1
            continue
        try:
            yield read_record(line, f"{path}, record {number}") | {"source": f"{source}:{number}"}
        except UserError as error:
            if strict:
                raise
            bad.append(str(error))
    if skipped:
        summary = f"{path}: {skipped} of {len(records)} records have no text"
        if skipped == len(records):
            raise UserError(f"{summary}; fix it or remove it from the folder")
        print(f"{summary} and were left out", file=sys.stderr)
    if bad and len(bad) + skipped >= len(records):
        raise UserError(bad[0])
    if bad:
        print(f"{len(bad)} records were left out, the first: {bad[0]}", file=sys.stderr)


def read_record(line: dict, where: str) -> dict:
    """A document. An author beside `text` is marked as written, one beside QuALITY's `article` may be `Family, Given`."""
    text = line.get("article") or line.get("text")
    if not isinstance(text, str) or not isinstance(line.get("title"), str):
        raise UserError(f"{where}: needs the strings title, and article or text")
    kept = {key: line[key] for key in ("author", "year", "questions") if line.get(key) is not None}
    if not isinstance(kept.get("author", ""), str):
        raise UserError(f"{where}: the author is not a string")
    as_written = {"author_as_written": True} if "author" in kept and not line.get("article") else {}
    return {"title": line["title"], "article": text} | kept | as_written


def read_plain(path: Path, strict: bool = True) -> tuple[str, str]:
    read = read_text if strict else read_any_encoding
    return path.stem.replace("_", " "), read(path, "name another folder").removeprefix("\ufeff")


def read_any_encoding(path: Path, made_by: str) -> str:
    """A text file in UTF-8 or, with a line on stderr, in the encoding that fits it best. Raises UserError for a file that
    is no text."""
    try:
        text, encoding = read_text(path, made_by), ""
    except UserError:
        if not path.is_file() or not os.access(path, os.R_OK):
            raise
        from charset_normalizer import from_bytes

        matches = from_bytes(path.read_bytes(), cp_isolation=ENCODINGS)
        # Of equally good ones the first of ENCODINGS: short texts in Western languages fit cp1250 as well as cp1252.
        best = min(
            matches, key=lambda match: (match.chaos, -match.coherence, ENCODINGS.index(match.encoding)), default=None
        )
        text, encoding = (str(best), best.encoding) if best else ("\0", "")
    if "\0" in text:
        raise UserError(f"{path}: not a text file")
    if encoding:
        print(f"{path}: not UTF-8; read as {encoding}", file=sys.stderr)
    return text


def read_markdown(path: Path, strict: bool = True) -> tuple[str, str, dict]:
    """Title, text, and author and year where they are known. They come from a YAML front matter, which is no text; the
    title else from the first heading outside code."""
    stem, text = read_plain(path, strict)
    about, text = split_front_matter(text.replace("\r\n", "\n"))
    lines = (line for block in split_blocks(text) if not is_fixed(block) for line in block)
    title = text_of(about.get("title")) or next(filter(None, map(heading_of, lines)), stem)
    authors = about.get("author") or about.get("authors") or []
    author = ", ".join(filter(None, map(text_of, authors if isinstance(authors, list) else [authors])))
    year = re.search(r"\b\d{4}\b", text_of(about.get("year")) or text_of(about.get("date")))
    details = {"author": author, "author_as_written": True} if author else {}
    details |= {"year": year[0]} if year else {}
    return title, text, details


def text_of(value: object) -> str:
    """A text of the front matter; empty for a list, a mapping, and what YAML has for nothing."""
    text = value.strip() if isinstance(value, str) else ""
    return "" if text in ("~", "null", "Null", "NULL") else text


def heading_of(line: str) -> str:
    """The text of a first-level heading, `# Text` or `# Text #`; empty for any other line."""
    if not re.match(r" {0,3}#\s", line):
        return ""
    text = line.strip()[1:].strip()
    without = text.rstrip("#")
    return without.strip() if without != without.rstrip() or not without else text


def split_front_matter(text: str) -> tuple[dict, str]:
    """The YAML mapping between `---` lines at the beginning of a Markdown file, and the text after it."""
    match = re.match(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", text, re.DOTALL)
    try:
        about = yaml.load(match[1], yaml.BaseLoader) if match else None  # texts, as written: no `007` that becomes 7
    except (yaml.YAMLError, RecursionError):  # a text between two lines
        about = None
    return (about, text[match.end() :]) if isinstance(about, dict) else ({}, text)


def read_html(path: Path) -> tuple[str, str]:
    """Title and main text, decoded by the page's own character set."""
    from trafilatura import bare_extraction

    try:
        page = bare_extraction(path.read_bytes(), favor_recall=True, include_comments=False, with_metadata=True)
    except BROKEN as error:  # of its metadata, for example
        raise UserError(f"{path}: not a readable page ({first_line(error) or type(error).__name__})") from error
    title = page.title if page and isinstance(page.title, str) else ""
    return title or path.stem.replace("_", " "), (page.text or "") if page else ""


def read_pdf(path: Path) -> tuple[str, str]:
    """Title and text; the title comes from the metadata."""
    from pdfminer.psexceptions import PSException

    from tasks.pdf_text import pdf_text

    try:
        title, text = pdf_text(path)
    except (PSException, *BROKEN) as error:  # broken and encrypted files
        reason = first_line(error) or type(error).__name__
        raise UserError(f"{path}: not a readable PDF ({reason})") from error
    return title or path.stem.replace("_", " "), text
