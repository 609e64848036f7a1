import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, error_line, make_tiny_model, run_script, start_script, succeed
from utils.errors import UserError
from utils.paths import run_name

SEED_README = {
    "lr": "5e-06",
    "rr": "0.1",
    "epochs": "2",
    "bs": "16",
    "wd": "0.01",
    "warmup": "0.05",
    "task_name": "quality",
    "model_name": "meta-llama/Meta-Llama-3-8B",
    "subsample_ratio": "1",
    "lora_rank": 0,
}


def test_run_names_match_the_seed_readme():
    name = "quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B"
    assert run_name(Namespace(**SEED_README)) == name
    tuned = SEED_README | {"task_name": "instruct", "bs": "128", "model_name": f"ckpts/{name}"}
    assert run_name(Namespace(**tuned)) == (
        "instruct-lr5e-06-rr0.1-epochs2-bs128-wd0.01-warmup0.05-"
        "qualitylr5e06rr0.1epochs2bs16wd0.01warmup0.05MetaLlama38B"
    )
    part = SEED_README | {"subsample_ratio": "0.10"}
    assert run_name(Namespace(**part)) == f"scaling-subsample_ratio0.10-{name}"


@pytest.fixture
def work(token_files, tmp_path):
    """A new home folder with the token files."""
    shutil.copytree(token_files / "data", tmp_path / "data")
    return tmp_path


def train_command(model: Path, *options, epochs="1"):
    recipe = f"--lr 1e-3 --rr 0.1 --epochs {epochs} --bs 4 --wd 0.01 --warmup 0.05 --block_size 128 --save_steps 20"
    data = "--task_name example --model written"
    return ("train.py", *recipe.split(), *data.split(), "--model_name", model, *options)


def run_folder(home: Path) -> Path:
    (folder,) = (home / "ckpts").iterdir()
    return folder


