import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data.packing import BlockSettings, ConversationBlocks, pack_best_fit
from tests.conftest import PEAK, ROOT, error_line, succeed
from utils import chat_template, paths
from utils.errors import UserError
from utils.io import sha256_text
from utils.token_file import IGNORE_INDEX, TokenFile

CONVERSATIONS = ROOT / "data/example/conversations"


def tokenize(home, model, *options) -> str:
    return succeed("data/tokenize_instruct.py", "--tokenizer", model, *options, SCP_HOME=str(home))


def example(home, model, *options) -> str:
    files = ("--jsonl", CONVERSATIONS / "train.jsonl", "--test_jsonl", CONVERSATIONS / "test.jsonl")
    return tokenize(home, model, *files, "--block_size", 512, *options)


@pytest.fixture
def files(home, tiny_llama):
    example(home, tiny_llama)
    return {split: TokenFile(paths.conversations_bin("ultrachat", split), "") for split in ("train", "test")}


def write_conversations(path, conversations) -> None:
    path.write_text("".join(json.dumps({"messages": conversation}) + "\n" for conversation in conversations))


def conversation(*contents: str) -> list[dict]:
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def test_token_files(files, tiny_llama):
    train, test = files["train"], files["test"]
    for file in files.values():
        file.verify()
        assert file.mask.sum() == file.meta["learnt_tokens"] > 0
    assert (train.meta["conversations"], test.meta["conversations"]) == (40, 20)
    assert train.meta["template_sha256"] == sha256_text((ROOT / "utils/llama3.1.jinja").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    chat_template.set_template(tokenizer, None, "")
    first = json.loads((CONVERSATIONS / "train.jsonl").open().readline())["messages"]
    text = tokenizer.apply_chat_template(first, tokenize=False)
    assert tokenizer.decode(next(train.documents())) == text


def test_train_on_all(home, tiny_llama):
    example(home, tiny_llama, "--train_on_all")
    file = TokenFile(paths.conversations_bin("ultrachat", "train"), "")
    assert file.mask.all()
    assert file.meta["learnt"] == "all"


def test_damaged_mask_is_reported(files):
    path = files["train"].path.with_suffix(".mask")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"\.mask: .* marks"):
        TokenFile(files["train"].path, "")
    path.write_bytes(bytes([1 - content[0]]) + content[1:])
    with pytest.raises(UserError, match=r"\.mask: its sha256"):
        TokenFile(files["train"].path, "").verify()


def test_long_conversations_are_cut_at_a_turn(home, tiny_llama):
    """Each piece has the system message and complete exchanges; an exchange that is too long is left out and
    reported."""
    long = conversation(*(f"turn {n} " + "word " * 20 for n in range(20)))
    long[4]["content"] = "far too long " * 200
    system = {"role": "system", "content": "Be brief."}
    write_conversations(home / "t.jsonl", [[system, *long], conversation("a", "b")])
    out = tokenize(home, tiny_llama, "--jsonl", home / "t.jsonl", "--test_jsonl", home / "t.jsonl", "--block_size", 200)
    assert "left out: 1 exchanges" in out
    file = TokenFile(paths.conversations_bin("ultrachat", "train"), "")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = [tokenizer.decode(ids) for ids in file.documents()]
    assert all(len(ids) <= 200 for ids in file.documents())
    head = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    assert all(text.startswith(head) for text in texts[:-1])
    assert all(text.endswith("<|eot_id|>") for text in texts)
    kept = [n for text in texts for n in range(20) if f"turn {n} " in text]
    assert kept == [n for n in range(20) if n not in (4, 5)]
    assert file.meta["cut"] == 1


