"""A folder of one's own documents -> articles in QuALITY's schema, that every step takes by `--task`."""

import json
from collections.abc import Iterator
from pathlib import Path

from utils import paths
from utils.errors import UserError, first_line
from utils.io import atomic_write, read_jsonl, read_text

KINDS = (".txt", ".md", ".jsonl", ".html", ".htm", ".pdf")
TAKEN = ("quality", "example")


def import_corpus(folder: Path) -> str:
    """Read every document in the folder and below, in order of path, into data/dataset/raw/NAME.jsonl,
    NAME being the folder's; returns NAME, the task. The same documents give the same file.

    Raises UserError where a document cannot be read, holds no text, or the file is somebody else's.
    """
    folder = Path(folder).absolute()
    task = folder.name
    if not folder.is_dir():
        raise UserError(f"--corpus {folder}: no such folder")
    if task in TAKEN:
        raise UserError(f"--corpus {folder}: {task} is a task of its own; name the folder otherwise")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    articles = [article for path in files for article in read_file(path, folder)]
    if not articles:
        raise UserError(f"--corpus {folder}: no documents in it ({', '.join(KINDS)})")
    seen: dict[tuple[str, str], str] = {}
    for article in articles:
        key = (article["title"], article.get("author", ""))
        if key in seen:
            raise UserError(
                f"--corpus {folder}: {seen[key]} and {article['source']} have the same title and author, {article['title']!r}; one of them needs another"
            )
        seen[key] = article["source"]
    target = paths.corpus_file(task)
    if target.is_file() and any(line.get("corpus") != str(folder) for line in read_jsonl(target, "")):
        raise UserError(
            f"--corpus {folder}: {target} is there and was not made from this folder; rename the folder, or use --task {task}"
        )
    with atomic_write(target) as file:
        for article in articles:
            line = json.dumps(article | {"corpus": str(folder)}, ensure_ascii=False)
            file.write(line.encode("utf-8", "replace") + b"\n")  # half a surrogate pair: ?
    return task


def read_file(path: Path, folder: Path) -> Iterator[dict]:
    """The documents of a file: many of a .jsonl, one of any other."""
    source = str(path.relative_to(folder))
    kind = path.suffix.lower()
    if kind == ".jsonl":
        for number, line in enumerate(read_jsonl(path, "name another folder"), 1):
            text = line.get("article") or line.get("text")
            if not isinstance(text, str) or not isinstance(line.get("title"), str):
                raise UserError(f"{path}, record {number}: needs a title, and a text as article or text")
            kept = {key: line[key] for key in ("author", "year", "questions") if line.get(key) is not None}
            if not isinstance(kept.get("author", ""), str):
                raise UserError(f"{path}, record {number}: the author is no text")
            yield {"title": line["title"], "article": text, "source": f"{source}:{number}"} | kept
        return
    readers = {".md": read_markdown, ".html": read_html, ".htm": read_html, ".pdf": read_pdf}
    title, text = readers.get(kind, read_plain)(path)
    if not text.strip():
        hint = " (scanned pages? they need text recognition first)" if kind == ".pdf" else ""
        raise UserError(f"{path}: no text in it{hint}; mend it or take it out of the folder")
    yield {"title": " ".join(title.split()) or path.stem, "article": text, "source": source}


def read_plain(path: Path) -> tuple[str, str]:
    return path.stem.replace("_", " "), read_text(path, "name another folder")


def read_markdown(path: Path) -> tuple[str, str]:
    """Its first heading is the title."""
    text = read_text(path, "name another folder")
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")]
    return headings[0] if headings else path.stem.replace("_", " "), text


def read_html(path: Path) -> tuple[str, str]:
    """The text of its main part, in the page's own character set; the title is that of its head."""
    from trafilatura import bare_extraction

    page = bare_extraction(path.read_bytes(), favor_recall=True, include_comments=False, with_metadata=True)
    return (page.title or path.stem.replace("_", " "), page.text or "") if page else ("", "")


def read_pdf(path: Path) -> tuple[str, str]:
    """Its pages' text; the title is that of its description."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        pdf = PdfReader(path)
        text = "\n\n".join(page.extract_text() for page in pdf.pages)
        title = (pdf.metadata and pdf.metadata.title) or path.stem.replace("_", " ")
    except (PyPdfError, DependencyError) as error:
        raise UserError(f"{path}: not a PDF that can be read ({first_line(error)})") from error
    return title, text
