"""Chunked cross-entropy against torch's."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

from training import loss


def reference(hidden, weight, bias, labels):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("trained_head", [True, False])
def test_loss_and_gradients_match_torch(with_bias, trained_head, monkeypatch):
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 50 * 16)  # chunks of 16 tokens: 3 full ones and a remainder
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(55, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(50, generator=generator, dtype=torch.float64) if with_bias else None
    labels = torch.randint(50, (55,), generator=generator)
    labels[::7] = -100
    labels[16:32] = -100  # a full chunk
    results = []
    for function in (reference, loss.sum_cross_entropy):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained_head)]
        leaves += [] if bias is None else [bias.clone().requires_grad_(trained_head)]
        value = function(*(leaves if with_bias else [*leaves, None]), labels)
        (value / 3).backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=1e-6)


def test_large_loss_is_finite():
    weight = torch.tensor([[500.0], [-500.0]])
    hidden = torch.ones(1, 1, requires_grad=True)
    value = loss.sum_cross_entropy(hidden, weight, None, torch.tensor([1]))
    assert value.item() == 1000
    value.backward()
    assert hidden.grad.item() == 1000


SMALL = {"vocab_size": 90, "num_hidden_layers": 2}
MODELS = {
    "tied llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, hidden_size=16, intermediate_size=32, num_attention_heads=2, tie_word_embeddings=True)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, hidden_size=16, intermediate_size=32, num_attention_heads=2)
    ),
    "gptj": lambda: GPTJForCausalLM(
        GPTJConfig(vocab_size=90, n_layer=2, n_embd=16, n_head=2, rotary_dim=4, n_positions=64)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_model_gradients_match_and_the_head_is_restored(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().train()
    ids = torch.randint(90, (2, 40))
    labels = ids.clone()
    labels[0, :9] = -100
    results = []
    for chunked in (False, True):
        if chunked:
            assert loss.use_chunked_loss(model, compiled=False)
        for options in ({}, {"num_items_in_batch": torch.tensor(50)}):
            model.zero_grad()
            value = model(input_ids=ids, labels=labels, **options).loss
            value.backward()
            results.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
        with torch.no_grad():
            results.append([model(input_ids=ids, labels=labels).loss])
    for plain, ours in zip(results[:3], results[3:], strict=True):
        for a, b in zip(plain, ours, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    loss.restore_head(model)
    assert model(input_ids=ids).logits.shape == (2, 40, 90)


def test_unknown_model_type_keeps_its_loss():
    model = MODELS["llama"]()
    model.config.model_type = "gemma2"
    assert not loss.use_chunked_loss(model, compiled=False)
