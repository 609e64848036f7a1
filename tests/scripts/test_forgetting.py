"""Perplexity and accuracy of two checkpoints, before and after training."""

import json
import math
import shutil

import numpy as np
import pytest

from tests.conftest import error_line, succeed
from utils import paths
from utils.token_file import TokenFile


def test_before_and_after(token_files, tiny_model, tmp_path, monkeypatch):
    import torch

    from inference.local_model import LocalModel

    shutil.copytree(token_files, tmp_path / "home")
    monkeypatch.setenv("SCP_HOME", str(tmp_path / "home"))
    before = tmp_path / "before"
    shutil.copytree(tiny_model, before)
    command = ("scripts/forgetting.py", "--before", before, "--after", tiny_model, "--block_size", 64, "--blocks", 3)
    out = succeed(*command)
    results = json.loads(out.splitlines()[-1])
    assert results["before"]["perplexity"] == results["after"]["perplexity"]
    assert "accuracy: not known" in out
    for checkpoint in (before, tiny_model):
        succeed("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", checkpoint)
    assert json.loads(succeed(*command).splitlines()[-1])["after"]["accuracy"] > 0
    succeed("evaluation.py", "--task", "example", "--protocol", "letter", "--model_path", before)
    assert "other name" in error_line(*command)
    paths.evaluation_file(str(before)).unlink()
    out = succeed(*command)
    model = LocalModel(str(tiny_model))
    ids = np.array(TokenFile(paths.replay_bin(paths.DEFAULT_REPLAY, "test"), "").ids[:192])
    blocks = torch.tensor(ids.reshape(3, 64), dtype=torch.long)
    with torch.no_grad():
        logprobs = model.model(blocks).logits[:, :-1].log_softmax(-1)
    loss = -logprobs.gather(2, blocks[:, 1:, None]).mean()
    assert results["after"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert json.loads((paths.out_dir() / "forgetting-tiny.json").read_text()) == json.loads(out.splitlines()[-1])
    assert "perplexity" in out
    assert "tokens are less than a block" in error_line(*command, "--block_size", 10**6)


def test_user_errors_are_one_line(home, tiny_model):
    assert "rename one" in error_line("scripts/forgetting.py", "--before", tiny_model, "--after", tiny_model)
    command = ("scripts/forgetting.py", "--before", "ckpts/none", "--after", tiny_model)
    assert "for --harness" in error_line(*command, "--limit", 3)
    assert "tokenize_redpj.py" in error_line(*command)
    import importlib.util

    if not importlib.util.find_spec("lm_eval"):
        assert "lm-eval[hf]" in error_line(*command, "--harness", "arc_easy")
