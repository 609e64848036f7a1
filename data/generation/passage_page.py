"""Page of a corpus of passages: documents, entity graphs, each passage beside its source.

One self-contained HTML file; where it would be larger than MAX_BYTES, an index and a page for each document.
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from data.generation import filters
from data.generation.passage_details import Describer, Journals, Passage, Sentence, read_document
from inference.prices import Price, Usage
from tasks.documents import Document
from utils import paths
from utils.io import atomic_write, read_text
from utils.words import words_of

MAX_BYTES = 9_500_000
MAX_SHOWN = 10_000  # passages of all documents
MIN_SHOWN = 10  # of each document


def write_page(
    target: Path, title: str, groups: Iterable[tuple[Document, list[Path]]], number: int, price: Price | None
) -> dict:
    """Write the page of `number` documents, each with its journals. Returns counts: documents, passages, shown, pages."""
    limit = max(MIN_SHOWN, MAX_SHOWN // max(1, number))
    entries, totals = [], {"documents": 0, "passages": 0, "shown": 0}
    for document, files in groups:
        journals = read_document(files, limit)
        if not journals.reasons:
            continue
        entries.append(make_entry(document, journals, price))
        totals["documents"] += 1
        totals["passages"] += entries[-1]["passages"]
        totals["shown"] += len(journals.shown)
    pages = split_pages(target, title, entries)
    for path, some in pages.items():
        with atomic_write(path) as file:
            file.write(render(title, some, totals).encode())
    return totals | {"pages": len(pages), "file": str(target)}


def split_pages(target: Path, title: str, entries: list[dict]) -> dict[Path, list[dict]]:
    """The entries of each page: one page, or an index of links and a page for each document."""
    if sum(len(entry["details"]) for entry in entries) <= MAX_BYTES:
        return {target: entries}
    folder = target.with_suffix("")
    pages = {folder / f"{entry['uid']}.html": [entry] for entry in entries}
    links = [
        {name: value for name, value in entry.items() if name != "details"}
        | {"page": quote(f"{folder.name}/{path.name}")}
        for path, (entry,) in pages.items()
    ]
    return {target: links} | pages


def make_entry(document: Document, journals: Journals, price: Price | None) -> dict:
    describer = Describer(document)
    passages = [describer.describe(record) for record in journals.shown]
    total = journals.kinds.total()
    cost = f"; {cost_of(journals.usage, price)}" if journals.usage.total else ""
    places = {entity: number for number, entity in enumerate(journals.entities)}
    absent = set(filters.entities_not_in(journals.entities, document.text))
    pairs = [[places[name] for name in pair if name in places] for pair in sorted(journals.pairs)]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(journals.kinds.items()))
    shown = f"; {len(passages):,} of {total:,} passages are shown" if len(passages) < total else ""
    details = {
        "summary": f"{len(words_of(document.text)):,} words; passages: {kinds}{cost}{shown}",
        "entities": [{"name": name, "absent": name in absent} for name in journals.entities],
        "pairs": [pair for pair in pairs if len(pair) == 2],
        "source": describer.statements.sentences,
        "passages": [as_json(passage, places) for passage in passages],
    }
    content = zlib.compress(json.dumps(details, ensure_ascii=False, separators=(",", ":")).encode(), 9)
    flagged = sum(bool(set(passage.flags) - {"copied"}) for passage in passages)
    entry = {"uid": document.uid, "title": document.title, "passages": total, "flagged": flagged}
    return entry | {"cost": cost.replace(";", " ·"), "details": base64.b64encode(content).decode()}


def cost_of(usage: Usage, price: Price | None) -> str:
    return f"${price.usd(usage):,.2f}" if price else f"{usage.total:,} tokens"


def as_json(passage: Passage, places: dict[str, int]) -> dict:
    """A passage as passages.html reads it; its keys are one letter, since there are thousands."""
    value = {
        "i": passage.id,
        "k": passage.kind,
        "e": [places[name] for name in passage.entities if name in places],
        "f": passage.flags,
        "t": [[marked(sentence) for sentence in line] for line in passage.lines],
        "s": passage.told,
    }
    return value | ({"d": passage.duplicate_of} if passage.duplicate_of else {})


def marked(sentence: Sentence) -> str | list[str]:
    if sentence.reason:
        return [sentence.text, "u", sentence.reason]
    return [sentence.text, "c"] if sentence.copied else sentence.text


def render(title: str, entries: list[dict], totals: dict) -> str:
    page = read_text(paths.generation_prompts_dir().parent / "passages.html", "it ships with the repository")
    summary = f"{totals['documents']:,} documents, {totals['passages']:,} passages"
    data = json.dumps({"documents": entries}, ensure_ascii=False).replace("<", "\\u003c")
    values = {"title": html.escape(title), "summary": summary, "data": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], page)
