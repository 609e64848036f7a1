"""GPT-NeoX: the published conversion and figures, an independent loop, resumption, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from gptj import formats
from gptj.architectures import GPT_NEOX
from gptj.model import load_weights, make_model
from gptj.params import check_model_section, load, load_model_section
from gptj.sections import make_schedule
from gptj.weight_files import load_hf, load_mdl
from tests.conftest import ROOT, SHARED
from tests.gptj.conftest import TINY, kill_and_resume, losses
from training.optim import AdamW
from utils.errors import UserError

ORACLE = SHARED / "neox_oracle"
NEOX = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_heads": 2,
    "num_hidden_layers": 2,
    "filter_size": 40,
    "max_position_embeddings": 24,
    "rotary_dim": 6,
    "use_untied_layer_norm": True,
    "mixed_precision": False,
}
HUB = {
    "model_type": "gpt_neox",
    "vocab_size": 60,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "rotary_pct": 0.5,
}
TO_HF = ("--src-fmt", "cs-1.8", "--tgt-fmt", "hf", "--config")
needs_oracle = pytest.mark.skipif(not ORACLE.exists(), reason="no shared data")


@pytest.fixture
def neox(params) -> dict:
    return params | {"model": dict(NEOX)}


def section_of(model: dict) -> dict:
    return check_model_section(model, Path("p.yaml"))


def random_model(model: dict, seed: int = 0) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    made = make_model(section_of(model)).eval()
    for tensor in made.parameters():  # biases and norms are constant in a new model
        torch.nn.init.normal_(tensor, std=0.1)
    return made


def printed_losses(out: str) -> list[float]:
    return [float(line.split("Loss=")[1].split(",")[0]) for line in out.splitlines() if line.startswith("| Train")]


@needs_oracle
@pytest.mark.parametrize("scaling", ["num_tokens", "batch_size"])
@pytest.mark.parametrize("start", ["cs-1.8/pytorch_model_to_cs-1.8.mdl", "cs-2.x/model_format_0.5.mdl", "hf"])
def test_published_figures(run_gptj, capsys, scaling, start):
    expected = json.loads((ORACLE / "expected.json").read_text())
    params = yaml.safe_load((ORACLE / "params.yaml").read_text())
    for name in ("train_input", "eval_input"):
        params[name]["data_dir"] = str(ORACLE / "hdf5")
    if scaling == "batch_size":
        expected = expected["with_loss_scaling_batch_size"]
        params["model"] |= {"loss_scaling": "batch_size", "loss_weight": expected["loss_weight"]}
    weights = ("--checkpoint_path", ORACLE / start, "--is_pretrained_checkpoint")
    run_gptj(params, "--mode", "eval", *weights)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert result["eval/lm_perplexity"] == pytest.approx(expected["eval_lm_perplexity"], rel=1e-5)
    if "eval_accuracy" in expected:
        assert result["eval/accuracy"] == pytest.approx(expected["eval_accuracy"], abs=1e-5)
    run_gptj(params, "--mode", "train", *weights)
    assert printed_losses(capsys.readouterr().out) == pytest.approx(expected["train_loss"], abs=1.5e-5)


@needs_oracle
@pytest.mark.parametrize("source", ["pytorch_model.bin", "model.safetensors", "."])
@pytest.mark.parametrize("config", ["config.json", "config_hub.json"])
def test_conversion_equals_the_published_one(tmp_path, convert, source, config):
    options = ("--output-dir", tmp_path, "--check")
    to_cs = ("--src-fmt", "hf", "--tgt-fmt", "cs-1.8", "--config", ORACLE / "hf" / config)
    convert(ORACLE / "hf" / source, *to_cs, *options, model="gpt-neox")
    (made,) = tmp_path.glob("*_to_cs-1.8.mdl")
    ours, theirs = (load_mdl(path)["model"] for path in (made, ORACLE / "cs-1.8/pytorch_model_to_cs-1.8.mdl"))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 38
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    published = ORACLE / "cs-1.8/config_to_cs-1.8.yaml"
    (made_config,) = tmp_path.glob("*_to_cs-1.8.yaml")
    assert yaml.safe_load(made_config.read_text()) == yaml.safe_load(published.read_text())


@needs_oracle
@pytest.mark.parametrize(
    ("source", "file_format"),
    [
        ("cs-1.8/pytorch_model_to_cs-1.8.mdl", "cs-1.8"),
        ("cs-2.x/model_format_0.5.mdl", "cs-2.x"),
        ("cs-2.x/run_format_0.4.mdl", "cs-2.x"),
    ],
)
def test_export_loads_as_a_hugging_face_model(tmp_path, convert, source, file_format):
    config = ("--config", ORACLE / "cs-1.8/config_to_cs-1.8.yaml")
    to_hf = ("--src-fmt", file_format, "--tgt-fmt", "hf", *config)
    convert(ORACLE / source, *to_hf, "--hf-folder", tmp_path / "hf", "--check", model="gpt-neox")
    ours, theirs = load_file(tmp_path / "hf/model.safetensors"), load_file(ORACLE / "hf/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 28
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    model, about = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
    with h5py.File(sorted((ORACLE / "hdf5").iterdir())[0]) as file:
        row = torch.from_numpy(file["data"][0, 0].astype(int))
    expected = json.loads((ORACLE / "expected.json").read_text())["logits_of_first_row_last_position_first_8"]
    with torch.no_grad():
        assert model.eval()(row[None]).logits[0, -1, :8].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("hidden", "heads", "rotary"), [(24, 2, 6), (24, 4, 6), (40, 2, 20), (176, 2, 30), (32, 8, 2)])
def test_conversion_and_back_for_other_sizes(tmp_path, hidden, heads, rotary):
    section = section_of(NEOX | {"hidden_size": hidden, "num_heads": heads, "rotary_dim": rotary})
    model = random_model(section)
    model.save_pretrained(tmp_path)
    source = load_hf(tmp_path)
    assert set(source) == {name for name in source if not name.startswith("lm_head")}
    state = formats.to_cs(source, section)
    formats.check_complete(state, section, "x")
    assert len(state) == 16 * 2 + 6
    assert all(torch.equal(state[name], tensor) for name, tensor in formats.to_cs(model.state_dict(), section).items())
    back = formats.to_hf({f"model.{name}": tensor for name, tensor in state.items()}, section)
    assert back.keys() == source.keys()
    assert all(torch.equal(back[name], source[name]) for name in source)
    config = formats.config_to_hf(section)
    other = GPTNeoXForCausalLM(GPTNeoXConfig(**config)).eval()
    assert not load_weights(other, back)
    ids = torch.arange(20)[None]
    assert torch.equal(other(ids).logits, model(ids).logits)
    assert formats.config_to_cs(config, GPT_NEOX, Path("c"))["rotary_dim"] == rotary
    old_words = {key: value for key, value in config.items() if key != "rope_parameters"}
    assert formats.config_to_cs(old_words, GPT_NEOX, Path("c"))["rotary_dim"] == rotary


def test_neighbouring_rows_are_rotated_together():
    """The published layout: row 2i is Hugging Face's row i, row 2i + 1 its row i + rotary_dim / 2, the rest stays."""
    assert formats.rotary_rows(8, 6).tolist() == [0, 3, 1, 4, 2, 5, 6, 7]


