"""Kill -9 at random changes of files: the same command, given again, leaves the same bytes.

KILLS is the number of kills at each step; LOG.md, 2026-11-27, has a run with 20.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from data.mixture import made_by_one_run
from tests.conftest import ROOT, run_script, succeed
from tests.forked_script import KILL_AT
from utils.errors import UserError
from utils.token_file import TokenFile

KILLS = int(os.environ.get("KILLS", "3"))
EXAMPLE = ROOT / "data/example"
CONVERSATIONS = ("--jsonl", EXAMPLE / "conversations/train.jsonl", "--test_jsonl", EXAMPLE / "conversations/test.jsonl")
TIMES = {"seconds", "tokens_per_s", "mfu", "code"}  # keys of values that differ between two equal runs


def steps(model, server) -> dict[str, tuple]:
    """Commands by name; each takes the files that `prepare` makes."""
    recipe = "--lr 1e-3 --rr 0.1 --epochs 1 --bs 4 --block_size 128 --save_steps 5 --keep_checkpoints 1"
    hdf5 = "--max_seq_length 64 --files_per_record 20 --output_dir {home}/h5 --resume_from_checkpoint"
    task = ("--task", "example")
    few = ("--max_pairs", 6, "--max_triples", 4, "--concurrency", 3)
    return {
        "generation": ("data/entigraph.py", "0-1", *task, "--model", "m", "--base_url", server.url, *few),
        "passages": ("data/tokenize_entigraph.py", *task, "--input", EXAMPLE / "passages", "--model", "written"),
        "replay": ("data/tokenize_redpj.py", "--text", EXAMPLE / "replay.jsonl", "--test_tokens", 3000),
        "conversations": ("data/tokenize_instruct.py", *CONVERSATIONS, "--block_size", 512),
        "training": (
            "train.py",
            *recipe.split(),
            "--task_name",
            "example",
            "--model",
            "written",
            "--model_name",
            model,
        ),
        "hdf5": ("gptj/create_hdf5.py", "--input_dir", "{home}/texts", "--tokenizer", model, *hdf5.split()),
        "evaluation": ("evaluation.py", *task, "--protocol", "loglik", "--model_path", model, "--batch_size", 16),
    }


def prepare(home: Path, name: str, command: tuple, model, token_files: Path) -> tuple:
    """Fill an empty home folder; returns the command for it. Tokenisers find files of an earlier run."""
    if name == "training":
        shutil.copytree(token_files / "data", home / "data")
    if name == "hdf5":
        (home / "texts").mkdir()
        shutil.copy(EXAMPLE / "news.txt", home / "texts")
    if name in ("passages", "replay", "conversations"):
        command = (*command, "--tokenizer", model)
        succeed(*command, "--seed", 1, SCP_HOME=str(home))
    return command


def placed(command: tuple, home: Path) -> list[str]:
    return [str(part).replace("{home}", str(home)) for part in command]


def results(home: Path) -> dict:
    """The files below `home` without times; records of passages in any order."""
    contents = {}
    for path in home.rglob("*"):
        name = str(path.relative_to(home))
        if not path.is_file() or path.name.startswith((".", "calls.ledger", "summary")) or "checkpoint-" in name:
            continue
        contents[name] = without_times(path, str(home))
    return contents


def without_times(path: Path, home: str) -> object:
    if path.suffix == ".jsonl" and path.parent.name.endswith("_m"):
        return sorted(path.read_text().splitlines())
    if path.name in ("run.json", "metrics.jsonl"):
        text = path.read_text().replace(home, "")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        return [{key: v for key, v in json.loads(line).items() if key not in TIMES} for line in lines]
    return path.read_bytes().replace(home.encode(), b"")


@pytest.mark.parametrize(
    "name", ["generation", "passages", "replay", "conversations", "training", "evaluation", "hdf5"]
)
def test_killed_and_started_again(name, tmp_path, tiny_llama, tiny_model, token_files, server):
    model = tiny_model if name == "training" else tiny_llama
    server.latency = 0.01

    def fresh(folder: str) -> Path:
        home = tmp_path / folder
        shutil.copytree(tmp_path / "before", home)
        return home

    (tmp_path / "before").mkdir()
    command = prepare(tmp_path / "before", name, steps(model, server)[name], model, token_files)
    whole = fresh("whole")
    done = run_script(*placed(command, whole), SCP_HOME=str(whole), **{KILL_AT: "0"})
    assert done.returncode == 0, done.stderr
    changes, expected = int(done.stderr.split()[-2]), results(whole)
    assert changes >= 6
    for number in sorted(random.Random(name).sample(range(1, changes + 1), min(KILLS, changes))):
        home = fresh(f"killed-{number}")
        assert run_script(*placed(command, home), SCP_HOME=str(home), **{KILL_AT: str(number)}).returncode == -9
        if name in ("passages", "replay", "conversations"):
            check_tokens(home)
        succeed(*placed(command, home), SCP_HOME=str(home))
        assert results(home) == expected, number
        left = [path.name for path in home.rglob(".*") if path.suffix in (".tmp", ".json")]
        assert not left, number
        shutil.rmtree(home)
    if name == "generation":  # a kill costs the calls in flight
        assert max(server.billed.values()) <= 2 * (KILLS + 1)


def check_tokens(home: Path) -> None:
    """Files of two runs are never taken for those of one."""
    metas = {}
    for sidecar in (home / "data/dataset/bins").glob("*.json"):
        try:
            file = TokenFile(sidecar.with_suffix(".bin"), "")
            file.verify()
        except UserError:
            continue
        metas[sidecar.stem.rpartition("_")[2]] = file.meta
    if metas.keys() >= {"train", "test"}:
        same = metas["train"]["seed"] == metas["test"]["seed"]
        assert made_by_one_run(metas["train"], metas["test"]) == same
