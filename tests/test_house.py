"""The rules of the house: how long a function may be, how fast --help comes."""

import ast
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

# Of entigraph.py, and of the scripts of gptj/.
PARTS = {"generation", "formats", "params", "checkpointing", "session", "checkpoint", "train_loop", "__init__"}
SCRIPTS = [ROOT / name for name in ("train.py", "evaluation.py", "interactive.py")]
SCRIPTS += [
    path
    for folder in ("data", "scripts", "benchmarks", "gptj")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem not in PARTS
]


def sources() -> list:
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in files.stdout.split() if (ROOT / name).is_file()]


def test_functions_are_short_and_catch_what_they_name():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, path
                assert getattr(node.type, "id", "") not in ("Exception", "BaseException"), path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_comes_at_once(script):
    if "argparse" not in script.read_text():
        pytest.fail(f"{script} has no --help")
    times = []
    for _ in range(3):
        begun = time.monotonic()
        done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd="/")
        times.append(time.monotonic() - begun)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout
    assert min(times) < 1
