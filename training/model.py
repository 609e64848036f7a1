"""Model loading, gradient checkpointing, torch.compile and LoRA."""

import os
from pathlib import Path

import torch
from transformers.modeling_layers import GradientCheckpointingLayer  # transformers 5.23

from training.loss import use_chunked_loss
from training.settings import TrainingSettings
from utils.checkpoint import load_checkpoint
from utils.errors import UserError


def load_model(name: str):
    """A causal language model with fp32 weights: at a learning rate of 5e-6 an update of a bf16 weight near 0.02
    is less than half of the weight's last bit, and would be rounded away."""
    model = load_checkpoint(name, torch.float32, "--model_name")
    model.config.use_cache = False
    check_master_weights(model)
    return model


def check_master_weights(model) -> None:
    """Raises UserError unless every trained weight is fp32."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(f"{name}: loaded as {parameter.dtype}; trained weights must be fp32")


def prepare_model(model, settings: TrainingSettings) -> None:
    """Apply gradient checkpointing, the chunked loss and torch.compile as the settings say."""
    checkpoint_layers(model, settings.recomputed_layers)
    use_chunked_loss(unwrap_peft(model), settings.compiled)
    if settings.compiled:
        compile_layers(model)


def decoder_layers(model) -> list:
    """The decoder layers in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_layers(model, layers: int) -> None:
    """Gradient checkpointing of the first `layers` layers."""
    if layers:
        model.gradient_checkpointing_enable()
        for layer in decoder_layers(model)[layers:]:
            layer.gradient_checkpointing = False


def compile_layers(model) -> None:
    """torch.compile each decoder layer. They share one graph, compiled in 10 to 14 s (SmolLM2-135M, two cores)."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache/torchinductor"))
    for layer in decoder_layers(model):
        layer.compile(dynamic=False)


def use_document_attention(model) -> None:
    """Let attention derive document boundaries from the position ids without a dense block × block mask: on a GPU
    by flex attention, whose backward pass has no CPU implementation; on a CPU SDPA builds the mask."""
    if torch.cuda.is_available():
        model.set_attn_implementation("flex_attention")


def add_lora(model, rank: int, seed: int, bf16: bool):
    """Add low-rank adapters (Hu et al., LoRA, 2021) to every linear layer except the output layer. Only the
    adapters are trained, in fp32; with `bf16` the frozen weights are stored in bf16."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError(f"--lora_rank: run: pip install peft ({error})") from error
    if bf16:
        model.to(torch.bfloat16)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=True)


def unwrap_peft(model):
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