def test_shards_and_old_buffers(tmp_path):
    section = section_of(NEOX)
    model = random_model(NEOX)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    state = load_hf(tmp_path)
    old = {
        f"gpt_neox.layers.0.attention.{name}": torch.ones(2) for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    }
    assert formats.to_cs(state | old, section).keys() == formats.to_cs(state, section).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_pct": 0.25}, "is 3 dimensions"),
        ({"rotary_emb_base": 500}, "rotary_emb_base: 500"),
        ({"rope_parameters": {"rope_theta": 500.0}}, "rotary_emb_base: 500"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "they must be equal"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type: yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type: linear"),
        ({"use_parallel_residual": False}, "use_parallel_residual: False"),
        ({"attention_bias": False}, "attention_bias: False"),
        ({"hidden_act": "mish"}, "model.nonlinearity: 'mish'"),
        ({"tie_word_embeddings": True}, "model.share_embedding_weights: True"),
        ({"model_type": "gptj"}, "give --model gptj"),
        ({"model_type": "llama"}, "only gptj, gpt-neox are supported"),
        ({"intermediate_size": None}, "has no intermediate_size"),
        ({"num_attention_heads": 0}, "model.num_heads: 0"),
        ({"hidden_size": "48"}, "model.hidden_size: '48'"),
        ({"rotary_pct": "0.25"}, "'0.25' is not a positive number"),
        ({"rotary_pct": float("nan")}, "nan is not a positive number"),
        ({"rope_parameters": "default"}, "rope_parameters: 'default' is not an object"),
        ({"rope_scaling": ["linear"]}, "is not an object"),
        ({"rope_parameters": {"rope_theta": [1]}}, "is not a positive number"),
        ({"rope_parameters": {"type": "linear", "factor": 2.0}}, "rope_type: linear"),
    ],
)
def test_configurations_without_a_place_in_the_format_are_refused(tmp_path, convert, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(HUB | changes))
    (tmp_path / "model.safetensors").touch()
    options = ("--src-fmt", "hf", "--tgt-fmt", "cs-1.8", "--config", tmp_path / "config.json")
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / "model.safetensors", *options, model="gpt-neox")
    assert "config.json" in str(caught.value)


