"""Floating-point operations of training, from the shape of a model."""

from dataclasses import dataclass

from utils.checkpoint import text_config

# Dense bf16 FLOP/s from the vendors' data sheets, by a substring of the device name.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder: `parameters` in total, `trained` of them, `embedding` those of an input embedding that is
    not tied to the output layer (0 where it is: then it multiplies)."""

    parameters: int
    trained: int
    embedding: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int  # of all key heads
    vocabulary: int


def model_shape(model) -> ModelShape:
    """The shape of a model's language part. Recurrent models are counted as if they had attention."""
    config = text_config(model)
    heads = _size(config, "num_attention_heads") or 1
    hidden = config.hidden_size
    kv_heads = _size(config, "num_key_value_heads") or heads
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is None or head.weight is embedding
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        embedding=0 if tied else embedding.numel(),
        layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=_size(config, "intermediate_size") or 4 * hidden,
        kv_width=kv_heads * (_size(config, "head_dim") or hidden // heads),
        vocabulary=config.vocab_size,
    )


def _size(config, name: str) -> int | None:
    """A size of a configuration, the largest where it has one per layer; None where it has none."""
    value = getattr(config, name, None)
    return max(value) if isinstance(value, list) else value


def flops_per_token(shape: ModelShape, block_size: int) -> float:
    """FLOPs per token, forward and backward: 6 per weight that multiplies, plus 12 · layers · hidden · block for
    attention, ignoring causality (Chowdhery et al., PaLM, 2022, appendix B). Recomputation is not counted, as MFU
    measures useful work."""
    multiplied = shape.parameters - shape.embedding
    return 6 * multiplied + 12 * shape.layers * shape.hidden * block_size


def mfu(tokens_per_s: float, flops: float, device_name: str, devices: int) -> float | None:
    """Model FLOPs utilisation relative to the dense bf16 peak; None for a device that is not in PEAK_FLOPS."""
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)
    return tokens_per_s * flops / (peak * devices) if peak else None
