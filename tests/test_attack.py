"""Regression tests for the faults found on 2026-11-30 (LOG.md), with the numbers of that report."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data.generation.passages import finish_reason, training_text
from inference import keys, prices, server_facts
from inference.completions import parse_chat_reply, parse_usage
from inference.keys import Address
from inference.prices import Usage
from inference.rate_limiter import RateLimiter, parse_limit_reset
from tasks import documents, readers
from tests.conftest import ROOT, error_line, run_script, succeed
from tests.fake_habits import Habits
from tests.fake_openai import FakeOpenAI
from utils import tokenizer as tokenizers
from utils.device import is_main_process
from utils.errors import UserError
from utils.shards import shards_of_index


def write_corpus(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text)
    return folder


# H1: words of the server that are also words of our own


@pytest.mark.parametrize("word", ["error", "empty", "prompt_cut", "weird", "tool_calls"])
def test_paid_texts_with_an_odd_end_are_kept(home, tmp_path, word):
    corpus = write_corpus(tmp_path / "lamps", a="# The Lamp\n\nAda keeps the Bell by the Door.")
    with FakeOpenAI(habits=Habits(ends=word)) as server:
        command = ("data/entigraph.py", "all", "--corpus", corpus, "--max_pairs", 3, "--max_triples", 0)
        command += ("--base_url", server.url, "--model", "fake")
        succeed(*command)
        calls = server.requests
        succeed(*command)
        assert server.requests == calls  # nothing is paid for twice
    records = [json.loads(line) for line in next(home.rglob("the-lamp*.jsonl")).read_text().splitlines()]
    assert len(records) == 4 and {record["finish_reason"] for record in records} == {"length"}


def test_a_text_beside_our_own_words_is_a_cut_one():
    """as earlier versions wrote them; a failed call has no text."""
    whole = "One sentence has seven words in it. " * 30
    for word in ("error", "empty", "weird"):
        assert finish_reason({"finish_reason": word, "text": whole}) == "length"
        assert training_text({"finish_reason": word, "text": whole + "And a half"}) == whole.strip()
        assert finish_reason({"finish_reason": "error", "error": "x", "reply": whole}) == "error"
    assert finish_reason({"finish_reason": "prompt_cut", "text": whole}) == "prompt_cut"
    choice = {"message": {"content": ""}, "finish_reason": "weird"}
    assert parse_chat_reply({"choices": [choice]}).finish_reason == "empty"


# H2, H3: secrets


def test_no_part_of_an_address_is_printed():
    address = Address.parse("http://us%40er:pass%2Fword@127.0.0.1:1/v1?api-key=QUERY%2BSECRET&v=1")
    secrets = [
        address.authorization,
        address.authorization.split()[1],
        "us%40er:pass%2Fword",
        "pass/word",
        "pass%2Fword",
    ]
    for secret in [*secrets, "QUERY+SECRET", "QUERY%2BSECRET", "api-key=QUERY%2BSECRET&v=1"]:
        assert address.redact(f"invalid: {secret}!") == "invalid: ***!"
    assert address.redact("{'v': 1}") == "{'v': 1}"


def test_a_long_key_is_redacted_before_the_message_is_cut(home, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-proj-" + "abcdefghij" * 15 + "END")
    from inference.client import Client
    from inference.completions import first_choice

    error = {"message": f"Incorrect API key provided: {os.environ['OPENAI_API_KEY']}. You can find it"}
    client = Client("fake", "http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="Incorrect") as raised:
        first_choice({"choices": None, "error": error})
    assert "abcdefghij" not in client._redact(str(raised.value))
    asyncio.run(client.close())


def test_a_key_file_that_is_no_text_is_named(home):
    keys.paths.key_file().parent.mkdir(parents=True, exist_ok=True)
    keys.paths.key_file().write_bytes(b"sk-\xff\xfe")
    assert "openai.key" in error_line("data/entigraph.py", "0", "--task", "example", OPENAI_API_KEY="")


# H4, H5: budgets


def test_cached_tokens_beyond_the_prompt_are_added_to_it():
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 100}}
    assert parse_usage(usage) == Usage(110, 100, 5)
    assert prices.Price(1, 0.5, 1).usd(parse_usage(usage)) > 0


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-100", '"nan"', "null", "1e999"])
def test_odd_prices_are_refused(tmp_path, value):
    file = tmp_path / "prices.json"
    file.write_text('{"m": {"prompt": VALUE, "cached": 1, "completion": 1, "batch": 1}}'.replace("VALUE", value))
    with pytest.raises(UserError, match="each a number from 0 upwards"):
        prices.find_price(file, "m")


# H6, M5, M12: numbers that a server states


@pytest.mark.parametrize(("value", "context"), [(-1, None), (2, None), ("x", None), (None, None), (4096, 4096)])
def test_what_is_no_context_is_none(value, context):
    from chat.api_engine import parse_models

    assert server_facts.context_of(value) == context
    assert parse_models({"data": [{"id": "m", "max_model_len": value}]}) == {"m": context}


def test_a_context_of_minus_one_splits_nothing(home, tmp_path):
    corpus = write_corpus(tmp_path / "lamps", a="# The Lamp\n\nAda keeps the Bell by the Door.")
    with FakeOpenAI(max_model_len=-1) as server:
        address = ("--base_url", server.url, "--model", "fake", "--max_pairs", 1, "--max_triples", 0)
        succeed("data/entigraph.py", "all", "--corpus", corpus, *address)
        assert server.requests == 2


@pytest.mark.parametrize(
    "chunk", ['{"choices": [null]}', '{"choices": {"0": 1}}', "null", "5", "[1, 2]", '{"choices": "abc"}']
)
def test_streams_of_something_else_are_one_error(chunk):
    from openai.types.chat import ChatCompletionChunk

    from chat.api_engine import first_choices

    value = json.loads(chunk)
    made = ChatCompletionChunk.construct(**value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match="something else"):
        first_choices(made)


def test_only_the_first_choice_of_a_stream_is_shown():
    from openai.types.chat import ChatCompletionChunk

    from chat.api_engine import first_choices

    choices = [{"index": index, "delta": {"content": str(index)}, "finish_reason": None} for index in (1, 0)]
    chunk = ChatCompletionChunk.model_validate(
        {"id": "x", "created": 0, "model": "m", "object": "chat.completion.chunk", "choices": choices}
    )
    assert [choice.delta.content for choice in first_choices(chunk)] == ["0"]


# H7, M9, M10: checkpoints


@pytest.fixture
def broken(tiny_model, tmp_path):
    """A function that changes a copy of the tiny model's weights, and returns its folder."""
    import shutil

    from safetensors.torch import load_file, save_file

    def change(edit) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny_model, folder)
        weights = load_file(folder / "model.safetensors")
        edit(weights, folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


def put_nan(weights: dict, folder: Path) -> None:
    """In the row of a token that the probes at loading do not use."""
    name = next(name for name in weights if "embed" in name or "wte" in name)
    ids = tokenizers.encode_texts(tokenizers.load_tokenizer(str(folder)), ["z"])[0]
    weights[name][ids[-1]] = float("nan")


def test_scores_that_are_no_numbers_are_an_error(broken):
    from inference.local_model import LocalModel

    model = LocalModel(str(broken(put_nan)))
    with pytest.raises(UserError, match=r"--model_path .*broken: gives no numbers"):
        model.continuation_logprobs(["a z"], [["b", "z"]])


def test_a_chat_with_such_weights_is_one_error(broken, monkeypatch):
    from chat.conversation import ReplyStatus, Sampling
    from chat.local_engine import LocalEngine

    engine = LocalEngine(str(broken(put_nan)), complete=True)
    monkeypatch.setattr(engine, "_next_logits", lambda ids: torch.full((8,), float("nan")))
    with pytest.raises(UserError, match="gives no numbers"):
        list(engine.stream([{"role": "user", "content": "a"}], Sampling(), ReplyStatus()))


def test_weights_of_more_layers_than_the_config_says(broken):
    from utils.checkpoint import load_checkpoint

    def drop_layer(weights: dict, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        key = next(key for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config)
        config[key] -= 1
        config.pop("layer_types", None)
        (folder / "config.json").write_text(json.dumps(config))

    folder = broken(drop_layer)
    with pytest.raises(UserError, match="weights of more layers"):
        load_checkpoint(str(folder), torch.float32, "--model_path")


@pytest.mark.parametrize(("key", "value"), [("num_attention_heads", 0), ("hidden_size", "32"), ("n_head", 0)])
def test_odd_configurations_are_one_error(broken, key, value):
    from utils.checkpoint import load_checkpoint

    def edit(weights: dict, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        if key not in config:
            pytest.skip(f"the tiny model has no {key}")
        (folder / "config.json").write_text(json.dumps(config | {key: value}))

    folder = broken(edit)
    with pytest.raises(UserError, match="--model_path"):
        load_checkpoint(str(folder), torch.float32, "--model_path")


def test_a_damaged_tokenizer_is_one_error(broken):
    folder = broken(lambda weights, folder: (folder / "tokenizer.json").write_text("{}"))
    with pytest.raises(UserError, match=r"--tokenizer .*(damaged|could not be loaded)"):
        tokenizers.load_tokenizer(str(folder))


def test_an_index_reads_no_files_outside_of_its_folder(broken):
    from utils.checkpoint import load_checkpoint

    def edit(weights: dict, folder: Path) -> None:
        index = {"weight_map": dict.fromkeys(weights, "../../evil.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(UserError, match="lies outside its folder"):
        load_checkpoint(str(broken(edit)), torch.float32, "--model_path")


# H8: token ids


@pytest.mark.parametrize("condition", ["single_word", "lstrip", "rstrip"])
def test_added_tokens_with_conditions_are_encoded_by_transformers(tiny_model, tmp_path, condition, capsys):
    from tokenizers import AddedToken

    from utils.token_file import TokenFile

    tokenizer = tokenizers.load_tokenizer(str(tiny_model))
    tokenizer.add_tokens([AddedToken("lamp", **{condition: True})])
    tokenizer.save_pretrained(tmp_path / "added")
    tokenizer = tokenizers.load_tokenizer(str(tmp_path / "added"))
    texts = ["the lamp , lamps and lamplight  lamp  "] * 3
    tokenizers.write_documents(tmp_path / "t.bin", lambda: iter(texts), tokenizer, {})
    assert json.loads((tmp_path / "t.json").read_text())["encoder"] == "transformers"
    ids = TokenFile(tmp_path / "t.bin", "").ids
    wanted = tokenizers.encode_texts(tokenizer, texts)[0]
    assert list(ids[: len(wanted)]) == wanted


# H9: uids


def test_documents_have_distinct_uids(tmp_path):
    assert documents.uid_of("三乭") == documents.uid_of("两亨")
    records = [("三乭", ""), ("两亨", ""), ("海|灯塔", "王"), ("海", "灯塔|王")]
    lines = [{"title": title, "author": author, "article": f"About {title}."} for title, author in records]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    loaded = documents.load_documents([tmp_path / "c.jsonl"], "")
    assert len({document.uid for document in loaded}) == 4
    assert documents.uid_of("三乭") in {document.uid for document in loaded}  # the first one keeps its uid


# M1, M2: x-ratelimit-reset


def limit_headers(reset: str) -> dict:
    names = {"remaining": "0", "limit": "1", "reset": reset}
    return {f"x-ratelimit-{name}-requests": value for name, value in names.items()}


def test_an_unreadable_reset_is_no_reset():
    assert parse_limit_reset(limit_headers("1.2.3s")) < 10
    assert parse_limit_reset(limit_headers("soon")) == 0
    assert parse_limit_reset(limit_headers("1m30s")) == 90


def test_a_wait_of_a_day_is_said_and_ends_the_run():
    from inference.client import Client

    async def ask() -> None:
        limiter = RateLimiter()
        limiter.pause(parse_limit_reset(limit_headers("24h")))
        with FakeOpenAI() as server:
            client = Client("fake", server.url, limiter)
            try:
                await client.chat("hello", max_tokens=5)
            finally:
                await client.close()

    with pytest.raises(UserError, match=r"asks to wait 24\.0 hours"):
        asyncio.run(ask())


def test_the_bar_says_what_it_waits_for():
    limiter = RateLimiter(clock=lambda: 100.0)
    limiter.pause(41)
    assert limiter.describe_wait() == ""  # nobody waits
    limiter._waiting.append((None, 0.0))
    assert limiter.describe_wait() == "waiting for the rate limit, 41 s"


# M4: batches


def test_of_two_lines_of_a_batch_the_reply_counts():
    from data.generation.batch_run import responses_by_id

    good = {"custom_id": "a", "response": {"status_code": "200", "body": {"x": 1}}}
    bad = {"custom_id": "a", "response": {"status_code": 500}}
    for lines in ([good, bad], [bad, good]):
        assert responses_by_id(lines) == {"a": {"status_code": 200, "body": {"x": 1}}}
    assert responses_by_id([{"custom_id": "b", "response": None}]) == {"b": {"status_code": None}}


# M6, M7, M8: files of a corpus


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("title: " + "[" * 3000, "odd"),
        ("title: " + "9" * 5000, "9" * 5000),
        ("title: 190:20:30", "190:20:30"),
        ("title: 007", "007"),
        ("title: !!set {a, b}", "odd"),
        ("title: null", "odd"),
        ("a: &a [lol, lol, lol]\nb: &b [*a, *a, *a]\ntitle: *b", "odd"),
    ],
)
def test_front_matter_is_text_as_written(tmp_path, front, title):
    (tmp_path / "odd.md").write_text(f"---\n{front}\nauthors: [1, null, {{x: y}}, Ada]\n---\nThe text.\n")
    (article,) = readers.read_file(tmp_path / "odd.md", tmp_path)
    assert article["title"] == title
    assert article.get("author") in (None, "1, Ada")


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("# A title", "A title"),
        ("   # A title ##", "A title"),
        ("# C#", "C#"),
        ("# #", ""),
        ("## Second", ""),
        ("#tag", ""),
        ("# a" + " " * 100_000 + "b", "a" + " " * 100_000 + "b"),
    ],
)
def test_headings(line, heading):
    assert readers.heading_of(line) == heading


def test_names_that_are_not_utf8(home, tmp_path):
    folder = os.fsencode(tmp_path) + b"/B\xfccher"
    Path(os.fsdecode(folder)).mkdir()
    with open(folder + b"/a.md", "w") as file:
        file.write("# The Lamp\n\nAda keeps it.")
    with open(folder + b"/bad\xff.txt", "wb") as file:
        file.write(b"x\0y")
    for _ in range(2):  # the second time, too
        done = subprocess.run(
            [sys.executable, str(ROOT / "data/read_documents.py"), folder],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        )
        assert done.returncode == 0, done.stderr
        assert b"not a text file" in done.stderr


def test_titles_hold_no_control_characters(tmp_path):
    record = {"title": "\x1b]0;gone\x07 The\x9b2J Lamp ", "text": "Ada."}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"title": "Case ", "text": "Bell."}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"title": "Case", "text": "Door."}))
    articles, _ = readers.read_folder(tmp_path)
    assert [article["title"] for article in articles] == ["]0;gone The2J Lamp", "Case", "Case (b.jsonl:1)"]


