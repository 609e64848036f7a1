"""What is done to a model's layers before it learns: computed twice, compiled, or frozen beside adapters."""

import os
from pathlib import Path

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from training.loss import use_chunked_loss
from training.settings import TrainingSettings
from utils.checkpoint import load_checkpoint
from utils.errors import UserError


def decoder_layers(model) -> list:
    """The decoder's layers, from the first to the last."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def use_document_attention(model) -> None:
    """Have attention read the documents' borders off the position ids, without a dense block × block
    mask: flex attention, which trains on GPUs alone; on a CPU SDPA makes the mask."""
    if torch.cuda.is_available():
        model.set_attn_implementation("flex_attention")


def checkpoint_layers(model, layers: int) -> None:
    """Let the backward pass compute the first `layers` layers' activations again."""
    if layers:
        model.gradient_checkpointing_enable()
        for layer in decoder_layers(model)[layers:]:
            layer.gradient_checkpointing = False


def compile_layers(model) -> None:
    """torch.compile of the layers, one after the other: they are alike, so the first one's code serves
    all, and it takes 10 to 14 s (SmolLM2-135M, two cores). The code is kept between runs."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache/torchinductor"))
    for layer in decoder_layers(model):
        layer.compile(dynamic=False)


def add_lora(model, rank: int, seed: int, bf16: bool):
    """Low-rank adapters (Hu et al., LoRA, 2021) beside every linear layer but the output layer; they
    alone learn, in fp32. The rest is kept in bf16 where the arithmetic is."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError(f"--lora_rank: run: pip install peft ({error})") from error
    if bf16:
        model.to(torch.bfloat16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(
            model,
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
            autocast_adapter_dtype=True,
        )


def unwrap_peft(model):
    """The model of transformers inside the adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def load_model(name: str):
    """A causal language model with fp32 weights: at a rate of 5e-6 a bf16 weight near 0.02 would
    move by less than half of its last bit, that is not at all."""
    model = load_checkpoint(name, torch.float32, "--model_name")
    model.config.use_cache = False
    check_master_weights(model)
    return model


def check_master_weights(model) -> None:
    """Raises UserError where a weight that is trained is not fp32."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(f"{name}: loaded as {parameter.dtype}, and the weights that are trained must be fp32")


def prepare_model(model, settings: TrainingSettings) -> None:
    checkpoint_layers(model, settings.recomputed_layers)
    use_chunked_loss(unwrap_peft(model), settings.compiled)
    if settings.compiled:
        compile_layers(model)
