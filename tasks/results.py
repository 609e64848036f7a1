"""Two evaluations of the same questions, set against each other question by question."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks import scoring
from utils.io import UserError, read_json

# What may differ between two protocols: whose weights, where they are, and what draws the words.
MAY_DIFFER = {"weights", "base_url", "batch_size", "seed"}


def compare(one: Path, other: Path) -> dict:
    """How much more `other` has right than `one`: `difference` of accuracies, its `ci95` and `p`
    (scoring.paired), the two `accuracies`, and of `n` questions those that only one has right.

    Raises UserError where protocol, questions or options are not the same.
    """
    results = [read_json(path, "run evaluation.py first") for path in (one, other)]
    for path, result in zip((one, other), results, strict=True):
        if not isinstance(result, dict) or not {"protocol", "documents"} <= set(result):
            raise UserError(f"{path}: not an output of evaluation.py")
    check_same_protocol(one, other, *(result["protocol"] for result in results))
    asked = [dict(judged(path, result)) for path, result in zip((one, other), results, strict=True)]
    if asked[0].keys() != asked[1].keys():
        only = asked[0].keys() ^ asked[1].keys()
        raise UserError(f"{one} and {other}: not the same questions; {len(only)} are in one of them alone, {min(only)[1]} for one")  # fmt: skip
    keys = list(asked[0])
    first, second = (np.array([found[key] for key in keys], float) for found in asked)
    difference, edges, p = scoring.paired(first, second, [document for document, _ in keys])
    return {
        "n": len(keys),
        "accuracies": [round(float(right.mean()), 4) for right in (first, second)],
        "difference": difference,
        "ci95": edges,
        "p": p,
        "only_first": int((first > second).sum()),
        "only_second": int((second > first).sum()),
    }


def check_same_protocol(one: Path, other: Path, first: dict, second: dict) -> None:
    for name in sorted((first.keys() | second.keys()) - MAY_DIFFER):
        if first.get(name) != second.get(name):
            raise UserError(
                f"{one} and {other}: other {name} ({first.get(name)} and {second.get(name)}), so their "
                "difference would be the protocol's too; evaluate both in the same way"
            )


def judged(path: Path, result: dict) -> Iterator[tuple[tuple[str, str], bool]]:
    """((document, question), right) of every question, by the answer that counted."""
    for document in result["documents"]:
        for question in document["questions"]:
            if "answer" not in question:
                raise UserError(f"{path}: of an earlier version, which did not note which answer counted; delete it and run evaluation.py again")  # fmt: skip
            right = question["answer"] == question["gold"]
            yield (document["uid"], question["id"]), right