def losses(home: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_folder(home) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return [line["loss"] for line in steps]


@pytest.fixture(scope="module")
def uninterrupted(token_files, tiny_model, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(token_files / "data", home / "data")
    succeed(*train_command(tiny_model), SCP_HOME=str(home))
    return home


def test_finished_run_folder(uninterrupted, tiny_model):
    from transformers import AutoTokenizer

    folder = run_folder(uninterrupted)
    assert folder.name == "example-lr1e-3-rr0.1-epochs1-bs4-wd0.01-warmup0.05-tiny"
    weights = load_file(folder / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(tiny_model).get_vocab()
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"]
    assert record["arguments"]["lr"] == "1e-3"
    assert set(record["data"]) == {"train", "replay", "held_out"}
    assert record["held_out_loss_after"] < record["held_out_loss_before"] - 0.1
    assert record["last_losses"] == losses(uninterrupted)[-10:]
    assert not list(folder.glob("checkpoint-*"))


def test_runs_of_earlier_versions(uninterrupted, tmp_path):
    """Their plan lacks the last partial block: a finished run is left alone, an interrupted one not resumed."""
    from training.run_record import is_finished

    record = json.loads((run_folder(uninterrupted) / "run.json").read_text())
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5/COMPLETE").touch()
    for finished in (True, False):
        earlier = {key: value for key, value in record.items() if key != "blocks"} | {"finished": finished}
        (tmp_path / "run.json").write_text(json.dumps(earlier))
        if finished:
            assert is_finished(tmp_path, record)
            continue
        with pytest.raises(UserError, match="other blocks"):
            is_finished(tmp_path, record)


def test_same_seed_same_losses_and_weights(uninterrupted, work, tiny_model):
    succeed(*train_command(tiny_model), SCP_HOME=str(work))
    assert losses(work) == losses(uninterrupted)
    same = [(run_folder(home) / "model.safetensors").read_bytes() for home in (work, uninterrupted)]
    assert same[0] == same[1]


def test_evaluation_does_not_change_training(work, tiny_model):
    """With dropout, whose masks come from the global generator."""
    model = work / "dropout"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text()) | {"attention_dropout": 0.3}
    (model / "config.json").write_text(json.dumps(config))
    weights = []
    for options in ((), ("--run_eval",)):
        succeed(*train_command(model, "--save_steps", 10, *options, epochs="0.3"), SCP_HOME=str(work))
        weights.append((run_folder(work) / "model.safetensors").read_bytes())
        shutil.rmtree(work / "ckpts")
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "defaults",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": False, "num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
        {"do_sample": False, "top_k": 20, "min_p": 0.1},
    ],
)
def test_generation_configs_that_cannot_be_saved(work, tiny_model, defaults):
    """Found before the first step, not at the first checkpoint."""
    model = work / "model"
    shutil.copytree(tiny_model, model)
    (model / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1} | defaults))
    out = succeed(*train_command(model, "--save_steps", 2, epochs="0.1"), SCP_HOME=str(work))
    assert "saved with its special tokens only" in out
    saved = json.loads((run_folder(work) / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 1
    assert not saved.keys() & defaults.keys()


def test_a_model_that_cannot_be_saved_is_refused(work, tiny_model, monkeypatch):
    import torch

    from training.model import check_saving, load_model
    from utils.tokenizer import load_tokenizer

    model = load_model(str(tiny_model))
    model.extra = torch.nn.Linear(4, 4)
    model.extra.weight = torch.nn.Parameter(model.lm_head.weight.view(-1)[:16].view(4, 4))  # shares memory
    with pytest.raises(UserError, match="could not be saved there"):
        check_saving(model, load_tokenizer(str(tiny_model)), work / "run")
    assert not (work / "run" / ".trial").exists()


def test_kill_and_resume_in_the_middle(uninterrupted, work, tiny_model):
    """Killed between checkpoints, then while one is written: the resumed run has the same bytes."""
    folder = work / "ckpts" / run_folder(uninterrupted).name
    for wait_for in ("step 27", "checkpoint-40"):
        process = start_script(*train_command(tiny_model), SCP_HOME=str(work))
        while not has_reached(folder, wait_for):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (folder / "model.safetensors").exists()
    out = succeed(*train_command(tiny_model), SCP_HOME=str(work))
    assert "resuming from" in out
    assert max(abs(a - b) for a, b in zip(losses(work), losses(uninterrupted), strict=True)) < 1e-6
    same = [(run_folder(home) / "model.safetensors").read_bytes() for home in (work, uninterrupted)]
    assert same[0] == same[1]
    before = [
        json.loads((run_folder(home) / "run.json").read_text())["held_out_loss_before"]
        for home in (work, uninterrupted)
    ]
    assert before[0] == before[1]


def has_reached(folder: Path, moment: str) -> bool:
    if moment.startswith("checkpoint"):
        return (folder / moment).is_dir()
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and f'{{"step": {moment.split()[1]},' in metrics.read_text()


@pytest.mark.parametrize(
    ("save_steps", "kept"),
    [(5, r"resumes after step \d+$"), (5000, r"starts over: no checkpoint yet, the first comes at step 5,000")],
)
def test_ctrl_c_says_what_is_kept(save_steps, kept, work, tiny_model):
    process = start_script(
        *map(str, train_command(tiny_model, "--save_steps", save_steps, epochs="20")), SCP_HOME=str(work)
    )
    steps = work / "ckpts"
    while sum(line.count('"loss"') for path in steps.glob("*/metrics.jsonl") for line in path.open()) < 12:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert re.search(rf"^interrupted; the same command {kept}", errors, re.MULTILINE)


def test_finished_run_is_kept_and_another_is_rejected(uninterrupted, work, tiny_model):
    shutil.copytree(uninterrupted / "ckpts", work / "ckpts")
    stamp = (run_folder(work) / "model.safetensors").stat().st_mtime_ns
    assert "finished already" in succeed(*train_command(tiny_model), SCP_HOME=str(work))
    assert (run_folder(work) / "model.safetensors").stat().st_mtime_ns == stamp
    assert "other seed" in error_line(*train_command(tiny_model, "--seed", 1), SCP_HOME=str(work))
    options = ["--task", "example", "--model", "written", "--seed", "5"]
    files = ("--tokenizer", tiny_model, "--input", ROOT / "data/example/passages")
    succeed("data/tokenize_entigraph.py", *options, *files, SCP_HOME=str(work))
    assert "other train" in error_line(*train_command(tiny_model), SCP_HOME=str(work))


def test_checkpoints_of_the_home_folder_come_first(home, monkeypatch):
    """A run with its own $SCP_HOME does not use the checkpoints of another one."""
    from utils import paths

    other = home / "elsewhere"
    for folder in (home, other):
        (folder / "ckpts/same").mkdir(parents=True)
    monkeypatch.chdir(other)
    assert paths.resolve_checkpoint("ckpts/same") == str(home / "ckpts/same")
    (other / "ckpts/here").mkdir()
    assert paths.resolve_checkpoint("ckpts/here") == str(other / "ckpts/here")


def test_held_out_text_of_another_run_is_rejected(work, tiny_model):
    path = work / "data/dataset/bins/togethercomputer_RedPajama_Data_1T_Sample_None_test.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "not made by one run" in error_line(*train_command(tiny_model), SCP_HOME=str(work))


def test_user_errors(work, tiny_model, tmp_path):
    def error_for(*options, model=tiny_model):
        return error_line(*train_command(model, *options), SCP_HOME=str(work))

    assert "--bs 4 does not divide" in error_for("--micro_batch", 3)
    assert "--rr" in error_for("--rr", "1.5")
    assert "--block_size" in error_for("--block_size", 100_000)
    assert "tokenize_redpj.py --name none" in error_for("--replay", "none")
    assert "--eval_blocks" in error_for("--eval_blocks", 0)
    assert "--epochs" in error_for("--epochs", "inf")
    assert "blocks in all" in error_for("--bs", 4000)
    assert "tokenize_entigraph.py --task quality" in error_for("--task_name", "quality", "--model", "gpt-4-turbo")
    for name in ("ckpts/nowhere", "/nowhere/at/all", "./nowhere", "a/b/c"):
        assert f"--model_name {name}: no such folder" in error_for(model=name)  # the Hub is not contacted
    other = make_tiny_model(tmp_path / "other", vocab_size=550)
    line = error_for(model=other)
    assert "vocabulary" in line
    assert f"--tokenizer {other}" in line
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "tokenizer_config.json").unlink()
    assert "holds no tokenizer" in error_for(model=bare)
    assert not (work / "ckpts").exists()


def test_bs_must_be_divisible_by_the_processes(work, tiny_model):
    line = error_line(*train_command(tiny_model), SCP_HOME=str(work), WORLD_SIZE="3", RANK="0")
    assert "--bs 4 does not divide by 3 processes" in line


def test_micro_batches_do_not_change_the_losses(uninterrupted, work, tiny_model):
    succeed(*train_command(tiny_model, "--micro_batch", 1), SCP_HOME=str(work))
    assert max(abs(a - b) for a, b in zip(losses(work), losses(uninterrupted), strict=True)) < 1e-4


def run_on_two_ranks(command, home: Path) -> None:
    """Run a command on two CPU ranks over gloo."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / command[0]), *map(str, command[1:])],
        env=os.environ | {"SCP_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_see_the_same_batches(uninterrupted, work, tiny_model):
    """Two CPU ranks over gloo have the losses of one process."""
    run_on_two_ranks(train_command(tiny_model), work)
    assert max(abs(a - b) for a, b in zip(losses(work), losses(uninterrupted), strict=True)) < 1e-4


def test_losses_are_weighted_by_tokens_over_ranks_and_accumulation(work, tiny_model):
    """Masked documents give blocks different numbers of labels. The losses are the same for one rank with a
    micro-batch of 8, one rank with 8 accumulation steps, and two ranks with 4."""
    results = []
    for ranks, micro_batch in ((1, 8), (1, 1), (2, 1)):
        options = ("--mask_documents", "--subsample_ratio", "0.2", "--bs", 8)
        command = train_command(tiny_model, *options, "--micro_batch", micro_batch)
        if ranks == 1:
            succeed(*command, SCP_HOME=str(work))
        else:
            run_on_two_ranks(command, work)
        results.append(losses(work))
        shutil.rmtree(work / "ckpts")
    for other in results[1:]:
        assert max(abs(a - b) for a, b in zip(results[0], other, strict=True)) < 1e-5


def test_bf16_autocast_keeps_fp32_weights(work, tiny_model):
    options = ("--precision", "bf16", "--subsample_ratio", "0.2", "--run_eval")
    succeed(*train_command(tiny_model, *options), SCP_HOME=str(work))
    assert run_folder(work).name.startswith("scaling-subsample_ratio0.2-example-")
    weights = load_file(run_folder(work) / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}


def damage(folder: Path, kind: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = weights.read_bytes()
    if kind == "cut":
        weights.write_bytes(content[:-100])
    elif kind == "zeros":
        weights.write_bytes(bytes(1000))
    elif kind == "endless header":
        weights.write_bytes(b"\xff" * 8 + content[8:])
    elif kind == "loop":
        weights.unlink()
        weights.symlink_to(weights)
    elif kind == "folder":
        weights.unlink()
        weights.mkdir()
    elif kind == "config":
        config.write_text("[1]")
    elif kind == "shape":
        config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    elif kind == "a tensor less":
        tensors = load_file(weights)
        tensors.pop("model.norm.weight")
        save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "kind", ["cut", "zeros", "endless header", "loop", "folder", "config", "shape", "a tensor less"]
)
def test_damaged_checkpoints_are_reported(tiny_model, tmp_path, kind):
    from training.model import load_model

    shutil.copytree(tiny_model, tmp_path / "m")
    damage(tmp_path / "m", kind)
    with pytest.raises(UserError, match="--model_name"):
        load_model(str(tmp_path / "m"))


def test_trained_weights_must_be_fp32(tiny_model):
    import torch

    from training.model import check_master_weights, load_model

    model = load_model(str(tiny_model))
    model.model.norm.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"model\.norm\.weight.*bfloat16"):
        check_master_weights(model)


def test_non_finite_loss_error_names_step_and_blocks(work, tiny_model):
    line = error_line(*train_command(tiny_model, "--lr", "1e30"), SCP_HOME=str(work))
    assert "the loss is nan" in line
    assert "synthetic block" in line
    assert "--lr" in line


def test_keep_checkpoints(work, tiny_model):
    """Killed after its third checkpoint, a run has at most the last two."""
    command = train_command(tiny_model, "--save_steps", 5, "--keep_checkpoints", 1)
    process = start_script(*command, SCP_HOME=str(work))
    (work / "ckpts").mkdir()
    while not list((work / "ckpts").glob("*/checkpoint-15/COMPLETE")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    complete = list((work / "ckpts").glob("*/checkpoint-*/COMPLETE"))
    assert len(complete) <= 2  # the older one is deleted once the newer one is complete


def test_raw_baseline_without_replay(work, tiny_model):
    recipe = "--task_name example-raw --block_size 128 --bs 4 --rr 0 --epochs 0.5 --lr 1e-3"
    out = succeed("train.py", *recipe.split(), "--model_name", tiny_model, SCP_HOME=str(work))
    assert "0.0% replay" in out
    assert run_folder(work).name == "example-raw-lr1e-3-rr0-epochs0.5-bs4-wd0.01-warmup0.05-tiny"


def test_train_sh_runs_train_py():
    done = subprocess.run(["bash", ROOT / "scripts/train.sh", "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0
    assert done.stdout == run_script("train.py", "--help").stdout
