import json
import random
import re
import signal
import sys
import time
from collections import Counter
from itertools import islice
from math import comb

import numpy as np
import pytest

from data.generation.coverage import Statements
from data.generation.methods import GenerationSettings, passage_requests
from tasks.documents import load_task
from tests.conftest import ROOT, error_line, run_script, start_script, succeed
from tests.fake_openai import ENTITIES
from tests.timed_output import timed_output
from utils import paths
from utils.io import append_record
from utils.sentences import split_sentences

CALLS = 1 + comb(len(ENTITIES), 2) + comb(len(ENTITIES), 3)  # of one article: 36


def entigraph(server, *options, articles="0"):
    return ("data/entigraph.py", articles, "--task", "example", "--model", "m", "--base_url", server.url, *options)


def records():
    folder = paths.passages_dir("example", "m")
    return [
        json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().split("\n") if line
    ]


def contents(results):
    return sorted((r["id"], r["kind"], tuple(r["entities"]), r.get("text") or r.get("summary")) for r in results)


def test_one_article(home, server):
    succeed(*entigraph(server))
    results = records()
    assert Counter(record["kind"] for record in results) == {"entities": 1, "pair": comb(6, 2), "triple": comb(6, 3)}
    assert set(results[1]) == {"id", "kind", "entities", "text", "model", "prompt", "source", "finish_reason", "usage"}
    assert sum(server.billed.values()) == CALLS
    succeed(*entigraph(server))  # again: no reply is paid for twice
    assert sum(server.billed.values()) == CALLS
    succeed(*entigraph(server, articles="0-1"))
    assert sum(server.billed.values()) == 2 * CALLS


def test_samples_and_concurrency(home, server):
    server.latency = 0.05
    succeed(*entigraph(server, "--max_pairs", 4, "--max_triples", 2, "--concurrency", 3, articles="all"))
    assert Counter(record["kind"] for record in records()) == {"entities": 12, "pair": 48, "triple": 24}
    assert server.most_in_flight == 3
    succeed(*entigraph(server, "--max_pairs", 5, "--max_triples", 2, articles="all"))
    assert sum(server.billed.values()) == 12 * 8


def test_ten_kills(home, server):
    """After kill -9 at ten random moments no record is lost, and at most the calls in flight are paid twice."""
    server.latency = 0.05
    concurrency, rng = 4, random.Random(7)
    command = entigraph(server, "--concurrency", concurrency, articles="0-5")
    kills = 0
    while kills < 10:
        before = server.requests
        process = start_script(*command)
        while server.requests == before and process.poll() is None:
            time.sleep(0.005)  # the moment is random among the calls, not among the imports
        time.sleep(rng.uniform(0, 0.12))
        assert process.poll() is None, "the run ended before ten kills"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    succeed(*command)
    paid_twice = sum(server.billed.values()) - len(server.billed)
    assert paid_twice <= kills * concurrency
    assert len(server.billed) == 6 * CALLS
    results = records()
    assert len({record["id"] for record in results}) == len(results) == 6 * CALLS
    interrupted = contents(results)
    for path in paths.passages_dir("example", "m").glob("*.jsonl"):
        path.unlink()
    server.latency = 0
    succeed(*command)
    assert contents(records()) == interrupted


def documents_asked(server):
    """Titles of the documents in the order of the calls, repeated ones once."""
    prompts = [body["messages"][0]["content"].split("# Task")[0] for body in server.bodies]
    return [prompt for prompt, before in zip(prompts, [None, *prompts], strict=False) if prompt != before]


@pytest.mark.parametrize("slots", [0, 1])
def test_order_of_calls_by_server(home, server, slots):
    """llama.cpp holds one prompt per slot, and gets document after document; others all lists first, then rounds."""
    server.slots = slots
    done = run_script(*entigraph(server, "--max_pairs", 3, "--max_triples", 2, "--concurrency", 1, articles="0-2"))
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == 3 * 6
    assert len(documents_asked(server)) == (3 if slots else 9)
    assert ("llama.cpp, slots: 1" in done.stderr) == bool(slots)


