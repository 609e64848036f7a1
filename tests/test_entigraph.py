import json
import random
import signal
import time
from collections import Counter
from math import comb

import pytest

from tests.conftest import refused, run_script, start_script, succeed
from tests.fake_server import ENTITIES
from utils import paths

CALLS = 1 + comb(len(ENTITIES), 2) + comb(len(ENTITIES), 3)  # of one article: 36


def entigraph(server, *options, articles="0"):
    return (
        "data/entigraph.py",
        articles,
        "--task",
        "example",
        "--model",
        "m",
        "--base_url",
        server.url,
        *options,
    )


def records():
    folder = paths.passages_dir("example", "m")
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().split("\n")
        if line
    ]


def content(found):
    return sorted(
        (r["id"], r["kind"], tuple(r["entities"]), r.get("text") or r.get("summary")) for r in found
    )


def test_one_article(home, server):
    succeed(*entigraph(server))
    found = records()
    assert Counter(record["kind"] for record in found) == {
        "entities": 1,
        "pair": comb(6, 2),
        "triple": comb(6, 3),
    }
    assert set(found[1]) == {
        "id",
        "kind",
        "entities",
        "text",
        "model",
        "prompt",
        "finish_reason",
        "usage",
    }
    assert sum(server.billed.values()) == CALLS
    succeed(*entigraph(server))  # again: nothing is paid twice
    assert sum(server.billed.values()) == CALLS
    succeed(*entigraph(server, articles="0-1"))
    assert sum(server.billed.values()) == 2 * CALLS


def test_samples_and_concurrency(home, server):
    server.latency = 0.05
    succeed(
        *entigraph(server, "--max_pairs", 4, "--max_triples", 2, "--concurrency", 3, articles="all")
    )
    assert Counter(record["kind"] for record in records()) == {
        "entities": 12,
        "pair": 48,
        "triple": 24,
    }
    assert server.most_in_flight == 3
    succeed(*entigraph(server, "--max_pairs", 5, "--max_triples", 2, articles="all"))
    assert sum(server.billed.values()) == 12 * 8


def test_ten_kills(home, server):
    """kill -9 at ten random moments: no more is paid twice than was in flight, nothing is lost."""
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
    found = records()
    assert len({record["id"] for record in found}) == len(found) == 6 * CALLS
    interrupted = content(found)
    for path in paths.passages_dir("example", "m").glob("*.jsonl"):
        path.unlink()
    server.latency = 0
    succeed(*command)
    assert content(records()) == interrupted


def test_faults_of_every_kind(home, server):
    """Faults that pass are retried; what fails for good is recorded, the rest goes on, and the same
    command tries it again."""
    faults = [429, 500, "torn", "bad_json", "no_choices", 400, "length", None, 503, 429]
    server.faults = [None] + faults
    line = refused(*entigraph(server))
    assert "1 calls failed" in line
    assert "the same command tries the failed ones again" in line
    reasons = Counter(record["finish_reason"] for record in records())
    assert reasons == {"stop": CALLS - 2, "length": 1, "error": 1}
    succeed(*entigraph(server))
    reasons = Counter(record["finish_reason"] for record in records())
    assert reasons == {"stop": CALLS - 1, "length": 1}


def test_entities_that_do_not_come_are_not_paid_for_for_ever(home, server):
    server.faults = ["no_entities"] * 100
    line = refused(*entigraph(server))
    assert "0 entities" in line
    assert server.requests == 3


def test_a_wrong_key_stops_at_once(home, server):
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
    assert "OPENAI_API_KEY" in refused("data/entigraph.py", "0", "--task", "example")


@pytest.mark.parametrize("articles", ["12", "0-12", "x", "3-1", "0,99", ""])
def test_wrong_articles(home, server, articles):
    assert "article" in refused(*entigraph(server, articles=articles))


def test_a_missing_corpus_names_its_step(home):
    assert "scripts/download_data.sh" in refused("data/entigraph.py", "0")


def test_a_corrupt_journal_is_named_by_line(home, server):
    succeed(*entigraph(server, "--max_pairs", 2, "--max_triples", 0))
    (path,) = paths.passages_dir("example", "m").glob("*.jsonl")
    lines = path.read_text().split("\n")
    damaged = "\n".join([lines[0], lines[1][:20], *lines[2:]])
    path.write_text(damaged)
    assert f"{path}, line 2" in refused(*entigraph(server))
    assert path.read_text() == damaged


def test_ctrl_c_is_quiet_and_loses_nothing(home, server):
    server.latency = 0.2
    process = start_script(*entigraph(server, "--concurrency", 2))
    while sum(server.billed.values()) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert len(records()) >= 3
