"""Faults that a week of hostile use found: numbers that were wrong without a word, code of others, lost replies. The
letters are those of the list in LOG.md, 2026-11-27."""

import asyncio
import json
import os
import stat
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.generation.passages import PassageStore, best_only, locate_passages, read_passages
from data.mixture import made_by_one_run
from gptj import trc2
from gptj.params import load_yaml
from inference.client import Client
from inference.completions import json_object_in, parse_choices, parse_json_object, parse_usage
from inference.embeddings import parse_vectors
from tasks import contamination
from tasks.documents import load_documents
from tests.conftest import run_script, succeed
from training.run_record import base_weights, same_base
from utils.errors import UserError, first_line
from utils.io import read_journal, read_json, read_jsonl, sampled_sha256
from utils.json_text import parse_json
from utils.token_file import HELD_OUT_KEY, TokenFile, refuse_other_kind, write_tokens
from utils.tokenizer import load_tokenizer

QUESTION = {"question": "Who?", "options": ["a", "b", "c", "d"], "gold_label": 1, "difficult": 0}


def record_of(title: str, article: str = "A text.", **fields) -> dict:
    return {"title": title, "author": "", "article": article, "questions": []} | fields


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# A1: attempts were kept by question id alone


def test_two_documents_with_a_question_of_the_same_id_do_not_share_attempts(tmp_path):
    questions = [QUESTION | {"question_unique_id": id} for id in ("q1", "q2")]
    file = write_jsonl(
        tmp_path / "x.jsonl", [record_of("A", questions=questions), record_of("B", questions=questions[:1])]
    )
    first, second = load_documents([file], "")
    assert [question.id for question in first.questions] == [f"{first.uid}/q1", "q2"]
    assert [question.id for question in second.questions] == [f"{second.uid}/q1"]


def test_two_questions_of_one_document_with_the_same_id_are_refused(tmp_path):
    questions = [QUESTION | {"question_unique_id": "q1"}, QUESTION | {"question_unique_id": "q1", "question": "What?"}]
    file = write_jsonl(tmp_path / "x.jsonl", [record_of("A", questions=questions)])
    with pytest.raises(UserError, match="two questions about 'A' have the id q1"):
        load_documents([file], "")
    write_jsonl(file, [record_of("A", questions=questions[:1] * 2)])
    assert len(load_documents([file], "")[0].questions) == 1


# A2: a server that ignores `n` and honours `seed` gave the same choice again and again


def test_missing_choices_are_asked_for_with_another_seed(server):
    client = Client("fake", server.url)

    async def ask():
        try:
            return await client.complete("Question?", 3, temperature=1.0, seed=5, max_tokens=5)
        finally:
            await client.close()

    assert len(asyncio.run(ask())) == 3
    seeds = [body["seed"] for body in server.bodies if "seed" in body]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3


# A4, A10: pairs of token files, and names of two kinds


def tokens(path, masked: bool, count: int = 4, **made):
    rows = np.ones((2, count), int) if masked else np.ones(count, int)
    return write_tokens(path, [[rows]], made, masked)


def test_a_training_file_knows_its_held_out_file():
    training = {"seed": 0, HELD_OUT_KEY: "new"}
    assert made_by_one_run(training, {"seed": 0, "sha256": "new"})
    assert not made_by_one_run(training, {"seed": 0, "sha256": "old"})
    assert made_by_one_run({"seed": 0}, {"seed": 0, "sha256": "of an earlier version"})


@pytest.mark.parametrize("masked", [True, False])
def test_conversations_and_replay_text_do_not_replace_each_other(tmp_path, masked):
    tokens(tmp_path / "x_train.bin", masked)
    refuse_other_kind(tmp_path / "x_train.bin", "x", masked)
    with pytest.raises(UserError, match="--name x: .*; choose another name"):
        refuse_other_kind(tmp_path / "x_train.bin", "x", not masked)


