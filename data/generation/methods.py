"""Generation methods, their requests, prompts and record ids."""

import functools
import itertools
import re
import unicodedata
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import comb

import numpy as np

from data.generation.styles import draw_style
from inference.completions import json_object_in, text_of
from tasks.documents import Document, article_text
from tasks.prompts import fill, task_prompt
from utils import paths
from utils.io import json_digest, read_text, sha256_text

FACTS = "facts"  # kind of passages about named sentences of the document (--aim_tellings)
MIN_LISTED_ITEMS = 3  # fewer entities make no triple; an article of QuALITY has about 30
MAX_NAME_WORDS = 12  # words of an entity; anything longer is a sentence


@dataclass(frozen=True)
class Method:
    """A generation method: an optional list request per document, then requests for passages.

    `list_kind` is the key of the list in the reply to the list request, None for a method without one;
    `group_sizes` maps each kind of passage to the number of listed items it is about. Every kind is a file
    of prompts/, so a new method is an entry in METHODS and its prompt files.
    """

    list_kind: str | None
    group_sizes: dict[str, int]


METHODS = {
    "entigraph": Method("entities", {"pair": 2, "triple": 3}),
    "rephrase": Method(None, {"rephrase_plain": 0, "rephrase_encyclopedia": 0, "rephrase_scholar": 0}),
    "plain": Method(None, {"rephrase_plain": 0}),
    "qa": Method(None, {"qa": 0}),
    "strategies": Method("strategies", {"strategy": 1}),
}


@dataclass(frozen=True)
class GenerationSettings:
    """The options that determine the requests for a document.

    `limits` is the maximum number of item groups by kind of passage (absent or None: no limit); every group
    gets `samples` requests. Only the first `max_listed_items` of a document's list are used. With `aim_tellings` the
    requests are chosen by data/generation/aiming.py, and the limits bound what it chooses from.
    """

    model: str
    method: str = "entigraph"
    limits: dict[str, int | None] = field(default_factory=dict)
    samples: int = 1
    seed: int = 0
    max_listed_items: int | None = None
    aim_tellings: int | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> "GenerationSettings":
        """From the options of entigraph.py."""
        limits = {"pair": args.max_pairs, "triple": args.max_triples}
        return cls(args.model, args.method, limits, args.samples, args.seed, args.max_entities, args.aim_tellings)

    @property
    def list_kind(self) -> str | None:
        return METHODS[self.method].list_kind

    @property
    def kinds(self) -> list[str]:
        """Kinds of passages, in the order of their requests."""
        return list(METHODS[self.method].group_sizes)


@dataclass(frozen=True)
class PassageRequest:
    """One request about a document and some of its listed items.

    `seed` draws the style; the record id does not depend on it. `has_earlier_prompt`: with the prompt that earlier
    versions of this repository sent.
    """

    document: Document
    kind: str
    entities: tuple[str, ...]
    model: str
    method: str = "entigraph"
    sample: int = 0
    seed: int = 0
    has_earlier_prompt: bool = False

    @property
    def prompt_file(self) -> str:
        return f"{self.kind}.md"

    @property
    def id(self) -> str:
        """The record id: a digest of document, entities, prompt template, model, method and sample."""
        document = self.document
        text = document.article_sha256 or sha256_text(document.text)
        key = [document.uid, text, self.entities, self._template(), self.model, self.method]
        key += [self.sample] if self.sample else []
        return json_digest(key, 24)

    def prompt(self) -> str:
        """The prompt. It is built when it is sent: 1,000 prompts of a long article are 20 MB."""
        filling = {
            "document": article_text(self.document),
            "title": self.document.title,
            "entities": "\n".join(f"- {entity}" for entity in self.entities),
        }
        return fill(self._template(), filling | {"style": draw_style(self.id, self.seed)})

    def earlier(self) -> "PassageRequest | None":
        """The same request with the prompt of earlier versions, None if it is the same."""
        if self.has_earlier_prompt or self.prompt_file not in _earlier_prompts():
            return None
        return replace(self, has_earlier_prompt=True)

    def is_answered(self, done: set[str]) -> bool:
        """True if `done`, record ids, has the reply to this request or to its earlier prompt: it was paid for."""
        return self.id in done or bool(done and (earlier := self.earlier()) and earlier.id in done)

    def _template(self) -> str:
        """The document comes first and the entities last, since servers cache the longest shared prefix."""
        folder = "earlier/" if self.has_earlier_prompt else ""
        return task_prompt("document") + _read_prompt(folder + self.prompt_file)


@functools.cache
def _read_prompt(name: str) -> str:
    return read_text(paths.generation_prompts_dir() / name, "it ships with the repository")


