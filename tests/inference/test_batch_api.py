import json

from inference.budget import Ledger
from tests.conftest import error_line, run_script, succeed
from tests.fake_openai import ENTITIES
from utils import paths

CALLS = 1 + 15 + 4  # per article, with at most four triples
assert len(ENTITIES) == 6


def batch(server, action, *options, articles="0-1"):
    settings = ("--task", "example", "--model", "m", "--max_triples", 4, "--base_url", server.url)
    return ("data/entigraph.py", articles, *settings, "--batch", action, *options)


def records():
    folder = paths.passages_dir("example", "m")
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.open()]


def state():
    return paths.passages_dir("example", "m") / "batches.state"


def test_two_rounds_give_the_same_records_as_live_calls(home, server):
    assert "2 calls submitted" in succeed(*batch(server, "submit"))
    assert "0 calls submitted" in succeed(*batch(server, "submit"))  # they are in progress
    assert "2 of 2 done" in succeed(*batch(server, "status"))
    assert "38 calls are to be submitted" in succeed(*batch(server, "collect"))
    assert "38 calls submitted" in succeed(*batch(server, "submit"))
    assert "0 calls are to be submitted" in succeed(*batch(server, "collect"))
    assert "no batch is under way" in succeed(*batch(server, "status"))
    by_batch = records()
    assert len(by_batch) == len({record["id"] for record in by_batch}) == 2 * CALLS
    summary = json.loads((state().parent / "summary.json").read_text())
    assert summary["prompt_tokens"] == server.batch_tokens["prompt"]
    assert summary["calls"] == 2 * CALLS
    for path in state().parent.iterdir():
        path.unlink()
    succeed(*batch(server, "submit")[:-2])
    assert {r["id"]: r.get("text") for r in records()} == {r["id"]: r.get("text") for r in by_batch}
    assert "live calls and batches" not in (state().parent / "summary.json").read_text()


def test_live_calls_wait_for_batches_and_batches_need_their_own_arguments(home, server):
    succeed(*batch(server, "submit"))
    assert "2 calls are under way in batches" in error_line(*batch(server, "submit")[:-2])
    assert "--batch collect with those of the submission" in error_line(*batch(server, "collect", articles="0"))
    assert "38 calls are to be submitted" in succeed(*batch(server, "collect"))
    succeed(*batch(server, "submit")[:-2])
    assert max(server.billed.values()) == 1


def test_only_failed_calls_of_a_batch_are_submitted_again(home, server):
    succeed(*batch(server, "submit"))
    succeed(*batch(server, "collect"))
    succeed(*batch(server, "submit"))
    server.faults = [500, None, 500, None, 500]
    assert "3 calls are to be submitted: --batch submit" in succeed(*batch(server, "collect"))
    assert "3 calls submitted" in succeed(*batch(server, "submit"))
    succeed(*batch(server, "collect"))
    assert len(records()) == 2 * CALLS
    assert max(server.billed.values()) == 1


def test_kill_between_submission_and_its_record(home, server):
    """The server lists the batch with the token in the journal, so it is adopted and not submitted again."""
    succeed(*batch(server, "submit"))
    lines = state().read_text().splitlines(keepends=True)
    assert len(lines) == 2
    state().write_text(lines[0])
    assert "2 were under way" in succeed(*batch(server, "submit"))
    state().write_text(lines[0].replace('{"token": "', '{"token": "other-'))  # it never arrived
    assert "2 calls submitted" in succeed(*batch(server, "submit"))


def test_kill_while_collecting_counts_nothing_twice(home, server):
    succeed(*batch(server, "submit"))
    before = state().read_text()
    succeed(*batch(server, "collect"))
    state().write_text(before)  # killed before the batch was recorded as collected
    succeed(*batch(server, "collect"))
    assert len(records()) == 2
    ledger = Ledger(state().parent / "calls.ledger")
    assert ledger.summary()["calls"] == 2
    assert ledger.totals.batch.prompt == server.batch_tokens["prompt"]
    ledger.close()


def test_budget_counts_pending_batches(home, server, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text('{"m": {"prompt": 10, "cached": 10, "completion": 30, "batch": 0.5}}')
    one_article = ["--prices", prices, "--budget_usd", 0.1]
    assert "1 calls submitted" in succeed(*batch(server, "submit", *one_article))
    assert "0 calls submitted" in succeed(*batch(server, "submit", *one_article))
    assert "1 calls submitted" in succeed(*batch(server, "submit", "--prices", prices, "--budget_usd", 0.2))


def test_an_abandoned_batch_is_cancelled_and_counts_at_the_most_it_can_cost(home, server):
    server.batch_delay = 600
    succeed(*batch(server, "submit"))
    out = succeed(*batch(server, "abandon"))
    assert "batch_0: cancelled; its 2 calls count at the most they can cost" in out
    assert "1 batches abandoned; their calls are missing again" in out
    assert server._batches["batch_0"]["status"] == "cancelled"
    assert "no batch is under way" in succeed(*batch(server, "abandon"))
    summary = json.loads((state().parent / "summary.json").read_text())
    assert summary["calls"] == 2 and summary["completion_tokens"] == 2 * 4096
    succeed(*batch(server, "submit")[:-2], "--max_pairs", 1)  # live calls are possible again
    assert len(records()) == 2 * 6


def test_a_list_that_cannot_be_read_is_submitted_again_with_another_seed(home, server):
    """D10: with the same seed, a server that honours it gives the same reply."""
    succeed(*batch(server, "submit", articles="0"))
    server.faults = ["no_entities"]
    succeed(*batch(server, "collect", articles="0"))
    succeed(*batch(server, "submit", articles="0"))
    bodies = [json.loads(server._files[b["input_file_id"]])["body"] for b in server._batches.values()]
    assert bodies[0]["messages"] == bodies[1]["messages"] and bodies[0]["seed"] != bodies[1]["seed"]


def test_server_without_batches(home, server):
    url = server.url.removesuffix("/v1") + "/nothing"
    line = error_line("data/entigraph.py", "0", "--task", "example", "--base_url", url, "--batch", "submit")
    assert "the server refused" in line


def test_key_is_in_no_file(home, server):
    done = run_script(*batch(server, "submit"), OPENAI_API_KEY="sk-secret-123")
    assert "sk-secret-123" not in done.stdout + done.stderr
    assert server.keys == {"sk-secret-123"} or not server.keys
    assert not [p for p in home.rglob("*") if p.is_file() and b"sk-secret-123" in p.read_bytes()]