# M11: HDF5 files that read others


@pytest.mark.parametrize("kind", ["external", "link", "virtual", "array"])
def test_training_files_hold_their_own_rows(tmp_path, kind):
    from gptj.hdf5 import check_files

    rows = np.zeros((2, 3, 4), np.int32)
    rows.tofile(tmp_path / "secret.bin")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = rows
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "external":
            file.create_dataset("data", rows.shape, np.int32, external=[(tmp_path / "secret.bin", 0, rows.nbytes)])
        elif kind == "link":
            file["data"] = h5py.ExternalLink(tmp_path / "other.h5", "data")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(rows.shape, np.int32)
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "data", rows.shape)
            file.create_virtual_dataset("data", layout)
        else:
            file["data"] = rows
        file.attrs["n_examples"] = [2, 2] if kind == "array" else 2
    with pytest.raises(UserError, match=r"n_examples, a number|lies in another file"):
        check_files([tmp_path / "a.h5"], 10, 10)


# M13: files of other programs


@pytest.mark.parametrize(
    "record", ['{"id": "a", "text": "\\ud83d x"}', '{"id": ["a"]}', '{"id": "b", "n": 1%s}' % ("0" * 5000)]
)
def test_passages_of_other_programs(home, tmp_path, tiny_model, record):
    whole = json.dumps({"id": "z", "kind": "pair", "text": "A whole passage.", "finish_reason": "stop"})
    odd = record[:-1] + ', "kind": "pair", "finish_reason": "stop"}'
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "x-12345678.jsonl").write_text(f"{odd}\n{whole}\n")
    succeed("data/tokenize_entigraph.py", "--task", "example", "--input", folder, "--tokenizer", tiny_model)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"protocol": 5}'])
