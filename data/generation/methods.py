"""What is asked of a document: the methods, their requests and record ids."""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import comb

import numpy as np

from tasks.documents import Document, article_text
from tasks.prompts import fill, task_prompt
from utils import paths
from utils.io import read_text

FEWEST_LISTED = 3  # fewer entities make no triple; an article of QuALITY has about 30
LONGEST_NAME = 12  # words of an entity; what is longer is a sentence


@dataclass(frozen=True)
class Method:
    """A way to rewrite a document: at first, perhaps, a call that lists something in it (its kind is
    the name of the list in the reply); then passages of some kinds, each about so many of the things
    listed. A kind is a file of prompts/; a new method is an entry here and its files there."""

    list_kind: str | None
    about: dict[str, int]


METHODS = {
    "entigraph": Method("entities", {"pair": 2, "triple": 3}),
    "rephrase": Method(None, {"rephrase_plain": 0, "rephrase_encyclopedia": 0, "rephrase_scholar": 0}),
    "qa": Method(None, {"qa": 0}),
    "strategies": Method("strategies", {"strategy": 1}),
}


@dataclass(frozen=True)
class GenerationSettings:
    """What is asked of every document. `most` has the largest number of passages of a kind about
    different things (absent or None: all there are); each is asked for `samples` times. Of what a document lists, the
    first `max_listed` are used."""

    model: str
    method: str = "entigraph"
    most: dict[str, int | None] = field(default_factory=dict)
    samples: int = 1
    seed: int = 0
    max_listed: int | None = None

    @property
    def list_kind(self) -> str | None:
        return METHODS[self.method].list_kind

    @property
    def kinds(self) -> list[str]:
        """Of passages, in the order in which they are asked for."""
        return list(METHODS[self.method].about)


@dataclass(frozen=True)
class PassageRequest:
    """One call to make about a document, and what of the document it is about."""

    document: Document
    kind: str
    entities: tuple[str, ...]
    model: str
    method: str = "entigraph"
    sample: int = 0

    @property
    def prompt(self) -> str:
        """The name of the prompt file."""
        return f"{self.kind}.md"

    @property
    def id(self) -> str:
        """The same for the same document, entities, prompt, model, method and sample."""
        document = self.document
        key = [document.uid, _sha256(document.text), self.entities, self._template(), self.model, self.method]
        key += [self.sample] if self.sample else []
        return _sha256(json.dumps(key, ensure_ascii=False))[:24]

    def text(self) -> str:
        """The prompt to send. Made when it is sent: 1,000 prompts of a long article are 20 MB."""
        filling = {
            "document": article_text(self.document),
            "title": self.document.title,
            "entities": "\n".join(f"- {entity}" for entity in self.entities),
        }
        return fill(self._template(), filling)

    def _template(self) -> str:
        """All prompts begin alike, up to the end of the document, and what differs from call to call
        of a kind comes last: servers reuse the work on a prefix that they have seen."""
        return task_prompt("document") + _read_prompt(self.prompt)


@functools.lru_cache(maxsize=4096)
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _read_prompt(name: str) -> str:
    return read_text(paths.generation_prompts_dir() / name, "it ships with the repository")


def list_request(document: Document, recipe: GenerationSettings) -> PassageRequest:
    """The call that lists what the passages of `document` will be about."""
    return PassageRequest(document, recipe.list_kind, (), recipe.model, recipe.method)


def passage_count(kind: str, listed: int, recipe: GenerationSettings) -> int:
    """How many requests `passage_requests` gives for a list of that length."""
    total = comb(listed, METHODS[recipe.method].about[kind])
    limit = recipe.most.get(kind)
    return (total if limit is None else min(total, limit)) * recipe.samples


def passage_requests(
    document: Document, kind: str, listed: list[str], recipe: GenerationSettings
) -> Iterator[PassageRequest]:
    """Calls for the passages of a kind: for each choice of as many of the listed things as the kind
    is about, in a seeded order, cut at the recipe's limit.

    A larger limit, or more samples, go on where smaller ones end: the order depends on the document,
    the kind and the seed alone.
    """
    size, listed = METHODS[recipe.method].about[kind], list(dict.fromkeys(listed))
    order = np.random.default_rng(list(f"{recipe.seed}/{document.uid}/{kind}".encode()))
    chosen = order.permutation(comb(len(listed), size))[: recipe.most.get(kind)].astype(np.int32)
    for sample, number in itertools.product(range(recipe.samples), chosen):
        group = tuple(listed[index] for index in combination(len(listed), size, int(number)))
        yield PassageRequest(document, kind, group, recipe.model, recipe.method, sample)


def combination(total: int, size: int, number: int) -> list[int]:
    """The `number`-th of the C(total, size) choices, in the order of itertools.combinations: of 100
    entities there are 161,700 triples, which need not be in memory."""
    found, least = [], 0
    for left in range(size - 1, -1, -1):
        while number >= (block := comb(total - least - 1, left)):
            number -= block
            least += 1
        found.append(least)
        least += 1
    return found


def list_schema(kind: str, most: int | None) -> dict:
    """The JSON schema of a reply to a call that lists."""
    names = {"type": "array", "items": {"type": "string"}, "minItems": FEWEST_LISTED}
    if most:
        names["maxItems"] = most
    return {
        "type": "object",
        "properties": {kind: names, "summary": {"type": "string"}},
        "required": [kind, "summary"],
        "additionalProperties": False,
    }


def parse_list(reply: str, kind: str = "entities") -> tuple[str, list[str]]:
    """Summary and list out of a model's reply to a call that lists.

    Takes the outermost {...}, so that a Markdown fence or a sentence before it does no harm. Raises
    ValueError where there is no such object or the list is shorter than FEWEST_LISTED.
    """
    start, end = reply.find("{"), reply.rfind("}")
    value = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    if not isinstance(value, dict) or not isinstance(value.get(kind), list):
        raise ValueError(f"the reply is not a JSON object with a list of {kind}")
    names = [" ".join(name.split()) for name in value[kind] if isinstance(name, str)]
    if kind == "entities":
        names = [name for name in names if len(name.split()) <= LONGEST_NAME]
    listed = distinct_names(names)
    if len(listed) < FEWEST_LISTED:
        raise ValueError(f"the reply names {len(listed)} {kind}, {FEWEST_LISTED} are the least")
    summary = value.get("summary")
    return summary.strip() if isinstance(summary, str) else "", listed


def distinct_names(names: list[str]) -> list[str]:
    """The names without those that repeat an earlier one but for case, a leading article,
    punctuation around them, or one being the plural of the other."""
    found: dict[str, str] = {}
    for name in names:
        key = re.sub(r"^(the|an?) ", "", name.lower().strip(" .,;:!?'\"“”‘’*_`"))
        singulars = {key, key.removesuffix("s"), key.removesuffix("es")}
        singulars.add(key[:-3] + "y" if key.endswith("ies") else key)
        plurals = {key + "s", key + "es", key[:-1] + "ies" if key.endswith("y") else key}
        if key and not found.keys() & (singulars | plurals):
            found[key] = name
    return list(found.values())
