"""Instruction tuning from conversations to a checkpoint that chats, on the tiny Llama."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from transformers import AutoTokenizer, GenerationConfig

from tests.conftest import ROOT, refused, start_script, succeed
from tests.training.test_train import losses, run_folder

TALKS = ROOT / "data/example/conversations"
NAME = "instruct-lr1e-3-rr0.1-epochs3-bs4-wd0.01-warmup0.05-tinyllama"


def tokenize(home, model, *options) -> None:
    succeed(
        "data/tokenize_instruct.py",
        "--jsonl",
        TALKS / "train.jsonl",
        "--test_jsonl",
        TALKS / "test.jsonl",
        "--tokenizer",
        model,
        "--block_size",
        512,
        *options,
        SCP_HOME=str(home),
    )


@pytest.fixture(scope="module")
def prepared(tiny_llama, tmp_path_factory):
    """A home folder with the token files of conversations and replay."""
    home = tmp_path_factory.mktemp("instruct")
    tokenize(home, tiny_llama)
    succeed(
        "data/tokenize_redpj.py",
        "--text",
        ROOT / "data/example/replay.jsonl",
        "--test_tokens",
        3000,
        "--tokenizer",
        tiny_llama,
        SCP_HOME=str(home),
    )
    return home


@pytest.fixture
def work(prepared, tmp_path):
    shutil.copytree(prepared / "data", tmp_path / "data")
    return tmp_path


def tune(model, *options):
    return (
        "train.py",
        "--lr",
        "1e-3",
        "--rr",
        "0.1",
        "--epochs",
        "3",
        "--bs",
        4,
        "--wd",
        "0.01",
        "--warmup",
        "0.05",
        "--task_name",
        "instruct",
        "--model_name",
        model,
        "--block_size",
        512,
        "--save_steps",
        5,
        *options,
    )


@pytest.fixture(scope="module")
def tuned(prepared, tiny_llama, tmp_path_factory):
    home = tmp_path_factory.mktemp("tuned")
    shutil.copytree(prepared / "data", home / "data")
    out = succeed(*tune(tiny_llama), SCP_HOME=str(home))
    assert "held-out conversations: loss" in out
    assert "10." in out.split("% replay")[0][-5:]
    return home


def test_what_tuning_leaves(tuned):
    """The template beside the tokenizer, the end of a turn among the tokens that end an answer, one
    loss a step, a falling loss on held-out conversations."""
    folder = run_folder(tuned)
    assert folder.name == NAME
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == (ROOT / "utils/llama3.1.jinja").read_text()
    marks = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<|eot_id|>", "<|end_of_text|>")}
    assert set(GenerationConfig.from_pretrained(folder).eos_token_id) == marks
    record = json.loads((folder / "run.json").read_text())
    assert set(record["data"]) == {"train", "replay", "held_out"}
    assert "mask_sha256" in record["data"]["train"]
    assert record["held_out_loss_after"] < record["held_out_loss_before"] - 0.1
    assert len(losses(tuned)) == record["steps"]


def test_it_chats(tuned):
    done = subprocess.run(
        [sys.executable, ROOT / "interactive.py", "--max_tokens", "20"],
        input=b"Who kept the light?\nAnd then?\n",
        capture_output=True,
        env=os.environ | {"SCP_HOME": str(tuned)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert NAME.encode() in done.stderr
    assert b"continues the text" not in done.stderr


def test_killed_and_resumed_it_ends_in_the_same_bytes(tuned, work, tiny_llama):
    process = start_script(*tune(tiny_llama), SCP_HOME=str(work))
    while not list((work / "ckpts").glob("*/checkpoint-5/COMPLETE")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "resuming from" in succeed(*tune(tiny_llama), SCP_HOME=str(work))
    assert losses(work) == pytest.approx(losses(tuned), abs=1e-6)
    same = [(run_folder(home) / "model.safetensors").read_bytes() for home in (work, tuned)]
    assert same[0] == same[1]


def test_masked_conversations_and_no_replay(work, tiny_llama):
    out = succeed(*tune(tiny_llama, "--rr", "0", "--mask_documents"), SCP_HOME=str(work))
    assert "0.0% replay" in out
    assert "held-out conversations: loss" in out


def test_micro_batches_do_not_change_the_losses(tuned, work, tiny_llama):
    """Blocks have different numbers of labels; each token counts the same."""
    succeed(*tune(tiny_llama, "--micro_batch", 1), SCP_HOME=str(work))
    assert losses(work) == pytest.approx(losses(tuned), abs=1e-4)


def test_what_does_not_fit_is_refused(tuned, work, tiny_llama):
    def says(*options):
        return refused(*tune(tiny_llama, *options), SCP_HOME=str(work))

    assert "--block_size 64" in says("--block_size", 64)
    assert "tokenize_instruct.py --jsonl FILE --name mine" in says("--conversations", "mine")
    shutil.copytree(tuned / "ckpts", work / "ckpts")
    tokenize(work, tiny_llama, "--train_on_all")
    assert "other train" in says()
    path = work / "data/dataset/bins/ultrachat_test.json"
    made = path.read_text()
    for there, other in (
        ('"seed": 0', '"seed": 1'),
        ('"test_share": 0.05', '"test_share": 0.2'),
        ('"learnt": "all"', '"learnt": "assistant"'),
    ):
        assert there in made
        path.write_text(made.replace(there, other))
        assert "not made by one run" in says()


def test_looking_at_the_blocks(work, tiny_llama):
    out = succeed(
        "data/cptdata.py",
        "--task_name",
        "instruct",
        "--model_name",
        tiny_llama,
        "--block_size",
        512,
        "--blocks",
        2,
        "--bs",
        4,
        SCP_HOME=str(work),
    )
    assert "<|end_header_id|>\n\n⟦" in out
    assert "<|eot_id|>⟧" in out
    assert "% full" in out