def test_a_split_keeps_the_lists_of_another_file(tmp_path, monkeypatch):
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("".join(f"line {n}\n" for n in range(40)))
        args = Namespace(
            input_file=tmp_path / name, out_dir=tmp_path, buffer_len=10, val_split_ratio=0.25, by_article=False, seed=0
        )
        trc2.split(args)
        trc2.split(args)  # the same again: no name twice
    listed = (tmp_path / "train_meta.txt").read_text().split() + (tmp_path / "val_meta.txt").read_text().split()
    assert sorted(listed) == sorted(f"split_files/{name}-{n}.txt" for name in ("one.txt", "two.txt") for n in range(4))


def test_a_yaml_key_given_twice(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("model:\n  hidden_size: 16\n  num_heads: 2\n  hidden_size: 32\n")
    with pytest.raises(UserError, match="hidden_size is given twice"):
        load_yaml(path)
    path.write_text("model:\n  hidden_size: 16\noptimizer:\n  hidden_size: 16\n")
    assert load_yaml(path)["model"] == {"hidden_size": 16}
    path.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not a YAML file"):
        load_yaml(path)


# A5: passages about documents that were edited or deleted


def test_passages_about_an_edited_document_are_left_out(home, server, tiny_model):
    raw = home / "data/dataset/raw"
    raw.mkdir(parents=True)
    texts = {"A": "Ada rang the Bell. " * 30, "B": "Bell fell to the Door. " * 30}
    write_jsonl(raw / "mine.jsonl", [record_of(*pair) for pair in texts.items()])
    options = ("--task", "mine", "--model", "fake")
    step_1 = ("data/entigraph.py", "all", *options, "--base_url", server.url, "--max_pairs", 2, "--max_triples", 1)
    succeed(*step_1)
    tokenize = ("data/tokenize_entigraph.py", *options, "--tokenizer", str(tiny_model))
    assert "edited or deleted" not in succeed(*tokenize)
    whole = read_json(home / "data/dataset/bins/mine_all-entigraphfake.json", "")["documents"]
    write_jsonl(raw / "mine.jsonl", [record_of("A", texts["A"] + "And more.")])
    done = run_script(*tokenize)
    assert done.returncode == 2  # nothing is left
    write_jsonl(raw / "mine.jsonl", [record_of("A", texts["A"] + "And more."), record_of("B", texts["B"])])
    assert f"{whole // 2} passages are about documents that were edited or deleted since" in succeed(*tokenize)
    succeed(*step_1)
    succeed(*tokenize)
    assert read_json(home / "data/dataset/bins/mine_all-entigraphfake.json", "")["documents"] == whole


# A6: two documents of one title in a task file


def test_another_article_of_the_same_title_is_refused(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", [record_of("A", "One text."), record_of("A", "Another text.")])
    with pytest.raises(UserError, match="record 2: another article has its title and author, 'A'"):
        load_documents([file], "")
    write_jsonl(file, [record_of("A", year=None), record_of("A", year=None)])
    (document,) = load_documents([file], "")
    assert document.year == ""


# A7: contamination outside the subsample, evaluations after a change of the tokenizer


def test_contamination_is_searched_in_the_subsample_only(tmp_path, tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    texts = [f"Document {n} tells of the lamp number {n}." for n in range(40)]
    path = tmp_path / "x.bin"
    made = {"tokenizer": "x"}
    write_tokens(path, [[np.array(tokenizer(text)["input_ids"]) for text in texts]], made)
    sha256 = TokenFile(path, "").meta["sha256"]
    found = {
        ratio: list(
            contamination.training_text(str(tiny_model), {path: contamination.TrainedFile(sha256, ratio, seed=3)})
        )
        for ratio in (1.0, 0.25)
    }
    assert len(found[1.0]) == 40
    assert len(found[0.25]) == 10


def test_a_touched_base_model_is_the_same(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(9 << 20))
    before, digest = base_weights(str(tmp_path)), sampled_sha256(path)
    os.utime(path, (1, 1))
    assert same_base(before, base_weights(str(tmp_path)))
    content = bytearray(path.read_bytes())
    content[5 << 20 : 6 << 20] = os.urandom(1 << 20)
    path.write_bytes(content)
    assert sampled_sha256(path) != digest
    assert not same_base(before, base_weights(str(tmp_path)))
    old = [state[:3] for state in before]  # of an earlier version, without a hash
    assert not same_base(old, base_weights(str(tmp_path)))
    assert same_base(["hub/name"], ["hub/name"])


# A8, A9: servers whose replies hold no numbers or no text


@pytest.mark.parametrize(
    "vector", [[0.0, 0.0], [None, 1.0], [float("nan"), 1.0], [float("inf"), 1.0], ["x", 1.0], [1e300, 1e300]]
)
def test_embeddings_without_numbers_are_refused(vector):
    reply = {"data": [{"index": 0, "embedding": [0.6, 0.8]}, {"index": 1, "embedding": vector}]}
    with pytest.raises(ValueError, match="embeddings"):
        parse_vectors(reply, 2)


@pytest.mark.parametrize("choice", [{"message": {"content": "x"}}, {"text": None}, {"text": 3}, None])
def test_a_choice_without_text_is_a_failed_call(choice):
    with pytest.raises(ValueError, match="no text|no choices"):
        parse_choices({"choices": [choice]})
    with pytest.raises(ValueError, match="no text"):
        parse_choices({"choices": [{"text": "fine"}, choice]})
    assert parse_choices({"choices": [{"text": ""}]})[0].text == ""


@pytest.mark.parametrize("usage", [{"prompt_tokens": -5, "completion_tokens": 1}, {"prompt_tokens": 5}])
def test_usage_that_is_no_count_is_none(usage):
    assert parse_usage(usage) is None
    assert parse_usage({"prompt_tokens": 5, "completion_tokens": 1}).prompt == 5


# A11, A12


def test_blocks_longer_than_the_context_are_refused():
    from types import SimpleNamespace

    from training.model import check_block_size

    config = SimpleNamespace(max_position_embeddings=128, get_text_config=lambda **kwargs: config)
    model = SimpleNamespace(config=config)
    check_block_size(model, 128, "x")
    with pytest.raises(UserError, match="--block_size 129: the context of x is 128 tokens"):
        check_block_size(model, 129, "x")


@pytest.mark.parametrize("lines", [40, 4000])
def test_a_hundredth_of_a_small_text_is_held_out(home, tmp_path, tiny_model, lines):
    text = tmp_path / "some.txt"
    text.write_text("".join(f"Line {n} tells of the lamp at Skarrow Head.\n" for n in range(lines)))
    succeed("data/tokenize_redpj.py", "--text", text, "--name", "some", "--tokenizer", str(tiny_model))
    counts = {
        split: read_json(home / f"data/dataset/bins/some_{split}.json", "")["tokens"] for split in ("train", "test")
    }
    assert counts["train"] > counts["test"] > 0
    if lines > 1000:
        assert counts["test"] < 0.03 * counts["train"]


# A13: paid replies were taken out of the journals before their replacements came


def cut(words: int, reason: str = "length") -> dict:
    text = " ".join(f"Word{n} is told here." for n in range(words))
    return {"id": "c", "kind": "pair", "entities": [], "text": text, "finish_reason": reason, "usage": {}}


def texts_in(folder) -> list[str]:
    return list(read_passages(*locate_passages([folder], "")))


@pytest.mark.parametrize(("again", "kept"), [(cut(60), 60), (cut(30), 40), (cut(10, "stop"), 10)])
def test_a_paid_reply_stays_until_a_better_one_is_on_disk(tmp_path, again, kept):
    path = write_jsonl(tmp_path / "u.jsonl", [cut(40)])
    store = PassageStore(tmp_path, retry_failed=True)
    store.open("u", None)
    assert "c" not in store.done["u"]
    assert len(path.read_text().splitlines()) == 1  # stopped here, nothing is lost
    assert len(texts_in(tmp_path)) == 1
    store.append("u", again)
    assert store.done["u"] == {"c"}
    assert store.finish_reasons == Counter({again["finish_reason"]: 1}) or store.finish_reasons["length"] <= 1
    assert [len(text.split("Word")) - 1 for text in texts_in(tmp_path)] == [kept]
    store.drop_replaced()
    assert len(path.read_text().splitlines()) == 1
    store = PassageStore(tmp_path)
    store.open("u", None)
    assert [len(text.split("Word")) - 1 for text in texts_in(tmp_path)] == [kept]
    assert sum(map(best_only(path), read_journal(path))) == 1  # no reply has another one beside it


# B: code of others, and the user's own files


def test_code_of_a_checkpoint_is_never_run(tmp_path, tiny_model, capsys, monkeypatch):
    import shutil

    from inference.embeddings import LocalEmbedder
    from utils.checkpoint import load_checkpoint, load_config

    folder = tmp_path / "evil"
    shutil.copytree(tiny_model, folder)
    marker = tmp_path / "ran"
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "modeling_evil.Evil"}])
    )
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    import torch

    for load in (
        lambda: load_config(str(folder), "--model_path"),
        lambda: load_checkpoint(str(folder), torch.float32, "--model_path"),
        lambda: load_tokenizer(str(folder)),
        lambda: list(LocalEmbedder(str(folder)).embed(["x"])),
    ):
        try:
            load()
        except UserError as error:
            assert "trust_remote_code" not in str(error)
    assert not marker.exists()


