"""The notebooks, executed on outputs of a tiny model."""

import json

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tasks import scaling_law
from tests.conftest import ROOT, succeed
from utils import paths
from utils.io import read_json

RESULTS = ROOT / "docs" / "results"


def execute(name: str):
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    NotebookClient(notebook, timeout=120).execute(cwd=str(ROOT / "notebooks"))
    return notebook


def test_accuracy_table_and_figure(home, tiny_model):
    out = succeed("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", tiny_model)
    accuracy = json.loads(out.splitlines()[-1])["accuracy"]
    outputs = [output for cell in execute("nb_qa_eval.ipynb").cells for output in cell.get("outputs", [])]
    table = next(output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {}))
    assert f"| tiny | loglik | 84 | {100 * accuracy:.1f} |" in table
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_empty_folder_error_names_the_step(home):
    with pytest.raises(CellExecutionError, match=r"evaluation\.py"):
        execute("nb_qa_eval.ipynb")


def test_entity_graph_and_histograms(home):
    folder = ROOT / "data/example/passages"
    succeed("data/inspect_entigraph.py", "--task", "example", "--input", folder)
    cells = execute("nb_entigraph.ipynb").cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    beside = next(output.data["text/html"] for output in outputs if "text/html" in output.get("data", {}))
    assert "<li>" in beside and "Hester Rook" in beside  # the passage, and what it tells of its source


def test_the_inspection_of_the_results_is_that_of_the_shipped_passages(home):
    succeed("data/inspect_entigraph.py", "--task", "example", "--input", ROOT / "data/example/passages")
    made, kept = (read_json(out / "inspection-passages.json", "") for out in (paths.out_dir(), RESULTS / "out"))
    assert kept["figures"] == made["figures"] and kept["documents"] == made["documents"]


@pytest.mark.parametrize("name", ["nb_entigraph.ipynb", "nb_qa_eval.ipynb", "nb_scaling.ipynb"])
def test_committed_outputs_are_those_of_the_results(name, monkeypatch):
    monkeypatch.setenv("SCP_HOME", str(RESULTS))
    committed = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert texts_of(committed) == texts_of(execute(name)) != []
    assert any("image/png" in output.get("data", {}) for cell in committed.cells for output in cell.get("outputs", []))


def texts_of(notebook) -> list[str]:
    """The tables and texts of the outputs, without the pictures."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [text for data in outputs for kind, text in sorted(data.items()) if kind in ("text/markdown", "text/html")]


def test_scaling_curves(home):
    """From points on the paper's curve the notebook computes the tokens for five more points of accuracy."""
    curve = scaling_law.Mixture(64.55, (13.84, 8.47, 3.93), (0.9989, 0.8961, 0.0546))
    points = []
    for tokens in (0, 0.3, 1, 3, 10, 30, 100, 300, 455):
        accuracy = curve(tokens) / 100
        points.append({"tokens": tokens * 1e6, "accuracy": accuracy, "ci95": [accuracy - 0.002, accuracy + 0.002]})
    paths.out_dir().mkdir()
    (paths.out_dir() / "scaling.json").write_text(json.dumps(points))
    outputs = [output for cell in execute("nb_scaling.ipynb").cells for output in cell.get("outputs", [])]
    table = next(o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {}))
    cost = table.splitlines()[3].split("|")[3]
    assert float(cost.strip().removesuffix("M")) == pytest.approx(scaling_law.more_tokens(curve, 455), rel=0.1)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_missing_points_error_names_the_step(home):
    with pytest.raises(CellExecutionError, match=r"scripts/scaling\.sh"):
        execute("nb_scaling.ipynb")
