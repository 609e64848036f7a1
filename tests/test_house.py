"""The rooms of the house: who may import whom, how long a function may be, how fast --help comes."""

import ast
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

# Of entigraph.py, and of the scripts of gptj/.
PARTS = {"generation", "formats", "params", "checkpointing", "session"}
SCRIPTS = [ROOT / name for name in ("train.py", "evaluation.py", "interactive.py")]
SCRIPTS += [
    path
    for folder in ("data", "scripts", "benchmarks", "gptj")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem not in PARTS
]
GROUND = ["paths", "io", "bins"]
# Beyond the ground: which part of utils/ may import which.
MORE = {
    "corpus": {"quality"},
    "plan": {"corpus", "quality", "prices", "passages"},
    "ledger": {"prices"},
    "wire": {"prices"},
    "client": {"prices", "ledger", "pace", "wire", "keys"},
    "batch": {"prices", "ledger", "client"},
    "trainer": {"metrics", "machine", "arithmetic", "checkpoints", "optim", "loss", "layers"},
    "machine": {"arithmetic", "loss", "optim"},
    "metrics": {"arithmetic"},
    "asking": {"corpus", "quality"},
    "comparison": {"scoring"},
    "answering": {"asking", "scoring", "client", "schedule", "wire", "generate"},
    "embedding": {"client", "wire"},
    "retrieval": {"embedding", "client", "schedule", "wire"},
    "open_book": {"asking", "quality", "retrieval", "embedding"},
    "leakage": {"tokens"},
    "quiz": {"asking", "corpus", "quality"},
    "generate": {"tokens", "checkpoints"},
    "speaking": {"conversation"},
    "local_speaker": {"speaking", "templates", "generate"},
    "served_speaker": {"speaking", "conversation", "keys"},
    "repl": {"speaking", "conversation"},
    "web": {"speaking", "conversation"},
}


def sources() -> list:
    files = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in files.stdout.split() if (ROOT / name).is_file()]


def imports(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def ours(path, package: str) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}


@pytest.mark.parametrize("path", sorted((ROOT / "utils").glob("*.py")), ids=lambda path: path.name)
def test_utils_import_downwards(path):
    name = path.stem
    if name == "scoring":
        allowed = set()
    elif name in GROUND:
        allowed = set(GROUND[: GROUND.index(name)])
    else:
        allowed = set(GROUND) | MORE.get(name, set())
    assert ours(path, "utils") <= allowed
    assert not ours(path, "data")
    assert len(path.read_text().splitlines()) <= 250


def test_data_and_scripts():
    for path in (ROOT / "data").glob("*.py"):
        assert ours(path, "data") <= ({"generation"} if path.stem == "entigraph" else set())
    for name in ("evaluation.py", "interactive.py"):
        assert ours(ROOT / name, "data") == set()
    assert ours(ROOT / "train.py", "data") <= {"cptdata"}
    entries = {"train", "evaluation", "interactive", "scripts", "benchmarks", "gptj", "notebooks"}
    for path in sources():
        if path.parent.name != "tests":
            found = {name.split(".")[0] for name in imports(path)} & entries
            # example_gptj.py makes what gptj/ reads, by its parts.
            inside = (
                {"gptj"} if path.parent.name == "gptj" or path.stem == "example_gptj" else set()
            )
            assert found <= inside, path
    for path in (ROOT / "gptj").glob("*.py"):
        assert ours(path, "gptj") <= PARTS
        assert ours(path, "data") <= {"cptdata"}


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
        done = subprocess.run(
            [sys.executable, script, "--help"], capture_output=True, text=True, cwd="/"
        )
        times.append(time.monotonic() - begun)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout
    assert min(times) < 1