def test_advice_to_run_code_is_not_passed_on():
    error = ValueError("Please set trust_remote_code=True to load it")
    assert first_line(error) == "it comes with code of its own, which is never run"
    assert "weights_only" not in first_line(ValueError("re-running torch.load with weights_only=False is unsafe"))


def test_the_chat_history_is_private(home, monkeypatch):
    from chat import terminal
    from utils import paths

    monkeypatch.setattr("prompt_toolkit.PromptSession", lambda *arguments, **options: None)
    terminal.make_prompt_session([], [])
    assert stat.S_IMODE(paths.chat_history().stat().st_mode) == 0o600


# C1, C4: nesting and half surrogates


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"[1", b"\xff", b"9" * 5000])
def test_bodies_that_are_no_json_are_one_failed_call(content):
    with pytest.raises(ValueError):
        parse_json_object(content)


def test_half_surrogates_become_question_marks(tmp_path):
    reply = '{"entities": ["a \\ud83d b", "c \\ud83d\\ude00"], "summary": "\\udc00"}'
    for value in (json_object_in(reply, "entities"), parse_json(reply)):
        assert value == {"entities": ["a ? b", "c \U0001f600"], "summary": "?"}
        json.dumps(value, ensure_ascii=False).encode()
    (tmp_path / "x.jsonl").write_text('{"\\ud800": "\\udfff"}\n')
    assert read_jsonl(tmp_path / "x.jsonl", "") == [{"?": "?"}]
    with pytest.raises(ValueError):
        json_object_in('{"entities": ' + "[" * 5000, "entities")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="deep.json"):
        read_json(tmp_path / "deep.json", "")


