"""Models that need care: experts, quantised weights, nested configurations, tied weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from tests.architectures import make_model
from tests.conftest import error_line, succeed
from tests.training.test_engine import start_sharded
from tests.training.test_train import run_folder, train_command
from training.model import add_lora, load_model

SHORT = ("--subsample_ratio", "0.1", "--eval_blocks", 2)


@pytest.fixture
def work(token_files, tmp_path):
    shutil.copytree(token_files / "data", tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "qwen3_moe"])
def test_lora_reaches_the_experts(name):
    model = add_lora(make_model(name), 4, 0, bf16=False)
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "experts" in n]
    assert len(trained) >= 4 * 2 * 2  # layers, weights, A and B
    before = {n: p.clone() for n, p in model.named_parameters() if "experts" in n and not p.requires_grad}
    for n, parameter in model.named_parameters():
        if n in trained:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        adapted = model(ids).logits
        merged = model.merge_and_unload()
        assert torch.allclose(merged(ids).logits, adapted, atol=1e-4)
    after = [p for n, p in merged.named_parameters() if "experts" in n and p.dim() == 3]
    assert all(
        (p - b).abs().max() > 1e-4 for p, b in zip(after, (b for b in before.values() if b.dim() == 3), strict=True)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
    ],
)
def test_quantised_bases_are_one_line(work, tiny_model, settings):
    model = work / "quantised"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text()) | {"quantization_config": settings}
    (model / "config.json").write_text(json.dumps(config))
    for options in ((), ("--lora_rank", 4)):
        assert str(model) in error_line(*train_command(model, *options), SCP_HOME=str(work))
    command = ("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", model)
    assert str(model) in error_line(*command, SCP_HOME=str(work))


@pytest.fixture
def nested(tiny_model, tmp_path):
    """A model for text and images with the tiny tokenizer, as Gemma 3 4B: its text settings are in `text_config`."""
    text = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 64}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=599)
    folder = tmp_path / "nested"
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_nested_configurations(nested, work):
    """Trained, evaluated and chatted with; the vision tower stays as it was."""
    from chat.local_engine import LocalEngine

    succeed(*train_command(nested, *SHORT), SCP_HOME=str(work))
    before, after = (load_file(folder / "model.safetensors") for folder in (nested, run_folder(work)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("vision" in name or "multi_modal" in name for name in changed)
    assert any("layers.1" in name for name in changed)
    options = ("--task", "example", "--protocol", "loglik", "--model_path", run_folder(work))
    succeed("evaluation.py", *options, SCP_HOME=str(work))
    engine = LocalEngine(str(run_folder(work)))
    assert engine.context == 512


def test_lora_of_a_nested_model_leaves_the_vision_tower_alone(nested):
    model = add_lora(load_model(str(nested)), 4, 0, bf16=False)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("vision" in name for name in trained)


def test_a_served_folder_with_a_nested_configuration(nested):
    from chat.api_engine import context_of_folder

    assert context_of_folder(str(nested)) == 512


def test_tied_weights_are_saved_once_from_shards(work, tiny_model):
    """Gathered from the shards, the output layer has a copy of the embedding."""
    tied = work / "tied"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = model.config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tied)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tied)
    command = train_command(tied, *SHORT, "--sharding", "full")
    process = start_sharded(work, "--standalone --nproc_per_node 2", command)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out[-3000:]
    names = load_file(run_folder(work) / "model.safetensors").keys()
    assert names == load_file(tied / "model.safetensors").keys()
    assert "lm_head.weight" not in names
    AutoModelForCausalLM.from_pretrained(run_folder(work))