def test_dropout_rates_are_converted():
    section = formats.config_to_cs(HUB | {"hidden_dropout": 0.1, "attention_dropout": 0.2}, GPT_NEOX, Path("c"))
    rates = {name: section[f"{name}_dropout_rate"] for name in ("embedding", "residual", "attention")}
    assert rates == {"embedding": 0.1, "residual": 0.1, "attention": 0.2}
    model = make_model(section_of(NEOX | {"embedding_dropout_rate": 0.3, "residual_dropout_rate": 0.1}))
    assert model.gpt_neox.emb_dropout.p == 0.3
    assert model.gpt_neox.layers[0].post_mlp_dropout.p == 0.1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            NEOX | {"use_projection_bias_in_attention": False},
            "model.use_projection_bias_in_attention: False: must be true in GPT-NeoX",
        ),
        (NEOX | {"use_bias_in_output": True}, "model.use_bias_in_output: True: must be false in GPT-NeoX"),
        (TINY | {"use_ffn_bias_in_attention": True}, "model.use_ffn_bias_in_attention: True: must be false in GPT-J"),
        (TINY | {"use_bias_in_output": False}, "model.use_bias_in_output: False: must be true in GPT-J"),
        (NEOX | {"rotary_dim": 5}, "must be even"),
        (NEOX | {"loss_weight": 0.0}, "model.loss_weight"),
        (NEOX | {"loss_scaling": "tokens"}, "model.loss_scaling: 'tokens'"),
    ],
)
def test_impossible_combinations_are_refused_by_name(run_gptj, params, model, message):
    with pytest.raises(UserError, match=message):
        run_gptj(params | {"model": model}, "--mode", "train")


def test_the_architecture_and_other_defaults_are_shown(run_gptj, neox, capsys):
    neox["model"] |= {"loss_weight": 1 / 24}
    run_gptj(neox, "--mode", "train", "--max_steps", 1)
    out = capsys.readouterr().out
    assert out.startswith("GPT-NeoX: 2 layers, width 24, 2 heads, 6 rotary dimensions, gelu; loss_scaling batch_size")
    assert "use_ffn_bias true (false)" in out
    assert "makes loss_scaling batch_size" in out