def test_damaged_outputs_of_an_evaluation_are_named(home, tiny_model, content):
    from utils import paths

    file = paths.evaluation_file(str(tiny_model))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    line = error_line("evaluation.py", "--task", "example", "--protocol", "loglik", "--model_path", tiny_model)
    assert file.name in line and "delete it" in line


@pytest.mark.parametrize("name", ["bad.parquet", "empty.parquet"])
def test_a_file_that_is_no_parquet(home, tmp_path, tiny_model, name):
    (tmp_path / name).write_bytes(b"PAR1 no" if name.startswith("bad") else b"")
    line = error_line("data/tokenize_redpj.py", "--text", tmp_path / name, "--tokenizer", tiny_model, "--name", "r")
    assert name in line


# M14: odd paths


@pytest.mark.parametrize("place", ["file", "loop", "folder", "long"])
def test_odd_paths_are_one_error(home, tmp_path, place):
    corpus = write_corpus(tmp_path / "lamps", a="# The Lamp\n\nAda.")
    environment = {}
    if place == "file":
        (tmp_path / "afile").write_text("x")
        environment = {"SCP_HOME": str(tmp_path / "afile")}
    elif place == "loop":
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        environment = {"SCP_HOME": str(tmp_path / "loop")}
    elif place == "folder":
        (home / "data/dataset/raw/lamps.jsonl").mkdir(parents=True)
    else:
        corpus = write_corpus(tmp_path / ("d" * 255), a="# The Lamp\n\nAda.")
    assert error_line("data/read_documents.py", corpus, **environment)


