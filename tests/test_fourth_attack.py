"""Tests of faults that a fourth attack found on 2026-12-01. Numbers are those of its table in LOG.md."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from data.conversations import prepare_messages
from data.generation import filters
from data.generation.passages import PassageStore, locate_passages, read_records
from data.tokenize_redpj import without_held_out
from gptj import create_hdf5
from gptj.formats import without_twins
from scripts.own_corpus_plan import FREE_USD, LIMIT_FACTOR
from scripts.rag_table import question_ids
from scripts.scaling_points import make_point, synthetic_tokens
from tasks.contamination import print_contamination
from tests.conftest import ROOT, error_line, run_script, succeed
from tests.scripts.test_own_corpus_plan import PRICE, plan
from tests.test_second_attack import corpus
from tests.test_third_attack import attempts_of, scaling_run
from utils import paths
from utils.errors import UserError
from utils.token_file import write_tokens

TOLD = "About the lamp: Odile Marchbanks kept the light for thirty-nine years. The lens was drawn at a kitchen table."


def ask(server, *options):
    model = ("--model_path", "served", "--base_url", server.url, "--n_samples", 1, "--concurrency", 1)
    return ("evaluation.py", "--task", "example", *model, *options)


def failed_questions() -> int:
    result = json.loads(paths.evaluation_file("served").read_text())
    return sum("error" in attempt for attempts in attempts_of(result) for attempt in attempts)


@pytest.mark.parametrize("select", [(), ("--select", "majority")])
def test_give_up_takes_the_answers_that_came_since(home, server, select):
    """1: five questions fail, then two of them again; the three answers between were thrown away."""
    server.faults = [400] * 5
    succeed(*ask(server, "--give_up"))
    server.faults = [None] * 3 + [400] * 2
    assert "2 questions were not answered" in error_line(*ask(server))
    billed = sum(server.billed.values())
    server.faults = [400] * 2
    succeed(*ask(server, "--give_up", *select))
    assert (failed_questions(), sum(server.billed.values())) == (2, billed)
    succeed(*ask(server, *select))
    assert (failed_questions(), sum(server.billed.values())) == (0, billed + 2)


def test_two_evaluations_at_once_both_stay(home, server, tiny_model):
    """2: the other process wrote while this one searched the training text."""
    command = [sys.executable, ROOT / "evaluation.py", "--task", "example", "--model_path", "served"]
    command += ["--base_url", server.url, "--n_samples"]
    runs = [subprocess.Popen([*command, count], stdout=subprocess.DEVNULL) for count in ("2", "3")]
    assert [run.wait(200) for run in runs] == [0, 0]
    outputs = [paths.evaluation_file("served"), *(paths.out_dir() / "earlier").iterdir()]
    assert {json.loads(path.read_text())["protocol"]["n_samples"] for path in outputs} == {2, 3}
    billed = sum(server.billed.values())
    for count in ("2", "3"):
        succeed(*command[1:], count)
    assert sum(server.billed.values()) == billed


def generate(server, *options):
    command = ("data/entigraph.py", "all", "--task", "lamps", "--model", "m", "--base_url", server.url)
    return (*command, "--max_pairs", 3, "--max_triples", 0, *options)


def test_replies_of_a_batch_are_recorded_without_the_flag_of_its_submission(home, server):
    """3: cut replies were asked for again in a batch, whose replies were billed and dropped."""
    corpus(titles=("Lamp",))
    server.faults = [None] + ["length"] * 3
    succeed(*generate(server, "--concurrency", 1))
    succeed(*generate(server, "--batch", "submit", "--retry_failed"))
    succeed(*generate(server, "--batch", "collect"))
    (journal,) = paths.passages_dir("lamps", "m").glob("lamp-*.jsonl")
    assert Counter(record["finish_reason"] for record in read_records(journal)) == {"stop": 4}
    summary = json.loads((journal.parent / "summary.json").read_text())
    assert summary["finish_reasons"] == {"stop": 4}
    assert "0 calls submitted" in succeed(*generate(server, "--batch", "submit", "--retry_failed"))


def test_a_plan_says_where_it_stops():
    """4: "cost, at most" was exceeded by a generator with short replies."""
    made = plan(PRICE, tokens=100_000)
    assert made["usd_limit"] == pytest.approx(max(FREE_USD, LIMIT_FACTOR * made["usd"]), rel=0.02)
    assert plan(PRICE, budget_usd=2.0)["usd_limit"] == 2.0
    assert plan()["usd_limit"] is None


def edit_corpus():
    file = paths.corpus_file("lamps")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(r | {"article": r["article"] + " The gull is grey."}) + "\n" for r in records))


@pytest.mark.parametrize("options", [("--aim_tellings", 2), ("--target_tokens", 30, "--max_pairs", 5)])
def test_passages_about_an_edited_document_do_not_count(home, server, tiny_model, options):
    """5, 6, 13: the documents were edited, and nothing was asked for."""
    corpus()
    listing = json.dumps({"summary": "s", "entities": ["Odile Marchbanks", "Ada", "Bell"]})
    server.replies = lambda prompt: listing if '"entities"' in prompt.split("# Task")[-1] else TOLD
    succeed(*generate(server, "--concurrency", 1, *options))
    edit_corpus()
    out = succeed("data/inspect_entigraph.py", "--task", "lamps", "--model", "m")
    figures = json.loads(out.splitlines()[-1])
    assert (figures["passages"], figures["told_once"]) == (0, 0) and figures["stale"] > 2
    succeed(*generate(server, "--concurrency", 1, *options))
    tokenize = ("data/tokenize_entigraph.py", "--task", "lamps", "--model", "m", "--tokenizer", tiny_model)
    assert json.loads(succeed(*tokenize).splitlines()[-1])["documents"] > 2


def record(id: str, text: str, reason: str = "stop", tokens: int = 100) -> dict:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens}
    return {"id": id, "kind": "pair", "entities": ["a", "b"], "text": text, "finish_reason": reason, "usage": usage}


def write_journal(folder, *records, separators=None):
    folder.mkdir(exist_ok=True)
    path = folder / "u.jsonl"
    path.write_text("".join(json.dumps(one, separators=separators) + "\n" for one in records))
    return path


def test_tokens_are_those_that_are_trained_on(tmp_path):
    """7: replies that step 2 leaves out counted, and with --retry_failed those that are asked for again."""
    long = "The keeper counts the steps aloud. " * 30
    write_journal(tmp_path, record("1", "too short to be trimmed", "length"), record("2", long + "and th", "length"))
    store = PassageStore(tmp_path, read_only=True)
    store.open("u", None)
    assert 90 < store.passage_tokens() < 100
    store = PassageStore(tmp_path, retry_failed=True)
    store.open("u", None)
    assert store.passage_tokens() == 0
    store.append("u", record("2", long))
    assert store.passage_tokens() == 100


def test_a_corrected_quiz_is_kept(home, server):
    """8: options and labels that were corrected by hand were written over."""
    corpus()
    questions = [{"question": "Who kept the light?", "options": ["Odile", "Ada", "Bell", "Door"], "gold_label": 1}]
    questions[0] |= {"question_unique_id": "1", "difficult": 0}
    article = json.loads(paths.corpus_file("lamps").read_text().splitlines()[0])
    file = home / "q.jsonl"
    command = ("data/make_questions.py", "--task", "lamps", "--from_file", file)
    for label in (1, 2):
        questions[0]["gold_label"] = label
        file.write_text(json.dumps(article | {"questions": questions}) + "\n")
        succeed(*command)
    (kept,) = (paths.questions_file("lamps", "choice").parent / "earlier").iterdir()
    assert '"gold_label": 1' in kept.read_text()


def test_rows_of_withdrawn_documents_are_refused(tmp_path, tiny_model):
    """9: files beyond the end of the present input were kept."""
    (tmp_path / "in").mkdir()
    lines = [f'{{"text": "The lamp number {n} burns."}}\n' for n in range(12)]
    (tmp_path / "in/a.jsonl").write_text("".join(lines))
    options = ["--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out", "--tokenizer", tiny_model]
    options += ["--max_seq_length", 32, "--files_per_record", 2, "--no-pack_sequences"]
    command = ["gptj/create_hdf5.py", *options]
    succeed(*command)
    made = json.loads((tmp_path / "out" / create_hdf5.MANIFEST).read_text())
    (tmp_path / "out" / create_hdf5.MANIFEST).unlink()
    (tmp_path / "out" / create_hdf5.UNFINISHED).write_text(json.dumps(made["settings"]))
    (tmp_path / "out/.progress-0.json").write_text(json.dumps(made["files"]))
    (tmp_path / "in/a.jsonl").write_text("".join(lines[:6]))
    assert create_hdf5.CHANGED in error_line(*command, "--resume_from_checkpoint")


def conversations(home, count: int) -> list:
    lines = [
        {"messages": [{"role": "user", "content": f"q{n % count}"}, {"role": "assistant", "content": f"a{n % count}"}]}
        for n in range(200)
    ]
    (home / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["data/tokenize_instruct.py", "--jsonl", home / "c.jsonl", "--name", "x", "--test_share", "0.02"]


def test_held_out_conversations_are_not_trained_on(home, tiny_llama):
    """10: a conversation that the file holds several times was held out and trained on."""
    done = run_script(*conversations(home, 50), "--tokenizer", tiny_llama)
    assert done.returncode == 0 and "that are held out as well" in done.stderr
    sidecars = [
        json.loads(paths.conversations_bin("x", split).with_suffix(".json").read_text()) for split in ("test", "train")
    ]
    assert sidecars[1]["skipped"]["that are held out as well"] >= 3 * sidecars[0]["conversations"] / 2


def test_an_empty_reply_is_not_learnt():
    """23"""
    question = {"role": "user", "content": "q"}
    for empty in ("", " \n"):
        assert prepare_messages([question, {"role": "assistant", "content": empty}])[1] == "with an empty reply"
    assert prepare_messages([question, {"role": "assistant", "content": "a"}])[1] is None


def test_every_question_in_the_training_text(capsys):
    """11"""
    leakage = {"leaked": ["1"], "accuracy_without": None}
    print_contamination({"leakage": leakage, "metrics": {"n": 1}})
    assert "1 of 1 questions occur in the training text (" in capsys.readouterr().out


def test_two_replies_to_one_request_count_once(tmp_path):
    """12, 17: a kill of --retry_failed leaves both; `jq -c` writes no spaces."""
    cut, whole = record("1", "The keeper counts the steps aloud. " * 30, "length"), record("1", "The new one.")
    for separators in (None, (",", ":")):
        path = write_journal(tmp_path / "j", cut, whole, whole, separators=separators)
        assert [one["text"] for one in read_records(path)] == ["The new one."]
        assert len(locate_passages([tmp_path / "j"], "")[1]) == 1
    duplicates = filters.Duplicates()
    words = [f"word{n}" for n in range(40)]
    assert [duplicates.add("/", words[start:]) for start in (0, 20)] == ["", ""]  # records without an id


def test_a_folder_and_its_copy_are_taken_once(tmp_path):
    """17"""
    write_journal(tmp_path / "a", record("1", "One."), record("2", "Two."))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    counts = Counter()
    assert len(locate_passages([tmp_path / "a", tmp_path / "b"], "", counts=counts)[1]) == 2
    assert counts["copies"] == 2


def test_points_of_other_questions_are_no_sweep():
    """14"""
    result = {"documents": [{"uid": "a", "questions": [{"id": "1"}, {"id": "2"}]}]}
    assert list(question_ids(result)) == [("a", "1"), ("a", "2")]


def test_points_are_of_the_evaluated_weights_and_the_base(home):
    """15"""
    meta = write_tokens(home / "t.bin", [[np.ones(10, int)] * 50], {}, False)
    checkpoint = scaling_run("a", home / "t.bin", meta)
    with pytest.raises(UserError, match="--base other: .* was trained from base"):
        synthetic_tokens(checkpoint, "other")
    file = paths.evaluation_file(checkpoint)
    file.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"accuracy": 0.5, "ci95": [0.4, 0.6], "n": 84}
    file.write_text(json.dumps({"metrics": metrics, "protocol": {"weights": ["earlier ones"]}}))
    with pytest.raises(UserError, match="trained again after its evaluation"):
        make_point(checkpoint, 1)


def test_an_error_leaves_both_files(home, tiny_model, tmp_path):
    """16: the held-out file was replaced before the training file failed."""
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "Document {n} is about a lamp."}}\n' for n in range(40)))
    command = ("data/tokenize_redpj.py", "--text", tmp_path / "text.jsonl", "--tokenizer", tiny_model)
    succeed(*command, "--test_tokens", 60)
    files = [paths.replay_bin(paths.DEFAULT_REPLAY, split) for split in ("test", "train")]
    before = [file.read_bytes() for file in files]
    (tmp_path / "text.jsonl").write_text('{"text": "The same again."}\n' * 40)
    assert "every other document is a copy of a held-out one" in error_line(*command, "--test_tokens", 5)
    assert [file.read_bytes() for file in files] == before
    assert not list(files[0].parent.glob(".*.tmp"))


def test_copies_that_differ_in_white_space(capsys):
    """21"""
    texts = ["one two", "three", "one  two\n", "four"]
    assert list(without_held_out(texts, 1)) == ["three", "four"]
    assert "1 documents that are copies of held-out ones" in capsys.readouterr().err


def test_two_tensors_of_one_name_are_compared():
    """20"""
    with pytest.raises(UserError, match="x and model.x differ"):
        without_twins({"x": torch.zeros(2), "model.x": torch.ones(2)}, "f.mdl")
    assert list(without_twins({"x": torch.zeros(2), "model.x": torch.zeros(2)}, "f.mdl")) == ["x"]


def test_a_damaged_input_of_the_report_is_named(home):
    """18"""
    corpus()
    for name in ("base", "raw", "synthetic"):
        file = paths.evaluation_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    options = [f"--{name}={name}" for name in ("base", "raw", "synthetic")]
    command = ("scripts/own_corpus_report.py", "--task", "lamps", "--model", "m", "--method", "entigraph", *options)
    line = error_line(*command, "--open_book", paths.evaluation_file("base"), "--begun", 1)
    assert "damaged, or changed by hand" in line and "own_corpus.sh" in line
