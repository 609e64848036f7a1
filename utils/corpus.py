"""What is asked of a document: the EntiGraph requests, their record ids, and the passages that came back."""

import functools
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np

from utils import paths
from utils.io import UserError, iterate_jsonl, read_text
from utils.quality import Document

METHOD = "entigraph"
FINISHED = "stop"  # the finish_reason of a reply that ended by itself
FEWEST_ENTITIES = 3  # fewer make no triple; an article of QuALITY has about 30
LONGEST_NAME = 12  # words; what is longer is a sentence


@dataclass(frozen=True)
class Request:
    """One call to make about a document: what it is, and the entities it is about."""

    document: Document
    kind: str  # entities, pair or triple
    entities: tuple[str, ...]
    model: str

    @property
    def prompt(self) -> str:
        """The name of the prompt file."""
        return f"{self.kind}.md"

    @property
    def id(self) -> str:
        """The same for the same document, entities, prompt, model and method."""
        document = self.document
        content = hashlib.sha256(document.text.encode()).hexdigest()
        key = [document.uid, content, self.entities, self._template(), self.model, METHOD]
        return hashlib.sha256(json.dumps(key, ensure_ascii=False).encode()).hexdigest()[:24]

    def text(self) -> str:
        """The prompt to send. Made when it is sent: 1,000 prompts of a long article are 20 MB."""
        filling = {
            "document": article_text(self.document),
            "title": self.document.title,
            "entities": "\n".join(f"- {entity}" for entity in self.entities),
        }
        return fill(self._template(), filling)

    def _template(self) -> str:
        return _read_prompt(self.prompt)


def passage_count(entities: int, max_pairs: int | None, max_triples: int | None) -> int:
    """How many requests `passage_requests` gives, without making them."""
    totals = ((comb(entities, 2), max_pairs), (comb(entities, 3), max_triples))
    return sum(total if limit is None else min(total, limit) for total, limit in totals)


@functools.cache
def _read_prompt(name: str) -> str:
    return read_text(paths.prompts_dir() / name, "it ships with the repository")


def entity_request(document: Document, model: str) -> Request:
    return Request(document, "entities", (), model)


def passage_requests(
    document: Document,
    entities: list[str],
    model: str,
    max_pairs: int | None,
    max_triples: int | None,
    seed: int,
) -> list[Request]:
    """Pairs, then triples; where a number is given, the first so many of a seeded order.

    A larger number keeps what a smaller one gave: the order depends on the document and the seed
    alone. Without a limit there are n(n-1)/2 pairs and n(n-1)(n-2)/6 triples.
    """
    requests = []
    for kind, size, limit in (("pair", 2, max_pairs), ("triple", 3, max_triples)):
        groups = list(itertools.combinations(entities, size))
        if limit is not None and limit < len(groups):
            random.Random(f"{seed}/{document.uid}/{kind}").shuffle(groups)
            groups = groups[:limit]
        requests += [Request(document, kind, group, model) for group in groups]
    return requests


def fill(template: str, filling: dict[str, str]) -> str:
    """Replace every `{name}` that `filling` knows, in one pass: filled-in text is not searched, so
    braces in an article stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda match: filling.get(match[1], match[0]), template)


def extraction_schema(max_entities: int | None) -> dict:
    """The JSON schema of a reply to `entities.md`."""
    names = {"type": "array", "items": {"type": "string"}, "minItems": FEWEST_ENTITIES}
    if max_entities:
        names["maxItems"] = max_entities
    return {
        "type": "object",
        "properties": {"entities": names, "summary": {"type": "string"}},
        "required": ["entities", "summary"],
        "additionalProperties": False,
    }


def parse_entities(reply: str) -> tuple[str, list[str]]:
    """Summary and entities out of a model's reply to `entities.md`.

    Takes the outermost {...}, so that a Markdown fence or a sentence before it does no harm.
    Entities that differ in case or white space alone are one. Raises ValueError where there is no
    such object or fewer than FEWEST_ENTITIES entities.
    """
    start, end = reply.find("{"), reply.rfind("}")
    value = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    if not isinstance(value, dict) or not isinstance(value.get("entities"), list):
        raise ValueError("the reply is not a JSON object with a list of entities")
    words = [name.split() for name in value["entities"] if isinstance(name, str)]
    names = [" ".join(name) for name in words if 0 < len(name) <= LONGEST_NAME]
    first_of = {name.lower(): name for name in reversed(names)}
    entities = list(first_of.values())[::-1]
    if len(entities) < FEWEST_ENTITIES:
        raise ValueError(
            f"the reply names {len(entities)} entities, {FEWEST_ENTITIES} are the least"
        )
    return str(value.get("summary", "")).strip(), entities


def locate_passages(folders: list[Path], made_by: str) -> tuple[list[Path], np.ndarray]:
    """Where the passages of some folders of journals lie: the corpus is every summary and every
    text that ended well, one document each.

    Returns the files and an (n, 2) int64 array of file number and byte offset, 16 bytes a passage,
    in order of file, then of record id: the order in which concurrent calls happened to end leaves
    no trace. Raises UserError where a folder holds no journal.
    """
    files: list[Path] = []
    places: list[np.ndarray] = []
    for folder in folders:
        found = sorted(folder.glob("*.jsonl"))
        if not found:
            raise UserError(f"{folder}: holds no passages; {made_by}")
        for path in found:
            offsets = _passages_of(path)
            places.append(np.array([(len(files), offset) for offset in offsets]).reshape(-1, 2))
            files.append(path)
    if not sum(map(len, places)):
        raise UserError(f"{', '.join(map(str, folders))}: no passage in it ended well; {made_by}")
    return files, np.concatenate(places).astype(np.int64)


def read_passages(files: list[Path], places: np.ndarray) -> Iterator[str]:
    """The passages at `places`, in that order, one in memory at a time."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open(path, "rb")) for path in files]
        for number, offset in places:
            opened[number].seek(offset)
            yield _passage(json.loads(opened[number].readline()))


def _passages_of(path: Path) -> list[int]:
    """Byte offsets of a journal's passages, by record id."""
    return [
        offset
        for _, offset in sorted(
            (str(record.get("id")), offset)
            for offset, record in iterate_jsonl(path)
            if _passage(record)
        )
    ]


def _passage(record: dict) -> str:
    if record.get("finish_reason") != FINISHED:
        return ""
    return record.get("summary") or record.get("text") or ""


def article_text(document: Document) -> str:
    """An article as the raw baseline trains on it: title, author and year, then the text."""
    return f"{document.title}\nby {document.byline} ({document.year})\n\n{document.text}"