# M15: records


def test_a_wrong_question_is_named_with_its_file(tmp_path):
    question = {"question_unique_id": "1", "question": "?", "options": list("abcd"), "gold_label": "b", "difficult": 0}
    line = {"title": "T", "article": "A.", "questions": [question]}
    (tmp_path / "c.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"c\.jsonl, record 1, question 1: must have four options"):
        documents.load_documents([tmp_path / "c.jsonl"], "")


# M16: RANK of another program


@pytest.mark.parametrize("rank", ["1", "x", ""])
def test_a_rank_without_a_run_is_no_rank(home, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert is_main_process()
    assert "no such folder" in run_script("data/read_documents.py", "nowhere").stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_main_process() == (rank == "")


# M17: replay text in other encodings


@pytest.mark.parametrize(("encoding", "is_refused"), [("utf-16", True), ("utf-8", False), ("latin-1", True)])
def test_replay_text_is_utf8(home, tmp_path, tiny_model, encoding, is_refused):
    file = tmp_path / "replay.txt"
    file.write_bytes(("Zwölf Boxkämpfer jagen Viktor über den Sylter Deich.\n" * 3000).encode(encoding))
    command = ("data/tokenize_redpj.py", "--text", file, "--tokenizer", tiny_model, "--name", "r", "--test_tokens", 100)
    if is_refused:
        assert "not UTF-8 text; convert it" in error_line(*command)
    else:
        succeed(*command)


@pytest.mark.parametrize("name", ["é" * 200, "a\0b", "", {"title": "é" * 200}, 3, None, "weights.index.json"])
def test_an_index_lists_names_of_files(tmp_path, name):
    """A file name has at most 255 bytes, not characters."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": name, "lm_head.weight": "a.safetensors"}}))
    with pytest.raises(UserError, match="lists what is no file of weights"):
        shards_of_index(index)
