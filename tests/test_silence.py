"""No step is silent for long on a terminal.

QUICKSTART=1 pytest tests/test_silence.py    # the real quickstart too: 8 to 30 minutes, with nothing else running
"""

import json
import os
import sys

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT
from tests.timed_output import silences, timed_output

LONGEST_S = 2.0
START_S = 6.0  # with another test beside it, Python itself takes seconds to start


@pytest.mark.skipif("QUICKSTART" not in os.environ, reason="takes 8 to 30 minutes; set QUICKSTART=1")
def test_no_step_of_the_quickstart_is_silent(home):
    status, pieces = timed_output(["bash", ROOT / "scripts/quickstart.sh"], SCP_HOME=str(home))
    assert status == 0, pieces[-20:]
    (home / "quickstart.jsonl").write_text("\n".join(map(json.dumps, pieces)))
    assert not silences(pieces, LONGEST_S)


def test_an_evaluation_says_what_it_does(home, tiny_model, tmp_path):
    """The evaluation says that torch starts, and ends with a line in words, without JSON.

    The tiny model gets a hundred layers, because no bar is drawn for work of less than 0.2 s.
    """
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 100
    deep = tmp_path / "deep"
    AutoModelForCausalLM.from_config(config).save_pretrained(deep)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(deep)
    command = [sys.executable, ROOT / "evaluation.py", "--task", "example", "--protocol", "loglik"]
    status, pieces = timed_output([*command, "--model_path", deep])
    shown = "".join(text for _, text in pieces)
    assert status == 0, shown
    assert "starting torch: 00:0" in shown
    assert "| 84/84 [" in shown  # the bar reaches its end
    last = shown.replace("\r", "\n").strip().split("\n")[-1]
    assert last.startswith("accuracy ") and "of 84 questions ->" in last and "{" not in last
    assert not silences(pieces, START_S)
