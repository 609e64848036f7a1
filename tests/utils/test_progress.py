"""utils/progress.py on a pseudo-terminal and in a log file."""

import sys

import pytest

from tests.conftest import ROOT
from tests.timed_output import timed_output
from utils.progress import short_count


def on_terminal(code: str) -> list[tuple[float, str]]:
    status, pieces = timed_output([sys.executable, "-c", code], PYTHONPATH=str(ROOT))
    assert status == 0, pieces
    return pieces


def test_a_bar_moves_while_nothing_is_counted():
    """and says first what it waits for."""
    code = """
import time
from utils.progress import progress_bar
with progress_bar("asking", total=9, unit="call") as bar:
    time.sleep(1.6)
    bar.waits_for = lambda: "waiting for the rate limit, 41 s"
    time.sleep(1.6)
    bar.waits_for = lambda: ""
    time.sleep(1.2)
    bar.update()
print("done")
"""
    shown = "".join(text for _, text in on_terminal(code))
    lines = [line.strip() for line in shown.split("\r") if line.strip()]
    assert lines[0].startswith("asking:   0%|") and "0/9" in lines[0]
    assert any(line.startswith("waiting for the rate limit, 41 s:   0%|") for line in lines)
    assert lines[-2].startswith("asking:") and lines[-1] == "done"  # the bar is erased
    assert all(len(line) <= 100 for line in lines)


def test_short_work_shows_no_bar():
    code = """
from utils.progress import progress_bar, working
for _ in progress_bar(iterable=range(3), desc="quick", leave=True): pass
with working("loading"): pass
print("done")
"""
    assert "".join(text for _, text in on_terminal(code)).strip() == "done"


def test_a_clock_for_work_that_cannot_be_counted():
    code = """
import time
from utils.progress import working
with working("loading the model"): time.sleep(2.5)
"""
    pieces = on_terminal(code)
    shown = "".join(text for _, text in pieces)
    assert "loading the model: 00:01" in shown and "loading the model: 00:02" in shown


def test_a_bar_ends_with_the_loop_that_an_error_leaves():
    code = """
import time
from utils.progress import progress_bar
def work():
    for _ in progress_bar(iterable=range(3), desc="slow"):
        time.sleep(1.3)
        raise ValueError("broken")
try: work()
except ValueError as error: print(f"error: {error}", flush=True)
time.sleep(2.5)
"""
    shown = "".join(text for _, text in on_terminal(code))
    assert shown.count("slow:") >= 1
    assert "slow:" not in shown.split("error: broken")[1]


def test_a_log_has_no_bars(capfd):
    from utils.progress import progress_bar, working

    for _ in progress_bar(iterable=range(3), desc="quick", leave=True):
        pass
    with working("loading"):
        pass
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_600, "1.00M"),
        (4.567e9, "4.57B"),
    ],
)
def test_three_digits(number, text):
    assert short_count(number) == text
