"""The paired difference of two outputs of evaluation.py."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks import short_answers
from tasks.intervals import paired_difference
from utils import paths
from utils.cli import print_result
from utils.errors import UserError, name_damage
from utils.io import read_json

# Entries of the protocol that two compared evaluations may differ in.
MAY_DIFFER = {"weights", "files", "base_url", "server", "batch_size", "seed"}


def compare(one: Path, other: Path) -> dict:
    """The paired difference of two evaluations: `difference` of accuracies (other minus one), its `ci95` and `p`
    (intervals.paired_difference), both `accuracies`, and of `n` questions those that only one answers correctly. For
    short answers an accuracy is the rate of exact matches, and `f1` holds the same for F1.

    Raises UserError where protocols, questions or options differ.
    """
    results = [read_json(paths.existing(path), "run evaluation.py first") for path in (one, other)]
    for path, result in zip((one, other), results, strict=True):
        if not isinstance(result, dict) or not {"protocol", "documents"} <= set(result):
            raise UserError(f"{path}: not an output of evaluation.py")
    scored = []
    with name_damage(one, "or the other file; delete it and run evaluation.py again"):
        check_same_protocol(one, other, *(result["protocol"] for result in results))
    for path, result in zip((one, other), results, strict=True):
        with name_damage(path, "delete it and run evaluation.py again"):
            scored.append(dict(scored_questions(path, result)))
    if unmatched := scored[0].keys() ^ scored[1].keys():
        example = f"{len(unmatched)} are in one of them only, for example {min(unmatched, key=str)[1]}"
        raise UserError(f"{one} and {other}: not the same questions; {example}")
    keys = list(scored[0])
    if not keys:
        raise UserError(f"{one}: has no questions; delete it and run evaluation.py again")
    values = [np.array([one[key] for key in keys], float) for one in scored]  # (questions, measures)
    exact, *others = [compare_values(*columns, keys) for columns in zip(*(one.T for one in values), strict=True)]
    return (
        {"n": len(keys), "documents": len({uid for uid, _ in keys})} | exact | dict(zip(["f1"], others, strict=False))
    )


def compare_values(first: np.ndarray, second: np.ndarray, keys: list[tuple[str, str]]) -> dict:
    """The paired difference of two scores of the same questions, whose `keys` are (document, question)."""
    difference, interval, p = paired_difference(first, second, [document for document, _ in keys])
    return {
        "accuracies": [round(float(scores.mean()), 4) for scores in (first, second)],
        "difference": difference,
        "ci95": interval,
        "p": p,
        "only_first": int((first > second).sum()),
        "only_second": int((second > first).sum()),
    }


def check_same_protocol(one: Path, other: Path, first: dict, second: dict) -> None:
    for name in sorted((first.keys() | second.keys()) - MAY_DIFFER, key=lambda name: (name != "name", name)):
        if first.get(name) != second.get(name):
            values = f"{first.get(name)} and {second.get(name)}"
            raise UserError(f"{one} and {other}: other {name} ({values}); evaluate both in the same way")


def scored_questions(path: Path, result: dict) -> Iterator[tuple[tuple[str, str], list]]:
    """Yield ((document, question), [correct]) for every question; for a short answer [exact match, F1]."""
    for document in result["documents"]:
        for question in document["questions"]:
            if "answer" not in question:
                raise UserError(f"{path}: written by an earlier version; delete it and run evaluation.py again")
            if short_answers.MEASURES[0] in question:
                scores = [question[name] for name in short_answers.MEASURES]
            else:
                scores = [question["answer"] == question["gold"]]
            yield (document["uid"], question["id"]), scores


def print_comparison(files: list[Path]) -> None:
    result = compare(*files)
    first, second = result["accuracies"]
    measure = " exact match" if "f1" in result else ""
    print(f"{files[0]}: {first:.1%}{measure}\n{files[1]}: {second:.1%}, of the same {result['n']:,} questions")
    if "f1" in result:
        first, second = result["f1"]["accuracies"]
        print(f"F1: {first:.1%} and {second:.1%}, {describe_difference(result['f1'])}")
    if result["documents"] == 1:
        print("all questions are about one document, which says nothing about others: the interval is the whole range")
    print_result(result, describe_difference(result))


def describe_difference(compared: dict) -> str:
    low, high = compared["ci95"]
    interval = f"95%: {low:+.1%} to {high:+.1%}, by article"
    return f"difference {compared['difference']:+.1%} ({interval}), p = {compared['p']:.4f}"
