import json
import math

import numpy as np
import pytest

from tests.conftest import refused, succeed
from utils import paths
from utils.bins import TokenFile


def test_before_and_after(token_files, tiny_model, monkeypatch):
    import torch

    from utils.generate import LocalModel

    monkeypatch.setenv("SCP_HOME", str(token_files))
    command = ("scripts/forgetting.py", "--before", tiny_model, "--after", tiny_model, "--block_size", 64, "--blocks", 3)  # fmt: skip
    out = succeed(*command)
    found = json.loads(out.splitlines()[-1])
    assert found["before"] == found["after"]
    model = LocalModel(str(tiny_model))
    ids = np.array(TokenFile(paths.replay_bin(paths.DEFAULT_REPLAY, "test"), "").ids[:192])
    blocks = torch.tensor(ids.reshape(3, 64), dtype=torch.long)
    with torch.no_grad():
        logprobs = model.model(blocks).logits[:, :-1].log_softmax(-1)
    loss = -logprobs.gather(2, blocks[:, 1:, None]).mean()
    assert found["after"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert json.loads((paths.out_dir() / "forgetting-tiny.json").read_text()) == found
    assert "perplexity" in out
    assert "tokens are less than a block" in refused(*command, "--block_size", 10**6)


def test_what_the_user_can_mend(home, tiny_model):
    command = ("scripts/forgetting.py", "--before", tiny_model, "--after", tiny_model)
    assert "tokenize_redpj.py" in refused(*command)
    import importlib.util

    if not importlib.util.find_spec("lm_eval"):
        assert "lm-eval[hf]" in refused(*command, "--harness", "arc_easy")