def test_calls_in_flight_are_the_slots_of_llama_cpp(home, server):
    server.slots, server.latency = 2, 0.02
    succeed(*entigraph(server, "--max_pairs", 3, "--max_triples", 2, articles="0-3"))
    assert server.most_in_flight == 2
    texts = [body["messages"][0]["content"].split("# Task")[0] for body in server.bodies]
    assert len({*texts[:11]}) == 2  # of twelve calls about the first two documents


def test_a_budget_lets_documents_take_turns_at_llama_cpp_too(home, server):
    server.slots = 1
    options = ["--max_pairs", 3, "--max_triples", 2, "--max_tokens_total", 1_000_000]
    succeed(*entigraph(server, *options, articles="0-2"))
    assert len(documents_asked(server)) == 9


def test_kills_at_llama_cpp_cost_the_calls_in_flight(home, server):
    server.slots, server.latency = 2, 0.05
    command = entigraph(server, articles="0-2")
    for _ in range(3):
        before = server.requests
        process = start_script(*command)
        while server.requests < before + 8 and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "the run ended before the kill"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    succeed(*command)
    assert len(server.billed) == 3 * CALLS
    assert sum(server.billed.values()) - len(server.billed) <= 3 * 2
    assert len({record["id"] for record in records()}) == len(records()) == 3 * CALLS
    requests = server.requests
    succeed(*command)
    assert server.requests == requests


def test_faults_of_every_kind(home, server):
    """Transient faults are retried; a failed call is recorded, does not stop the others, and is repeated by the
    same command."""
    faults = [429, 500, "torn", "bad_json", "no_choices", 400, "length", None, 503, 429]
    server.faults = [None] + faults
    line = error_line(*entigraph(server))
    assert "1 calls failed" in line
    assert "the same command retries the failed calls" in line
    reasons = Counter(record["finish_reason"] for record in records())
    assert reasons == {"stop": CALLS - 2, "length": 1, "error": 1}
    succeed(*entigraph(server))
    reasons = Counter(record["finish_reason"] for record in records())
    assert reasons == {"stop": CALLS - 1, "length": 1}


def test_attempts_for_a_list_of_entities_are_bounded(home, server):
    server.faults = ["no_entities"] * 100
    line = error_line(*entigraph(server))
    assert "0 entities" in line
    assert server.requests == 3


def test_wrong_key_stops_the_run(home, server):
    server.faults = [401] * 100
    command = entigraph(server, "--concurrency", 2, articles="all")
    done = run_script(*command, OPENAI_API_KEY="sk-secret-123")
    assert done.returncode == 2
    assert "401" in done.stderr
    assert "sk-secret-123" not in done.stdout + done.stderr
    assert server.requests <= 2  # those in flight, no retries
    everything = "".join(path.read_text() for path in home.rglob("*.jsonl"))
    assert "sk-secret-123" not in everything


def test_no_key(home):
    """E: without a key no folder is made."""
    assert "OPENAI_API_KEY" in error_line("data/entigraph.py", "0", "--task", "example")
    assert not any(home.iterdir())


@pytest.mark.parametrize("articles", ["12", "0-12", "x", "3-1", "0,99", ""])
def test_wrong_articles(home, server, articles):
    assert "article" in error_line(*entigraph(server, articles=articles))


def test_missing_corpus_error_names_the_step(home):
    assert "scripts/download_data.sh" in error_line("data/entigraph.py", "0")


def test_corrupt_journal_error_names_the_line(home, server):
    succeed(*entigraph(server, "--max_pairs", 2, "--max_triples", 0))
    (path,) = paths.passages_dir("example", "m").glob("*.jsonl")
    lines = path.read_text().split("\n")
    damaged = "\n".join([lines[0], lines[1][:20], *lines[2:]])
    path.write_text(damaged)
    assert f"{path}, line 2" in error_line(*entigraph(server))
    assert path.read_text() == damaged


