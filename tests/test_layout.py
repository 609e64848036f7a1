"""Rules of the code base: layout, import direction, names, lengths, `--help`."""

import ast
import re
import subprocess
import sys
import time
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A package imports only packages of an earlier rank, or modules of its own.
RANKS = (
    ("utils",),
    ("inference", "training"),
    ("tasks", "chat", "gptj"),
    ("data",),
    ("reports",),
    ("train", "evaluation", "interactive", "benchmarks"),
    ("scripts",),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
MAX_FUNCTION_LINES = 40
MAX_PACKAGE_SHARE = 0.22


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", *patterns]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in files if (ROOT / name).is_file()]


SOURCES = [name for name in tracked("*.py") if not name.startswith("tests/")]
STEPS = [
    name
    for name in SOURCES
    if name.startswith("data/") and name.count("/") == 1 and "__main__" in (ROOT / name).read_text()
]
ENTRY_SCRIPTS = ["train.py", "evaluation.py", "interactive.py", "gptj/run.py"]
SCRIPTS = [name for name in SOURCES if 'if __name__ == "__main__"' in (ROOT / name).read_text()]


def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def package_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_modules(name: str) -> set[str]:
    """Dotted names of the project's modules that a file imports."""
    modules = {module_of(source) for source in SOURCES}
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module if module in modules else node.module for module in full}
    return found & modules | {module for module in found if package_of(module.replace(".", "/")) in ("tests", *RANK)}


def test_readme_layout_is_the_repository():
    """The README's layout lists exactly the code files of the repository, each under its folder."""
    block = (ROOT / "README.md").read_text().split("## Layout")[1].split("```")[1]
    listed, folder = [], ""
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            listed.append(f"{folder}{name}")
        elif name.endswith("/"):
            folder = name
        else:
            listed.append(name)
    files = [name for name in tracked("*.py", "*.sh", "*.ipynb") if not name.startswith("tests/")]
    one_line = [name for name in files if name.endswith("__init__.py") and name != "tasks/prompts/__init__.py"]
    assert sorted(listed) == sorted(set(files) - set(one_line))


@pytest.mark.parametrize("name", SOURCES)
def test_import_ranking(name):
    """A package imports only packages to its left; nobody imports an entry script, scripts/ or tests/."""
    package = package_of(name)
    for module in imported_modules(name):
        other = module.split(".")[0]
        assert other not in ("tests", "train", "evaluation", "interactive", "benchmarks", "scripts"), module
        assert other == package or RANK[other] < RANK[package], f"{name} imports {module}"


@pytest.mark.parametrize("package", [name for names in RANKS for name in names if (ROOT / name).is_dir()])
def test_no_cycles_inside_a_package(package):
    graph = {
        module_of(name): {module for module in imported_modules(name) if module.startswith(f"{package}.")}
        for name in SOURCES
        if package_of(name) == package and not name.endswith("__init__.py")
    }
    tuple(TopologicalSorter(graph).static_order())


def test_script_folders_shadow_no_module():
    """`python data/x.py` puts data/ first on sys.path."""
    top_level = set(sys.stdlib_module_names) | set(RANK) | {"tests"}
    for name in SOURCES:
        if package_of(name) in ("data", "gptj", "scripts", "benchmarks") and name.count("/") == 1:
            assert Path(name).stem not in top_level, name


def test_packages_are_balanced():
    lines = Counter()
    for name in SOURCES:
        lines[package_of(name) if "/" in name else "top level"] += len((ROOT / name).read_text().splitlines())
    assert max(lines.values()) <= MAX_PACKAGE_SHARE * lines.total(), lines


@pytest.mark.parametrize("name", SOURCES)
def test_files_and_functions_are_short(name):
    text = (ROOT / name).read_text()
    limit = 149 if name in ENTRY_SCRIPTS else 199 if name in STEPS else 320
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_no_broad_except_and_no_formatter_directives():
    for name in tracked("*.py"):
        text = (ROOT / name).read_text()
        assert not re.search(r"#\s*fm" + "t:", text), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, name
                assert getattr(node.type, "id", "") not in ("Exception", "BaseException"), name


@pytest.mark.parametrize("name", SOURCES)
def test_modules_say_what_they_hold(name):
    first_line = (ast.get_docstring(tree(name)) or "").split("\n")[0]
    assert first_line, "no docstring"
    assert not re.match(r"(What|Who|Whose|How|Which|When|That|TODO)\b", first_line), first_line


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.split("/")[0] != "tests"])
def test_help_is_fast(name):
    times = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run([sys.executable, ROOT / name, "--help"], capture_output=True, text=True, cwd="/")
        times.append(time.monotonic() - started)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout
        if times[-1] < 1:
            return
    assert min(times) < 1


@pytest.mark.parametrize("name", tracked("scripts/*.sh"))
def test_shell_scripts_answer_help(name):
    if "Sourced by" in (ROOT / name).read_text():
        return
    done = subprocess.run(["bash", ROOT / name, "--help"], capture_output=True, text=True, cwd="/", timeout=60)
    assert done.returncode == 0, done.stderr
    assert Path(name).name in done.stdout
