"""Sharding, torch.compile, gradient checkpointing, smaller optimizer states and LoRA against a plain run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT, error_line, run_script, succeed
from tests.training.test_train import losses, run_folder, train_command

SHORT = ("--subsample_ratio", "0.3")


@pytest.fixture(scope="module")
def plain(token_files, tiny_model, tmp_path_factory) -> Path:
    """The home folder of a short run with the default settings."""
    home = tmp_path_factory.mktemp("plain")
    shutil.copytree(token_files / "data", home / "data")
    succeed(*train_command(tiny_model, *SHORT), SCP_HOME=str(home))
    return home


@pytest.fixture
def work(token_files, tmp_path):
    shutil.copytree(token_files / "data", tmp_path / "data")
    return tmp_path


def max_loss_difference(a: Path, b: Path) -> float:
    return max(abs(x - y) for x, y in zip(losses(a), losses(b), strict=True))


def weights(home: Path) -> dict:
    return load_file(run_folder(home) / "model.safetensors")


def start_sharded(home: Path, launcher: str, command) -> subprocess.Popen:
    """Start the training command under torchrun with the options `launcher`, sharded over CPU ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", *launcher.split()]
    return subprocess.Popen(
        [*torchrun, str(ROOT / "tests/sharded_on_cpu.py"), *map(str, command[1:])],
        env=os.environ | {"SCP_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_ranks_shard_the_model_and_resume_after_a_kill(plain, work, tiny_model):
    """FSDP2: each rank holds half of the parameters. Killed after a checkpoint and resumed, the run ends as an
    unsharded run, with one ordinary checkpoint."""
    command = train_command(tiny_model, *SHORT, "--sharding", "full", "--save_steps", 5)
    process = start_sharded(work, "--standalone --nproc_per_node 2", command)
    while not list((work / "ckpts").glob("*/checkpoint-5/COMPLETE")):
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.01)
    for rank in [*psutil.Process(process.pid).children(recursive=True), process]:
        rank.kill()
    process.communicate()
    process = start_sharded(work, "--standalone --nproc_per_node 2", command)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out[-3000:]
    assert "resuming from" in out
    shares = re.findall(r"rank \d holds (\d+) of (\d+)", out)
    assert len(shares) == 2
    assert all(int(local) == int(total) / 2 for local, total in shares)
    assert max_loss_difference(work, plain) < 1e-4
    ours, theirs = weights(work), weights(plain)
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 2e-3  # the learning rates of 2 steps
    assert not list(run_folder(work).glob("checkpoint-*"))
    AutoModelForCausalLM.from_pretrained(run_folder(work))


def test_hybrid_sharding_keeps_a_copy_on_every_node(plain, work, tiny_model):
    """Four ranks on two nodes: each holds half of the parameters, not a quarter."""
    command = train_command(tiny_model, *SHORT, "--sharding", "hybrid")
    nodes = []
    for node in range(2):
        address = f"--node_rank {node} --master_addr 127.0.0.1 --master_port 29611"
        nodes.append(start_sharded(work, f"--nnodes 2 --nproc_per_node 2 {address}", command))
    out = "".join(node.communicate(timeout=200)[0] for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], out[-3000:]
    shares = re.findall(r"rank \d holds (\d+) of (\d+)", out)
    assert len(shares) == 4
    assert all(int(local) == int(total) / 2 for local, total in shares)
    assert max_loss_difference(work, plain) < 1e-4


def test_compiled_layers_give_the_same_losses(plain, work, tiny_model):
    succeed(*train_command(tiny_model, *SHORT, "--compile", "on"), SCP_HOME=str(work))
    assert max_loss_difference(work, plain) < 1e-4
    record = json.loads((run_folder(work) / "run.json").read_text())
    assert record["settings"]["compiled"]


def test_gradient_checkpointing_gives_the_same_weights(plain, work, tiny_model):
    out = succeed(*train_command(tiny_model, *SHORT, "--gradient_checkpointing", 1), SCP_HOME=str(work))
    assert "(1 of 2 layers checkpointed)" in out
    assert losses(work) == losses(plain)
    for name, tensor in weights(work).items():
        assert torch.equal(tensor, weights(plain)[name])


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_smaller_moments_train_as_well(plain, work, tiny_model, dtype):
    if dtype == "int8":
        pytest.importorskip("torchao")
    succeed(*train_command(tiny_model, *SHORT, "--optim_state_dtype", dtype), SCP_HOME=str(work))
    assert losses(work) != losses(plain)
    assert abs(losses(work)[-1] - losses(plain)[-1]) < 0.02


def test_lora_trains_adapters_and_saves_a_plain_checkpoint(plain, work, tiny_model):
    """The merged checkpoint has the logits of the base model with the adapter."""
    from peft import PeftModel

    loss_before = json.loads((run_folder(plain) / "run.json").read_text())["held_out_loss_before"]
    command = train_command(tiny_model, *SHORT, "--lora_rank", 4, "--gradient_checkpointing")
    succeed(*command, SCP_HOME=str(work))
    record = json.loads((run_folder(work) / "run.json").read_text())
    assert run_folder(work).name.endswith("-tiny-lora4")
    assert record["held_out_loss_before"] == pytest.approx(loss_before, abs=1e-5)
    assert record["held_out_loss_after"] < record["held_out_loss_before"]
    merged = AutoModelForCausalLM.from_pretrained(run_folder(work))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert torch.equal(merged.model.embed_tokens.weight, base.model.embed_tokens.weight)
    adapted = PeftModel.from_pretrained(base, run_folder(work) / "adapter")
    ids = torch.arange(50)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
    options = ("--task", "example", "--model_path", run_folder(work), "--protocol", "loglik")
    done = run_script("evaluation.py", *options, SCP_HOME=str(work))
    assert done.returncode == 0, done.stderr[-2000:]


def test_wandb_offline_logs_loss_and_speed(work, tiny_model):
    environment = {"SCP_HOME": str(work), "WANDB_MODE": "offline"}
    succeed(*train_command(tiny_model, *SHORT, "--report_to", "wandb"), **environment)
    (log,) = work.glob("out/wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"train/loss" in content
    assert b"train/tokens_per_s" in content


def test_user_errors(work, tiny_model):
    def error_for(*options):
        return error_line(*train_command(tiny_model, *options), SCP_HOME=str(work))

    assert "--gradient_checkpointing some" in error_for("--gradient_checkpointing", "some")
    assert "--lora_rank -1" in error_for("--lora_rank", "-1")
    assert "not supported with --lora_rank" in error_for("--lora_rank", 4, "--sharding", "full")
    environment = {"SCP_HOME": str(work), "WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    line = error_line(*train_command(tiny_model, "--sharding", "full"), **environment)
    assert "--sharding full" in line