def test_published_keys_of_other_releases(tmp_path, params):
    optimizer = {
        "betas": [0.9, 0.95],
        "use_bias_correction": True,
        "learning_rate": [
            {"scheduler": "Linear", "initial_learning_rate": 0.0, "end_learning_rate": 0.97e-4, "steps": 10},
            {
                "scheduler": "CosineDecay",
                "initial_learning_rate": 0.97e-4,
                "end_learning_rate": 0.97e-5,
                "decay_steps": 20,
            },
        ],
    }
    model = NEOX | {"initializer": {"name": "variance_scaling"}, "norm_type": "layernorm", "pos_scaling_factor": 1.0}
    content = params | {"optimizer": optimizer, "model": model}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    loaded, notes = load(tmp_path / "p.yaml")
    assert (loaded.optimizer.beta1, loaded.optimizer.beta2) == (0.9, 0.95)
    rate = make_schedule(loaded.optimizer.learning_rate)
    assert rate(30) == rate(1000) == pytest.approx(0.97e-5)
    assert "model.initializer" in notes[0]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"trainer": {"init": {"model": model}}}))
    assert load_model_section(tmp_path / "p.yaml")["use_bias_in_output"] is False
    optimizer["beta1"] = 0.9
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="betas"):
        load(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({"embed_out.weight": torch.ones(50, 24)}), "lm_head.weight is"),
        (
            lambda state: state.update({"gpt_neox.layers.0.attention.query_key_value.weight": torch.ones(72, 5)}),
            "query_key",
        ),
        (
            lambda state: state.update({"gpt_neox.layers.0.attention.query_key_value.bias": torch.tensor(1.0)}),
            "query_key",
        ),
        (lambda state: state.update({"gpt_neox.layers.0.attention.dense.weight": torch.ones(3, 3)}), "proj_output"),
        (lambda state: state.update({"gpt_neox.embed_in.weight": torch.ones(60, 24, dtype=torch.int8)}), "torch.int8"),
        (
            lambda state: state.update({"lm_head.weight": torch.zeros(60, 24)}),
            "embed_out.weight and lm_head.weight differ",
        ),
        (
            lambda state: state.update({"gpt_neox.layers.2.input_layernorm.bias": torch.ones(24)}),
            "not of a GPT-NeoX of 2",
        ),
        (lambda state: state.pop("gpt_neox.layers.1.attention.query_key_value.weight"), "3 tensors are missing"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(tmp_path, convert, change, message):
    section = section_of(NEOX)
    random_model(NEOX).save_pretrained(tmp_path)
    state = load_hf(tmp_path)
    change(state)
    torch.save(state, tmp_path / "x.bin")
    (tmp_path / "config.json").write_text(json.dumps(formats.config_to_hf(section)))
    options = ("--src-fmt", "hf", "--tgt-fmt", "cs-1.8", "--config", tmp_path / "config.json", "--check")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "x.bin", *options, model="gpt-neox")


def test_training_from_a_folder_with_another_configuration(tmp_path, run_gptj, neox):
    random_model(NEOX | {"num_heads": 3, "rotary_dim": 4}).save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match=r"model.num_heads: 2, but .*config.json has 3"):
        run_gptj(neox, "--mode", "train", "--checkpoint_path", tmp_path / "hf", "--is_pretrained_checkpoint")


def test_unknown_tensors_are_left_out_without_strictness(tmp_path, run_gptj, neox, capsys):
    state = formats.to_cs(random_model(NEOX).state_dict(), section_of(NEOX))
    state["transformer_decoder.layers.0.norm2.weight"] = torch.ones(24)
    torch.save({"model": state}, tmp_path / "x.mdl")
    start = ("--checkpoint_path", tmp_path / "x.mdl", "--is_pretrained_checkpoint", "--max_steps", 1)
    with pytest.raises(UserError, match="norm2.weight for example"):
        run_gptj(neox, "--mode", "train", *start)
    run_gptj(neox, "--mode", "train", *start, "--disable_strict_checkpoint_loading")
    assert "norm2.weight" in capsys.readouterr().out


def test_a_tied_head_is_written_as_a_tensor_of_its_own(tmp_path, convert):
    state = formats.to_cs(random_model(NEOX).state_dict(), section_of(NEOX))
    state["lm_head.weight"] = state["embedding_layer.word_embeddings.weight"]
    torch.save({"model": state}, tmp_path / "x.mdl")
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"model": NEOX}))
    options = (*TO_HF, tmp_path / "p.yaml", "--hf-folder", tmp_path / "hf")
    convert(tmp_path / "x.mdl", *options, model="gpt-neox")
    assert len(load_file(tmp_path / "hf/model.safetensors")) == 28


def test_a_yaml_of_the_other_architecture_is_refused(tmp_path, convert):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"model": NEOX}))
    (tmp_path / "x.mdl").touch()
    with pytest.raises(UserError, match="stands for GPT-NeoX, --model gptj for GPT-J"):
        convert(tmp_path / "x.mdl", "--src-fmt", "cs-1.8", "--tgt-fmt", "hf", "--config", tmp_path / "p.yaml")


