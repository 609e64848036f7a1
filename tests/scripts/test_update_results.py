"""docs/results: the figures of one run in the README and in docs/."""

import json
import shutil

import pytest

from scripts import update_results
from tests.conftest import ROOT, run_script, succeed
from utils.errors import UserError
from utils.io import read_json

RESULTS = ROOT / "docs" / "results"


def test_documents_show_the_results():
    assert json.loads(succeed("scripts/update_results.py", "--check").splitlines()[-1])["documents"] > 3


def test_every_table_is_shown_once():
    texts = [path.read_text() for path in update_results.documents_with_results()]
    shown = [name for text in texts for _, name, _ in update_results.BLOCK.findall(text)]
    assert sorted(shown) == sorted(update_results.TABLES)


def test_a_figure_that_was_changed_by_hand_is_noticed():
    text = (ROOT / "README.md").read_text()
    accuracy = f"{read_json(RESULTS / 'out' / 'quickstart.json', '')['entigraph']['accuracy']:.1%}"
    changed = text.replace(accuracy, "99.9%")
    assert changed != text == update_results.show_results(changed, ROOT / "README.md")


def test_an_unknown_table_is_named():
    with pytest.raises(UserError, match=r"README\.md: results nope are not among quickstart"):
        update_results.show_results("<!-- results: nope -->\n<!-- end of results -->", ROOT / "README.md")


def test_outputs_are_copied_or_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(update_results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(update_results, "FIGURE", tmp_path / "figure.png")
    shutil.copytree(RESULTS / "out", tmp_path / "out")
    (tmp_path / "out" / "quickstart.png").write_bytes(b"a figure")
    update_results.copy_outputs(tmp_path / "out")
    copied = sorted(path.name for path in (tmp_path / "results/out").iterdir())
    assert copied == sorted(path.name for path in (RESULTS / "out").iterdir())
    (tmp_path / "out" / "scaling.json").unlink()
    with pytest.raises(UserError, match=r"scaling\.json: missing; run: scripts/scaling\.sh"):
        update_results.copy_outputs(tmp_path / "out")
    (tmp_path / "out" / "scaling.json").write_text("[]")
    (tmp_path / "out" / "forgetting-example-other.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"forgetting-example-\*\.json: of several runs \(.*other\.json.*delete all but one"
    ):
        update_results.copy_outputs(tmp_path / "out")
    assert len(list((tmp_path / "results/out").iterdir())) == len(copied)


def test_a_run_that_has_not_ended_is_named(tmp_path):
    done = run_script("scripts/update_results.py", "--home", tmp_path)
    assert done.returncode == 2 and "quickstart.json: missing; run: bash scripts/quickstart.sh --chat" in done.stderr


def test_results_hold_no_paths_of_a_machine():
    for file in (RESULTS / "out").glob("*.json"):
        text = json.dumps(read_json(file, ""))
        assert "/work/" not in text and "/home/" not in text, file
