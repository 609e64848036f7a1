"""Every causal architecture: scoring, masked documents, chat and training equal plain forward passes, or are refused."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.mixture import BlockDataset, Plan
from data.packing import TextBlocks
from tests.architectures import NAMES, SPECIAL, VOCABULARY, WINDOW, make_model
from training import memory, trainer
from training.model import load_model, use_document_attention
from training.settings import TrainingSettings
from utils import probe
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

ALL = [*NAMES, *SPECIAL]
FAST = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gptj"]
NOT_CAUSAL = {"bert"}
LEAKING = {
    "lfm2",
    "qwen3_next",
    "falcon_h1",
    "granitemoehybrid",
    "bloom",
    "mpt",
    "falcon",
    "falcon-alibi",
    "opt",
    "gpt_oss",
    "mamba",
    "jamba",
    "bart",
}
SIZE = 24  # tokens per block, more than a window


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that returns the folder of an architecture's checkpoint, whose words w3, w4, … are tokens."""

    @functools.cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("architectures") / name
        make_model(name).save_pretrained(folder)
        vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
        return folder

    return save


def random_ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist()


def plain_logits(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def plain_logprob(model, prompt: list[int], ids: list[int]) -> float:
    logprobs = plain_logits(model, prompt + ids).log_softmax(-1)
    return float(sum(logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(ids)))


@pytest.mark.parametrize("name", ALL)
def test_scoring_equals_plain_passes(checkpoint, name):
    """Prompts that share their beginning, shorter and longer than every window, with continuations of 1 to 6 tokens."""
    from inference.loglikelihood import choose_scorer

    model = make_model(name)
    if name in NOT_CAUSAL:
        with pytest.raises(UserError, match="not a causal language model"):
            choose_scorer(model, name)
        return
    start = random_ids(0, 9)
    prompts = [start + random_ids(1, 2), start + random_ids(2, 3 * WINDOW), random_ids(3, 2 * WINDOW), start]
    encoded = [(prompt, [random_ids(4 + i, n) for n in (1, 3, 6)]) for i, prompt in enumerate(prompts)]
    scores = choose_scorer(model, name).score(model, encoded)
    for (prompt, continuations), row in zip(encoded, scores, strict=True):
        assert row == pytest.approx([plain_logprob(model, prompt, ids) for ids in continuations], abs=1e-4)


@pytest.mark.parametrize("name", FAST)
def test_the_tree_is_used_where_it_is_exact(name):
    from inference.loglikelihood import choose_scorer

    assert choose_scorer(make_model(name), name).tree_tokens == float("inf")


def test_the_tree_is_used_below_a_window():
    from inference.loglikelihood import choose_scorer, score_cached

    scorer = choose_scorer(make_model("mistral"), "mistral")
    assert (scorer.tree_tokens, scorer.other) == (WINDOW, score_cached)


@pytest.mark.parametrize("name", ALL)
def test_masked_documents_do_not_leak_or_are_refused(name):
    """The logits of a document in a packed block do not depend on the documents before it."""
    model = make_model(name)
    try:
        use_document_attention(model, name)
    except UserError as error:
        assert "--mask_documents" in str(error)
        assert name not in FAST
        return
    assert name not in LEAKING
    packed = []
    for seed in (1, 2):
        ids = np.array(random_ids(seed, 7) + random_ids(3, 10) + random_ids(4, 7), np.int32)
        item = TextBlocks(ids, SIZE, np.array([7, 17, 24], np.uint64))[0]
        arguments = {key: torch.from_numpy(item[key])[None] for key in ("input_ids", "position_ids")}
        with torch.no_grad():
            packed.append(model(**arguments, use_cache=False).logits[0])
    assert (packed[0][7:] - packed[1][7:]).abs().max() < 1e-5
    torch.testing.assert_close(packed[0][7:17], plain_logits(model, random_ids(3, 10)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NOT_CAUSAL])
def test_chat_with_a_cache_equals_chat_without(checkpoint, name):
    """Token by token, then a second prompt that shares a beginning with the first, beyond every window."""
    from chat.local_engine import LocalEngine

    engine = LocalEngine(str(checkpoint(name)), complete=True)
    first, second = random_ids(1, 30), random_ids(1, 20) + random_ids(2, 20)
    for ids in (first, [*first, 5], [*first, 5, 7], second, [*second, 9], first[:5], [*first[:5], 4]):
        torch.testing.assert_close(engine._next_logits(ids), plain_logits(engine._model, ids)[-1], atol=1e-4, rtol=0)


def test_chat_reuses_the_cache_where_it_is_exact():
    assert [probe.cache_reuse(make_model(name)) for name in FAST] == ["any"] * len(FAST)
    assert probe.cache_reuse(make_model("mistral")) == "extended"
    assert probe.cache_reuse(make_model("mamba")) == "none"


@pytest.mark.parametrize("name", ALL)
def test_a_step_of_training_equals_a_plain_loop(checkpoint, name, tmp_path):
    """Losses of two steps, the second after an AdamW update; the last block is partial. The saved model loads."""
    if name in NOT_CAUSAL:
        with pytest.raises(UserError, match="not a causal language model"):
            load_model(str(checkpoint(name)))
        return
    model, plain = load_model(str(checkpoint(name))), make_model(name).train()
    ids = np.array(random_ids(0, 3 * SIZE + 11), np.int32)
    dataset = BlockDataset(Plan(np.zeros(4, np.uint8), np.arange(4)), TextBlocks(ids, SIZE))
    settings = TrainingSettings(1e-3, 2, 0.0, 0.0, 0, SIZE, save_steps=99, keep_checkpoints=1, precision="fp32")
    settings, _ = memory.fit_memory(model, settings, "auto")
    result = trainer.train(model, None, (dataset, None), settings, tmp_path)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    expected = []
    for rows in (ids[: 2 * SIZE].reshape(2, SIZE), None):
        texts = rows if rows is not None else [ids[2 * SIZE : 3 * SIZE], ids[3 * SIZE :]]
        losses = [step_loss(plain, torch.tensor(np.array(text, np.int64))[None]) for text in texts]
        loss = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
        expected.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert result["last_losses"] == pytest.approx(expected, abs=1e-3)
    assert result["last_losses"][0] == pytest.approx(expected[0], abs=1e-4)
    trained = trainer.unwrap_peft(model)
    trainer.restore_head(trained)
    trained.save_pretrained(tmp_path / "saved")
    loaded = load_checkpoint(str(tmp_path / "saved"), torch.float32, "--model_path").eval()
    torch.testing.assert_close(plain_logits(loaded, [5, 9, 7]), plain_logits(trained.eval(), [5, 9, 7]))


def step_loss(model, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"), ids.shape[1] - 1
