"""What is asked of a model: a question in the words of a protocol, behind its worked examples."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.documents import Document, Question, document_reference
from tasks.prompts import fill, task_prompt
from utils.errors import UserError
from utils.io import read_text

EXAMPLE = "### Question\n"  # with which every worked example begins


@dataclass(frozen=True)
class PromptedQuestion:
    """A question as a model is asked it."""

    id: str
    prompt: str
    options: tuple[str, ...]


def build_prompt(
    document: Document,
    question: Question,
    protocol: str,
    few_shot: int = 0,
    examples: Path | None = None,
    passages: Sequence[tuple[str, str]] = (),
) -> str:
    """With title, author and year of the article. The first `few_shot` of the worked examples in the
    file (None: the shipped ones) stand before the question, and between them and it, open book, the
    passages that were found for it: whose they are, and their text."""
    filling = {"name": document_reference(document), "question": question.text}
    filling |= dict(zip("abcd", question.options, strict=True))
    own = fill(task_prompt(f"{protocol}_question").rstrip("\n"), filling)
    if passages:
        found = "\n\n".join(f"From {name}:\n{text}" for name, text in passages)
        own = fill(task_prompt("passages"), {"passages": found}) + own
    return worked_examples(examples, few_shot) + own + "\n" if protocol == "cot" else own


@functools.cache
def worked_examples(file: Path | None, number: int) -> str:
    """The first so many, of the file or the shipped ones. Raises UserError where there are fewer."""
    text = task_prompt("cot_examples") if file is None else read_text(file, "name a file of worked examples")
    head, *examples = text.split(EXAMPLE)
    if head.strip() or len(examples) < number:
        where = file or "tasks/prompts/cot_examples.md"
        raise UserError(
            f"--few_shot {number}: {where} has {len(examples)} examples, each beginning with {EXAMPLE.strip()!r}"
        )
    return "".join(f"{EXAMPLE}{example}" for example in examples[:number])
