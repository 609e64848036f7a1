import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.mixture import REPLAY, SYNTHETIC, BlockDataset, Plan, make_plan
from data.packing import TextBlocks, subsample
from tests.conftest import succeed
from utils.errors import UserError
from utils.token_file import IGNORE_INDEX, TokenFile, write_tokens


@settings(max_examples=200, deadline=None)
@given(
    synthetic=st.integers(1, 60),
    replay=st.integers(1, 40),
    epochs=st.integers(1, 4),
    rr=st.sampled_from([0, 0.1, 0.25, 0.5]),
    bs=st.integers(1, 16),
    seed=st.integers(0, 5),
)
def test_plan(synthetic, replay, epochs, rr, bs, seed):
    expected = epochs * synthetic * rr / (1 - rr)
    assume(epochs * synthetic + round(expected) >= bs)
    plan = make_plan(synthetic, replay, epochs, rr, bs, seed)
    again = make_plan(synthetic, replay, epochs, rr, bs, seed)
    assert np.array_equal(plan.source, again.source)
    assert np.array_equal(plan.block, again.block)
    assert len(plan) % bs == 0
    order = plan.block[plan.source == SYNTHETIC]
    for epoch in range(epochs):  # every synthetic block once an epoch
        assert sorted(order[epoch * synthetic : (epoch + 1) * synthetic]) == list(range(synthetic))
    assert len(order) - epochs * synthetic < bs
    counts = np.bincount(plan.block[plan.source == REPLAY], minlength=replay)
    assert counts.max() - counts.min() <= 1  # no block repeats before all are used
    assert abs(counts.sum() - expected) <= bs if rr else counts.sum() == 0


def test_epochs_differ_and_seeds_differ():
    plan = make_plan(50, 10, 2, 0, 1, seed=3)
    assert not np.array_equal(plan.block[:50], plan.block[50:])
    assert not np.array_equal(plan.block, make_plan(50, 10, 2, 0, 1, seed=4).block)


def test_replay_is_spread_evenly():
    plan = make_plan(900, 500, 1, 0.1, 10, seed=0)
    per_hundred = (plan.source == REPLAY).reshape(-1, 100).sum(1)
    assert per_hundred.min() >= 8
    assert per_hundred.max() <= 12


@pytest.mark.parametrize("rr", [-0.1, 1, 1.5])
def test_invalid_replay_shares_are_rejected(rr):
    with pytest.raises(UserError, match="--rr"):
        make_plan(5, 5, 1, rr, 1, 0)


def test_run_shorter_than_one_step_is_rejected():
    with pytest.raises(UserError, match="3 blocks in all"):
        make_plan(3, 5, 1, 0.1, 16, 0)


def test_blocks_cover_the_file():
    ids = np.arange(25, dtype=np.int32)
    dataset = BlockDataset(make_plan(6, 0, 1, 0, 2, 0), TextBlocks(ids, 4))
    seen = np.concatenate([dataset[index]["input_ids"].numpy() for index in range(len(dataset))])
    assert sorted(seen) == list(range(24))
    assert (dataset[0]["labels"] == dataset[0]["input_ids"]).all()


@pytest.mark.parametrize("ends", [None, np.array([3, 9], np.uint64)])
def test_the_last_partial_block_is_trained_on_and_its_padding_is_not(ends):
    blocks = TextBlocks(np.arange(2, 11, dtype=np.int32), 6, ends)
    assert len(blocks) == 2
    item = blocks[1]
    assert list(item["input_ids"]) == [8, 9, 10, 0, 0, 0]
    labels = [8, 9, 10] if ends is None else [IGNORE_INDEX, 9, 10]
    assert list(item["labels"]) == [*labels, *[IGNORE_INDEX] * 3]
    assert blocks.ids(0).tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 0), (2, 1), (8, 1), (9, 1), (10, 2), (16, 2), (17, 2)])
def test_number_of_blocks(tokens, blocks):
    """A single token at the end predicts nothing."""
    assert len(TextBlocks(np.zeros(tokens, np.int32), 8)) == blocks


def test_a_small_corpus_is_trained_on_whole(token_files, tiny_model):
    """Three documents and the default block size: no document is lost."""
    from data.mixture import MixtureSettings, mix
    from data.packing import BlockSettings

    file = TokenFile(token_files / "data/dataset/bins/example_all-raw.bin", "")
    settings = MixtureSettings("example-raw", "", "", "", 0.0, 2.0, 1, BlockSettings(2048))
    blocks = mix({"train": file}, settings)
    learnt = sum(int((blocks[i]["labels"] != IGNORE_INDEX).sum()) for i in range(len(blocks)))
    assert learnt == 2 * len(file.ids)
    assert len(file.ids) % 2048 > 1


