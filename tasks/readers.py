"""Readers of txt, Markdown, HTML, PDF and JSONL: a folder of documents -> articles in QuALITY's schema."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from tasks.line_structure import is_fixed, split_blocks
from utils import paths
from utils.errors import UserError, first_line
from utils.io import atomic_write, read_jsonl, read_text

SUFFIXES = (".txt", ".md", ".jsonl", ".html", ".htm", ".pdf")
RESERVED_TASKS = ("quality", "example")


def import_corpus(folder: Path) -> str:
    """Read all documents under a folder, sorted by path, into data/dataset/raw/NAME.jsonl, where NAME is the
    folder's name; returns NAME, the task.

    Raises UserError where a document cannot be read or is empty, and where NAME.jsonl was made from something else.
    """
    folder = Path(folder).absolute()
    task = folder.name
    if not folder.is_dir():
        raise UserError(f"--corpus {folder}: no such folder")
    if task in RESERVED_TASKS:
        raise UserError(f"--corpus {folder}: {task} is the name of a built-in task; rename the folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    articles = [article for path in files for article in read_file(path, folder)]
    if not articles:
        raise UserError(f"--corpus {folder}: no documents found ({', '.join(SUFFIXES)})")
    seen: dict[tuple[str, str], str] = {}
    for article in articles:
        key = (article["title"], article.get("author", ""))
        if key in seen:
            raise UserError(
                f"--corpus {folder}: {seen[key]} and {article['source']} have the same title and author, {article['title']!r}; change one of them"
            )
        seen[key] = article["source"]
    target = paths.corpus_file(task)
    if target.is_file() and any(line.get("corpus") != str(folder) for line in read_jsonl(target, "")):
        raise UserError(
            f"--corpus {folder}: {target} exists and was not made from this folder; rename the folder, or use --task {task}"
        )
    with atomic_write(target) as file:
        for article in articles:
            line = json.dumps(article | {"corpus": str(folder)}, ensure_ascii=False)
            file.write(line.encode("utf-8", "replace") + b"\n")  # unpaired surrogates become ?
    return task


def read_file(path: Path, folder: Path) -> Iterator[dict]:
    """Yield the documents of a file: one per line of a .jsonl, one of any other kind."""
    source = str(path.relative_to(folder))
    kind = path.suffix.lower()
    if kind == ".jsonl":
        yield from read_records(path, source)
        return
    readers = {".html": read_html, ".htm": read_html, ".pdf": read_pdf}
    title, text, *details = readers.get(kind, read_markdown if kind == ".md" else read_plain)(path)
    if not text.strip():
        hint = " (scanned pages? they need text recognition first)" if kind == ".pdf" else ""
        raise UserError(f"{path}: no text found{hint}; fix it or remove it from the folder")
    document = {"title": " ".join(title.split()) or path.stem, "article": text, "source": source}
    yield document | (details[0] if details else {})


def read_records(path: Path, source: str) -> Iterator[dict]:
    """Yield the documents of a JSONL file. Records without a text (null, blank, or a list) are left out and reported;
    authors beside `text` are marked as written, those beside QuALITY's `article` may be `Family, Given`."""
    records, skipped = read_jsonl(path, "name another folder"), 0
    for number, line in enumerate(records, 1):
        text = line.get("article") or line.get("text")
        if not (isinstance(text, str) and text.strip()) and ("article" in line or "text" in line):
            skipped += 1
            continue
        if not isinstance(text, str) or not isinstance(line.get("title"), str):
            raise UserError(f"{path}, record {number}: needs the strings title, and article or text")
        kept = {key: line[key] for key in ("author", "year", "questions") if line.get(key) is not None}
        if not isinstance(kept.get("author", ""), str):
            raise UserError(f"{path}, record {number}: the author is not a string")
        as_written = {"author_as_written": True} if "author" in kept and not line.get("article") else {}
        yield {"title": line["title"], "article": text, "source": f"{source}:{number}"} | kept | as_written
    if skipped:
        summary = f"{path}: {skipped} of {len(records)} records have no text"
        if skipped == len(records):
            raise UserError(f"{summary}; fix it or remove it from the folder")
        print(f"{summary} and were left out", file=sys.stderr)


def read_plain(path: Path) -> tuple[str, str]:
    return path.stem.replace("_", " "), read_text(path, "name another folder").removeprefix("\ufeff")


def read_markdown(path: Path) -> tuple[str, str, dict]:
    """Title, text, and author and year where they are known. They come from a YAML front matter, which is no text; the
    title else from the first heading outside code."""
    stem, text = read_plain(path)
    about, text = split_front_matter(text.replace("\r\n", "\n"))
    lines = (line for block in split_blocks(text) if not is_fixed(block) for line in block)
    headings = (match[1] for line in lines if (match := re.match(r" {0,3}#\s+(.+?)(?:\s+#+)?$", line)))
    title = about.get("title")
    authors = about.get("author") or about.get("authors") or []
    author = ", ".join(map(str, authors)) if isinstance(authors, list) else str(authors)
    year = re.search(r"\b\d{4}\b", str(about.get("year") or about.get("date") or ""))
    details = {"author": author.strip(), "author_as_written": True} if author.strip() else {}
    details |= {"year": year[0]} if year else {}
    return str(title) if title else next(headings, stem), text, details


def split_front_matter(text: str) -> tuple[dict, str]:
    """The YAML mapping between `---` lines at the beginning of a Markdown file, and the text after it."""
    match = re.match(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", text, re.DOTALL)
    try:
        about = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError):  # a text between two lines; an impossible date
        about = None
    return (about, text[match.end() :]) if isinstance(about, dict) else ({}, text)


def read_html(path: Path) -> tuple[str, str]:
    """Title and main text, decoded by the page's own character set."""
    from trafilatura import bare_extraction

    page = bare_extraction(path.read_bytes(), favor_recall=True, include_comments=False, with_metadata=True)
    return (page.title or path.stem.replace("_", " "), page.text or "") if page else ("", "")


def read_pdf(path: Path) -> tuple[str, str]:
    """Title and text; the title comes from the metadata."""
    from pdfminer.psexceptions import PSException

    from tasks.pdf_text import pdf_text

    try:
        title, text = pdf_text(path)
    except PSException as error:  # pdfminer's, of broken and of encrypted files
        reason = first_line(error) or type(error).__name__
        raise UserError(f"{path}: not a readable PDF ({reason})") from error
    return title or path.stem.replace("_", " "), text
