"""Tests of faults that a third attack found on 2026-11-30. Numbers are those of its table in LOG.md."""

import itertools
import json
import shutil

import numpy as np
import pytest

from data.generation.aiming import Progress
from data.generation.coverage import Statements
from data.generation.passages import PassageStore, locate_passages, read_passages, read_records
from gptj import create_hdf5
from gptj.rows import row_order
from gptj.train_loop import steps_after
from scripts.scaling_points import synthetic_tokens
from tasks import short_answers
from tasks.documents import load_documents
from tests.conftest import error_line, run_script, succeed
from tests.test_second_attack import corpus
from tests.training.test_train import train_command
from training.model import add_lora, load_model
from utils import paths
from utils.errors import UserError
from utils.token_file import TokenFile, write_tokens


def served(server, *options):
    """evaluation.py over a server that ignores `n`, with three attempts per question, one question at a time."""
    model = ("--model_path", "served", "--base_url", server.url, "--n_samples", 3, "--concurrency", 1)
    return ("evaluation.py", "--task", "example", *model, *options)


def attempts_of(result: dict) -> list[list[dict]]:
    return [question["attempts"] for document in result["documents"] for question in document["questions"]]


def test_attempts_before_a_failed_call_are_kept(home, server):
    """3: two attempts of the first question come, its third call fails."""
    server.faults = [None] * 2 + [400]
    assert "1 questions were not answered" in error_line(*served(server))
    billed = sum(server.billed.values())
    (journal,) = paths.out_dir().glob("*.partial*")
    assert sum('"attempts"' in line for line in journal.read_text().splitlines()) == billed
    seeds = {body["seed"] for body in server.bodies if "seed" in body}
    server.bodies.clear()
    succeed(*served(server))
    assert sum(server.billed.values()) == billed + 1
    (asked,) = [body for body in server.bodies if body["max_tokens"] > 16]
    assert asked["seed"] in seeds and asked["seed"] != 0 and asked["n"] == 1
    assert {len(attempts) for attempts in attempts_of(json.loads(paths.evaluation_file("served").read_text()))} == {3}


def test_give_up_scores_the_attempts_that_came(home, server):
    """3"""
    server.faults, server.answer = [None] * 2 + [400], "Answer: A."
    succeed(*served(server, "--give_up"))
    first = json.loads(paths.evaluation_file("served").read_text())["documents"][0]["questions"][0]
    assert [("error" in attempt) for attempt in first["attempts"]] == [False, False, True]
    assert first["answer"] == 0
    billed = sum(server.billed.values())
    succeed(*served(server))
    assert sum(server.billed.values()) == billed + 1


def test_another_selection_asks_nothing_again(home, server):
    """5: after an interruption, and where the attempts are in earlier/."""
    server.faults = [None] * 11 + [400]
    error_line(*served(server))
    billed = sum(server.billed.values())
    succeed(*served(server, "--select", "majority"))
    assert sum(server.billed.values()) == billed + 1
    other = ("evaluation.py", "--task", "example", *served(server)[3:7], "--n_samples", 1)
    succeed(*other)  # moves the first one's output to earlier/
    billed = sum(server.billed.values())
    succeed(*served(server, "--select", "random"))
    assert sum(server.billed.values()) == billed
    assert json.loads(paths.evaluation_file("served").read_text())["protocol"]["select"] == "random"
    succeed(*other)
    assert sum(server.billed.values()) == billed


@pytest.mark.parametrize(
    "options", (["--temperature", 0, "--select", "majority"], ["--temperature", 0, "--n_samples", 16])
)
def test_samples_at_temperature_0_are_refused(home, options):
    """20"""
    assert "without effect at temperature 0" in error_line("evaluation.py", "--model_path", "m", *options)


def test_options_beside_a_comparison_are_refused(home):
    """20"""
    assert "--rag: without effect" in error_line("evaluation.py", "--compare", "a.json", "b.json", "--rag")


