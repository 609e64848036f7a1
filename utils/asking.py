"""What is asked of a model: a question in the words of a protocol, behind its worked examples."""

import functools
from pathlib import Path

from utils import corpus, paths, quality
from utils.io import UserError, read_text

EXAMPLE = "### Question\n"  # with which every worked example begins


def prompt_of(
    document: quality.Document,
    question: quality.Question,
    protocol: str,
    few_shot: int = 0,
    examples: Path | None = None,
) -> str:
    """Closed book: with title, author and year of the article and without its text. The first
    `few_shot` of the worked examples in the file (None: the shipped ones) stand before it."""
    filling = {
        "title": document.title,
        "author": document.byline,
        "year": document.year,
        "question": question.text,
    }
    filling |= dict(zip("abcd", question.options, strict=True))
    own = corpus.fill(prompt_file(f"{protocol}_question").rstrip("\n"), filling)
    return worked_examples(examples, few_shot) + own + "\n" if protocol == "cot" else own


@functools.cache
def worked_examples(file: Path | None, number: int) -> str:
    """The first so many, of the file or the shipped ones. Raises UserError where there are fewer."""
    text = prompt_file("cot_examples") if file is None else read_text(file, "name a file of worked examples")  # fmt: skip
    head, *examples = text.split(EXAMPLE)
    if head.strip() or len(examples) < number:
        where = file or "utils/prompts/cot_examples.md"
        raise UserError(f"--few_shot {number}: {where} has {len(examples)} examples, each beginning with {EXAMPLE.strip()!r}")  # fmt: skip
    return "".join(f"{EXAMPLE}{example}" for example in examples[:number])


@functools.cache
def prompt_file(name: str) -> str:
    return read_text(paths.prompts_dir() / f"{name}.md", "it ships with the repository")
