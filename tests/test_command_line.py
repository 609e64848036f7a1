"""The command line: numbers that no step can use, and options without effect. The letters are those of the list in
LOG.md, 2026-11-27."""

import argparse
import contextlib
import itertools
import runpy
import sys
from pathlib import Path

import pytest

from utils.paths import ROOT

FOLDERS = (".", "data", "scripts", "benchmarks", "gptj")
NO_NUMBERS = ("-1", "nan", "inf", "-inf", "1e400", "1" + "0" * 30, "1_0", "\uff11", "", "0x10", "None")


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


def numeric_options():
    """Every option of every script whose type reads numbers, as (script, option, type)."""
    scripts = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]
    for path in sorted(path for path in scripts if "def parse_arguments()" in path.read_text()):
        for action in itertools.chain(*(parser._actions for parser in parsers_of(path))):
            with contextlib.suppress(TypeError, ValueError, argparse.ArgumentTypeError):
                if action.type and action.type is not Path and float(action.type("1")) == 1:
                    yield path.name, action.dest, action.type


def test_every_numeric_option_refuses_what_is_no_usable_number():
    options = list(numeric_options())
    assert len(options) > 100
    for (script, option, number), text in itertools.product(options, NO_NUMBERS):
        with pytest.raises(argparse.ArgumentTypeError, match="must be"):
            assert number(text) is None, (script, option)
