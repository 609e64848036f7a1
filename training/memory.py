"""Memory of training: an estimate by part, and the gradient checkpointing that makes a run fit."""

from dataclasses import replace

import torch

from training.flops import ModelShape, model_shape
from training.hardware import choose_micro_batch, shard_ranks
from training.loss import chunk_tokens, has_linear_head
from training.optim import STATE_BYTES
from training.settings import TrainingSettings
from utils.device import device_type
from utils.errors import UserError

GIB = 2**30
USABLE = 0.94  # of a GPU's memory; the rest is for CUDA's context, fragmentation and what the estimate omits


def memory_bytes(
    shape: ModelShape, settings: TrainingSettings, micro_batch: int, ranks: int, logits_tokens: int | None = None
) -> dict[str, float]:
    """Bytes by part on one of `ranks` devices that shard weights, gradients and optimizer state.

    A trained parameter takes 4 bytes of fp32 weight, 4 of gradient, STATE_BYTES of optimizer state, and in bf16 2
    for the cast copy; a frozen parameter only its weight. Activations are an estimate of what the backward pass of
    a Llama layer keeps with SDPA (no block × block matrix); a checkpointed layer keeps its input only. The logits
    of `logits_tokens` (default: all) exist at once, with the gradient of the output layer.
    """
    bf16 = settings.precision == "bf16"
    width = 2 if bf16 else 4
    tokens = micro_batch * settings.block_size
    recomputed = settings.recomputed_layers
    # Two norms in fp32 and their outputs; queries and the attention output; keys and values; the MLP's gate, up,
    # product and activation.
    layer = tokens * (2 * 4 * shape.hidden + width * (4 * shape.hidden + 2 * shape.kv_width + 4 * shape.intermediate))
    activations = (shape.layers - recomputed) * layer
    if recomputed:  # the inputs, and one layer at a time in full
        activations += recomputed * tokens * width * shape.hidden + layer
    # As computed, in fp32, and their gradient.
    logits = min(tokens, logits_tokens or tokens) * shape.vocabulary * (width + 4 + 4)
    if logits_tokens:
        logits += 4 * shape.vocabulary * shape.hidden
    frozen = shape.parameters - shape.trained
    parts = {
        "weights": (4 * shape.trained + width * frozen) / ranks,
        "gradients": 4 * shape.trained / ranks,
        "optimizer": STATE_BYTES[settings.optim_state_dtype] * shape.trained / ranks,
    }
    if bf16:
        parts["bf16 copies"] = 2 * shape.trained / ranks
    return parts | {"activations": activations + logits}


def memory_by_part(model, shape: ModelShape, settings: TrainingSettings) -> dict[str, float]:
    """memory_bytes of a run on this machine."""
    logits_tokens = chunk_tokens(shape.vocabulary, device_type()) if has_linear_head(model) else None
    return memory_bytes(shape, settings, choose_micro_batch(settings), shard_ranks(settings), logits_tokens)


def describe_memory(parts: dict[str, float]) -> str:
    """`needs about 97.0 GiB: weights 30.0, …`"""
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return f"needs about {sum(parts.values()) / GIB:.1f} GiB: {listed}"


def fit_memory(
    model, settings: TrainingSettings, checkpointing: str, suggest: bool = True
) -> tuple[TrainingSettings, str]:
    """The settings with gradient checkpointing resolved, and the memory that the run needs, in words.

    `checkpointing` is `all`, a number of layers, or `auto`: on a GPU as few layers as fit, on a CPU none. Raises
    UserError where the GPU has less memory; with `suggest` it names the train.py flags that would help.
    """
    shape = model_shape(model)
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    limit = USABLE * gpu_bytes if gpu_bytes else float("inf")

    def fits(changed: TrainingSettings) -> bool:
        return sum(memory_by_part(model, shape, changed).values()) <= limit

    layers = {"all": shape.layers, "auto": 0}.get(checkpointing)
    layers = min(shape.layers, int(checkpointing)) if layers is None else layers
    settings = replace(settings, recomputed_layers=layers)
    if checkpointing == "auto":
        choices = [replace(settings, recomputed_layers=n) for n in range(shape.layers + 1)]
        settings = next((choice for choice in choices if fits(choice)), settings)
    words = describe_memory(memory_by_part(model, shape, settings))
    available = f"; this GPU has {gpu_bytes / GIB:.0f}" if gpu_bytes else ""
    if not fits(settings):
        advice = suggest_flags(settings, shape, fits) if suggest else "use a larger one"
        raise UserError(f"training {words}{available}; {advice}")
    if settings.recomputed_layers:
        words += f" ({settings.recomputed_layers} of {shape.layers} layers checkpointed)"
    return settings, words + available


def suggest_flags(settings: TrainingSettings, shape: ModelShape, fits) -> str:
    """The first combination of flags that fits, in increasing order of cost."""
    micro, bf16, int8 = {"micro_batch": 1}, {"optim_state_dtype": "bf16"}, {"optim_state_dtype": "int8"}
    for changes in ({}, micro, bf16, micro | bf16, int8, micro | int8):
        if fits(replace(settings, recomputed_layers=shape.layers, **changes)):
            flags = [f"--{name} {value}" for name, value in changes.items()]
            return " ".join(["it fits with --gradient_checkpointing", *flags])
    return "it fits with --lora_rank 16, or on more GPUs"
