"""A quiz about documents of one's own: what is asked of the LLM, and which of its questions are kept."""

import json
import re
from dataclasses import dataclass

import numpy as np

from data.generation import methods
from tasks.documents import OPTIONS, Document
from tasks.prompts import fill, task_prompt

LONGER = 1.4  # times the longest wrong option: a right one beyond that gives itself away
SAME = 0.6  # of two questions' words: then they are one question


@dataclass(frozen=True)
class Draft:
    """A question as the LLM wrote it: `options` has the right one first."""

    id: str
    text: str
    options: tuple[str, ...]

    def shown(self, order: np.ndarray) -> dict[str, str]:
        """What fills a prompt, the options in that order."""
        options = [self.options[index] for index in order]
        return {"question": self.text} | dict(zip("abcd", options, strict=True))


def writing_prompt(document: Document, number: int) -> str:
    filling = {"document": methods.article_text(document), "title": document.title, "number": str(number)}  # fmt: skip
    return fill(task_prompt("document") + task_prompt("quiz"), filling)


def open_prompt(document: Document, draft: Draft, order: np.ndarray) -> str:
    filling = {"document": methods.article_text(document)} | draft.shown(order)
    return fill(task_prompt("document") + task_prompt("quiz_open"), filling)


def closed_prompt(draft: Draft, order: np.ndarray, continues: bool = False) -> str:
    """`continues`: for a model that continues a text, as base models do."""
    if continues:
        return fill(task_prompt("quiz_base"), draft.shown(order)).rstrip("\n")
    return fill(task_prompt("quiz_closed"), draft.shown(order))


def orders(draft: Draft, number: int, seed: int) -> list[np.ndarray]:
    """So many orders of the options, the right one at a different place in each."""
    rng = np.random.default_rng(list(f"{seed}/{draft.id}".encode()))
    found = []
    for place in rng.permutation(OPTIONS)[:number]:
        found.append(np.insert(rng.permutation(np.arange(1, OPTIONS)), place, 0))
    return found


def parse(reply: str, document: Document) -> list[Draft]:
    """The questions of a reply; ValueError where it is no JSON object with a list of them. What is no
    question with one right and three wrong answers is left out."""
    start, end = reply.find("{"), reply.rfind("}")
    value = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    if not isinstance(value, dict) or not isinstance(value.get("questions"), list):
        raise ValueError("the reply is not a JSON object with a list of questions")
    drafts = []
    for number, item in enumerate(value["questions"]):
        wrong = item.get("wrong") if isinstance(item, dict) else None
        texts = [item.get("question"), item.get("right"), *wrong] if isinstance(wrong, list) else []
        if len(texts) == 1 + OPTIONS and all(isinstance(text, str) and text.strip() for text in texts):  # fmt: skip
            text, *options = (" ".join(text.split()) for text in texts)
            drafts.append(Draft(f"{document.uid}-{number}", text, tuple(options)))
    return drafts


def screen(drafts: list[Draft], document: Document) -> tuple[list[Draft], dict[str, int]]:
    """The drafts worth checking, and how many others there are by what is wrong with them."""
    kept, dropped = [], {"unnamed": 0, "options alike": 0, "length gives it away": 0, "duplicate": 0}  # fmt: skip
    for draft in drafts:
        lengths = [len(option) for option in draft.options]
        if " ".join(words(document.title)) not in " ".join(words(draft.text)):
            dropped["unnamed"] += 1
        elif len({" ".join(words(option)) for option in draft.options}) < OPTIONS:
            dropped["options alike"] += 1
        elif not min(lengths[1:]) / LONGER <= lengths[0] <= max(lengths[1:]) * LONGER:
            dropped["length gives it away"] += 1
        elif any(alike(draft.text, other.text, document.title) for other in kept):
            dropped["duplicate"] += 1
        else:
            kept.append(draft)
    return kept, dropped


def alike(one: str, other: str, title: str) -> bool:
    """By the share of their words, the title's apart, that both have."""
    first, second = (set(words(text)) - set(words(title)) for text in (one, other))
    return len(first & second) >= SAME * len(first | second)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def lay_out(kept: list[tuple[Document, Draft]], seed: int) -> list[dict]:
    """Records in QuALITY's schema, a document a line; over all questions the right answer stands as
    often at each of the four places as at any other, one at most apart."""
    rng = np.random.default_rng([seed, len(kept)])
    places = rng.permutation(np.arange(len(kept)) % OPTIONS)
    records: dict[str, dict] = {}
    for (document, draft), place in zip(kept, places.tolist(), strict=True):
        options = [draft.options[index] for index in rng.permutation(np.arange(1, OPTIONS))]
        options.insert(place, draft.options[0])
        head = {"title": document.title, "author": document.author, "year": document.year}
        record = records.setdefault(document.uid, head | {"article": document.text, "questions": []})  # fmt: skip
        record["questions"].append(
            {"question_unique_id": draft.id, "question": draft.text, "options": options, "gold_label": place + 1, "difficult": 0}
        )  # fmt: skip
    return list(records.values())