# C2, C3: batches whose output is damaged, more journals than open files


def test_torn_lines_of_a_batch_are_left_out():
    from inference.batch_api import parse_lines

    lines = [
        '{"custom_id": "a", "response": {}}',
        '{"custom_id": "b", "resp',
        '{"response": {}}',
        "[]",
        '"x"',
        "",
        '{"custom_id": 3}',
    ]
    assert parse_lines("\n".join(lines)) == ([{"custom_id": "a", "response": {}}], 5)


def test_more_journals_than_open_files(tmp_path):
    import resource

    for number in range(60):
        write_jsonl(tmp_path / f"u{number}.jsonl", [cut(3, "stop") | {"id": str(n)} for n in range(3)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    from data.generation import passages

    try:
        passages.MAX_OPEN, before = 10, passages.MAX_OPEN
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 14, limits[1]))
        files, locations = locate_passages([tmp_path], "")
        order = np.random.default_rng(0).permutation(len(locations))
        assert len(list(read_passages(files, locations[order]))) == 180
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        passages.MAX_OPEN = before


# C5, C6


def test_indexes_and_files_without_tensors(tmp_path):
    import torch

    from gptj.weight_files import load_hf, load_mdl

    for content in ({}, {"weight_map": {}}, {"weight_map": None}, {"weight_map": []}, []):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="lists no files"):
            load_hf(tmp_path)
    torch.save({"a": "text"}, tmp_path / "x.bin")
    with pytest.raises(UserError, match="a is a str, not a tensor"):
        load_hf(tmp_path / "x.bin")
    torch.save({"model": {"a": 3}}, tmp_path / "x.mdl")
    with pytest.raises(UserError, match="a is a int, not a tensor"):
        load_mdl(tmp_path / "x.mdl")


