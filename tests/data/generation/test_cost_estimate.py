import re

import pytest

from data.generation import methods
from data.generation.cost_estimate import dollars, estimate_costs
from data.generation.passages import PassageStore
from inference.prices import Price
from tasks.documents import Document
from tests.conftest import error_line, succeed
from tests.data.test_entigraph import entigraph, records


def rows_of(out):
    found = re.findall(r"^(\w+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)$", out, re.M)
    return {row[0]: [int(number.replace(",", "")) for number in row[1:]] for row in found}


def test_a_dry_run_makes_no_call_and_is_exact_once_entities_are_known(home, server):
    dry = (*entigraph(server, "--max_triples", 7, articles="0-2"), "--dry_run")
    out = succeed(*dry)
    assert server.requests == 0
    assert not list(home.iterdir())
    assert rows_of(out)["entities"][:2] == [0, 3]
    assert "The entities of 3 of 3 articles are not known yet" in out
    succeed(*entigraph(server, "--max_pairs", 0, "--max_triples", 0, articles="0-2"))
    asked = server.requests
    rows = rows_of(succeed(*dry))
    assert server.requests == asked == 3
    assert {kind: row[:2] for kind, row in rows.items()} == {"entities": [3, 0], "pair": [0, 45], "triple": [0, 21]}
    succeed(*entigraph(server, "--max_triples", 7, articles="0-2"))
    assert server.requests == 3 + 45 + 21 == len(records())
    assert all(row[1] == 0 for row in rows_of(succeed(*dry)).values())


def test_estimated_tokens_are_close_to_the_billed_ones(home, server):
    """With the entities known, the estimated prompt tokens are within 2% of the server's."""
    server.completion_tokens = 50
    succeed(*entigraph(server, "--max_pairs", 1, "--max_triples", 1, articles="0-2"))
    rows = rows_of(succeed(*entigraph(server, "--dry_run", articles="0-2")))
    prompt, completion = (sum(row[n] for row in rows.values()) for n in (2, 4))
    before = server.tokens.copy()
    succeed(*entigraph(server, articles="0-2"))
    assert prompt == pytest.approx(server.tokens["prompt"] - before["prompt"], rel=0.02)
    assert completion == server.tokens["completion"] - before["completion"]


def test_cached_prefixes_and_dollars(tmp_path):
    text = "word " * 4000
    documents = [Document(f"u{n}", "T", "", "", text) for n in range(2)]
    settings = methods.GenerationSettings("m", "rephrase", samples=5)
    rows, guessed = estimate_costs(documents, settings, PassageStore(tmp_path, read_only=True))
    assert (len(rows), guessed) == (3, 0)
    assert sum(row.calls for row in rows) == 30
    prefix = rows[1].cached / rows[1].calls
    assert sum(row.cached for row in rows) == 28 * prefix  # all but each document's first
    costs = dollars(rows, Price(10, 1, 30, 0.5))
    assert costs["as a batch"] == costs["live"] / 2
    assert costs["live"] - costs["with cached prefixes"] == pytest.approx(28 * prefix * 9 / 1e6)


def test_a_model_without_a_price(home, server):
    assert "no price for m" in succeed(*entigraph(server, "--dry_run"))
    line = error_line(*entigraph(server, "--budget_usd", 5))
    assert "prices.json" in line
    assert "--max_tokens_total" in line
    assert server.requests == 0
