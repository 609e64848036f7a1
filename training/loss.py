"""Next-token cross-entropy from the last hidden states, without the (tokens, vocabulary) logits.

The logits of a 2 × 2048-token micro-batch over Llama 3's vocabulary of 128,256 take 2.1 GB in fp32, and their
gradient as much again. Here they are computed and freed one chunk of tokens at a time, together with the gradient
of the output layer, so that nothing is computed twice.
"""

import torch
from torch.nn.functional import cross_entropy, pad

from utils.token_file import IGNORE_INDEX

# Model types whose logits are a linear output layer of the hidden states, without soft cap or scaling.
LINEAR_HEADS = {"llama", "mistral", "qwen2", "qwen3", "gptj", "gpt_neox", "gpt2"}
CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}  # elements: 128 MiB and 1 GiB in fp32


def has_linear_head(model) -> bool:
    """True if the logits are a linear output layer of the hidden states and nothing else."""
    return model.config.model_type in LINEAR_HEADS


def use_chunked_loss(model, compiled: bool) -> bool:
    """Make a transformers model compute its loss in chunks; returns False for model types not in LINEAR_HEADS.

    The output layer passes the hidden states on, and the loss function multiplies them by its weight, so that the
    hooks of FSDP and DDP around the output layer stay in place. Undo with `restore_head` before computing logits.
    """
    if not has_linear_head(model):
        return False
    head = model.get_output_embeddings()
    gradient = torch.compile(_softmax_minus_target, dynamic=False) if compiled else None
    head.forward = lambda hidden: hidden

    def loss_function(logits, labels, vocab_size, num_items_in_batch=None, shift_labels=None, **unused):
        if shift_labels is None:
            shift_labels = pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
        total = sum_cross_entropy(logits, head.weight, head.bias, shift_labels, gradient)
        counted = (shift_labels != IGNORE_INDEX).sum()
        return total / (counted if num_items_in_batch is None else num_items_in_batch)

    model.loss_function = loss_function
    return True


def shifted_cross_entropy(output, labels, num_items_in_batch=None) -> torch.Tensor:
    """The loss of a model whose output layer is not in LINEAR_HEADS, from its logits. The model's own loss is not
    used: some do not shift the labels, or average over each micro-batch."""
    logits = output.logits[:, :-1].flatten(0, 1).float()
    targets = labels[:, 1:].flatten().to(logits.device)
    total = cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / ((targets != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch)


def restore_head(model) -> None:
    """Undo `use_chunked_loss`."""
    model.get_output_embeddings().__dict__.pop("forward", None)
    model.__dict__.pop("_loss_function", None)  # transformers 5.23


def sum_cross_entropy(hidden, weight, bias, labels, gradient=None) -> torch.Tensor:
    """Σ −log softmax(hidden · weightᵀ + bias)[label] over labels other than IGNORE_INDEX.

    hidden: (…, width); weight: (vocabulary, width); bias: (vocabulary,) or None; labels: (…), already shifted.
    Matrix products use autocast's dtype where autocast is on, softmax and sums use fp32. `gradient` may be a
    compiled `_softmax_minus_target`.
    """
    flat, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    gradient = gradient or _softmax_minus_target
    device = flat.device.type
    if torch.is_autocast_enabled(device):
        flat = flat.to(torch.get_autocast_dtype(device))
    size = chunk_tokens(weight.shape[0], device)
    if not torch.is_grad_enabled():
        starts = range(0, len(flat), size)
        return sum(_loss(flat[i : i + size], weight, bias, labels[i : i + size]) for i in starts)
    return _SumCrossEntropy.apply(flat, weight, bias, labels, size, gradient)


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens per chunk: a power of two, which divides the usual block sizes."""
    most = CHUNK_LOGITS.get(device, CHUNK_LOGITS["cuda"]) // vocabulary
    return 1 << max(4, most.bit_length() - 1)


def _logits(hidden, weight, bias):
    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    return logits if bias is None else logits.add_(bias)


def _loss(hidden, weight, bias, labels):
    logits = _logits(hidden, weight, bias)
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def _softmax_minus_target(logits, labels):
    """The summed loss, and its gradient with respect to the logits, (tokens, vocabulary)."""
    counted = (labels != IGNORE_INDEX)[:, None]
    target = labels.clamp(min=0)[:, None]
    log_p = torch.log_softmax(logits, -1)
    loss = -(log_p.gather(1, target) * counted).sum()
    gradient = log_p.exp()
    gradient.scatter_add_(1, target, torch.full_like(target, -1, dtype=gradient.dtype))
    return loss, gradient * counted


class _SumCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, size, gradient_of):
        total = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        multiplied = weight.to(hidden.dtype)
        for start in range(0, len(hidden), size):
            part = hidden[start : start + size]
            loss, gradient = gradient_of(_logits(part, multiplied, bias), labels[start : start + size])
            total += loss
            if d_bias is not None:
                d_bias += gradient.sum(0)
            gradient = gradient.to(hidden.dtype)
            torch.mm(gradient, multiplied, out=d_hidden[start : start + size])
            if d_weight is not None and d_weight.dtype == hidden.dtype:
                d_weight.addmm_(gradient.t(), part)
            elif d_weight is not None:
                d_weight += gradient.t() @ part
        ctx.gradients = d_hidden, d_weight, d_bias
        return total

    @staticmethod
    def backward(ctx, scale):
        gradients = [g if g is None else g.mul_(scale) for g in ctx.gradients]
        del ctx.gradients
        return *gradients, None, None, None