def test_ctrl_c_exits_without_a_traceback_and_loses_no_reply(home, server):
    server.latency = 0.2
    process = start_script(*entigraph(server, "--concurrency", 2))
    while sum(server.billed.values()) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert len(records()) >= 3


def summary():
    return json.loads((paths.passages_dir("example", "m") / "summary.json").read_text())


def test_summary_covers_all_runs_and_agrees_with_the_server(home, server):
    succeed(*entigraph(server, "--max_pairs", 3, "--max_triples", 0))
    server.faults = [500, "torn", "bad_json", "no_choices", 429, "length"]
    succeed(*entigraph(server, "--max_triples", 0))
    totals = summary()
    assert totals["prompt_tokens"] == server.tokens["prompt"]
    assert totals["completion_tokens"] == server.tokens["completion"]
    assert (totals["calls"], totals["lost"], totals["retries"]) == (17, 2, 4)
    assert totals["finish_reasons"] == {"length": 1, "stop": 15}
    assert totals["failed"] == 0
    assert totals["usd"] is None


def test_truncated_and_filtered_replies_are_repeated_only_with_retry_failed(home, server):
    server.faults = [None, "length", "content_filter"]
    out = succeed(*entigraph(server))
    assert "2 replies of this run are incomplete" in out
    requests = server.requests
    succeed(*entigraph(server))
    assert server.requests == requests
    succeed(*entigraph(server, "--retry_failed"))
    assert server.requests == requests + 2
    assert summary()["finish_reasons"] == {"stop": CALLS}


@pytest.mark.parametrize("flags", [["--budget_usd", 0.5], ["--max_tokens_total", 16_000]])
def test_budget_is_never_exceeded_and_spread_evenly(home, server, tmp_path, flags):
    """Kills and faults included; a larger budget resumes from there."""
    prices = tmp_path / "prices.json"
    prices.write_text('{"m": {"prompt": 10, "cached": 10, "completion": 30, "batch": 0.5}}')
    options = ["--prices", prices, "--max_tokens", 50, *flags]

    def spent():
        tokens = server.tokens
        if "--budget_usd" in flags:
            return tokens["prompt"] * 1e-5 + tokens["completion"] * 3e-5
        return tokens["prompt"] + tokens["completion"]

    server.latency, server.fault_share = 0.05, 0.1
    command = entigraph(server, *options, "--timeout", 1, articles="all")
    for _ in range(3):
        before = server.requests
        process = start_script(*command)
        while server.requests == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(0.7)
        process.kill()
        process.communicate()
    run_script(*command)
    assert 0.5 * flags[1] < spent() <= flags[1]
    server.fault_share = 0
    done = run_script(*command)
    assert "The budget is spent" in done.stdout, done.stderr
    assert spent() <= flags[1]
    counts = Counter()
    for path in paths.passages_dir("example", "m").glob("*.jsonl"):
        counts[path.stem] = path.read_text().count("\n")
    assert len(counts) == 12 or max(counts.values()) <= 51
    before = spent()
    succeed(*entigraph(server, *options[:-1], flags[1] * 2, articles="all"))
    assert before < spent() <= 2 * flags[1]


def test_each_method_writes_to_its_own_folder(home, server):
    for method, calls in (("rephrase", 3 * 2), ("plain", 2), ("qa", 2), ("strategies", 1 + 6 * 2)):
        before = server.requests
        succeed(*entigraph(server, "--method", method, "--samples", 2))
        folder = paths.passages_dir("example", "m", method)
        (journal,) = folder.glob("*.jsonl")
        results = [json.loads(line) for line in journal.open()]
        assert server.requests - before == len(results) == calls
        assert len({record["id"] for record in results}) == calls


