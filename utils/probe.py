"""Probes: which shortcuts give the result of plain forward passes on the model at hand.

Architectures differ in what they honour (position ids, attention masks, padding, caches), and one that ignores an
argument returns wrong numbers without an error. A probe computes random tokens both ways, on lengths that exceed
every attention window of the model.
"""

import re
from collections.abc import Callable, Iterator

import torch

from utils.checkpoint import context_length, text_config

# What models raise for arguments, masks or caches that they do not support.
UNSUPPORTED = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)
ROUNDING = {torch.float32: 1e-4}  # of log-probabilities and logits
ROUNDING_16_BIT = 0.25  # logits near 20 are rounded to 1/16 in bf16
WINDOW = re.compile(r"(window|window_size|window_sizes|chunk_size|local_attention)$")
MARGIN = 16  # tokens beyond a window
DOCUMENT = 24  # tokens of a document in `separates_documents`
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope", "su"}  # rotary frequencies depend on the longest position of a batch


def rounding(model) -> float:
    """Largest difference of logits that is due to rounding in the model's dtype."""
    return ROUNDING.get(model.dtype, ROUNDING_16_BIT)


def windows(model) -> list[int]:
    """Lengths in tokens, below the context length, of the model's attention windows and chunks, in ascending order."""
    limit = context_length(model) or float("inf")
    found = {v for name, v in _numbers(text_config(model).to_dict()) if WINDOW.search(name) and 0 < v < limit}
    return sorted(found)


def rope_boundary(model) -> int | None:
    """Number of tokens above which the model's rotary frequencies change; None where they are constant."""
    config = text_config(model).to_dict()
    kinds = {v for name, v in _entries(config) if name in ("rope_type", "type") and isinstance(v, str)}
    if not kinds & LENGTH_DEPENDENT_ROPE:
        return None
    original = [v for name, v in _numbers(config) if name == "original_max_position_embeddings"]
    return min(original, default=context_length(model) or 0)


def random_ids(model, length: int, seed: int) -> list[int]:
    """Token ids from 3 (the ids below are often special) to the vocabulary's size, at most 1,000."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min(1000, text_config(model).vocab_size)
    return torch.randint(min(3, vocabulary - 1), vocabulary, (length,), generator=generator).tolist()


def logits_of(model, ids: list[int], **arguments: object) -> torch.Tensor:
    """(tokens, vocabulary) fp32 logits of one plain forward pass."""
    batch = torch.tensor([ids], device=model.device)
    return model(input_ids=batch, **{"use_cache": False} | arguments).logits[0].float()


def probe_length(model) -> int:
    """Tokens of a probe: more than every window, and no more than the context."""
    longest = max([*windows(model), rope_boundary(model) or 0])
    return min(longest + MARGIN, context_length(model) or longest + MARGIN)


def agrees(expected: torch.Tensor, compute: Callable[[], torch.Tensor], tolerance: float) -> bool:
    """True if `compute` returns `expected` within `tolerance`; False also where the model does not support it."""
    try:
        result = compute()
    except UNSUPPORTED:
        return False
    return result.shape == expected.shape and bool((result - expected).abs().max() <= tolerance)


@torch.no_grad()
def is_causal(model) -> bool:
    """True if the logits of a token do not depend on the tokens after it."""
    ids, other = random_ids(model, DOCUMENT, 1), random_ids(model, DOCUMENT, 2)
    begin, end = ids[: DOCUMENT // 2], other[: DOCUMENT // 2]
    expected = logits_of(model, ids)[: len(begin)]
    return agrees(expected, lambda: logits_of(model, begin + end)[: len(begin)], rounding(model))


@torch.no_grad()
def separates_documents(model) -> bool:
    """True if, with position ids that restart at each document, the logits of a document do not depend on the
    documents before it in the block (--mask_documents)."""
    before, document = random_ids(model, DOCUMENT, 1), random_ids(model, DOCUMENT, 2)
    positions = torch.arange(DOCUMENT, device=model.device).repeat(1, 2)

    def packed() -> torch.Tensor:
        return logits_of(model, before + document, position_ids=positions)[DOCUMENT:]

    return agrees(logits_of(model, document), packed, rounding(model))


@torch.no_grad()
def cache_reuse(model) -> str:
    """The reuse of a key-value cache that gives the logits of plain forward passes: `any` prefix of its tokens,
    `extended` (the whole cache, with more tokens), or `none`."""
    ids, tokens = random_ids(model, probe_length(model), 1), 4
    other = ids[:-tokens] + random_ids(model, tokens, 2)
    limit = rounding(model)

    def extended(cache, new: list[int]) -> torch.Tensor:
        rows = [logits_of(model, [token], past_key_values=cache, use_cache=True) for token in new]
        return torch.cat(rows)

    def start():
        first = torch.tensor([ids[:-tokens]], device=model.device)
        return model(input_ids=first, use_cache=True).past_key_values

    def cropped() -> torch.Tensor:
        cache = start()
        extended(cache, ids[-tokens:])
        cache.crop(-tokens)  # transformers 5.23: minus the tokens to remove
        return extended(cache, other[-tokens:])

    if agrees(logits_of(model, other)[-tokens:], cropped, limit):
        return "any"
    return (
        "extended"
        if agrees(logits_of(model, ids)[-tokens:], lambda: extended(start(), ids[-tokens:]), limit)
        else "none"
    )


@torch.no_grad()
def pads_on_the_left(model) -> bool:
    """True if `generate` predicts the same after a prompt that is padded on the left, to more than every window."""
    ids = random_ids(model, DOCUMENT, 1)
    padding = max(probe_length(model) - DOCUMENT, MARGIN)
    mask = torch.tensor([[0] * padding + [1] * DOCUMENT], device=model.device)
    padded = torch.tensor([[ids[0]] * padding + ids], device=model.device)

    def predicted(batch: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        options = {"do_sample": False, "max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
        output = model.generate(input_ids=batch, attention_mask=mask, eos_token_id=None, pad_token_id=0, **options)
        return torch.cat([logits.float() for logits in output.logits])

    expected = predicted(torch.tensor([ids], device=model.device), mask[:, padding:])
    return agrees(expected, lambda: predicted(padded, mask), rounding(model))


def _entries(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield every (key, scalar) of nested dictionaries and lists; items of a list have the list's key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entries(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, name)
    else:
        yield name, value


def _numbers(config: dict) -> Iterator[tuple[str, int]]:
    return ((name, v) for name, v in _entries(config) if isinstance(v, int) and not isinstance(v, bool))
