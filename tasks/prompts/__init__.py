"""Prompt files of evaluation and the document prefix of step 1, and how a template is filled in."""

import functools
import re

from utils import paths
from utils.io import read_text


def fill(template: str, values: dict[str, str]) -> str:
    """Replace every `{name}` that `values` has, in one pass, so that braces in an article stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


@functools.cache
def task_prompt(name: str) -> str:
    """The text of tasks/prompts/NAME.md."""
    return read_text(paths.task_prompts_dir() / f"{name}.md", "it ships with the repository")
