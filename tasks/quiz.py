"""Questions of a quiz about the user's own documents: prompts, parsing, screening, records. Knows no server."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from inference.completions import json_object_in, text_of
from tasks.documents import OPTIONS, Document, article_text
from tasks.facts import are_alike, contains, content_words, numbers_in, stems, support
from tasks.prompts import fill, task_prompt
from tasks.scoring import parse_answer
from tasks.short_answers import best_f1
from utils.words import words_of

KINDS = ("choice", "short")
MAX_LENGTH_RATIO = 1.4  # of the correct option to the longest (or shortest) wrong one: beyond, its length reveals it
LENGTH_SLACK = 3  # characters that reveal nothing in any case: `shed` among `church`, `tower` and `chapel`
MIN_OVERLAP = 0.6  # of two questions' words: they count as duplicates
MIN_FACT_WORDS, MAX_FACT_WORDS = 4, 80
MAX_ANSWER_WORDS = 8  # of a short answer: longer ones are worded in many ways, and exact match would say nothing
MIN_SUPPORT = 2 / 3  # of the right answer's content words, to be found in the document
MIN_AGREEMENT = 0.5  # F1 of a reply and the right answer: `Osgood drew the lens` is `Bertil Osgood`
TEXT_REFERENCE = re.compile(
    r"^(?:in|according to|based on) (?:the|this) (?:above |given )?(?:text|passage|article|story|document|sentence)\b,? *",
    re.I,
)  # in place of the document's title
# Reasons to drop a question before any check of it is paid for.
UNNAMED, UNSUPPORTED, GIVEN, DUPLICATE = "unnamed", "answer not in the text", "answer in the question", "duplicate"
ALIKE, COPIED, LENGTH = "options alike", "options of the prompt's example", "length gives it away"
LONG = "answer too long"


@dataclass(frozen=True)
class DraftQuestion:
    """A question as the LLM wrote it; the first of `options` is correct, and the only one if there are no wrong ones.
    `fact` is what it asks about, in the document's words; `aliases` are other wordings of a short answer."""

    id: str
    text: str
    options: tuple[str, ...]
    fact: str = ""
    aliases: tuple[str, ...] = ()

    def prompt_values(self, order: np.ndarray | None) -> dict[str, str]:
        """Values for a prompt that asks it, with the options in `order`; None for a short answer."""
        options = [] if order is None else [self.options[index] for index in order]
        return {"question": self.text} | dict(zip("abcd", options, strict=False))


def writing_prompt(document: Document, sentence: str, prompt: str) -> str:
    """A request for one question; `prompt` is quiz, or quiz_short for one without wrong options. The document comes
    first and the sentence last, since servers cache the longest shared prefix."""
    values = {"document": article_text(document), "title": document.title, "sentence": sentence}
    return fill(task_prompt("document") + task_prompt(prompt), values)


def reply_schema(prompt: str) -> dict:
    """The JSON schema of the reply to `writing_prompt`. The answer comes before the question, which then asks for it:
    small models write better ones so."""
    wrong = {"type": "array", "items": {"type": "string"}, "minItems": OPTIONS - 1, "maxItems": OPTIONS - 1}
    aliases = {"type": "array", "items": {"type": "string"}, "maxItems": 3}
    properties = {name: {"type": "string"} for name in ("fact", "right", "question")}
    properties |= {"wrong": wrong} if prompt == "quiz" else {"aliases": aliases}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def open_prompt(document: Document, draft: DraftQuestion, order: np.ndarray | None) -> str:
    values = {"document": article_text(document)} | draft.prompt_values(order)
    return fill(task_prompt("document") + task_prompt("quiz_open" if order is not None else "quiz_open_short"), values)


def closed_prompt(draft: DraftQuestion, order: np.ndarray | None, base_model: bool = False) -> str:
    """The question without its document, for a chat model or for a base model, which continues text."""
    name = ("quiz_base" if base_model else "quiz_closed") + ("" if order is not None else "_short")
    prompt = fill(task_prompt(name), draft.prompt_values(order))
    return prompt.rstrip("\n") if base_model else prompt


def option_orders(draft: DraftQuestion, number: int, seed: int) -> list[np.ndarray]:
    """`number` orders of the options, each with the correct one at a different place."""
    rng = np.random.default_rng(list(f"{seed}/{draft.id}".encode()))
    places = rng.permutation(OPTIONS)[:number]
    return [np.insert(rng.permutation(np.arange(1, OPTIONS)), place, 0) for place in places]


def is_correct(reply: str, draft: DraftQuestion, order: np.ndarray | None) -> bool:
    """True if a reply names the correct option; for a short answer, if it agrees with it by MIN_AGREEMENT."""
    if order is None:
        lines = [line for line in reply.split("\n") if line.strip()]
        answer = re.sub(r"^\W*answer\W*:\s*", "", lines[0], flags=re.I) if lines else ""
        return bool(answer) and best_f1(answer, [draft.options[0], *draft.aliases]) >= MIN_AGREEMENT
    answer = parse_answer(reply, [draft.options[index] for index in order])
    return answer is not None and order[answer] == 0


