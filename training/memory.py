"""TODO training.memory."""

from dataclasses import replace

import torch

from training.flops import ModelShape, model_shape
from training.hardware import choose_micro_batch, shard_ranks
from training.loss import LINEAR_HEADS, chunk_tokens
from training.optim import STATE_BYTES
from training.settings import TrainingSettings
from utils.device import device_type
from utils.errors import UserError

GIB = 2**30


def memory_bytes(
    shape: ModelShape,
    block_size: int,
    micro_batch: int,
    ranks: int,
    recomputed: int,
    bf16: bool,
    optimizer: float = 8,
    logits_tokens: int | None = None,
) -> dict[str, float]:
    """Of one of `ranks` devices that share weights, gradients and optimizer.

    A trained parameter has 4 bytes of fp32 weight, 4 of gradient and `optimizer` bytes of moments
    (AdamW's two in fp32 are 8), and with `bf16` 2 for the copy that is multiplied; a frozen one its
    weight alone. Activations are an estimate of what the backward pass of a Llama layer keeps, with
    SDPA (no block × block matrix); `recomputed` layers keep their input alone. Logits of
    `logits_tokens` (default: all) are there at once, with the gradient of the output layer.
    """
    width = 2 if bf16 else 4
    tokens = micro_batch * block_size
    # Two norms in fp32; their outputs, queries, attention's output; keys and values; of the MLP gate,
    # up, their product and the activation.
    layer = tokens * (2 * 4 * shape.hidden + width * (4 * shape.hidden + 2 * shape.kv_width + 4 * shape.intermediate))
    kept = (shape.layers - recomputed) * layer
    if recomputed:  # inputs, and one layer at a time in full
        kept += recomputed * tokens * width * shape.hidden + layer
    # As computed, in fp32, and their gradient.
    logits = min(tokens, logits_tokens or tokens) * shape.vocabulary * (width + 4 + 4)
    if logits_tokens:
        logits += 4 * shape.vocabulary * shape.hidden
    frozen = shape.parameters - shape.trained
    parts = {
        "weights": (4 * shape.trained + width * frozen) / ranks,
        "gradients": 4 * shape.trained / ranks,
        "optimizer": optimizer * shape.trained / ranks,
    }
    if bf16:
        parts["bf16 copies"] = 2 * shape.trained / ranks
    return parts | {"activations": kept + logits}


def describe_memory(parts: dict[str, float]) -> str:
    """`needs about 97 GiB: weights 30, …`"""
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return f"needs about {sum(parts.values()) / GIB:.1f} GiB: {listed}"


def memory_by_part(model, shape: ModelShape, settings: TrainingSettings) -> dict[str, float]:
    plain = model.config.model_type in LINEAR_HEADS
    return memory_bytes(
        shape,
        settings.block_size,
        choose_micro_batch(settings),
        shard_ranks(settings),
        settings.recomputed_layers,
        settings.precision == "bf16",
        STATE_BYTES[settings.optim_state_dtype],
        chunk_tokens(shape.vocabulary, device_type()) if plain else None,
    )


def fit_memory(model, settings: TrainingSettings, recompute: str, flags: bool = True) -> tuple[TrainingSettings, str]:
    """The settings with as many recomputed layers as `recompute` says (`all`, a number, or `auto`:
    on a GPU the fewest that fit, on a CPU none), and what the run needs, in words.

    Raises UserError where the GPU has less, naming (where the caller has them) the `flags` that
    would make it fit.
    """
    shape = model_shape(model)

    def total(changed: TrainingSettings) -> float:
        return sum(memory_by_part(model, shape, changed).values())

    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    # 6% for CUDA's context, the allocator's gaps and what the estimate leaves out.
    there = 0.94 * gpu if gpu else float("inf")
    layers = {"all": shape.layers, "auto": 0}.get(recompute)
    settings = replace(settings, recomputed_layers=min(shape.layers, int(recompute)) if layers is None else layers)
    if recompute == "auto":
        choices = [replace(settings, recomputed_layers=n) for n in range(shape.layers + 1)]
        settings = next((choice for choice in choices if total(choice) <= there), settings)
    words = describe_memory(memory_by_part(model, shape, settings))
    if total(settings) > there:
        advice = "take a larger one"
        if flags:
            advice = suggest_flags(settings, shape, lambda changed: total(changed) <= there)
        raise UserError(f"training {words}; this GPU has {gpu / GIB:.0f}; {advice}")
    if settings.recomputed_layers:
        words += f" ({settings.recomputed_layers} of {shape.layers} layers computed twice)"
    return settings, words + (f"; this GPU has {gpu / GIB:.0f}" if gpu else "")


def suggest_flags(settings: TrainingSettings, shape: ModelShape, fits) -> str:
    """The first that would do, of flags in the order of what they cost."""
    settings = replace(settings, recomputed_layers=shape.layers)
    micro, bf16, int8 = (
        ("--micro_batch 1", {"micro_batch": 1}),
        ("--optim_state_dtype bf16", {"optim_state_dtype": "bf16"}),
        ("--optim_state_dtype int8", {"optim_state_dtype": "int8"}),
    )
    for choice in ((), (micro,), (bf16,), (micro, bf16), (int8,), (micro, int8)):
        changed = settings
        for _, change in choice:
            changed = replace(changed, **change)
        if fits(changed):
            return "it fits with " + " ".join(["--gradient_checkpointing", *(f for f, _ in choice)])
    return "it fits with --lora_rank 16, or on more GPUs"
