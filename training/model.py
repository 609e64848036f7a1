"""Model loading, gradient checkpointing, torch.compile and LoRA."""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.nn.modules.conv import _ConvNd
from transformers import GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer  # transformers 5.23

from training.loss import use_chunked_loss
from training.settings import TrainingSettings
from utils import paths
from utils.checkpoint import context_length, load_checkpoint, quantization_method, text_config
from utils.cli import print_main
from utils.device import is_main_process
from utils.errors import UserError, first_line
from utils.probe import is_causal, separates_documents

MAX_TRIAL_BYTES = 64 << 30  # two minutes at 500 MB/s


def load_model(name: str):
    """A causal language model with fp32 weights: at a learning rate of 5e-6 an update of a bf16 weight near 0.02
    is less than half of the weight's last bit, and would be rounded away. Of a model for text and images only the
    language part is trained.

    Raises UserError for quantised weights, which have no gradients, and for models that see later tokens.
    """
    model = load_checkpoint(name, torch.float32, "--model_name")
    if method := quantization_method(model.config):
        raise UserError(f"--model_name {name}: its weights are quantised ({method}); name the unquantised model")
    text_config(model).use_cache = False
    check_master_weights(model)
    freeze_other_parts(model)
    if not is_causal(model):
        raise UserError(f"--model_name {name}: not a causal language model: its predictions depend on later tokens")
    return model


def freeze_other_parts(model) -> None:
    """Freeze what text does not pass through, such as a vision tower."""
    used = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    text = {id(p) for module in used if module is not None for p in module.parameters()}
    if model.get_decoder() is None or model.config is text_config(model):
        return
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in text)


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


def check_block_size(model, block_size: int, name: str) -> None:
    """Raises UserError for blocks longer than the context that the model was made for."""
    context = context_length(model)
    if context is not None and block_size > context:
        raise UserError(f"--block_size {block_size}: the context of {name} is {context} tokens; give at most that")


def check_saving(model, tokenizer, folder: Path) -> None:
    """Save model and tokenizer once, as every checkpoint will, and remove the copy: an error at the first checkpoint
    would lose the steps before it. Of a generation config that transformers refuses to save, such as one with a
    temperature but without sampling, only the special tokens are kept. Of models above MAX_TRIAL_BYTES everything but
    the weights is saved: other ranks wait for rank 0, and give up after ten minutes.

    Raises UserError where they cannot be saved.
    """
    base = unwrap_peft(model)
    try:
        base.generation_config.validate(strict=True)
    except ValueError as error:
        print_main(f"generation_config.json: {first_line(error)}; saved with its special tokens only")
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        base.generation_config = GenerationConfig(**{name: getattr(base.generation_config, name) for name in names})
    if not is_main_process() or any(folder.glob(f"checkpoint-*/{paths.COMPLETE}")):
        return
    trial = folder / ".trial"
    try:
        if sum(p.numel() * p.element_size() for p in model.parameters()) <= MAX_TRIAL_BYTES:
            model.save_pretrained(trial)
        base.config.save_pretrained(trial)
        base.generation_config.save_pretrained(trial)
        tokenizer.save_pretrained(trial)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the model could not be saved there ({first_line(error)}); training would be lost"
        ) from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def decoder_layers(model) -> list:
    """The trained decoder layers in order."""
    trained = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [layer for layer in trained if any(p.requires_grad for p in layer.parameters())]


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


def use_document_attention(model, name: str) -> None:
    """Let attention derive document boundaries from the position ids without a dense block × block mask: on a GPU
    by flex attention, whose backward pass has no CPU implementation; on a CPU SDPA builds the mask.

    Raises UserError where text of one document would reach the next; `name` is the model's.
    """
    kind = text_config(model).model_type
    if not separates_documents(model):
        raise UserError(
            f"--mask_documents: {name} ({kind}) does not separate documents by position ids: text of one would reach "
            "the next; leave the option out"
        )
    if torch.cuda.is_available():
        try:
            model.set_attn_implementation("flex_attention")
        except ValueError as error:
            raise UserError(f"--mask_documents: {name} ({kind}) has no flex attention; leave the option out") from error


def add_lora(model, rank: int, seed: int, bf16: bool):
    """Add low-rank adapters (Hu et al., LoRA, 2021) to every linear layer except the output layer, and to the weights
    of experts. Only the adapters are trained, in fp32; with `bf16` the frozen weights are stored in bf16."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError(f"--lora_rank: run: pip install peft ({error})") from error
    largest = max(max(weight.shape) for weight in model.parameters())
    if rank > largest:
        raise UserError(f"--lora_rank {rank}: more than any matrix of the model has ({largest:,}); 8 to 64 are usual")
    if bf16:
        model.to(torch.bfloat16)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=frozen_modules(model),
        target_parameters=expert_parameters(model),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=True)


def frozen_modules(model) -> list[str]:
    """Names of the linear layers that are not trained (freeze_other_parts)."""
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name, module in linear if not module.weight.requires_grad]


def expert_parameters(model) -> list[str]:
    """Names of the trained (experts, rows, columns) weights of mixture-of-experts layers, which are in no linear layer."""
    convolutions = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, _ConvNd))
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return [name for name, weight in named if weight.dim() == 3 and not name.startswith(convolutions)]


def unwrap_peft(model):
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
