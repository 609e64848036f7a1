"""The command line: numbers that no step can use, and options without effect. The letters are those of the list in
LOG.md, 2026-11-27."""

import argparse
import contextlib
import itertools
import runpy
import sys
from pathlib import Path

import pytest

from tests.conftest import error_line
from utils.cli import file_name
from utils.paths import ROOT

FOLDERS = (".", "data", "scripts", "benchmarks", "gptj")
NO_NUMBERS = ("-1", "nan", "inf", "-inf", "1e400", "1" + "0" * 40, "1_0", "\uff11", "", "0x10", "None")


# C4: numbers


def parsers_of(script: Path) -> list[argparse.ArgumentParser]:
    """The parser of a script, and those of its commands."""
    parsers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", lambda self: parsers.append(self) or sys.exit())
        patch.setattr(argparse.ArgumentParser, "parse_args", argparse.ArgumentParser.parse_known_args)
        with pytest.raises(SystemExit):
            runpy.run_path(str(script))["parse_arguments"]()
    commands = [a.choices.values() for a in parsers[0]._actions if isinstance(a, argparse._SubParsersAction)]
    return [*parsers, *itertools.chain(*commands)]


def all_parsers():
    """Every script's parsers, as (path, parser)."""
    scripts = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]
    for path in sorted(path for path in scripts if "def parse_arguments()" in path.read_text()):
        for parser in parsers_of(path):
            yield path, parser


def numeric_options():
    """Every option of every script whose type reads numbers, as (script, option, type)."""
    for path, parser in all_parsers():
        for action in parser._actions:
            with contextlib.suppress(TypeError, ValueError, argparse.ArgumentTypeError):
                if action.type not in (None, Path, file_name) and float(action.type("1")) == 1:
                    yield path.name, action.dest, action.type


def test_every_numeric_option_refuses_what_is_no_usable_number():
    options = list(numeric_options())
    assert len(options) > 100
    for (script, option, number), text in itertools.product(options, NO_NUMBERS):
        with pytest.raises(argparse.ArgumentTypeError, match="must be"):
            assert number(text) is None, (script, option)


# E: options without effect


WITHOUT_EFFECT = [
    ("data/tokenize_entigraph.py --task example --raw --min_quality auto", "--min_quality: without effect with --raw"),
    ("data/tokenize_entigraph.py --task example --raw --with_articles 2", "--with_articles: without effect with --raw"),
    ("data/tokenize_instruct.py --jsonl x --splits a b", "--splits: without effect with --jsonl"),
    ("data/tokenize_instruct.py --jsonl x --test_jsonl y --test_share 0.1", "--test_share: without effect"),
    (
        "evaluation.py --model_path x --protocol loglik --n_samples 4",
        "--n_samples: without effect with --protocol loglik",
    ),
    ("evaluation.py --model_path x --protocol letter --temperature 1", "--temperature: without effect"),
    (
        "evaluation.py --model_path x --select greedy --n_samples 4",
        "--n_samples: without effect with one greedy attempt",
    ),
    (
        "evaluation.py --model_path x --base_url http://h/v1 --batch_size 2",
        "--batch_size: without effect with --base_url",
    ),
    ("evaluation.py --model_path x --concurrency 2", "--concurrency: without effect without --base_url"),
    ("data/entigraph.py 0 --method rephrase --max_pairs 3", "--max_pairs: without effect with --method rephrase"),
    ("data/entigraph.py 0 --strict", "--strict: without effect without --corpus"),
    ("data/make_questions.py --task x --strict", "--strict: without effect without --corpus"),
    ("train.py --task_name example --conversations x", "--conversations: without effect with --task_name example"),
    ("train.py --task_name example --rr 0 --replay x", "--replay: without effect with --rr 0"),
    ("gptj/create_hdf5.py --output_dir x --input_dir . --tokenizer x --text_column y", "--text_column: without effect"),
    ("gptj/run.py CPU --mode eval --params x --max_steps 3", "--max_steps: without effect with --mode eval"),
    ("interactive.py --port 8000", "--port: without effect without --web"),
]


@pytest.mark.parametrize(("command", "message"), WITHOUT_EFFECT)
def test_options_without_effect_are_refused(command, message, home):
    line = error_line(*command.split())
    assert message in line and line.endswith("leave it out")
    assert not any(home.iterdir())


def test_every_option_has_a_help_text():
    missing = [
        f"{path.name} {action.dest}"
        for path, parser in all_parsers()
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert not missing
