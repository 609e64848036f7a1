"""Tests of faults that two attacks found on 2026-11-30. Numbers are those of the second one's table in LOG.md."""

import asyncio
import json
import subprocess
import threading
import time

import numpy as np
import pytest
import torch

from chat import web
from chat.conversation import Sampling
from chat.local_engine import sample_token
from data.generation import filters
from data.generation.coverage import Statements
from data.generation.import_json import import_passages
from gptj.weight_files import check_tensors
from inference.rate_limiter import parse_limit_reset
from tasks import contamination, documents, readers, short_answers
from tests.conftest import ROOT, error_line, succeed
from tests.fake_habits import Habits
from tests.fake_openai import FakeOpenAI
from utils import paths
from utils.errors import UserError
from utils.shards import shards_of_index

QUESTION = {
    "question": "Who?",
    "options": ["a", "b", "c", "d"],
    "gold_label": 1,
    "question_unique_id": "1",
    "difficult": 0,
}


def corpus(name: str = "lamps", titles: tuple[str, ...] = ("Lamp", "Ferry")) -> None:
    file = paths.corpus_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "Odile Marchbanks kept the light for thirty-nine years. The lens was drawn at a kitchen table. "
    file.write_text("".join(json.dumps({"title": title, "article": f"{title}. {text}"}) + "\n" for title in titles))