def test_texts_without_words_are_searched_without_a_result():
    from inference.retrieval import Bm25, Chunk

    assert Bm25([Chunk("u", 0, "...", "!!! ???")]).search(["who?"], 3) == [[]]


# D1, D2, D4


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    from utils.io import lock_folder

    with lock_folder(tmp_path / "run"):
        with pytest.raises(UserError, match="another process is writing to it"):
            lock_folder(tmp_path / "run")
        lock_folder(tmp_path / "other").close()
    lock_folder(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()


def test_older_checkpoints_go_when_the_newest_is_complete(tmp_path):
    from utils.checkpoint import last_checkpoint, remove_older_checkpoints

    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/COMPLETE").touch()
    (tmp_path / "checkpoint-105").mkdir()  # being written
    remove_older_checkpoints(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-105"]
    assert last_checkpoint(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize("name", ["my-qa", "my-raw", "instruct", "a-b-rephrase"])
def test_names_that_mean_something_else_in_training_are_refused_at_once(home, tmp_path, name):
    from data.generation.methods import METHODS
    from tasks.documents import VARIANTS, load_task
    from tasks.readers import write_corpus

    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.txt").write_text("A text.")
    for call in (lambda: write_corpus(folder), lambda: load_task(name)):
        with pytest.raises(UserError, match="rename it"):
            call()
    assert set(VARIANTS) == {"raw", *METHODS}


# D6: a server that asks to wait for a day


def test_long_waits_are_said_and_longer_ones_end_the_run(server, capfd):
    client = Client("fake", server.url, max_wait_s=100)
    with pytest.raises(UserError, match=r"asks to wait 24.0 hours; .*--max_wait"):
        client._say_wait(86_400)
    client._say_wait(90)
    assert "the server asks to wait 2 minutes, until" in capfd.readouterr().err
    client._say_wait(5)
    assert capfd.readouterr().err == ""


# B3: bounded requests of the page; that it has no upload is tested in chat/test_web.py


@pytest.mark.parametrize(
    ("path", "length", "status"), [("/reply", "5", 200), ("/reply", str(9 << 20), 413), ("/x", "-1", 413)]
)
def test_large_bodies_are_refused(path, length, status):
    from chat.body_limit import BodyLimit

    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"content-length", length.encode())]}
    asyncio.run(BodyLimit(page)(scope, None, send))
    assert sent[0]["status"] == status


def test_a_body_without_a_length_is_cut():
    from chat.body_limit import MAX_BODY_BYTES, BodyLimit

    read = []

    async def page(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(len(message["body"]))

    async def receive():
        return {"type": "http.request", "body": b"x" * (1 << 20)}

    asyncio.run(BodyLimit(page)({"type": "http", "path": "/", "headers": []}, receive, None))
    assert sum(read) <= MAX_BODY_BYTES
