"""Command line: parser factory, argument types, shared flags, results."""

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from utils import paths
from utils.device import is_main_process
from utils.errors import UserError

LARGEST, LARGEST_FLOAT = 10**12, 1e36  # of all numeric options
CORPUS_HELP = "a folder of your own documents (txt, md, jsonl, html, pdf), in place of --task"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Writes defaults into the help text, except for switches and for options whose default is no value."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or "default" in (action.help or ""):
            return action.help or ""
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> None:
        raise UserError(re.sub(r"^argument (?:\S+/)?(\S+): ", r"\1 ", message) + f"; see {self.prog} --help")


def make_parser(description: str, **settings: object) -> Parser:
    """A parser for a script; `description` is its module docstring."""
    return Parser(description=description, formatter_class=HelpFormatter, **settings)


def number_type(convert: type, rule: str, holds: Callable) -> Callable:
    """An argument type for numbers up to LARGEST or LARGEST_FLOAT; `rule` says in words what `holds` checks."""
    limit = LARGEST if convert is int else LARGEST_FLOAT

    def parse(text: str):
        try:
            value = convert(text) if text.isascii() and "_" not in text else None  # Python also reads 1_000
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"{text}: must be {rule}")
        if value > limit:
            raise argparse.ArgumentTypeError(f"{text}: must be at most {limit:,}")
        return value

    return parse


def int_between(lowest: int, highest: int) -> Callable:
    """An argument type for whole numbers with limits, both of them allowed."""
    rule = f"a whole number from {lowest:,} to {highest:,}"
    return number_type(int, rule, lambda n: lowest <= n <= highest)


positive_int = number_type(int, "a whole number above 0", lambda n: n > 0)
non_negative_int = number_type(int, "a whole number, 0 or more", lambda n: n >= 0)
call_count = int_between(1, 10_000)  # calls in flight, or attempts at a question
token_id = int_between(0, 2**31 - 1)
seed_number = int_between(0, 2**32 - 1)  # what numpy, torch and all servers accept
positive_float = number_type(float, "a number above 0", lambda x: 0 < x < math.inf)
non_negative_float = number_type(float, "a number, 0 or more", lambda x: 0 <= x < math.inf)
fraction = number_type(float, "from 0 to below 1", lambda x: 0 <= x < 1)
positive_fraction = number_type(float, "above 0, at most 1", lambda x: 0 < x <= 1)
open_fraction = number_type(float, "between 0 and 1", lambda x: 0 < x < 1)


def as_typed(number: Callable) -> Callable:
    """An argument type that checks `number` and keeps the text, since run names contain `5e-06` as typed."""

    def parse(text: str) -> str:
        number(text)
        return text

    return parse


def refuse_without_effect(parser: argparse.ArgumentParser, args: argparse.Namespace, names: str, reason: str) -> None:
    """Raise UserError for the first of the options `names` that is given: not their default. `reason` completes
    "without effect"."""
    for name in names.split():
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name}: without effect {reason}; leave it out")


def refuse_repeated(flag: str, files: list[Path]) -> None:
    """Raise UserError for a file or folder that is given twice."""
    counts = Counter(file.resolve() for file in files)
    if repeated := [file for file, count in counts.items() if count > 1]:
        raise UserError(f"{flag} {repeated[0]}: given twice, so that its texts would count twice")


def settings_from_args(cls: type, args: argparse.Namespace, **values: object):
    """An instance of the dataclass `cls`: `values`, and the options named like its other fields."""
    options = {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
    return cls(**options | values)


def add_task_flag(group, help: str = "quality, example, or your own corpus (data/dataset/raw/<task>.jsonl)") -> None:
    group.add_argument("--task", default="quality", help=help)


def add_corpus_flags(group) -> None:
    add_task_flag(group)
    group.add_argument("--corpus", type=Path, metavar="DIR", help=CORPUS_HELP)
    add_strict_flag(group)


def add_strict_flag(group) -> None:
    group.add_argument("--strict", action="store_true", help="a file of --corpus that cannot be read is an error")


def add_generator_flag(group) -> None:
    group.add_argument("--model", default=paths.DEFAULT_GENERATOR, help="the generator of the passages")


def add_tokenizer_flag(group) -> None:
    group.add_argument("--tokenizer", default=paths.DEFAULT_TOKENIZER, help="hub name or checkpoint folder")


def add_base_url_flag(group, help: str = "an OpenAI-compatible server (default $OPENAI_BASE_URL, else OpenAI)") -> None:
    group.add_argument("--base_url", help=help)


def add_wait_flag(group) -> None:
    help = "seconds to wait where a server asks for it; a longer wait ends the run, to be resumed"
    group.add_argument("--max_wait", type=positive_float, default=6 * 3600.0, help=help)


def file_name(text: str) -> str:
    """Argument type: a name of output files, which stay in their folder."""
    if not text or Path(text).name != text or text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r}: not a name of files; give one without / that begins with a letter")
    return text


def add_seed_flag(group, help: str = "of every random choice") -> None:
    group.add_argument("--seed", type=seed_number, default=0, help=help)


def silence_transformers() -> None:
    """No progress bars and no warnings from transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def print_main(*words: object) -> None:
    """Print on rank 0."""
    if is_main_process():
        print(*words, flush=True)


def print_result(result: dict | list, sentence: str) -> None:
    """Print a sentence for people and, unless stdout is a terminal, one line of JSON for programs; on rank 0."""
    print_main(sentence)
    if not sys.stdout.isatty():
        print_main(json.dumps(result))
