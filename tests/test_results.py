"""docs/results: the README, the figure and the notebooks show the same run."""

import json

import nbformat
import pytest

from scripts import update_results
from tests.conftest import ROOT, run_script, succeed
from utils.io import read_json


def test_the_readme_shows_the_results():
    assert "agrees" in succeed("scripts/update_results.py", "--check")


def test_another_result_is_noticed(monkeypatch, tmp_path):
    """A README whose figures were changed by hand."""
    text = (ROOT / "README.md").read_text()
    result = read_json(ROOT / "docs/results/out/quickstart.json", "")
    table = update_results.results_table(result)
    assert table in text
    result["raw"]["accuracy"] += 0.01
    assert update_results.results_table(result) not in text


def texts_of(notebook) -> list[str]:
    """The texts of the outputs: tables, figures of speech, no pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in outputs]
    return [value for one in data for kind, value in sorted(one.items()) if kind in ("text/markdown", "text/html")]


@pytest.mark.parametrize("name", ["nb_entigraph", "nb_qa_eval", "nb_scaling"])
def test_committed_outputs_are_those_of_the_results(name, monkeypatch):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    monkeypatch.setenv("SCP_HOME", "")
    committed, again = (
        nbformat.read(path, as_version=4),
        nbformat.reads(update_results.run_notebook(path), as_version=4),
    )
    assert texts_of(committed) == texts_of(again) != []
    pictures = [
        ["image/png" in output.get("data", {}) for cell in one.cells for output in cell.get("outputs", [])]
        for one in (committed, again)
    ]
    assert pictures[0] == pictures[1] and any(pictures[0])


def test_a_run_that_has_not_ended_is_named(tmp_path):
    done = run_script("scripts/update_results.py", "--home", tmp_path)
    assert done.returncode == 2 and "quickstart.json" in done.stderr


def test_results_hold_no_paths_of_a_machine():
    for file in (ROOT / "docs/results/out").glob("*.json"):
        assert "/work/" not in json.dumps(read_json(file, "")), file