def test_checkpoints_without_a_tensor(tmp_path, convert, run_gptj, neox):
    state = formats.to_cs(random_model(NEOX).state_dict(), section_of(NEOX))
    for name in ("norm3.bias", "self_attn.proj_q_dense_layer.weight"):
        del state[f"transformer_decoder.layers.1.{name}"]
    torch.save({"model": state}, tmp_path / "x.mdl")
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"model": NEOX}))
    with pytest.raises(UserError, match="are missing"):
        convert(tmp_path / "x.mdl", *TO_HF, tmp_path / "p.yaml", model="gpt-neox")
    start = ("--checkpoint_path", tmp_path / "x.mdl", "--is_pretrained_checkpoint", "--max_steps", 1)
    with pytest.raises(UserError, match="2 weights are missing or unknown"):
        run_gptj(neox, "--mode", "train", *start)
    run_gptj(neox, "--mode", "train", *start, "--disable_strict_checkpoint_loading")
    with pytest.raises(UserError, match="not of a GPT-J"):
        run_gptj(neox | {"model": TINY | {"hidden_size": 24, "filter_size": 40}}, "--mode", "train", *start)


def test_twenty_steps_equal_an_independent_loop(tmp_path, run_gptj, neox, capsys):
    neox["train_input"]["shuffle"] = False
    run_gptj(neox, "--mode", "train", "--max_steps", 20)
    printed = printed_losses(capsys.readouterr().out)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**formats.config_to_hf(section_of(NEOX))))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.load_state_dict(make_model(section_of(NEOX)).state_dict())
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-6, early_eps=True, correct_bias=True)
    rate = make_schedule(load(tmp_path / "p.yaml")[0].optimizer.learning_rate)
    rows = []
    for path in sorted((tmp_path / "h5").iterdir()):
        with h5py.File(path) as file:
            rows.append(torch.from_numpy(file["data"][:].astype(int)))
    rows, expected = torch.cat(rows)[:20], []
    for step in range(20):
        ids, mask, labels = rows[step * 4 % 20 :][:4].unbind(1)
        logits = model(ids).logits
        loss = (
            cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none") * mask.flatten()
        ).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(round(loss.item(), 5))
    assert printed == pytest.approx(expected, abs=1.5e-5)


def test_killed_and_resumed(tmp_path, run_gptj, neox):
    neox["model"] |= {"loss_scaling": "batch_size", "loss_weight": 1 / 24}
    run_gptj(neox, "--mode", "train")
    expected, final = losses(tmp_path), load_mdl(tmp_path / "m/checkpoint_12.mdl")["model"]
    kill_and_resume(tmp_path, run_gptj, neox)
    assert losses(tmp_path) == expected
    again = load_mdl(tmp_path / "m/checkpoint_12.mdl")["model"]
    assert all(torch.equal(again[name], tensor) for name, tensor in final.items())


@pytest.mark.parametrize("scaling", [{}, {"loss_scaling": "batch_size", "loss_weight": 1 / 24}])
def test_two_ranks_equal_one(tmp_path, run_gptj, neox, scaling):
    neox["model"] |= scaling
    run_gptj(neox, "--mode", "train", "--max_steps", 4)
    alone = losses(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    files = ["-p", tmp_path / "p.yaml", "-o", tmp_path / "two"]
    done = subprocess.run(
        [*torchrun, ROOT / "gptj/run.py", "CPU", "-m", "train", *files, "--max_steps", "4"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(alone, abs=1e-5)


def test_loss_scaling_of_gptj(tmp_path, run_gptj, params):
    """Σ / rows · weight, where rows of four have 24 counted labels, and every third one 17."""
    params["train_input"] |= {"shuffle": False}
    run_gptj(params, "--mode", "train", "--max_steps", 1)
    (by_tokens,) = losses(tmp_path)
    (tmp_path / "m/checkpoint_1.mdl").unlink()
    params["model"] |= {"loss_scaling": "batch_size", "loss_weight": 0.25}
    run_gptj(params, "--mode", "train", "--max_steps", 1)
    (by_rows,) = losses(tmp_path)
    assert by_rows == pytest.approx(by_tokens * (2 * 17 + 2 * 24) / 4 * 0.25, rel=1e-5)
