"""Prompts of questions in the format of a protocol, after worked examples and retrieved chunks."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.documents import Document, Question, ShortQuestion, document_reference
from tasks.prompts import fill, task_prompt
from utils.errors import UserError
from utils.io import read_text

EXAMPLE_HEADING = "### Question\n"
EXAMPLES = {"cot": "cot_examples", "short": "short_examples"}  # prompt files of the protocols with worked examples


@dataclass(frozen=True)
class PromptedQuestion:
    id: str
    prompt: str
    options: tuple[str, ...]


def build_prompt(
    document: Document,
    question: Question | ShortQuestion,
    protocol: str,
    few_shot: int = 0,
    *,
    examples: Path | None = None,
    chunks: Sequence[tuple[str, str]] = (),
) -> str:
    """The prompt of a question, which names the article by title, author and year.

    In the protocols `cot` and `short` the first `few_shot` worked examples of the file `examples` (None: the shipped
    ones) come first. `chunks`, (document reference, text) pairs of an open-book evaluation, come right before the question.
    """
    values = {"name": document_reference(document), "question": question.text}
    values |= dict(zip("abcd", question.options, strict=protocol != "short"))
    prompt = fill(task_prompt(f"{protocol}_question").rstrip("\n"), values)
    if chunks:
        listed = "\n\n".join(f"From {reference}:\n{text}" for reference, text in chunks)
        prompt = fill(task_prompt("passages"), {"passages": listed}) + prompt
    if protocol not in EXAMPLES:
        return prompt
    return worked_examples(examples, few_shot, EXAMPLES[protocol]) + prompt + ("\n" if protocol == "cot" else "")


@functools.cache
def worked_examples(file: Path | None, number: int, shipped: str) -> str:
    """The first `number` worked examples of a file, or of the `shipped` one. Raises UserError where it has fewer."""
    text = task_prompt(shipped) if file is None else read_text(file, "name a file of worked examples")
    head, *examples = text.split(EXAMPLE_HEADING)
    if head.strip() or len(examples) < number:
        name, heading = file or f"tasks/prompts/{shipped}.md", EXAMPLE_HEADING.strip()
        raise UserError(f"--few_shot {number}: {name} has {len(examples)} examples, each starting with {heading!r}")
    return "".join(f"{EXAMPLE_HEADING}{example}" for example in examples[:number])
