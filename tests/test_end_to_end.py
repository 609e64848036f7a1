"""The README's numbered steps in sequence, with a tiny model and a fake generator."""

import json

from tests.conftest import ROOT, succeed
from utils import paths


def test_documents_to_accuracy(home, server, tiny_model):
    generator = ("--task", "example", "--model", "org/fake-1")
    succeed("data/entigraph.py", "all", *generator, "--base_url", server.url, "--max_pairs", 3, "--max_triples", 1)
    assert len(list(paths.passages_dir("example", "org/fake-1").glob("*.jsonl"))) == 12
    succeed("data/tokenize_entigraph.py", *generator, "--tokenizer", tiny_model)
    succeed("data/tokenize_entigraph.py", "--task", "example", "--raw", "--tokenizer", tiny_model)
    replay = ROOT / "data/example/replay.jsonl"
    succeed("data/tokenize_redpj.py", "--text", replay, "--test_tokens", 3000, "--tokenizer", tiny_model)
    checkpoints = {"base": str(tiny_model)}
    for name, task in (("raw", "example-raw"), ("entigraph", "example")):
        recipe = "--model org/fake-1 --lr 1e-3 --bs 2 --block_size 128 --epochs 1"
        succeed("train.py", "--task_name", task, "--model_name", tiny_model, *recipe.split())
        checkpoints[name] = f"ckpts/{task}-lr1e-3-rr0.1-epochs1-bs2-wd0.01-warmup0.05-tiny"
    for checkpoint in checkpoints.values():
        succeed("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", checkpoint)
    arguments = [part for name, checkpoint in checkpoints.items() for part in (f"--{name}", checkpoint)]
    out = succeed("scripts/quickstart_report.py", *arguments, "--generator", "org/fake-1", "--begun", 0)
    result = json.loads(out.splitlines()[-1])
    assert result == json.loads((paths.out_dir() / "quickstart.json").read_text())
    assert list(result) == ["base", "raw", "entigraph", "seconds", "live_calls"]
    assert list(result["raw"]) == ["accuracy", "ci95", "n", "tokens"]
    assert result["live_calls"] == 12 * 5
    assert "144 written for this repository" in out
    assert "60 from the live model" in out
    assert (paths.out_dir() / "quickstart.png").read_bytes().startswith(b"\x89PNG")
