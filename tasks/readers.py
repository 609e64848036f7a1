"""Readers of txt, Markdown, HTML, PDF and JSONL: a folder of documents -> articles in QuALITY's schema."""

import json
from collections.abc import Iterator
from pathlib import Path

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
        for number, line in enumerate(read_jsonl(path, "name another folder"), 1):
            text = line.get("article") or line.get("text")
            if not isinstance(text, str) or not isinstance(line.get("title"), str):
                raise UserError(f"{path}, record {number}: needs the strings title, and article or text")
            kept = {key: line[key] for key in ("author", "year", "questions") if line.get(key) is not None}
            if not isinstance(kept.get("author", ""), str):
                raise UserError(f"{path}, record {number}: the author is not a string")
            yield {"title": line["title"], "article": text, "source": f"{source}:{number}"} | kept
        return
    readers = {".md": read_markdown, ".html": read_html, ".htm": read_html, ".pdf": read_pdf}
    title, text = readers.get(kind, read_plain)(path)
    if not text.strip():
        hint = " (scanned pages? they need text recognition first)" if kind == ".pdf" else ""
        raise UserError(f"{path}: no text found{hint}; fix it or remove it from the folder")
    yield {"title": " ".join(title.split()) or path.stem, "article": text, "source": source}


def read_plain(path: Path) -> tuple[str, str]:
    return path.stem.replace("_", " "), read_text(path, "name another folder")


def read_markdown(path: Path) -> tuple[str, str]:
    """Title and text; the title is the first heading."""
    text = read_text(path, "name another folder")
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")]
    return headings[0] if headings else path.stem.replace("_", " "), text


def read_html(path: Path) -> tuple[str, str]:
    """Title and main text, decoded by the page's own character set."""
    from trafilatura import bare_extraction

    page = bare_extraction(path.read_bytes(), favor_recall=True, include_comments=False, with_metadata=True)
    return (page.title or path.stem.replace("_", " "), page.text or "") if page else ("", "")


def read_pdf(path: Path) -> tuple[str, str]:
    """Title and text; the title comes from the metadata."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        pdf = PdfReader(path)
        text = "\n\n".join(page.extract_text() for page in pdf.pages)
        title = (pdf.metadata and pdf.metadata.title) or path.stem.replace("_", " ")
    except (PyPdfError, DependencyError) as error:
        raise UserError(f"{path}: not a readable PDF ({first_line(error)})") from error
    return title, text