def own_corpus(*arguments: object) -> subprocess.CompletedProcess:
    command = ["bash", ROOT / "scripts/own_corpus.sh", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def batch(server, action, articles="all"):
    settings = ("--task", "lamps", "--model", "m", "--max_pairs", 1, "--max_triples", 0, "--base_url", server.url)
    return ("data/entigraph.py", articles, *settings, "--batch", action)


def test_one_bad_batch_leaves_the_others(home, server):
    """1: the first batch is about a document that was edited since; the second one's replies are collected."""
    corpus()
    for article in ("0", "1"):
        succeed(*batch(server, "submit", article))
    file = paths.corpus_file("lamps")
    file.write_text(file.read_text().replace("Ferry. Odile", "Ferry. Jonas"))  # number 0 by title
    line = error_line(*batch(server, "collect"))
    assert "batch_0: 1 replies answer other requests" in line and "batch_1" not in line
    journals = list(paths.passages_dir("lamps", "m").glob("lamp-*.jsonl"))
    assert len(journals) == 1 and '"entities"' in journals[0].read_text()
    out = succeed(*batch(server, "abandon"))  # it has ended: billed as it was, not at the most
    assert "batch_0: completed, 1 replies to 1 calls" in out and "no batch is under way" in out
    summary = json.loads((paths.passages_dir("lamps", "m") / "summary.json").read_text())
    assert summary["completion_tokens"] < 1000


def test_an_abandoned_folder_keeps_what_was_paid_for(home, server):
    corpus()
    succeed(*batch(server, "submit"))
    out = succeed(*batch(server, "abandon"))
    assert "2 replies to 2 calls" in out
    assert len(list(paths.passages_dir("lamps", "m").glob("*.jsonl"))) == 2


def test_keys_of_an_address_are_not_shown(home, tmp_path):
    """2: own_corpus.sh shows its commands."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("The lens was drawn at a kitchen table by Bertil Osgood in 1931.")
    with FakeOpenAI(models=("other",), faults=[400] * 9) as server:
        secret = server.url.replace("http://", "http://bob:TOPSECRET@") + "?api-key=QUERYSECRET"
        done = own_corpus(tmp_path / "notes", "--model", "m", "--tokens", "900", "--base_url", secret)
    assert done.returncode == 2
    assert f"--base_url {server.url}" in done.stderr
    assert "TOPSECRET" not in done.stdout + done.stderr and "QUERYSECRET" not in done.stdout + done.stderr
    assert "speed failed" in done.stderr and "Traceback" not in done.stderr  # 9


def test_files_of_a_batch_that_are_gone_cost_the_most(home, server):
    """3"""
    corpus()
    succeed(*batch(server, "submit"))
    succeed(*batch(server, "status"))
    del server._files[server._batches["batch_0"]["output_file_id"]]
    out = succeed(*batch(server, "collect"))
    assert "0 replies to 2 calls; 2 that cannot be read count at the most they can cost" in out
    summary = json.loads((paths.passages_dir("lamps", "m") / "summary.json").read_text())
    assert summary["calls"] == 2 and summary["completion_tokens"] == 2 * 4096


def test_visitors_who_leave_a_server_that_does_not_answer(home):
    """4: more of them than asyncio has threads."""
    from chat.compare import Side
    from chat.conversation import Conversation
    from chat.replies import Request, stream_lines

    end = threading.Event()

    class Engine:
        name, context, is_base_model, concurrency = "e", 1 << 20, False, 100

        def count_tokens(self, messages):
            return 1

        def stream(self, messages, sampling, status):
            if messages[-1]["content"] == "hang":
                end.wait(60)
            yield "an answer"

    sides = [Side(Engine(), "e", Conversation())]

    async def visit():
        turns = asyncio.Semaphore(100)
        hanging = [stream_lines(Request("hang", [[]], Sampling(), ""), sides, None, turns) for _ in range(40)]
        tasks = [asyncio.create_task(anext(stream)) for stream in hanging]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        begun = time.monotonic()
        answer = stream_lines(Request("hi", [[]], Sampling(), ""), sides, None, turns)
        assert "an answer" in json.loads(await anext(answer))["text"]
        await answer.aclose()
        return time.monotonic() - begun

    assert asyncio.run(visit()) < 10
    end.set()


def test_a_page_with_odd_metadata_is_left_out_or_read(tmp_path):
    """5"""
    odd = '{"@context": "http://schema.org", "@type": "Article", "headline": ["x"], "publisher": {"name": 5}}'
    text = "<p>The lens was drawn at a kitchen table by Bertil Osgood, who had never seen a lighthouse.</p>" * 3
    (tmp_path / "a.html").write_text(f'<script type="application/ld+json">{odd}</script><article>{text}</article>')
    (tmp_path / "b.txt").write_text("A note about the ferry.")
    articles, left_out = readers.read_folder(tmp_path)
    assert [article["title"] for article in articles if article["source"] == "b.txt"] == ["b"]
    assert len(articles) + len(left_out) == 2


def test_a_repeated_sentence_can_be_told():
    """6: its words are common because it is repeated, not because they say little."""
    notice = "Wear gloves, goggles and boots near the press."
    steps = [f"Step {name} turns the {name} wheel by {number} degrees." for number, name in enumerate("abcdefg", 31)]
    text = " ".join(part for step in steps for part in (step, notice))
    assert Statements("Press", text).told_by(text).all()


def test_a_statement_of_common_words_can_be_told():
    text = (
        " ".join(f"The press number {number} stands in the hall." for number in range(100, 140)) + " The press stands."
    )
    statements = Statements("Handbook", text)
    assert statements.told_by(text).all()


def test_questions_are_checked_before_they_are_taken(home, tmp_path):
    """7 and 8"""
    corpus()
    mine, target = tmp_path / "q.jsonl", paths.questions_file("lamps")
    record = {"title": "Lamp", "article": "", "questions": [QUESTION]}
    take = ("data/make_questions.py", "--task", "lamps", "--from_file", mine)
    mine.write_text("not json")
    assert "not valid JSON" in error_line(*take) and not target.exists()
    mine.write_text(json.dumps(record | {"title": "Lamp (typo)"}))
    assert "none about one of the 2 documents" in error_line(*take) and not target.exists()
    corpus_text = json.loads(paths.corpus_file("lamps").read_text().splitlines()[0])["article"]
    mine.write_text(json.dumps(record | {"article": corpus_text}))
    assert "1 of 1 questions are about these documents" in succeed(*take)
    assert sum(len(document.questions) for document in documents.load_task("lamps")) == 1
    assert "--seed: without effect with --from_file" in error_line(*take, "--seed", 3)


def test_questions_about_no_document_are_counted(home, capsys):
    corpus()
    record = {"title": "Typo", "article": "x", "questions": [QUESTION]}
    paths.questions_file("lamps").write_text(json.dumps(record))
    documents.load_task("lamps")
    assert "1 questions about no document of lamps (Typo)" in capsys.readouterr().err


def test_an_empty_answer_is_wrong():
    """10"""
    question = documents.ShortQuestion("1", "Which vitamin?", ("A",), False)
    for attempt in ({"error": "x"}, {"short_answer": ""}):
        score = short_answers.score(question, [attempt])
        assert (score["exact_match"], score["f1"]) == (0, 0)


def test_shards_lie_in_their_folder(tmp_path):
    """11"""
    (tmp_path / "i.index.json").write_text('{"weight_map": {"w": ".."}}')
    with pytest.raises(UserError, match="lies outside its folder"):
        shards_of_index(tmp_path / "i.index.json")


def test_every_loopback_address_checks_the_host():
    """12"""
    assert all(map(web.is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost", "0:0:0:0:0:0:0:1")))
    assert not any(map(web.is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org")))
    with pytest.raises(UserError, match="--host: is empty"):
        web.listen("", 7860)


def test_hidden_files_are_left_out(tmp_path):
    """15"""
    for name in ("n.md", ".trash/d.md", ".venv/lib/LICENSE.txt", ".venv/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name}.")
    articles, left_out = readers.read_folder(tmp_path)
    assert [article["source"] for article in articles] == ["n.md"]
    assert len(left_out) == 2 and any(".venv: hidden" in line and "(2 files)" in line for line in left_out)


def test_imported_files_belong_to_one_document(tmp_path):
    """16"""
    (tmp_path / "Diary.json").write_text('[["Ada"], "A summary.", "A text."]')
    (tmp_path / "._Diary.json").write_bytes(b"\0")
    both = [documents.Document(f"diary-{name}", "Diary", name, "", "Text") for name in ("Ada", "Ben")]
    with pytest.raises(UserError, match="2 documents have this title"):
        import_passages(tmp_path, both, None, None)


@pytest.mark.parametrize(
    ("option", "value"), [("block_size", "0"), ("block_size", "abc"), ("lr", "fast"), ("bs", "1.5"), ("epochs", "")]
)
def test_options_of_the_training_are_checked_first(home, tmp_path, option, value):
    """17"""
    done = own_corpus(tmp_path, f"--{option}", value)
    assert done.returncode == 2 and done.stderr.startswith(f"error: --{option} {value}: expects")


@pytest.mark.parametrize("content", ["{}", "[]"])
def test_a_damaged_plan_is_named(home, content):
    """18"""
    corpus()
    plan = paths.report_dir("lamps") / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(content)
    line = error_line(
        "scripts/own_corpus_plan.py", "--task", "lamps", "--model", "m", "--base_url", "http://127.0.0.1:9"
    )
    assert str(plan) in line and "delete it" in line


def test_a_title_that_was_made_up_may_exist(tmp_path):
    """19"""
    lines = [[("T (b.jsonl:1)", "first"), ("T", "second")], [("T", "third")]]
    for name, items in zip("ab", lines, strict=True):
        text = "\n".join(json.dumps({"title": title, "text": content}) for title, content in items)
        (tmp_path / f"{name}.jsonl").write_text(text)
    articles, _ = readers.read_folder(tmp_path)
    assert sorted(article["article"] for article in articles) == ["first", "second", "third"]
    assert len({article["title"] for article in articles}) == 3


@pytest.mark.parametrize("name", ["a_questions", "a_questions.calls", "a_questions.short"])
def test_names_of_quiz_files_are_refused(name):
    """20"""
    with pytest.raises(UserError, match="those of quizzes"):
        documents.check_task_name(name, "--task")


def test_tiny_temperatures_are_greedy():
    """24"""
    generator = torch.Generator().manual_seed(0)
    assert sample_token(torch.tensor([1.0, 30.0, 2.0]), Sampling(temperature=1e-38), generator) == 1


@pytest.mark.parametrize("limit", ["²", "9" * 5000, "-1"])
def test_odd_limits_are_no_headers(limit):
    """25"""
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-limit-requests": limit}
    assert parse_limit_reset(headers | {"x-ratelimit-reset-requests": "1s"}) == 0


def test_tensors_without_numbers_are_refused(tmp_path):
    for tensor in (torch.empty(2, device="meta"), torch.tensor(np.eye(2)).to_sparse()):
        with pytest.raises(UserError, match="without its numbers"):
            check_tensors({"w": tensor}, tmp_path / "w.bin")


def test_a_filtered_prompt_is_one_failed_question(home):
    """Of a third attack: HTTP 400 with the code of a content filter, in step 5."""

    class Filter(Habits):
        def refusal(self, body: dict) -> dict | None:
            is_bad = "Fog Horns" in body.get("prompt", "")
            return {"message": "filtered", "code": "content_filter"} if is_bad else None

    with FakeOpenAI(models=("served",), habits=Filter()) as server:
        command = ("evaluation.py", "--task", "example", "--model_path", "served", "--base_url", server.url)
        line = error_line(*command, "--n_samples", 1)
        assert "7 questions were not answered" in line and "the other answers are saved" in line


def test_short_passages_are_no_near_duplicates():
    """Fewer words than a shingle has."""
    duplicates = filters.Duplicates()
    texts = ("one two three", "four five six", "seven eight nine ten")
    assert [duplicates.add(text, text.split()) for text in texts] == ["", "", ""]


def test_all_text_of_two_runs_is_searched(home):
    """A run on the whole of a file, from a run on a tenth of it."""
    files = {"data": {"train": {"file": "/x/t.bin", "sha256": "h"}}}
    for folder, ratio, base in (("a", 0.1, "Base"), ("b", 1, "ckpts/a")):
        target = paths.ckpts_dir() / folder
        target.mkdir(parents=True)
        arguments = {"subsample_ratio": ratio, "seed": 0, "model_name": base}
        (target / "run.json").write_text(json.dumps(files | {"arguments": arguments}))
    (trained,) = contamination.training_files("ckpts/b").values()
    assert trained.subsample_ratio == 1


def test_a_text_given_twice(home, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("The lens was drawn at a kitchen table.")
    line = error_line(
        "data/tokenize_redpj.py", "--text", text, tmp_path / ".." / tmp_path.name / "a.txt", "--name", "x"
    )
    assert f"--text {text}: given twice" in line
    passages = ROOT / "data/example/passages"
    assert "given twice" in error_line("data/tokenize_entigraph.py", "--task", "example", "--input", passages, passages)


def test_options_that_make_no_table_are_refused_first(home):
    two_by_two = ("scripts/two_by_two.py", "--base", "a", "--entigraph", "b", "--task", "example")
    assert "--kind" in error_line(*two_by_two, "--kind", "short")