@functools.cache
def _earlier_prompts() -> set[str]:
    return {path.name for path in (paths.generation_prompts_dir() / "earlier").glob("*.md")}


def list_request(document: Document, settings: GenerationSettings) -> PassageRequest:
    """The request for the entities (or strategies) of `document`."""
    return PassageRequest(document, settings.list_kind, (), settings.model, settings.method)


def passage_count(kind: str, list_length: int, settings: GenerationSettings) -> int:
    """The number of requests of `passage_requests` for a list of that length."""
    total = comb(list_length, METHODS[settings.method].group_sizes[kind])
    limit = settings.limits.get(kind)
    return (total if limit is None else min(total, limit)) * settings.samples


def passage_requests(
    document: Document, kind: str, listed_items: list[str], settings: GenerationSettings
) -> Iterator[PassageRequest]:
    """Requests for the passages of one kind: one for each group of listed items, in a seeded order, up to the limit.

    The order depends only on the document, the kind and the seed, so a larger limit or more samples extend
    the sequence of a smaller one.
    """
    size, items = METHODS[settings.method].group_sizes[kind], list(dict.fromkeys(listed_items))
    rng = np.random.default_rng(list(f"{settings.seed}/{document.uid}/{kind}".encode()))
    chosen = rng.permutation(comb(len(items), size))[: settings.limits.get(kind)].astype(np.int32)
    for sample, index in itertools.product(range(settings.samples), chosen):
        group = tuple(items[position] for position in nth_combination(len(items), size, int(index)))
        yield PassageRequest(document, kind, group, settings.model, settings.method, sample, settings.seed)


def nth_combination(total: int, size: int, index: int) -> list[int]:
    """Element `index` of itertools.combinations(range(total), size), without generating those before it."""
    positions, position = [], 0
    for remaining in range(size - 1, -1, -1):
        while index >= (block := comb(total - position - 1, remaining)):
            index -= block
            position += 1
        positions.append(position)
        position += 1
    return positions


def list_schema(kind: str, max_items: int | None) -> dict:
    """The JSON schema of the reply to a list request."""
    items = {"type": "array", "items": {"type": "string"}, "minItems": MIN_LISTED_ITEMS}
    if max_items:
        items["maxItems"] = max_items
    return {
        "type": "object",
        "properties": {kind: items, "summary": {"type": "string"}},
        "required": [kind, "summary"],
        "additionalProperties": False,
    }


def parse_list(reply: str, kind: str = "entities") -> tuple[str, list[str]]:
    """Summary and listed items in the reply to a list request. Items are strings, objects with a name, or lists of
    them by category.

    Raises ValueError for a reply without a JSON object or with fewer than MIN_LISTED_ITEMS items.
    """
    value = json_object_in(reply, kind)
    listed = value[kind]
    if isinstance(listed, dict) and all(isinstance(group, list) for group in listed.values()):
        listed = list(itertools.chain.from_iterable(listed.values()))
    if not isinstance(listed, list):
        raise ValueError(f"the reply is not a JSON object with a list of {kind}")
    names = [text_of(item) for item in listed]
    if kind == "entities":
        names = [name for name in names if len(name.split()) <= MAX_NAME_WORDS]
    items = distinct_names(names)
    if len(items) < MIN_LISTED_ITEMS:
        raise ValueError(f"the reply lists {len(items)} {kind}, fewer than {MIN_LISTED_ITEMS}")
    summary = value.get("summary")
    return summary.strip() if isinstance(summary, str) else "", items


def distinct_names(names: list[str]) -> list[str]:
    """Drop names equal to an earlier one up to case, a leading article, surrounding punctuation or, in lower case, a
    plural ending: `bells` is `bell`, while Jones is not Jon, nor Mars Mar."""
    kept: dict[str, str] = {}
    exact, common = set(), set()  # keys of all names; of those that end in a common noun
    for name in names:
        key = re.sub(r"^(the|The|an?) ", "", unicodedata.normalize("NFC", name).strip(" .,;:!?'\"“”‘’*_`"))
        forms = _number_forms(key) if key.split()[-1:] == key.lower().split()[-1:] else set()
        key = key.lower()
        if key and key not in exact and not common & forms:
            kept[key] = name
        exact.add(key)
        common |= {key} if forms else set()
    return list(kept.values())


def _number_forms(noun: str) -> set[str]:
    """The singular and plural forms that an English noun phrase may have."""
    noun = noun.lower()
    forms = {noun + "es", noun.removesuffix("es")} | (set() if noun.endswith("s") else {noun + "s"})
    forms |= {noun[:-1] + "ies"} if noun.endswith("y") else {noun[:-3] + "y"} if noun.endswith("ies") else set()
    return forms | (set() if noun.endswith("ss") else {noun.removesuffix("s")})