def scaling_run(name, file, meta, **arguments):
    """A checkpoint folder with the run.json of a finished run."""
    folder = paths.ckpts_dir() / name
    folder.mkdir(parents=True)
    given = {"subsample_ratio": "1", "seed": 0, "epochs": "2", "model_name": "base"} | arguments
    data = {"train": {"file": str(file), "sha256": meta["sha256"]}}
    (folder / "run.json").write_text(json.dumps({"arguments": given, "data": data, "finished": True}))
    return str(folder)


def test_points_have_the_tokens_of_their_subset(home):
    """6: tokens were counted with the last step, which replay fills."""
    file = home / "t.bin"
    meta = write_tokens(file, [[np.ones(10, int)] * 50], {}, False)
    assert synthetic_tokens(scaling_run("a", file, meta), "base") == 500
    assert synthetic_tokens(scaling_run("b", file, meta, subsample_ratio="0.1"), "base") == 50
    assert synthetic_tokens(scaling_run("c", file, meta, subsample_ratio="0.1", epochs="0.5"), "base") == 25
    write_tokens(file, [[np.ones(11, int)] * 50], {}, False)
    with pytest.raises(UserError, match="made again since"):
        synthetic_tokens(str(paths.ckpts_dir() / "a"), "base")


def test_resuming_with_other_input_is_refused(tmp_path, tiny_model):
    """7: old rows and new ones were mixed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("".join(f'{{"text": "The lamp number {n} burns."}}\n' for n in range(60)))
    options = ["--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out", "--tokenizer", tiny_model]
    command = ["gptj/create_hdf5.py", *options, "--max_seq_length", 16, "--files_per_record", 4]
    succeed(*command)
    files = sorted((tmp_path / "out").glob("*.h5"))
    expected = {file.name: file.read_bytes() for file in files}

    def interrupt():
        manifest = tmp_path / "out" / create_hdf5.MANIFEST
        made = json.loads(manifest.read_text())
        manifest.unlink()
        (tmp_path / "out" / create_hdf5.UNFINISHED).write_text(json.dumps(made["settings"]))
        (tmp_path / "out/.progress-0.json").write_text(json.dumps(made["files"]))

    interrupt()
    succeed(*command, "--resume_from_checkpoint")
    assert {file.name: file.read_bytes() for file in files} == expected
    interrupt()
    (tmp_path / "in/a.jsonl").write_text('{"text": "Something else."}\n' + (tmp_path / "in/a.jsonl").read_text())
    assert "the input files have changed" in error_line(*command, "--resume_from_checkpoint")


def test_target_tokens_of_a_server_that_counts_none(home, server):
    """8: it wrote on without end."""
    corpus()
    server.faults = ["no_usage"] * 1000
    command = ("data/entigraph.py", "all", "--task", "lamps", "--model", "m", "--base_url", server.url)
    out = succeed(*command, "--target_tokens", 20, "--concurrency", 1)
    assert "which --target_tokens asks for" in out
    assert sum(server.billed.values()) < 20


def test_forgetting_looks_at_evaluations_first(home, tiny_model):
    """10"""
    for name in ("a", "b"):
        file = paths.evaluation_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"protocol": {"name": "cot" if name == "a" else "loglik"}}))
    command = ("scripts/forgetting.py", "--before", "a", "--after", "b")
    assert "other name (cot and loglik)" in error_line(*command)  # and not that there are no checkpoints
    paths.evaluation_file("b").write_text('{"protocol": {}}')
    paths.evaluation_file("a").write_text('{"protocol": {}}')
    assert "damaged, or changed by hand" in error_line(*command)


def test_too_many_rows_are_refused():
    """14"""
    with pytest.raises(UserError, match="4,000,000,000 rows in all; at most 1,000,000,000"):
        row_order(100, 4, 10**9, True, 0)


def test_wandb_without_a_login_is_refused_first(home, tiny_model, token_files, monkeypatch):
    """15"""
    shutil.copytree(token_files / "data", home / "data", dirs_exist_ok=True)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    line = error_line(*train_command(tiny_model, "--report_to", "wandb"))
    assert "--report_to wandb: not logged in; run wandb login, or set WANDB_MODE=offline" in line


def test_ranks_beyond_the_model_are_refused(tiny_model):
    """15"""
    with pytest.raises(UserError, match="--lora_rank 100000000000: more than any matrix"):
        add_lora(load_model(str(tiny_model)), 100_000_000_000, 0, False)


def test_copies_of_held_out_documents_are_not_trained_on(home, tiny_model, tmp_path):
    """17: a document that stands twice in the text may be held out and trained on."""
    lines = [json.dumps({"text": f"Document {n % 20} is about the lamp of {n % 20}."}) + "\n" for n in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    command = ("data/tokenize_redpj.py", "--text", tmp_path / "text.jsonl", "--tokenizer", tiny_model)
    done = run_script(*command, "--test_tokens", 60)
    assert "that are copies of held-out ones are left out" in done.stderr
    files = [TokenFile(paths.replay_bin(paths.DEFAULT_REPLAY, split), "") for split in ("test", "train")]
    test, train = ({document.tobytes() for document in file.documents()} for file in files)
    assert test and not test & train


def test_two_spellings_of_a_letter_are_equal():
    """18"""
    assert short_answers.exact_match("caf\u00e9", "cafe\u0301") == 1


def test_a_template_that_divides_by_zero_is_named(home, tiny_llama, tmp_path):
    """20"""
    (tmp_path / "t.jinja").write_text("{{ 1 / 0 }}")
    (tmp_path / "c.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    command = ("data/tokenize_instruct.py", "--jsonl", tmp_path / "c.jsonl", "--tokenizer", tiny_llama, "--name", "x")
    assert "the chat template rejects" in error_line(*command, "--template", tmp_path / "t.jinja")


def test_steps_of_a_run_killed_at_its_end_are_not_repeated(tmp_path):
    """20: killed after the last checkpoint, before its record was removed."""
    record = tmp_path / ".num_steps.json"
    record.write_text('{"num_steps": 6, "start": 12}')
    with pytest.raises(UserError, match="6 further steps of the interrupted run are done, up to step 18"):
        steps_after(18, 6, record)
    assert steps_after(18, 6, record) == 24


EDITS = [
    *({"summary": value} for value in ([1], 5, {"a": 1})),
    *({"usage": value} for value in ("many", [1], {"prompt_tokens": "many"}, {"completion_tokens": {"a": 1}})),
    *({"entities": value} for value in (5, {"a": 1}, [1, None, "Ada"])),
    *({name: value} for name in ("kind", "text", "id", "source", "model", "prompt") for value in (5, ["a"], None)),
    *({"finish_reason": "error", "tries": value} for value in ("x", [1])),
    {"finish_reason": "length", "max_tokens": "x"},
]


def test_journals_edited_by_hand(home, server):
    """16: each ended in a traceback. A value of another type is none."""
    corpus(titles=("Lamp",))
    options = ("--task", "lamps", "--model", "m", "--base_url", server.url, "--max_pairs", 2, "--max_triples", 1)
    succeed("data/entigraph.py", "all", *options)
    (journal,) = paths.passages_dir("lamps", "m").glob("*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    (document,) = load_documents([paths.corpus_file("lamps")], "")
    statements = Statements(document.title, document.text)
    for edit, place in itertools.product(EDITS, (0, 1)):
        edited = [*records[:place], records[place] | edit, *records[place + 1 :], *records[1 : 1 + place]]
        journal.write_text("".join(json.dumps(record) + "\n" for record in edited))
        assert len(list(read_passages(*locate_passages([journal.parent], "")))) >= 2, edit
        Progress.from_records(statements, list(read_records(journal)))
        store = PassageStore(journal.parent, read_only=True)
        store.open(document.uid, records[0]["id"])
        assert store.done[document.uid] and store.passage_tokens() > 0, edit
