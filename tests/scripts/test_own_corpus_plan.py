"""The plan of own_corpus.sh: targets by tokens, budget and time."""

from argparse import Namespace

import pytest

from inference.prices import Price
from scripts.own_corpus_plan import EVENING_S, Speed, confirm, make_plan
from tasks.documents import Document
from utils.errors import UserError

DOCUMENTS = [Document(f"u{n}", "T", "", "", "word " * 860) for n in range(10)]  # 1,000 tokens each
PRICE = Price(prompt=1.0, cached=0.5, completion=4.0)


def plan(price=None, reply=20.0, **options) -> dict:
    settings = {"tokens": None, "budget_usd": None, "max_tokens": 600, "per_document": 10} | options
    return make_plan(Namespace(**settings), DOCUMENTS, Speed(prompt=200.0, reply=reply), price)


def test_the_default_target_is_fifty_times_the_corpus():
    result = plan(PRICE)
    assert result["target_tokens"] == pytest.approx(500_000, rel=0.01)
    assert plan(PRICE, tokens=9_000)["target_tokens"] == 9_000


def test_a_budget_bounds_the_target_and_is_not_exceeded():
    result = plan(PRICE, budget_usd=2.0)
    assert 0 < result["target_tokens"] < 500_000
    assert result["usd"] <= 2.0
    assert plan(PRICE, budget_usd=2.0, tokens=4500)["target_tokens"] == 4500


def test_a_local_generator_gets_an_evening():
    result = plan()
    assert result["usd"] is None
    assert result["seconds"] == pytest.approx(EVENING_S, rel=0.01)
    assert plan(tokens=4500)["seconds"] < EVENING_S


def test_seconds_are_prefixes_once_for_passages_and_quiz_then_tasks_and_replies():
    prefixes, lists, quiz = 10_000 / 200, 10 * (250 / 200 + 300 / 20), 10 * 10 * (4 * 250 / 200 + 200 / 20)
    passages = 20 * (450 / 20 + 250 / 200)
    assert plan(tokens=9_000)["seconds"] == pytest.approx(2 * prefixes + lists + quiz + passages, rel=0.02)
    assert plan(tokens=9_000, per_document=0)["seconds"] == pytest.approx(prefixes + lists + passages, rel=0.02)
    assert plan(tokens=9_000, per_document=0)["calls"] == 20 + 10


def test_less_than_a_passage_is_refused():
    with pytest.raises(UserError, match="less than one passage"):
        plan(PRICE, budget_usd=0.01)
    with pytest.raises(UserError, match="less than one passage"):
        plan(reply=0.1)


def test_costly_plans_need_yes(monkeypatch):
    cheap = {"usd": 0.5, "seconds": 100, "target_tokens": 1, "calls": 1}
    confirm(cheap, False)
    confirm(cheap | {"usd": 99.0}, True)
    for costly in ({"usd": 1.5}, {"seconds": 4000}):
        with pytest.raises(UserError, match="--yes"):
            confirm(cheap | costly, False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    confirm(cheap | {"usd": 1.5}, False)
    monkeypatch.setattr("builtins.input", lambda question: "")
    with pytest.raises(UserError, match="not accepted"):
        confirm(cheap | {"usd": 1.5}, False)
