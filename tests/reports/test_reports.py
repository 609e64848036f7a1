"""Tables and figures."""

import pytest

from reports.figures import draw_accuracies
from reports.tables import format_accuracy, print_table


def test_columns_are_aligned(capsys):
    print_table([("", "tokens"), ("base", 0), ("raw CPT", "1,234,567")])
    assert capsys.readouterr().out == "            tokens\nbase             0\nraw CPT  1,234,567\n"


def test_rows_of_different_length_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        print_table([("", "tokens"), ("base",)])


def test_accuracies_and_differences():
    assert format_accuracy(0.5714, [0.4643, 0.6786]) == "57.1% (46.4% to 67.9%)"
    assert format_accuracy(0.02, [-0.01, 0.05], "+") == "+2.0% (-1.0% to +5.0%)"


def test_a_figure_of_two_groups(tmp_path):
    bars = {name: [{"accuracy": 0.5, "ci95": [0.4, 0.7]}] * 2 for name in ("base", "entigraph")}
    draw_accuracies(tmp_path / "out/bars.png", ["closed book", "open book"], bars, {"base": "a", "entigraph": "b"})
    assert (tmp_path / "out/bars.png").read_bytes().startswith(b"\x89PNG")