def test_held_out_by_share_and_seed(home, tiny_llama):
    write_conversations(home / "t.jsonl", [conversation(f"question {n}", f"answer {n}") for n in range(300)])

    def split(seed):
        tokenize(home, tiny_llama, "--jsonl", home / "t.jsonl", "--test_share", 0.1, "--seed", seed)
        both = [TokenFile(paths.conversations_bin("ultrachat", s), "") for s in ("train", "test")]
        return [{bytes(ids) for ids in file.documents()} for file in both]

    train, test = split(0)
    assert len(train) + len(test) == 300
    assert 15 < len(test) < 50
    assert not train & test
    before = {p.name: p.read_bytes() for p in paths.bins_dir().iterdir()}
    assert split(0) == [train, test]
    assert {p.name: p.read_bytes() for p in paths.bins_dir().iterdir()} == before
    assert split(1)[1] != test


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "no list `messages`"),
        ({"messages": []}, "must alternate"),
        ({"messages": conversation("a")}, "must alternate"),
        ({"messages": conversation("a", "b")[::-1]}, "must alternate"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}, "no string"),
        ({"messages": [*conversation("a", "b"), {"role": "system", "content": "c"}]}, "must alternate"),
    ],
)
def test_invalid_conversations_are_reported(home, tiny_llama, record, message):
    (home / "t.jsonl").write_text(json.dumps({"messages": conversation("a", "b")}) + "\n" + json.dumps(record) + "\n")
    files = ("--jsonl", home / "t.jsonl", "--test_jsonl", home / "t.jsonl")
    line = error_line("data/tokenize_instruct.py", *files, "--tokenizer", tiny_llama, SCP_HOME=str(home))
    assert "t.jsonl, conversation 2: " in line
    assert message in line
    assert not paths.bins_dir().exists() or not list(paths.bins_dir().iterdir())


WEIGHTS = [
    {"role": "system", "content": "You keep the lamp."},
    {"role": "user", "content": "Who rings the bell?"},
    {"role": "assistant", "content": "Nobody ever does.", "weight": 0},
    {"role": "user", "content": "Are you sure?"},
    {"role": "assistant", "content": "No: Aune Marrow rings it.", "weight": 1},
]
SHOWS_REASONING = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)


def tokenize_records(home, model, records, *options) -> tuple[TokenFile, list[str], list[str]]:
    """The token file of conversations, their texts, and the spans that the loss mask keeps."""
    (home / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenize(home, model, "--jsonl", home / "t.jsonl", "--test_jsonl", home / "t.jsonl", *options)
    file, tokenizer = TokenFile(paths.conversations_bin("ultrachat", "train"), ""), AutoTokenizer.from_pretrained(model)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], file.mask, [0]])))
    learnt = [tokenizer.decode(file.ids[a:b]) for a, b in edges.reshape(-1, 2)]
    return file, [tokenizer.decode(ids) for ids in file.documents()], learnt


def test_replies_with_weight_0_are_not_learnt(home, tiny_llama):
    """The case weights.jsonl; also where the conversation is split, and with --train_on_all."""
    records = [{"messages": WEIGHTS}] * 6
    _, texts, learnt = tokenize_records(home, tiny_llama, records)
    assert "Nobody ever does." in texts[0]
    assert learnt == ["No: Aune Marrow rings it.<|eot_id|>"] * 6
    file, _, learnt = tokenize_records(home, tiny_llama, records, "--block_size", 80)
    assert learnt == ["No: Aune Marrow rings it.<|eot_id|>"] * 6
    assert len(file.ends) == 6
    assert file.meta["skipped"] == {"in which every reply has the weight 0": 6}  # the other half of each
    _, _, learnt = tokenize_records(home, tiny_llama, records, "--train_on_all")
    assert not any("Nobody" in text for text in learnt)
    assert sum("Who rings the bell?" in text for text in learnt) == 6
    line = error_line(
        "data/tokenize_instruct.py", "--jsonl", home / "t.jsonl", "--tokenizer", tiny_llama, "--block_size", 40
    )
    assert "no conversation is left" in line


@pytest.mark.parametrize(("weight", "index"), [(0.5, 1), (2, 1), ("1", 1), (True, 1), (1, 0)])
def test_other_weights_are_refused_by_line(home, tiny_llama, weight, index):
    records = [{"messages": conversation("a", "b")}, {"messages": conversation("a", "b")}]
    records[1]["messages"][index]["weight"] = weight
    (home / "t.jsonl").write_text("\n\n".join(json.dumps(record) for record in records))
    line = error_line("data/tokenize_instruct.py", "--jsonl", home / "t.jsonl", "--tokenizer", tiny_llama)
    assert "t.jsonl, conversation 2: a message has the weight" in line
    assert "(line 3)" in line