def test_import_of_the_published_corpus(home, server, tmp_path):
    source = tmp_path / "published"
    source.mkdir()
    (source / "An Orchestra of Fog Horns.json").write_text(
        json.dumps([["A", "B", " b", "C"], "A summary.", "First text.", "Second text.", "First text."])
    )
    (source / "A title: of / none.json".replace("/", "-")).write_text(json.dumps([["X"], "S."]))
    command = ("data/entigraph.py", "--import_json", source, "--task", "example", "--model", "m")
    for _ in range(2):  # the second time changes nothing
        assert "2 documents, 4 records" in succeed(*command)
    assert len(records()) == 4
    succeed(*entigraph(server, articles="0"))  # continues from the imported entities
    assert sum(record["kind"] == "pair" for record in records()) == 3
    (source / "bad.json").write_text('{"a": 1}')
    assert "bad.json" in error_line(*command)


def test_openai_parameter_names_and_cache_key(home, server):
    """The fake server is a proxy for api.openai.com."""
    command = entigraph(server, "--max_pairs", 1, "--max_triples", 0)
    index = command.index("--base_url")
    command = (*command[:index], "--base_url", "http://api.openai.com/v1", *command[index + 2 :])
    proxy = server.url.removesuffix("/v1")
    succeed(*command, OPENAI_API_KEY="sk-secret-123", http_proxy=proxy, no_proxy="")
    assert len({body["prompt_cache_key"] for body in server.bodies}) == 1
    assert all(body["max_completion_tokens"] == 4096 for body in server.bodies)
    assert not any("max_tokens" in body for body in server.bodies)
    server.bodies.clear()
    succeed(*entigraph(server, "--max_pairs", 2, "--max_triples", 0))
    assert all(body["max_tokens"] == 4096 for body in server.bodies)
    assert not any("prompt_cache_key" in body for body in server.bodies)


def test_two_processes_do_not_write_about_one_article(home, server):
    server.latency = 0.3
    process = start_script(*entigraph(server))
    while not server.requests and process.poll() is None:
        time.sleep(0.01)
    line = error_line(*entigraph(server, articles="0-1"))
    assert "another process" in line and records_file(0).name in line
    process.communicate()
    assert sum(server.billed.values()) == CALLS


