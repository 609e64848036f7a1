from dataclasses import replace

import pytest

from training.flops import ModelShape, flops_per_token, mfu, model_shape
from training.memory import GIB, describe_memory, memory_bytes
from training.settings import TrainingSettings

# Llama 3 8B, by hand: 128,256 × 4,096 twice; 32 layers of 4,096 × (4,096 + 1,024 + 1,024 + 4,096)
# + 3 × 4,096 × 14,336 + 2 × 4,096; a final norm of 4,096.
LLAMA_3_8B = ModelShape(
    parameters=8_030_261_248,
    trained=8_030_261_248,
    embedding=525_336_576,
    layers=32,
    hidden=4096,
    intermediate=14336,
    kv_width=1024,
    vocabulary=128256,
)


def settings(recomputed_layers: int, optim_state_dtype: str = "fp32") -> TrainingSettings:
    return TrainingSettings(
        lr=5e-6,
        bs=16,
        wd=0.01,
        warmup=0.05,
        seed=0,
        block_size=2048,
        save_steps=500,
        keep_checkpoints=2,
        precision="bf16",
        recomputed_layers=recomputed_layers,
        optim_state_dtype=optim_state_dtype,
    )


def test_parameter_count_by_hand():
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336 + 2 * 4096
    assert 2 * 128256 * 4096 + 32 * layer + 4096 == LLAMA_3_8B.parameters


def test_flops_of_llama_3_8b():
    """48.2 GFLOP per token at 2,048 (specification and literature): 45.03 in weights, 3.22 in attention."""
    assert flops_per_token(LLAMA_3_8B, 2048) / 1e9 == pytest.approx(45.03 + 3.22, abs=0.01)
    assert mfu(10_000, 48.2e9, "NVIDIA H100 80GB HBM3", 1) == pytest.approx(0.487, abs=0.001)
    assert mfu(10_000, 48.2e9, "some other chip", 1) is None


def test_memory_of_llama_3_8b():
    """fp32 Adam has 16 bytes per parameter, 119.7 GiB; each of four ranks has a quarter of it."""
    parts = memory_bytes(LLAMA_3_8B, settings(32), 1, 1)
    states = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
    assert states / GIB == pytest.approx(119.7, abs=0.05)
    assert parts["bf16 copies"] / GIB == pytest.approx(119.7 / 8, abs=0.01)
    quarter = memory_bytes(LLAMA_3_8B, settings(32), 1, 4)
    assert quarter["optimizer"] == parts["optimizer"] / 4
    assert quarter["activations"] == parts["activations"]
    # Logits: 2,048 × 128,256 × 10 bytes = 2.45 GiB; 32 inputs of 16 MiB and one layer.
    assert 2.45 < parts["activations"] / GIB < 3.5
    full = memory_bytes(LLAMA_3_8B, settings(0), 1, 1)
    assert full["activations"] > 4 * parts["activations"]
    half = memory_bytes(LLAMA_3_8B, settings(16), 1, 1)
    assert parts["activations"] < half["activations"] < full["activations"]
    assert describe_memory(parts).startswith("needs about 137")


def test_memory_of_bf16_moments_and_lora():
    """bf16 moments: 12 bytes per parameter, 89.7 GiB. LoRA: frozen bf16 weights, 15 GiB."""
    parts = memory_bytes(LLAMA_3_8B, settings(0, "bf16"), 1, 1)
    states = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
    assert states / GIB == pytest.approx(89.7, abs=0.05)
    lora = replace(LLAMA_3_8B, trained=42_000_000)
    parts = memory_bytes(lora, settings(0), 1, 1)
    assert parts["weights"] / GIB == pytest.approx(15.0, abs=0.1)
    assert parts["optimizer"] == 8 * 42_000_000


def test_memory_of_chunked_logits():
    """256 × 128,256 logits at a time: 0.3 GiB, and 1.96 GiB for the gradient of the output layer."""
    full, chunked = (memory_bytes(LLAMA_3_8B, settings(32), 4, 1, logits_tokens=n) for n in (None, 256))
    saved = full["activations"] - chunked["activations"]
    assert saved / GIB == pytest.approx(4 * 2.4463 - 0.3058 - 1.957, abs=0.01)


def test_shape_of_a_loaded_model(tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    shape = model_shape(model)
    assert (shape.layers, shape.hidden, shape.intermediate, shape.kv_width) == (2, 32, 64, 16)
    assert shape.embedding == shape.vocabulary * 32
    assert shape.trained == shape.parameters == sum(p.numel() for p in model.parameters())