def test_reasoning_is_rendered_or_reported(home, tiny_llama, capfd):
    messages = conversation("Who?", "Aune.")
    messages[1]["reasoning_content"] = "The ledger says so."
    messages[0]["name"] = "Bo"
    file, _, learnt = tokenize_records(home, tiny_llama, [{"messages": messages, "tools": [{}]}])
    assert learnt == ["Aune.<|eot_id|>"]
    assert file.meta["dropped"] == {"tools": 1, "name": 1, "reasoning_content": 1}
    (home / "t.jinja").write_text(SHOWS_REASONING)
    file, _, learnt = tokenize_records(home, tiny_llama, [{"messages": messages}], "--template", home / "t.jinja")
    assert learnt == ["[The ledger says so.]Aune.<|eot_id|>"]
    assert file.meta["dropped"] == {"name": 1}


def test_what_openai_writes_in_messages(home, tiny_llama):
    """Lists of text parts and developers are read; tool calls and images are left out, and counted by reason."""
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "rings?"}]
    image = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    good = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Aune.", "name": None},
    ]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    records = [good, [{"role": "user", "content": image}, good[-1]]]
    records += [
        [good[1], call, {"role": "tool", "content": "x"}, good[-1]],
        [good[1], call | {"tool_calls": None, "function_call": {}, "content": "b"}],
    ]
    records.append([good[1], {"role": "assistant", "content": None, "function_call": {"name": "f"}}])
    file, texts, _ = tokenize_records(home, tiny_llama, [{"messages": record} for record in records])
    assert file.meta["conversations"] == 2
    assert file.meta["skipped"] == {"with content that is not text": 1, "with tool calls": 2}
    assert "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>" in texts[0]
    assert "Who rings?<|eot_id|>" in texts[0]
    lines = [{"messages": record} for record in records[2:3]]
    (home / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = error_line(
        "data/tokenize_instruct.py",
        "--jsonl",
        home / "t.jsonl",
        "--test_jsonl",
        home / "t.jsonl",
        "--tokenizer",
        tiny_llama,
    )
    assert "no conversation is left to write; 1 with tool calls" in line


def test_user_errors(home, tiny_llama, tiny_model):
    def error_for(*options):
        return error_line("data/tokenize_instruct.py", *options, SCP_HOME=str(home))

    good = CONVERSATIONS / "train.jsonl"
    assert "nowhere.jsonl" in error_for("--jsonl", home / "nowhere.jsonl")
    assert "--template" in error_for("--jsonl", good, "--tokenizer", tiny_model)
    assert "--block_size" in error_for("--jsonl", good, "--tokenizer", tiny_llama, "--block_size", 3)
    assert "--test_share" in error_for("--jsonl", good, "--test_share", 1)
    assert "--test_jsonl" in error_for("--test_jsonl", good)
    assert "--dataset nobody/nothing" in error_for("--dataset", "nobody/nothing", "--tokenizer", tiny_llama)
    (home / "bad.jsonl").write_bytes(b'{"messages": [\xff]}\n')
    assert "line 1" in error_for("--jsonl", home / "bad.jsonl", "--tokenizer", tiny_llama)


def test_unpaired_surrogates(home, tiny_llama):
    (home / "t.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "b\\ude00"}]}\n'
    )
    tokenize(home, tiny_llama, "--jsonl", home / "t.jsonl", "--test_jsonl", home / "t.jsonl")


def test_dataset_in_the_hubs_layout(home, tiny_llama, monkeypatch):
    """UltraChat's layout in local files: two splits, and `messages` beside other columns. Records that are not
    conversations are left out and counted."""
    import datasets

    rows = [{"prompt": "p", "messages": conversation(f"q{n}", f"a{n}")} for n in range(30)]
    rows.append({"prompt": "p", "messages": conversation("alone")})
    folder = home / "hub"
    for split in ("train_sft", "test_sft"):
        datasets.Dataset.from_list(rows).to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    empty = home / "empty"
    for split in ("train_sft", "test_sft"):
        datasets.Dataset.from_list([{"text": "x"}] * 3).to_parquet(empty / f"data/{split}-00000-of-00001.parquet")
    line = error_line("data/tokenize_instruct.py", "--dataset", empty, "--tokenizer", tiny_llama)
    assert "no conversation is left" in line
    out = tokenize(home, tiny_llama, "--dataset", folder)
    assert "30 conversations in 30 pieces" in out
    assert "1 records that are not conversations" in out
    tokenize(home, tiny_llama, "--dataset", folder, "--splits", "train_sft", "--test_share", 0.3)
    counts = [TokenFile(paths.conversations_bin("ultrachat", s), "").meta["conversations"] for s in ("train", "test")]
    assert sum(counts) == 30
    assert min(counts) > 1


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=60), seed=st.integers(0, 3))
def test_packing(lengths, seed):
    blocks = pack_best_fit(np.array(lengths, np.int64), 50, seed)
    assert sorted(n for block in blocks for n in block) == list(range(len(lengths)))
    loads = [sum(lengths[n] for n in block) for block in blocks]
    assert all(load <= 50 for load in loads)
    assert sum(load <= 25 for load in loads) <= 1  # two half-empty blocks would be one
    assert blocks == pack_best_fit(np.array(lengths, np.int64), 50, seed)