def test_processes_for_an_article_each_share_the_budget(home, server):
    """The published way of parallelism: for i in 0 1 2; do python data/entigraph.py $i & done. One killed."""
    server.latency = 0.05
    limit = ("--max_tokens_total", 200_000, "--concurrency", 2)
    processes = [start_script(*map(str, entigraph(server, *limit, articles=str(n)))) for n in range(3)]
    while not all(records_file(n).exists() and records_file(n).stat().st_size > 3000 for n in range(3)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[0].kill()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [-9, 0, 0]
    succeed(*entigraph(server, *limit, articles="0"))
    assert Counter(record["kind"] for record in records()) == {"entities": 3, "pair": 45, "triple": 60}
    assert 3 * CALLS <= sum(server.billed.values()) <= 3 * CALLS + 2  # those in flight at the kill
    summary = json.loads((records_file(0).parent / "summary.json").read_text())
    assert (summary["records"], summary["calls"]) == (3 * CALLS, 3 * CALLS)
    assert summary["prompt_tokens"] + summary["completion_tokens"] <= 200_000


def records_file(article: int):
    return paths.passages_dir("example", "m") / f"{load_task('example')[article].uid}.jsonl"


def test_server_that_cannot_be_reached(home, server, monkeypatch):
    command = list(entigraph(server))
    command[command.index("--base_url") + 1] = "localhost:1/v1"
    assert "--base_url localhost:1/v1" in error_line(*command)


def test_ctrl_c_does_not_wait_for_the_rate_limiter(home, server):
    process = start_script(*entigraph(server, "--requests_per_minute", 6, articles="all"))
    while not server.requests and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_insufficient_quota_stops_and_keeps_the_calls_in_flight(home, server):
    server.latency, server.completion_tokens = 0.3, 10
    server.faults = [None] * 4 + ["insufficient_quota"]
    line = error_line(*entigraph(server, "--concurrency", 4))
    assert "quota" in line
    assert len(records()) >= 4


def test_blank_replies_are_failures_of_their_own_kind(home, server):
    """A blank reply is asked for again with another seed, three times at most, counted, and retried by the next run."""
    server.replies = lambda prompt: " \n" if "Write a piece about the two" in prompt else default_reply(prompt)
    line = error_line(*entigraph(server, "--max_pairs", 1, "--max_triples", 1))
    assert "1 calls failed" in line and "blank" in line
    summary = json.loads((paths.passages_dir("example", "m") / "summary.json").read_text())
    assert summary["failed"] == 1
    assert summary["finish_reasons"] == {"empty": 1, "stop": 2}
    asked = [body for body in server.bodies if "Write a piece about the two" in json.dumps(body)]
    assert len({body["seed"] for body in asked}) == len(asked) == 3
    server.replies = None
    succeed(*entigraph(server, "--max_pairs", 1, "--max_triples", 1))
    assert Counter(record["finish_reason"] for record in records()) == {"stop": 3}


def default_reply(prompt: str) -> str:
    return json.dumps({"entities": ENTITIES, "summary": "s"}) if '"entities"' in prompt else "A piece."


def test_replies_to_earlier_prompts_are_not_paid_for_again(home, server):
    """A run of an earlier version goes on with the requests that it did not make."""
    settings = GenerationSettings("m", limits={"pair": 3, "triple": 0})
    document = load_task("example")[0]
    succeed(*entigraph(server, "--max_pairs", 0, "--max_triples", 0))
    folder, billed = paths.passages_dir("example", "m"), sum(server.billed.values())
    for request in islice(passage_requests(document, "pair", ENTITIES, settings), 2):
        record = {"id": request.earlier().id, "kind": "pair", "entities": list(request.entities), "text": "Paid."}
        append_record(folder / f"{document.uid}.jsonl", record | {"finish_reason": "stop", "usage": {}})
    succeed(*entigraph(server, "--max_pairs", 3, "--max_triples", 0))
    assert sum(server.billed.values()) == billed + 1


def told(task="example", article=0) -> np.ndarray:
    document = load_task(task)[article]
    file = paths.passages_dir(task, "m") / f"{document.uid}.jsonl"
    texts = [record["text"] for line in file.read_text().splitlines() if "text" in (record := json.loads(line))]
    return Statements(document.title, document.text).tellings(texts)


def test_aim_tellings_asks_until_everything_is_told(home, server):
    """The fake server names the two entities of a pair, and repeats the sentences that it is asked to tell."""
    command = entigraph(server, "--aim_tellings", 2, "--concurrency", 4)
    succeed(*command)
    assert told().min() >= 2
    kinds = Counter(record["kind"] for record in records())
    assert kinds["facts"] > kinds["pair"]
    calls = sum(server.billed.values())
    succeed(*command)
    assert sum(server.billed.values()) == calls


def test_aim_tellings_continues_after_kills(home, server):
    server.latency, rng, kills, concurrency = 0.05, random.Random(5), 5, 3
    command = entigraph(server, "--aim_tellings", 2, "--concurrency", concurrency)
    for _ in range(kills):
        before = server.requests
        process = start_script(*command)
        while server.requests == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    succeed(*command)
    assert told().min() >= 2
    assert sum(server.billed.values()) - len(records()) <= kills * concurrency


def test_failed_requests_of_a_plan_are_not_repeated_forever(home, server):
    server.faults = [None] + [400] * 6
    line = error_line(*entigraph(server, "--aim_tellings", 1, "--concurrency", 2))
    assert "6 calls failed" in line
    succeed(*entigraph(server, "--aim_tellings", 1))
    assert told().min() >= 1


def test_target_tokens_ends_a_run(home, server):
    for options in ((), ("--aim_tellings", 9)):
        succeed(*entigraph(server, "--target_tokens", 100, "--concurrency", 1, *options))
        passages = [record for record in records() if record["kind"] != "entities"]
        assert sum(record["usage"]["completion_tokens"] for record in passages) == 100


@pytest.mark.parametrize("options", [(), ("--aim_tellings", 9)])
def test_the_bar_counts_what_target_tokens_needs(home, server, options):
    """Not the 36 calls of an article's pairs and triples, nor the few of a plan of --aim_tellings."""
    server.latency = 0.1  # a bar of less than 0.2 s is not drawn
    command = entigraph(server, "--target_tokens", 100, "--concurrency", 1, *options)
    status, pieces = timed_output([sys.executable, ROOT / command[0], *command[1:]])
    screen = "".join(text for _, text in pieces)
    assert status == 0, screen
    counts = [tuple(map(int, count)) for count in re.findall(r"(\d+)/(\d+) \[", screen)]
    assert counts and counts[-1][0] == counts[-1][1] < CALLS, screen


@pytest.mark.parametrize("options", [("--batch", "submit"), ("--dry_run",), ("--method", "rephrase")])
def test_what_aim_tellings_cannot_do(home, server, options):
    assert options[0] in error_line(*entigraph(server, "--aim_tellings", 2, *options))
    assert server.requests == 0


def test_documents_longer_than_the_context_are_split(home, server):
    """The fake server lists a context of 1,024 tokens; the articles have about 1,000 by bytes."""
    server.max_model_len, server.models = 1024, ("m",)
    command = entigraph(server, "--max_pairs", 2, "--max_triples", 0, "--max_tokens", 100)
    out = succeed(*command)
    assert "1 of 1 documents are longer than 512 tokens: split into " in out
    journals = sorted(path.name for path in paths.passages_dir("example", "m").glob("*.jsonl"))
    assert len(journals) > 1 and all(".section" in name for name in journals)
    text = " ".join(load_task("example")[0].text.split())
    sent = [json.dumps(body, ensure_ascii=False) for body in server.bodies]
    assert all(len(body.encode()) < 1024 * 4 for body in sent)
    for sentence in split_sentences(text):
        assert any(sentence in " ".join(json.loads(body)["messages"][0]["content"].split()) for body in sent), sentence
    billed = sum(server.billed.values())
    succeed(*command)
    assert sum(server.billed.values()) == billed
    figures = json.loads(succeed("data/inspect_entigraph.py", "--task", "example", "--model", "m").splitlines()[-1])
    assert figures["documents"] == 1 and figures["unknown_files"] == 0


def test_section_tokens_splits_without_asking_the_server(home, server):
    out = succeed(*entigraph(server, "--section_tokens", 300, "--dry_run"))
    assert "split into" in out and server.paths == []


def test_a_list_that_is_cut_is_paid_for_in_one_run_only(home, server):
    """D10: it was asked for, and paid for, three times at every start."""
    server.faults = ["cut_list"] * 3
    line = error_line(*entigraph(server, "--max_tokens", 50))
    assert "1 lists of entities were cut at --max_tokens" in line and "give a larger --max_tokens" in line
    assert server.requests == 3
    assert "were cut at --max_tokens" in error_line(*entigraph(server, "--max_tokens", 50))
    assert server.requests == 3
    succeed(*entigraph(server, "--max_tokens", 60, "--max_pairs", 1, "--max_triples", 0))
    assert server.requests == 5
    succeed(*entigraph(server, "--max_tokens", 50, "--max_pairs", 1, "--max_triples", 0))
    assert server.requests == 5
    assert Counter(record["kind"] for record in records()) == {"entities": 1, "pair": 1}


def test_a_list_that_cannot_be_read_is_asked_for_with_new_seeds_at_the_next_start(home, server):
    server.faults = ["no_entities"] * 6
    for _ in range(2):
        assert "0 entities" in error_line(*entigraph(server))
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies) == 6
