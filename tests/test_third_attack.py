"""Tests of faults that a third attack found on 2026-11-30. Numbers are those of its table in LOG.md."""

import json

import pytest

from tests.conftest import error_line, succeed
from utils import paths


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
    "options",
    (["--temperature", 0, "--select", "majority"], ["--temperature", 0, "--n_samples", 16]),
)
def test_samples_at_temperature_0_are_refused(home, options):
    """20"""
    assert "without effect at temperature 0" in error_line("evaluation.py", "--model_path", "m", *options)


def test_options_beside_a_comparison_are_refused(home):
    """20"""
    assert "--rag: without effect" in error_line("evaluation.py", "--compare", "a.json", "b.json", "--rag")