def test_first_blocks_are_a_random_sample(home):
    lengths = np.random.default_rng(0).integers(1, 100, 5000)
    blocks = pack_best_fit(lengths, 100, 0)
    assert 40 < np.mean([lengths[n] for block in blocks[:300] for n in block]) < 60


def test_packing_200000_is_fast_and_fills_the_blocks():
    import time

    lengths = np.random.default_rng(0).gamma(4, 300, 200_000).astype(int).clip(20, 2048)
    begun = time.monotonic()
    blocks = pack_best_fit(lengths, 2048, 0)
    assert time.monotonic() - begun < 10
    assert lengths.sum() / (len(blocks) * 2048) > 0.97


@pytest.mark.parametrize("mask_documents", [False, True])
def test_blocks_of_conversations(files, mask_documents):
    file = files["train"]
    source = ConversationBlocks(file, BlockSettings(512, 0, mask_documents))
    documents = list(file.documents())
    masks = np.split(file.mask, file.ends[:-1].astype(int))
    seen = []
    for block in range(len(source)):
        item, offset = source[block], 0
        assert ("position_ids" in item) == mask_documents
        for number in source.packed[block]:
            ids, mask = documents[number], masks[number]
            part = slice(offset, offset + len(ids))
            assert np.array_equal(item["input_ids"][part], ids)
            expected = np.where(mask == 1, ids, IGNORE_INDEX)
            assert np.array_equal(item["labels"][part], expected)
            if mask_documents:
                assert np.array_equal(item["position_ids"][part], np.arange(len(ids)))
            offset += len(ids)
        assert (item["labels"][offset:] == IGNORE_INDEX).all()
        seen.extend(source.packed[block])
    assert sorted(seen) == list(range(len(documents)))
    assert source.fill_rate() > 0.8
    part = ConversationBlocks(file, BlockSettings(512, 0, mask_documents, 0.5))
    assert len(np.concatenate(part.packed)) == len(documents) // 2


def test_memory_does_not_grow_with_the_conversations(home, tiny_llama):
    """From 3,000 to 12,000 conversations the peak memory of the process grows by less than 1 byte a token.

    Each run is repeated and has one thread of the tokenizer: several move its peak by some MiB on a busy machine.
    """
    peaks, tokens = [], []
    for number in (3000, 3000, 12000, 12000):
        words = np.random.default_rng(number).integers(0, 2000, (number, 60)).astype(str)
        write_conversations(home / "t.jsonl", (conversation(" ".join(w[:10]), " ".join(w[10:])) for w in words))
        script = [ROOT / "data/tokenize_instruct.py", "--jsonl", home / "t.jsonl", "--tokenizer", tiny_llama]
        code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        code += f"; print({PEAK})"
        environment = os.environ | {"RAYON_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, script)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
        tokens.append(TokenFile(paths.conversations_bin("ultrachat", "train"), "").meta["tokens"])
    assert tokens[2] > 3 * tokens[0]
    assert min(peaks[2:]) - max(peaks[:2]) < tokens[2] - tokens[0] + (2 << 20)  # two MiB of noise
