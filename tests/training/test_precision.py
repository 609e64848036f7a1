"""--precision auto: the faster one of this machine, kept by a run that moves to another machine."""

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig

from tests.conftest import succeed
from tests.training.test_train import losses, run_folder, train_command
from training import precision
from training.precision import choose_precision, time_products

CONFIG = LlamaConfig(hidden_size=576, intermediate_size=1536)


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(2.0, 1.0, "bf16"), (1.0, 1.5, "fp32"), (1.2, 1.0, "fp32"), (1.3, 1.0, "bf16")]
)
def test_the_faster_precision_is_chosen(monkeypatch, fp32, bf16, expected):
    """An AMD EPYC, an Intel Xeon, and machines where the two are close."""
    monkeypatch.setattr(precision, "time_products", lambda *shape: {"fp32": fp32, "bf16": bf16})
    assert choose_precision("auto", CONFIG) == expected
    for named in ("fp32", "bf16"):
        assert choose_precision(named, CONFIG) == named


def test_narrow_models_are_not_timed(monkeypatch):
    """Their products take less time than an interruption by another process, so two runs could differ."""
    monkeypatch.setattr(precision, "time_products", lambda *shape: {"fp32": 2.0, "bf16": 1.0})
    assert choose_precision("auto", LlamaConfig(hidden_size=64, intermediate_size=4096)) == "fp32"


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [
        ({"fp32": 1.0, "bf16": 8.0}, None, "fp32"),  # emulated: no long product
        ({"fp32": 9.8, "bf16": 2.8}, {"fp32": 10.8, "bf16": 19.0}, "fp32"),  # seen on an Intel Xeon
        ({"fp32": 1.0, "bf16": 1.2}, {"fp32": 2.0, "bf16": 1.0}, "bf16"),
    ],
)
def test_bf16_is_never_chosen_by_the_short_product(monkeypatch, short, long, expected):
    replies = iter([short, long])
    monkeypatch.setattr(precision, "_time_rounds", lambda shape: next(replies))
    assert choose_precision("auto", CONFIG) == expected
    assert len(list(replies)) == (long is None)


def test_one_interrupted_round_does_not_count(monkeypatch):
    """The shortest time of all rounds is compared."""
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    clock, steps = [0.0], iter([5, 5, 1, 3, 9, 3, 1, 3] * 4)  # fp32, bf16, …: the first round and an interruption

    def perf_counter() -> float:
        clock.append(clock[-1] + (next(steps) if len(clock) % 2 == 0 else 0))
        return clock[-1]

    monkeypatch.setattr(precision.time, "perf_counter", perf_counter)
    assert precision._time_rounds((4, 8, 8)) == {"fp32": 1, "bf16": 3}


def test_a_run_keeps_its_precision_on_another_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(precision, "time_products", lambda *shape: {"fp32": 1.0, "bf16": 2.0})
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"precision": "bf16"}}))
    assert choose_precision("auto", CONFIG, tmp_path) == "bf16"
    assert "precision bf16, as this run began; fp32 is faster" in capsys.readouterr().out


def test_products_are_timed_without_the_global_generator():
    state = torch.get_rng_state()
    times = time_products(64, 128)
    assert torch.equal(state, torch.get_rng_state())
    assert times.keys() == {"fp32", "bf16"}
    assert 0 < min(times.values()) < 1


def test_precision_of_a_run_is_recorded_and_resumed(token_files, tiny_model, tmp_path):
    """Begun in bf16 and continued by `auto`, which prefers fp32 for a tiny model."""
    shutil.copytree(token_files / "data", tmp_path / "data")
    options = ("--subsample_ratio", "0.1", "--precision")
    succeed(*train_command(tiny_model, *options, "bf16"), SCP_HOME=str(tmp_path))
    expected = losses(tmp_path)
    record = json.loads((run_folder(tmp_path) / "run.json").read_text())
    assert record["settings"]["precision"] == "bf16"
    (run_folder(tmp_path) / "model.safetensors").unlink()
    (run_folder(tmp_path) / "run.json").write_text(json.dumps(record | {"finished": False}))
    out = succeed(*train_command(tiny_model, *options, "auto"), SCP_HOME=str(tmp_path))
    assert "precision bf16, as this run began" in out
    assert losses(tmp_path) == expected
