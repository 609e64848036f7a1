"""Instruction tuning of the tiny Llama, from conversations to a checkpoint that chats."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from tests.conftest import ROOT, error_line, start_script, succeed
from tests.training.test_train import losses, run_folder

CONVERSATIONS = ROOT / "data/example/conversations"
NAME = "instruct-lr1e-3-rr0.1-epochs3-bs4-wd0.01-warmup0.05-tinyllama"


def tokenize(home, model, *options) -> None:
    files = ("--jsonl", CONVERSATIONS / "train.jsonl", "--test_jsonl", CONVERSATIONS / "test.jsonl")
    settings = ("--tokenizer", model, "--block_size", 512)
    succeed("data/tokenize_instruct.py", *files, *settings, *options, SCP_HOME=str(home))


@pytest.fixture(scope="module")
def prepared(tiny_llama, tmp_path_factory):
    """A home folder with token files of conversations and replay text."""
    home = tmp_path_factory.mktemp("instruct")
    tokenize(home, tiny_llama)
    replay = ("--text", ROOT / "data/example/replay.jsonl", "--test_tokens", 3000, "--tokenizer", tiny_llama)
    succeed("data/tokenize_redpj.py", *replay, SCP_HOME=str(home))
    return home


@pytest.fixture
def work(prepared, tmp_path):
    shutil.copytree(prepared / "data", tmp_path / "data")
    return tmp_path


def tune_command(model, *options):
    recipe = "--lr 1e-3 --rr 0.1 --epochs 3 --bs 4 --wd 0.01 --warmup 0.05 --block_size 512 --save_steps 5"
    return ("train.py", *recipe.split(), "--task_name", "instruct", "--model_name", model, *options)


@pytest.fixture(scope="module")
def tuned(prepared, tiny_llama, tmp_path_factory):
    home = tmp_path_factory.mktemp("tuned")
    shutil.copytree(prepared / "data", home / "data")
    out = succeed(*tune_command(tiny_llama), SCP_HOME=str(home))
    assert "held-out conversations: loss" in out
    assert "10." in out.split("% replay")[0][-5:]
    return home


def test_tuned_checkpoint(tuned):
    """The chat template is saved, the end of a turn ends a reply, each step logs one loss, and the loss on held-out
    conversations falls."""
    folder = run_folder(tuned)
    assert folder.name == NAME
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == (ROOT / "utils/llama3.1.jinja").read_text()
    end_ids = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<|eot_id|>", "<|end_of_text|>")}
    assert set(GenerationConfig.from_pretrained(folder).eos_token_id) == end_ids
    record = json.loads((folder / "run.json").read_text())
    assert set(record["data"]) == {"train", "replay", "held_out"}
    assert "mask_sha256" in record["data"]["train"]
    assert record["held_out_loss_after"] < record["held_out_loss_before"] - 0.1
    assert len(losses(tuned)) == record["steps"]


def test_tuned_checkpoint_chats(tuned):
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


def test_killed_and_resumed_tuning_gives_the_same_bytes(tuned, work, tiny_llama):
    process = start_script(*tune_command(tiny_llama), SCP_HOME=str(work))
    while not list((work / "ckpts").glob("*/checkpoint-5/COMPLETE")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "resuming from" in succeed(*tune_command(tiny_llama), SCP_HOME=str(work))
    assert losses(work) == pytest.approx(losses(tuned), abs=1e-6)
    same = [(run_folder(home) / "model.safetensors").read_bytes() for home in (work, tuned)]
    assert same[0] == same[1]


def test_masked_conversations_and_no_replay(work, tiny_llama):
    out = succeed(*tune_command(tiny_llama, "--rr", "0", "--mask_documents"), SCP_HOME=str(work))
    assert "0.0% replay" in out
    assert "held-out conversations: loss" in out


def test_micro_batches_do_not_change_the_losses(tuned, work, tiny_llama):
    """Blocks have different numbers of labels; all tokens have the same weight."""
    succeed(*tune_command(tiny_llama, "--micro_batch", 1), SCP_HOME=str(work))
    assert losses(work) == pytest.approx(losses(tuned), abs=1e-4)
    assert held_out(work) == pytest.approx(held_out(tuned), abs=1e-4)


def test_ranks_do_not_change_the_losses(tuned, work, tiny_llama):
    """An odd number of held-out blocks: one rank has none for the last forward pass."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [str(part) for part in tune_command(tiny_llama, "--micro_batch", 1, "--eval_blocks", 3)]
    environment = os.environ | {"SCP_HOME": str(work), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, ROOT / command[0], *command[1:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(work) == pytest.approx(losses(tuned), abs=1e-4)
    ranks = held_out(work)
    shutil.rmtree(work / "ckpts")
    succeed(*tune_command(tiny_llama, "--eval_blocks", 3), SCP_HOME=str(work))
    assert ranks == pytest.approx(held_out(work), abs=1e-4)


def held_out(home: Path) -> list[float]:
    record = json.loads((run_folder(home) / "run.json").read_text())
    return [record["held_out_loss_before"], record["held_out_loss_after"]]


def test_held_out_loss_is_the_mean_over_learnt_tokens(tuned, tiny_llama):
    import torch
    from transformers import AutoModelForCausalLM

    from data.packing import BlockSettings, ConversationBlocks
    from utils.token_file import TokenFile

    blocks = ConversationBlocks(TokenFile(tuned / "data/dataset/bins/ultrachat_test.bin", ""), BlockSettings(512))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    total = counted = 0
    for item in (blocks[index] for index in range(len(blocks))):
        ids, labels = (torch.from_numpy(item[name]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
        learnt = labels[1:] >= 0
        total -= float(logprobs[learnt].gather(1, labels[1:][learnt][:, None]).sum())
        counted += int(learnt.sum())
    assert held_out(tuned)[0] == pytest.approx(total / counted, abs=1e-4)


def test_user_errors(tuned, work, tiny_llama):
    def error_for(*options):
        return error_line(*tune_command(tiny_llama, *options), SCP_HOME=str(work))

    assert "--block_size 64" in error_for("--block_size", 64)
    assert "tokenize_instruct.py --jsonl FILE --name mine" in error_for("--conversations", "mine")
    shutil.copytree(tuned / "ckpts", work / "ckpts")
    tokenize(work, tiny_llama, "--train_on_all")
    assert "other train" in error_for()
    path = work / "data/dataset/bins/ultrachat_test.json"
    original = path.read_text()
    for old, new in (
        ('"seed": 0', '"seed": 1'),
        ('"test_share": 0.05', '"test_share": 0.2'),
        ('"learnt": "all"', '"learnt": "assistant"'),
    ):
        assert old in original
        path.write_text(original.replace(old, new))
        assert "not made by one run" in error_for()


def test_cptdata_marks_the_trained_text(work, tiny_llama):
    options = "--task_name instruct --block_size 512 --blocks 2 --bs 4"
    out = succeed("data/cptdata.py", *options.split(), "--model_name", tiny_llama, SCP_HOME=str(work))
    assert "<|end_header_id|>\n\n⟦" in out
    assert "<|eot_id|>⟧" in out
    assert "% full" in out
