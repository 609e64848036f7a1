"""gptj/run.py, its YAML file and the converter: the published figures, resumption, and bad input."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJConfig, GPTJForCausalLM

from data.mixture import BlockDataset, make_plan
from data.packing import TextBlocks
from gptj import convert_checkpoint, formats
from gptj.hdf5 import Hdf5Rows
from gptj.params import check_model_section, load
from gptj.sections import Optimizer, make_schedule
from gptj.weight_files import load_hf
from tests.conftest import ROOT, SHARED, error_line, start_script
from tests.gptj.conftest import RATES, TINY, kill_and_resume, last_line, losses, write_rows
from utils.errors import UserError

ORACLE = SHARED / "gptj_oracle"


@pytest.mark.skipif(not ORACLE.exists(), reason="no shared data")
def test_published_figures(tmp_path, run_gptj, capsys):
    expected = json.loads((ORACLE / "expected.json").read_text())
    params = yaml.safe_load((ORACLE / "params.yaml").read_text())
    for name in ("train_input", "eval_input"):
        params[name]["data_dir"] = str(ORACLE / "hdf5")
    start = ("--checkpoint_path", ORACLE / "cs-1.8/pytorch_model_to_cs-1.8.mdl", "--is_pretrained_checkpoint")
    run_gptj(params, "--mode", "eval", *start)
    out = capsys.readouterr().out
    assert f"Avg Eval Loss={expected['eval_loss']}" in out
    assert f"eval/lm_perplexity = {expected['eval_lm_perplexity']}" in out
    assert f"eval/accuracy = {expected['eval_accuracy']}" in out
    run_gptj(params, "--mode", "train", *start)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| Train")]
    printed = [float(line.split("Loss=")[1].split(",")[0]) for line in lines]
    assert printed == expected["train_loss"]


@pytest.mark.skipif(not ORACLE.exists(), reason="no shared data")
@pytest.mark.parametrize("source", ["pytorch_model.bin", "model.safetensors", "."])
def test_conversion_equals_the_published_one(tmp_path, convert, source):
    options = ("--output-dir", tmp_path, "--check")
    formats_to_cs = ("--src-fmt", "hf", "--tgt-fmt", "cs-1.8")
    convert(ORACLE / "hf" / source, *formats_to_cs, "--config", ORACLE / "hf/config.json", *options)
    (made,) = tmp_path.glob("*_to_cs-1.8.mdl")
    ours, theirs = (
        torch.load(path, weights_only=True)["model"] for path in (made, ORACLE / "cs-1.8/pytorch_model_to_cs-1.8.mdl")
    )
    assert ours.keys() == theirs.keys()
    assert len(ours) == 27
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert yaml.safe_load((tmp_path / "config_to_cs-1.8.yaml").read_text()) == yaml.safe_load(
        (ORACLE / "cs-1.8/config_to_cs-1.8.yaml").read_text()
    )
    formats_to_hf = ("--src-fmt", "cs-1.8", "--tgt-fmt", "hf")
    convert(made, *formats_to_hf, "--config", ORACLE / "cs-1.8/config_to_cs-1.8.yaml", *options)
    (back,) = tmp_path.glob("*_to_hf.bin")
    ours, theirs = torch.load(back, weights_only=True), load_file(ORACLE / "hf/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 25
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    config = json.loads((tmp_path / "config_to_cs-1.8_to_hf.json").read_text())
    model, about = GPTJForCausalLM.from_pretrained(
        None, config=GPTJConfig(**config), state_dict=ours, output_loading_info=True
    )
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]


def test_shards_obsolete_buffers_and_duplicate_tensors(tmp_path):
    state = {f"transformer.h.{n}.ln_1.{kind}": torch.randn(4) for n in (0, 11) for kind in ("weight", "bias")}
    state |= {"transformer.ln_f.weight": torch.randn(4), "lm_head.bias": torch.randn(3)}
    halves = list(state.items())[:3], list(state.items())[3:]
    for number, half in enumerate(halves):
        save_file(dict(half), tmp_path / f"part-{number}.safetensors")
    index = {"weight_map": {name: f"part-{n}.safetensors" for n, half in enumerate(halves) for name, _ in half}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {"hidden_size": 4, "rotary_dim": 2, "vocab_size": 3}
    section = check_model_section(TINY | {"num_hidden_layers": 12} | sizes, tmp_path)
    loaded = load_hf(tmp_path)
    assert loaded.keys() == state.keys()
    old = loaded | {"transformer.h.0.attn.bias": torch.ones(1), "transformer.h.0.attn.masked_bias": torch.ones(1)}
    cs = formats.to_cs(old, section)
    assert len(cs) == len(state) + 1
    assert "transformer_decoder.layers.11.norm1.bias" in cs
    back = formats.to_hf({f"model.{name}": tensor for name, tensor in cs.items()}, section)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert back.keys() == state.keys()
    cs["transformer_decoder.norm.weight"] = torch.zeros(4)
    with pytest.raises(UserError, match="differ"):
        formats.to_hf(cs, section)
    with pytest.raises(UserError, match=r"transformer\.h\.0\.wrong\.weight"):
        formats.to_cs({"transformer.h.0.wrong.weight": torch.ones(1)}, section)
    index["weight_map"]["lm_head.bias"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside"):
        load_hf(tmp_path)


def test_six_and_six_steps_equal_twelve(tmp_path, params, run_gptj, capsys):
    run_gptj(params, "--mode", "train")
    expected, final = losses(tmp_path), torch.load(tmp_path / "m/checkpoint_12.mdl", weights_only=True)
    assert len(expected) == 12
    result = {"mode": "train", "checkpoint": str(tmp_path / "m/checkpoint_12.mdl"), "step": 12}
    assert last_line(capsys) == result
    assert sorted(p.name for p in (tmp_path / "m").glob("checkpoint*")) == ["checkpoint_12.mdl", "checkpoint_6.mdl"]
    with pytest.raises(UserError, match="at step 12, and max_steps is 12"):
        run_gptj(params, "--mode", "train")
    for path in (tmp_path / "m").glob("checkpoint*"):
        path.unlink()
    run_gptj(params, "--mode", "train", "--max_steps", 6)
    run_gptj(params, "--mode", "train", "--num_steps", 6)
    assert losses(tmp_path) == expected
    again = torch.load(tmp_path / "m/checkpoint_12.mdl", weights_only=True)
    assert all(torch.equal(final["model"][name], again["model"][name]) for name in final["model"])
    assert again["global_step"] == 12
    params["train_input"]["shuffle_seed"] = 8
    with pytest.raises(UserError, match="other train_input.shuffle_seed"):
        run_gptj(params, "--mode", "train", "--max_steps", 14)


def test_killed_and_resumed(tmp_path, params, run_gptj):
    run_gptj(params, "--mode", "train")
    expected = losses(tmp_path)
    kill_and_resume(tmp_path, run_gptj, params)
    assert losses(tmp_path) == expected


def test_num_steps_of_a_killed_run_ends_where_it_would_have_ended(tmp_path, params, run_gptj):
    """D10: it counted again from the checkpoint that it resumed from."""
    run_gptj(params, "--mode", "train", "--max_steps", 6)
    command = ("gptj/run.py", "CPU", "--mode", "train", "--params", tmp_path / "p.yaml", "--model_dir", tmp_path / "m")
    process = start_script(*command, "--num_steps", "12")
    while not (tmp_path / "m/checkpoint_12.mdl").exists():
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.communicate()
    (tmp_path / "m/checkpoint_18.mdl").unlink(missing_ok=True)
    assert (tmp_path / "m/.num_steps.json").exists()
    run_gptj(params, "--mode", "train", "--num_steps", 12)
    assert len(losses(tmp_path)) == 18 and (tmp_path / "m/checkpoint_18.mdl").exists()
    assert not (tmp_path / "m/.num_steps.json").exists()
    run_gptj(params, "--mode", "train", "--num_steps", 6)
    assert len(losses(tmp_path)) == 24


def test_evaluation_does_not_change_training(tmp_path, params, run_gptj):
    """With dropout, whose masks come from the global generator."""
    params["model"] |= dict.fromkeys(("embedding_dropout_rate", "residual_dropout_rate"), 0.3)
    params["runconfig"] |= {"eval_frequency": 3}
    run_gptj(params, "--mode", "train")
    expected = losses(tmp_path), torch.load(tmp_path / "m/checkpoint_12.mdl", weights_only=True)["model"]
    for path in (tmp_path / "m").glob("checkpoint_*"):
        path.unlink()
    run_gptj(params, "--mode", "train_and_eval")
    weights = torch.load(tmp_path / "m/checkpoint_12.mdl", weights_only=True)["model"]
    assert losses(tmp_path) == expected[0]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected[1].items())


def test_converted_configurations_have_numbers(tmp_path, monkeypatch):
    """YAML 1.1 reads 1e-5, without a point, as a string."""
    source = yaml.safe_dump({"model": TINY}) + "  layer_norm_epsilon: 1e-5\n  residual_dropout_rate: 1e-1\n"
    (tmp_path / "p.yaml").write_text(source)
    command = ["x", "convert-config", tmp_path / "p.yaml", "--model", "gptj", "--src-fmt", "cs-1.8", "--tgt-fmt", "hf"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    convert_checkpoint.main()
    config = json.loads((tmp_path / "p_to_hf.json").read_text())
    assert config["layer_norm_epsilon"] == 1e-5
    assert config["resid_pdrop"] == 0.1
    (tmp_path / "p.yaml").write_text(source + "  hidden_sise: 3\n")
    with pytest.raises(UserError, match="did you mean hidden_size"):
        convert_checkpoint.main()


def test_bin_and_hdf5_give_the_same_losses(tmp_path):
    """Both have the same blocks; the last label of an HDF5 row, which lies outside its block, is masked."""
    from training import trainer
    from training.settings import TrainingSettings

    ids = np.random.default_rng(0).integers(0, 60, 24 * 16).astype(np.int32)
    blocks = ids.reshape(-1, 24)
    rows = np.stack([blocks, np.ones_like(blocks), np.roll(blocks, -1, 1)], 1)
    rows[:, 1, -1] = 0
    write_rows(tmp_path / "h5", rows)
    plan = make_plan(16, 0, 2, 0, 4, seed=3)
    datasets = {
        "bin": BlockDataset(plan, TextBlocks(ids, 24)),
        "hdf5": Hdf5Rows([tmp_path / "h5/examples_0_0.h5"], [16], plan.block),
    }
    results = {}
    for name, dataset in datasets.items():
        settings = TrainingSettings(
            lr=1e-2,
            bs=4,
            wd=0.1,
            warmup=0.1,
            seed=0,
            block_size=24,
            save_steps=99,
            keep_checkpoints=1,
            precision="fp32",
        )
        torch.manual_seed(0)
        config = GPTJConfig(**formats.config_to_hf(check_model_section(TINY, tmp_path)))
        model = GPTJForCausalLM(config)
        model.config.use_cache = False
        trainer.train(model, None, (dataset, None), settings, tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        results[name] = [json.loads(line)["loss"] for line in lines]
    assert len(results["bin"]) == 8
    assert max(abs(a - b) for a, b in zip(*results.values(), strict=True)) < 1e-6


def test_eval_modes_alternative_keys_and_export(tmp_path, params, run_gptj, capsys, convert, tiny_model):
    params["optimizer"]["weight_decay_rate"] = params["optimizer"].pop("weight_decay")
    for entry in params["optimizer"]["learning_rate"][:2]:
        entry["steps"] = entry.pop("total_iters")
    params["runconfig"] |= {"checkpoint_steps": 2, "max_checkpoints": 3, "eval_frequency": 6, "num_csx": 1}
    run_gptj(params, "--mode", "train_and_eval")
    out = capsys.readouterr().out
    assert "without effect here: runconfig.num_csx" in out
    assert [line.split()[2] for line in out.splitlines() if "Eval Step" in line] == ["Step=6,", "Step=12,"]
    names = sorted(path.name for path in (tmp_path / "m").glob("*.mdl"))
    assert names == ["checkpoint_10.mdl", "checkpoint_12.mdl", "checkpoint_8.mdl"]
    assert list((tmp_path / "m/train").rglob("events*"))
    assert list((tmp_path / "m/eval").rglob("events*"))
    run_gptj(params, "--mode", "eval_all")
    out = capsys.readouterr().out
    steps = [line.split()[2] for line in out.splitlines() if "Eval Step" in line]
    result = json.loads(out.splitlines()[-1])
    assert f"Avg Eval Loss={result['loss']}\n" in out
    assert f"eval/lm_perplexity = {result['eval/lm_perplexity']}\n" in out
    assert f"eval/accuracy = {result['eval/accuracy']}\n" in out
    assert (result["mode"], result["step"]) == ("eval_all", 12)
    assert result["checkpoint"] == str(tmp_path / "m/checkpoint_12.mdl")
    assert steps == ["Step=8,", "Step=10,", "Step=12,"]
    run_gptj(params, "--mode", "eval_all", "--eval_steps", 1)
    capsys.readouterr()
    formats_to_hf = ("--src-fmt", "cs-1.8", "--tgt-fmt", "hf", "--config", tmp_path / "m/params_eval_all.yaml")
    export = ("--hf-folder", tmp_path / "hf", "--tokenizer", tiny_model, "--check")
    convert(tmp_path / "m/checkpoint_12.mdl", *formats_to_hf, *export)
    weights = torch.load(tmp_path / "m/checkpoint_12.mdl", weights_only=True)["model"]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    back = formats.to_hf(weights, check_model_section(TINY, tmp_path))
    assert all(torch.equal(exported[name], back[name]) for name in back)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").eos_token == "</s>"
    folder = tmp_path / "hf"
    assert last_line(capsys) == {"tensors": len(back), "output": str(folder), "config": str(folder / "config.json")}
    capsys.readouterr()
    run_gptj(params, "--mode", "eval", "--eval_steps", 1, "--checkpoint_path", tmp_path / "hf")
    assert "Eval Step=0" in capsys.readouterr().out
    with pytest.raises(UserError, match="--tokenizer: needs --hf-folder"):
        convert(tmp_path / "hf", "--src-fmt", "hf", "--tgt-fmt", "cs-1.8", "--config", "x", "--tokenizer", "y")


def test_initial_checkpoint_and_left_out_rows(tmp_path, params, run_gptj, capsys):
    params["runconfig"]["save_initial_checkpoint"] = True
    run_gptj(params, "--mode", "train", "--max_steps", 1)
    assert sorted(p.name for p in (tmp_path / "m").glob("*.mdl")) == ["checkpoint_0.mdl", "checkpoint_1.mdl"]
    run_gptj(params, "--mode", "eval", "--checkpoint_path", tmp_path / "m/checkpoint_0.mdl")
    assert "1 rows, less than a batch, are left out" in capsys.readouterr().out


def test_two_ranks_resume_like_one(tmp_path, params, run_gptj):
    """Two ranks over gloo, 3 + 3 steps: the losses are equal within rounding."""
    run_gptj(params, "--mode", "train", "--max_steps", 6)
    alone = losses(tmp_path)
    (tmp_path / "m/checkpoint_6.mdl").unlink()
    (tmp_path / "m/metrics.jsonl").unlink()
    for last in (3, 6):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        files = ["-p", tmp_path / "p.yaml", "-o", tmp_path / "m"]
        done = subprocess.run(
            [*torchrun, ROOT / "gptj/run.py", "CPU", "-m", "train", *files, "--max_steps", str(last)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert max(abs(a - b) for a, b in zip(losses(tmp_path), alone, strict=True)) < 1e-5


def test_workers_read_the_same_rows(tmp_path, params, run_gptj):
    run_gptj(params, "--mode", "train", "--max_steps", 3)
    alone = losses(tmp_path)
    (tmp_path / "m/checkpoint_3.mdl").unlink()
    params["train_input"] |= {"num_workers": 2, "prefetch_factor": 3}
    run_gptj(params, "--mode", "train", "--max_steps", 3)
    assert losses(tmp_path) == alone


def test_missing_and_null_keys_have_defaults(tmp_path, params, run_gptj):
    del params["optimizer"]["max_gradient_norm"]
    params["optimizer"] |= {"weight_decay": None, "learning_rate": "1e-3"}  # a string in YAML 1.1
    params["runconfig"] |= {"seed": None, "log_steps": None, "max_steps": 2}
    params["train_input"]["drop_last"] = None
    run_gptj(params, "--mode", "train")
    assert len(losses(tmp_path)) == 2


def test_foreign_checkpoints_are_kept_and_other_settings_rejected(tmp_path, params, run_gptj):
    foreign = tmp_path / "m/checkpoint-40/model.safetensors"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    run_gptj(params, "--mode", "train", "--max_steps", 2)
    assert foreign.exists()
    assert not (tmp_path / "m/.trainer").exists()
    with pytest.raises(UserError, match=r"other optimizer\.eps"):
        run_gptj(changed(params, "optimizer.eps", 1e-5), "--mode", "train")
    (tmp_path / "h5/.settings.json").write_text("{}")
    with pytest.raises(UserError, match="unfinished"):
        run_gptj(params, "--mode", "train")


def test_learning_rates():
    rate = make_schedule(Optimizer(learning_rate=RATES).learning_rate)
    assert [rate(step) for step in (0, 2, 4)] == [0, 0.005, 0.01]
    assert rate(7) == pytest.approx(0.001 + 0.009 / 2)
    assert rate(10) == rate(1000) == 0.001
    rate = make_schedule(load(ROOT / "gptj/configs/params_gptj_6B_TRC2.yaml")[0].optimizer.learning_rate)
    assert rate(250) == pytest.approx(3e-6)
    assert rate(25_500) == pytest.approx(3.6e-6)


def changed(params: dict, path: str, value) -> dict:
    params = copy.deepcopy(params)
    *sections, last = path.split(".")
    inner = params
    for name in sections:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[int(last) if isinstance(inner, list) else last] = value
    return params


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.wieght_decay", 0.1, "optimizer.wieght_decay: unknown; did you mean weight_decay?"),
        ("model.hiden_size", 16, "model.hiden_size: unknown; did you mean hidden_size?"),
        ("train_input.batchsize", 4, "train_input.batchsize: unknown; did you mean batch_size?"),
        ("eval_input.shufle", True, "eval_input.shufle: unknown; did you mean shuffle?"),
        ("runconfig.max_step", 4, "runconfig.max_step: unknown; did you mean max_steps?"),
        ("runconfigs", {}, "runconfigs: unknown; did you mean runconfig?"),
        (
            "optimizer.learning_rate.0.scheduler",
            "Linnear",
            "optimizer.learning_rate[0]: input tag 'Linnear' found using 'scheduler' does not match any",
        ),
        ("optimizer.learning_rate.0.end", 1, "learning_rate[0].end: unknown"),
        ("optimizer.weight_decay_rate", 0.1, "given twice"),
        ("train_input.batch_size", "four", "train_input.batch_size: 'four'"),
        ("train_input.batch_size", True, "train_input.batch_size: True"),
        ("train_input.batch_size", 400, "train_input.batch_size: 400 is more than the 21 rows"),
        ("model.hidden_size", 15, "model.num_heads: 2: does not divide hidden_size 15"),
        ("model.rotary_dim", 12, "model.rotary_dim: 12"),
        ("model.use_ffn_bias", False, "model.use_ffn_bias: False: input should be True"),
        ("model.vocab_size", 50, "token id 59; model.vocab_size is 50"),
        ("model.max_position_embeddings", 20, "model.max_position_embeddings is 20"),
        ("optimizer.eps", "tiny", "optimizer.eps: 'tiny'"),
        ("optimizer.optimizer_type", "sgd", "optimizer.optimizer_type: 'sgd': input should be 'adamw'"),
        ("runconfig.check_loss_values", False, "runconfig.check_loss_values"),
        ("runconfig.max_steps", None, "runconfig.max_steps: missing"),
        ("train_input.data_dir", "/nowhere", "train_input.data_dir: /nowhere: contains no .h5 files"),
        ("train_input.max_sequence_length", 30, "train_input.max_sequence_length: 30"),
    ],
)
def test_errors_name_the_key(params, run_gptj, path, value, message):
    with pytest.raises(UserError) as caught:
        run_gptj(changed(params, path, value), "--mode", "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/gptj_payload_ran",)


def test_bad_checkpoints(tmp_path, params, run_gptj):
    def error_for(path, *options):
        with pytest.raises(UserError) as caught:
            run_gptj(params, "--mode", "train", "--checkpoint_path", path, *options)
        return str(caught.value)

    assert "no such file" in error_for(tmp_path / "none.mdl")
    bad = tmp_path / "bad.mdl"
    Path("/tmp/gptj_payload_ran").unlink(missing_ok=True)
    torch.save({"model": Payload()}, bad)
    assert "refused, since it holds more than tensors" in error_for(bad)
    assert not Path("/tmp/gptj_payload_ran").exists()
    torch.save({"lm_head.weight": torch.ones(3)}, bad)  # a Hugging Face .bin file named .mdl
    assert "has no `model` entry" in error_for(bad)
    run_gptj(params, "--mode", "train", "--max_steps", 2)
    content = (tmp_path / "m/checkpoint_2.mdl").read_bytes()
    (tmp_path / "cut.mdl").write_bytes(content[:-500])
    assert "damaged" in error_for(tmp_path / "cut.mdl")
    loaded = torch.load(tmp_path / "m/checkpoint_2.mdl", weights_only=True)
    loaded["model"].pop("model.lm_head.bias")
    torch.save(loaded, bad)
    assert "lm_head.bias for example" in error_for(bad)
    weights_alone = ("--checkpoint_path", bad, "--is_pretrained_checkpoint", "--disable_strict_checkpoint_loading")
    with pytest.raises(UserError, match="later than step 0"):  # its checkpoints would be mixed with this run's
        run_gptj(params, "--mode", "train", "--max_steps", 3, *weights_alone)
    run_gptj(params, "--mode", "train", "--max_steps", 3, *weights_alone, "--model_dir", tmp_path / "other")
    wide = changed(params, "model.filter_size", 64)
    with pytest.raises(UserError, match="shapes differ"):
        run_gptj(wide, "--mode", "train", "--max_steps", 9)


def test_command_line_errors(tmp_path, params):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(changed(params, "optimizer.wieght_decay", 1)))
    line = error_line("gptj/run.py", "CPU", "--mode", "train", "--params", tmp_path / "p.yaml")
    assert "did you mean weight_decay?" in line
    assert "not a YAML file" in error_line(
        "gptj/run.py", "CPU", "-m", "train", "-p", ORACLE / "hf/model.safetensors" if ORACLE.exists() else __file__
    )