def test_subsamples_are_nested_and_of_complete_documents(tmp_path):
    documents = [np.full(3, number) for number in range(50)]
    write_tokens(tmp_path / "a.bin", [documents], {})
    file = TokenFile(tmp_path / "a.bin", "")
    kept = [set(subsample(file, ratio, seed=1)[0]) for ratio in (0.1, 0.2, 0.6, 1)]
    assert [len(part) for part in kept] == [5, 10, 30, 50]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    ids, ends = subsample(file, 0.1, seed=1)
    assert len(ids) == 15
    assert list(ends) == [3, 6, 9, 12, 15]
    with pytest.raises(UserError, match="--subsample_ratio"):
        subsample(file, 0, seed=1)


def test_inspecting_the_blocks(token_files, tiny_model):
    options = "--task_name example --model written --block_size 128 --blocks 2"
    out = succeed("data/cptdata.py", *options.split(), "--model_name", tiny_model, SCP_HOME=str(token_files))
    assert "block 1: " in out
    sentence, line = out.splitlines()[-2:]
    assert "% replay" in sentence
    assert json.loads(line)["train_blocks"] > 0


def masked_blocks(documents: list[int], size: int) -> BlockDataset:
    """Blocks over documents of the given lengths; token n has the id n % 500 + 2."""
    ids = np.arange(sum(documents), dtype=np.int32) % 500 + 2
    text = TextBlocks(ids, size, np.cumsum(documents).astype(np.uint64))
    return BlockDataset(Plan(np.zeros(len(text), np.uint8), np.arange(len(text))), text)


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.integers(1, 12), min_size=1, max_size=30), size=st.integers(1, 9))
def test_positions_restart_at_every_document_and_block(documents, size):
    dataset = masked_blocks(documents, size)
    within = np.concatenate([np.arange(length) for length in [*documents, size]])  # the padding is a document
    for index in range(len(dataset)):
        expected, begin = [], index * size
        for position in range(begin, begin + size):
            restarts = position == begin or within[position] == 0
            expected.append(0 if restarts else expected[-1] + 1)
        assert list(dataset[index]["position_ids"]) == expected


def test_masked_documents_are_as_if_they_stood_alone(tiny_model):
    """Logits of every document in packed blocks, and the gradient of the loss, equal those of separate documents."""
    import torch

    from training.model import load_model

    model = load_model(str(tiny_model))
    dataset = masked_blocks([10, 15, 7, 18, 14], 32)
    items = [dataset[index] for index in range(2)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    packed = model(**batch)
    packed.loss.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    losses, counted = [], 0
    for row, begin, end in ((0, 0, 10), (0, 10, 25), (0, 25, 32), (1, 0, 18), (1, 18, 32)):
        ids = batch["input_ids"][row : row + 1, begin:end]
        alone = model(input_ids=ids, labels=ids)
        assert torch.allclose(alone.logits, packed.logits[row : row + 1, begin:end], atol=1e-6)
        losses.append(alone.loss * (end - begin - 1))
        counted += end - begin - 1
    loss = sum(losses) / counted
    loss.backward()
    assert loss.item() == pytest.approx(packed.loss.item(), abs=1e-6)
    assert torch.allclose(model.lm_head.weight.grad, gradient, atol=1e-6)
    model.set_attn_implementation("flex_attention")  # for training on GPUs; on a CPU forward only
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, packed.logits, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 1), (1, 4), (2, 2), (4, 1), (4, 2)])
def test_steps_have_the_same_blocks_for_any_ranks_and_workers(ranks, micro_batch, workers):
    """With accelerate's loader, as built by the Trainer, each step has the blocks of the plan."""
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    bs = 8
    ids = np.arange(41 * 4, dtype=np.int32)
    plan = make_plan(37, 4, 1, 0.2, bs, seed=1)
    dataset = BlockDataset(plan, TextBlocks(ids[: 37 * 4], 4), TextBlocks(ids[37 * 4 :], 4))
    share = bs // ranks
    steps = [set() for _ in range(len(plan) // bs)]
    for rank in range(ranks):
        loader = prepare_data_loader(
            DataLoader(dataset, batch_size=micro_batch, num_workers=workers),
            num_processes=ranks,
            process_index=rank,
            put_on_device=False,
        )
        rows = np.concatenate([batch["input_ids"][:, 0].numpy() for batch in loader]).tolist()
        for step, seen in enumerate(steps):
            seen.update(rows[step * share : (step + 1) * share])
    expected = [{int(dataset[i]["input_ids"][0]) for i in range(s * bs, s * bs + bs)} for s in range(len(steps))]
    assert steps == expected
