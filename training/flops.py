"""What a training step takes, by arithmetic: floating-point operations and memory.

It knows a model's shape, nothing of how it is trained.
"""

from dataclasses import dataclass

GIB = 2**30
# Dense bf16 FLOP/s by the makers' data sheets, by a part of the device's name.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


@dataclass(frozen=True)
class Shape:
    """A decoder: `parameters` are all, `trained` those that learn, `embedding` those of the input
    embedding alone (0 where the output layer shares them, which is a multiplication)."""

    parameters: int
    trained: int
    embedding: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int  # of all key heads together
    vocabulary: int


def shape_of(model) -> Shape:
    config = model.config
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        embedding=0 if tied else embedding.numel(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        kv_width=kv_heads * head_width,
        vocabulary=config.vocab_size,
    )


def flops_per_token(shape: Shape, block_size: int) -> float:
    """Of training, forward and backward: 6 for every weight that multiplies, and 12 · layers ·
    hidden · block for the products of attention, counted without the causal half (Chowdhery et al.,
    PaLM, 2022, appendix B). Recomputation is not counted: MFU is of useful work."""
    multiplied = shape.parameters - shape.embedding
    return 6 * multiplied + 12 * shape.layers * shape.hidden * block_size


def mfu(tokens_per_s: float, flops: float, device_name: str, devices: int) -> float | None:
    """Model FLOPs utilisation, of the devices' dense bf16 peak; None for a device not in the table."""
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)
    return tokens_per_s * flops / (peak * devices) if peak else None


def memory_bytes(
    shape: Shape,
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
    layer = tokens * (
        2 * 4 * shape.hidden
        + width * (4 * shape.hidden + 2 * shape.kv_width + 4 * shape.intermediate)
    )
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


def in_words(parts: dict[str, float]) -> str:
    """`needs about 97 GiB: weights 30, …`"""
    listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    return f"needs about {sum(parts.values()) / GIB:.1f} GiB: {listed}"