def parse(reply: str, document: Document, index: int, sentence: str, needs_options: bool = False) -> DraftQuestion:
    """The question of a reply to a request about the sentence `index`. It has a single option unless the reply has
    three wrong ones. Raises ValueError unless the reply is a JSON object with a question and its right answer, and,
    with `needs_options`, three wrong ones."""
    value = json_object_in(reply, "question", str)
    text, right, fact = (text_of(value.get(key)) for key in ("question", "right", "fact"))
    if not text or not right:
        raise ValueError("the reply has no question with its right answer")
    text = TEXT_REFERENCE.sub(lambda _: f'In "{document.title}", ', text)
    wrong, aliases = ([text_of(item) for item in _listed(value.get(key))] for key in ("wrong", "aliases"))
    options = plain_options(right, *wrong)
    if len(options) != OPTIONS or not all(options):
        if needs_options:
            raise ValueError("the reply has no three wrong options")
        options = options[:1]
    words = len(words_of(fact))
    if not (MIN_FACT_WORDS <= words <= MAX_FACT_WORDS and contains(document.text, fact)):
        fact = sentence
    draft = DraftQuestion(f"{document.uid}-{index}", text, tuple(options), fact)
    return replace(draft, aliases=tuple(usable_aliases(options[0], map(without_full_stop, aliases))))


def _listed(value: object) -> list:
    return value if isinstance(value, list) else []


def plain_options(*options: str) -> list[str]:
    """Options without what only some of them have: a full stop at the end, an article at the beginning."""
    texts = [without_full_stop(option) for option in options]
    bare = [re.sub(r"^(?:the|an?)\s+", "", text, flags=re.I) for text in texts]
    have_article = [one != other for one, other in zip(texts, bare, strict=True)]
    return bare if any(have_article) and not all(have_article) else texts


def without_full_stop(text: str) -> str:
    return text[:-1].rstrip() if text.endswith(".") and text.count(".") == 1 else text


def usable_aliases(answer: str, aliases: Iterable[str]) -> list[str]:
    """The aliases that share a content word with the answer and have no other number, without repetitions."""
    kept, known = [], {tuple(words_of(answer))}
    for alias in aliases:
        shared = content_words(alias) & content_words(answer)
        if shared and numbers_in(alias) <= numbers_in(answer) and tuple(words_of(alias)) not in known:
            kept.append(alias)
            known.add(tuple(words_of(alias)))
    return kept


def screen_drafts(
    drafts: list[DraftQuestion], document: Document, kind: str = "choice", own_options: bool = True
) -> tuple[list[DraftQuestion], dict[str, int]]:
    """The drafts worth checking, and counts of the others by reason. Without `own_options` the wrong options do not
    matter, since others will take their place."""
    checks_options = kind == "choice" and own_options
    names = [UNNAMED, *([LONG] if kind == "short" else [ALIKE, COPIED, LENGTH]), UNSUPPORTED, GIVEN, DUPLICATE]
    kept: list[DraftQuestion] = []
    dropped = dict.fromkeys(names, 0)
    for draft in drafts:
        reason = content_fault(draft, document, kind) or (option_fault(draft) if checks_options else None)
        if not reason and any(near_duplicates(draft.text, other.text, document.title) for other in kept):
            reason = DUPLICATE
        if reason:
            dropped[reason] += 1
        else:
            kept.append(draft)
    return kept, dropped


def content_fault(draft: DraftQuestion, document: Document, kind: str) -> str | None:
    """The reason to drop a question for its text or its right answer."""
    right = draft.options[0]
    if not contains(draft.text, document.title):
        return UNNAMED
    if kind == "short" and len(words_of(right)) > MAX_ANSWER_WORDS:
        return LONG
    if support(right, article_text(document)) < MIN_SUPPORT or not stems(right) & stems(draft.fact):
        return UNSUPPORTED
    return GIVEN if content_words(right) <= set(words_of(draft.text)) else None


def option_fault(draft: DraftQuestion) -> str | None:
    """The reason not to use the options of a question: two have the same content words, or one has all of the correct
    one's (both are right then); one was copied from the example in the prompt; the length of the correct one reveals
    it."""
    right, *wrong = draft.options
    if len(wrong) < OPTIONS - 1 or len({stems(option) for option in draft.options}) < OPTIONS:
        return ALIKE
    if any(are_alike(right, option) for option in wrong):
        return ALIKE
    if any(len(words_of(option)) > 1 and contains(task_prompt("quiz"), option) for option in wrong):
        return COPIED
    shortest, longest = min(map(len, wrong)), max(map(len, wrong))
    least = min(shortest / MAX_LENGTH_RATIO, shortest - LENGTH_SLACK)
    most = max(longest * MAX_LENGTH_RATIO, longest + LENGTH_SLACK)
    return None if least <= len(right) <= most else LENGTH


def near_duplicates(one: str, other: str, title: str) -> bool:
    """True if two questions share MIN_OVERLAP of their words; words of the title do not count."""
    first, second = (set(words_of(text)) - set(words_of(title)) for text in (one, other))
    return len(first & second) >= MIN_OVERLAP * len(first | second)


def build_records(kept: list[tuple[Document, DraftQuestion]], seed: int, kind: str = "choice") -> list[dict]:
    """Records in QuALITY's schema, with `answer` and `aliases` instead of options for short answers. The correct
    option is at each of the four places equally often, up to one."""
    rng = np.random.default_rng([seed, len(kept)])
    places = rng.permutation(np.arange(len(kept)) % OPTIONS)
    records: dict[str, dict] = {}
    for (document, draft), place in zip(kept, places.tolist(), strict=True):
        head = {"title": document.title, "author": document.author, "year": document.year}
        record = records.setdefault(document.uid, head | {"article": document.text, "questions": []})
        question = {"question_unique_id": draft.id, "question": draft.text}
        if kind == "short":
            question |= {"answer": draft.options[0], "aliases": list(draft.aliases)}
        else:
            options = [draft.options[index] for index in rng.permutation(np.arange(1, OPTIONS))]
            options.insert(place, draft.options[0])
            question |= {"options": options, "gold_label": place + 1}
        record["questions"].append(question | {"difficult": 0, "fact": draft.fact})
    return list(records.values())


def jsonl(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
