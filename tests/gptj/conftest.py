"""Fixtures of the second front: settings and rows of a tiny model, and its scripts in this process."""

import copy
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from gptj import convert_checkpoint
from gptj import run as script
from tests.conftest import start_script

TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_heads": 2,
    "num_hidden_layers": 2,
    "filter_size": 32,
    "max_position_embeddings": 24,
    "rotary_dim": 4,
    "nonlinearity": "gelu",
    "mixed_precision": False,
}
RATES = [
    {"scheduler": "Linear", "initial_learning_rate": 0.0, "end_learning_rate": 0.01, "total_iters": 4},
    {"scheduler": "CosineDecay", "initial_learning_rate": 0.01, "end_learning_rate": 0.001, "total_iters": 6},
    {"scheduler": "Constant", "learning_rate": 0.001},
]


def write_rows(folder: Path, rows: np.ndarray, name="examples_0_0.h5") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        file.attrs["n_examples"] = len(rows)
        file.create_dataset("data", data=rows.astype(np.int32), compression="gzip")


def random_rows(number: int, length: int = 24) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 60, (number, length + 1))
    mask = np.ones((number, length), int)
    mask[::3, -7:] = 0
    return np.stack([ids[:, :-1], mask, ids[:, 1:]], 1)


@pytest.fixture
def params(tmp_path) -> dict:
    write_rows(tmp_path / "h5", random_rows(13), "examples_0_0.h5")
    write_rows(tmp_path / "h5", random_rows(8), "examples_1_0.h5")
    data = {"data_processor": "GptHDF5DataProcessor", "data_dir": str(tmp_path / "h5"), "batch_size": 4}
    return {
        "train_input": data | {"shuffle": True, "shuffle_seed": 7},
        "eval_input": data | {},
        "model": dict(TINY),
        "optimizer": {
            "optimizer_type": "adamw",
            "eps": 1e-6,
            "weight_decay": 0.1,
            "max_gradient_norm": 1.0,
            "learning_rate": copy.deepcopy(RATES),
        },
        "runconfig": {"max_steps": 12, "log_steps": 1, "checkpoint_steps": 6, "seed": 1},
    }


@pytest.fixture
def run_gptj(tmp_path, monkeypatch):
    """gptj/run.py in this process; starting a new one takes four times as long as the tested part."""

    def run_gptj(params: dict, *options) -> None:
        (tmp_path / "p.yaml").write_text(yaml.safe_dump(params))
        command = ["run.py", "CPU", "--params", tmp_path / "p.yaml", "--model_dir", tmp_path / "m", *options]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        script.main()

    return run_gptj


@pytest.fixture
def convert(monkeypatch):
    """gptj/convert_checkpoint.py convert in this process."""

    def convert(*options, model: str = "gptj") -> None:
        monkeypatch.setattr(sys, "argv", ["x", "convert", *map(str, options), "--model", model])
        convert_checkpoint.main()

    return convert


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "m/metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def kill_and_resume(tmp_path: Path, run_gptj, params: dict) -> None:
    """Train anew in a process that is killed after its first checkpoint, and resume."""
    for path in (tmp_path / "m").iterdir():
        if path.is_file():
            path.unlink()
    command = ("gptj/run.py", "CPU", "--mode", "train", "--params", tmp_path / "p.yaml", "--model_dir", tmp_path / "m")
    process = start_script(*command)
    while not (tmp_path / "m/checkpoint_6.mdl").exists():
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    (tmp_path / "m/checkpoint_12.mdl").unlink(missing_ok=True)
    run_gptj(params, "--mode", "train")
