"""Table of a sweep (scripts/rag_sweep.sh): the best settings on the validation articles and their test accuracy.

python scripts/rag_table.py --model_path ckpts/NAME
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from reports.tables import format_accuracy, print_table
from tasks.intervals import accuracy_interval
from utils import paths
from utils.cli import make_parser, print_result
from utils.errors import UserError, name_damage, run
from utils.io import read_json


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model_path", required=True, help="the evaluated checkpoint")
    parser.add_argument("--task", help="of the sweep (default: the only one that the checkpoint was evaluated on)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    pattern = paths.evaluation_file(args.model_path, "chunk*")
    files = sorted(pattern.parent.glob(pattern.name))
    tasks_and_rows, asked = [], defaultdict(set)
    for file in files:
        with name_damage(file, "run scripts/rag_sweep.sh"):
            result = read_json(file, "run scripts/rag_sweep.sh")
            tasks_and_rows.append((result["protocol"]["task"], table_row(result)))
            asked[result["protocol"]["task"]].add(frozenset(question_ids(result)))
    tasks = sorted({task for task, _ in tasks_and_rows})
    if not args.task and len(tasks) > 1:
        raise UserError(f"--task: give one of {', '.join(tasks)}; {args.model_path} was evaluated on all of them")
    rows = [row for task, row in tasks_and_rows if args.task in (None, task)]
    if not rows:
        raise UserError(f"{pattern}: no such files; run scripts/rag_sweep.sh first")
    if rows[0]["val"] is None:
        raise UserError(f"{pattern}: fewer than five articles, hence none for validation; no settings can be chosen")
    if len(asked[args.task or tasks[0]]) > 1:
        raise UserError(f"{pattern}: not of the same questions; run scripts/rag_sweep.sh again")
    rows.sort(key=lambda row: (-row["val"], row["top_k"], row["chunk_size"]))
    columns = [name for name in rows[0] if name != "ci95"]
    print_table([columns, *([row[name] for name in columns] for row in rows)])
    best = rows[0]
    test = format_accuracy(best["test"], best["ci95"])
    print_result({"points": len(rows), "best": best}, f"\nbest on validation: {best['val']:.1%}; on test {test}")


def question_ids(result: dict) -> Iterator[tuple[str, str]]:
    """(document, question) of all questions of an evaluation."""
    for document in result["documents"]:
        for question in document["questions"]:
            yield document["uid"], question["id"]


def table_row(result: dict) -> dict:
    """Settings, recall and accuracies of one open-book evaluation; `ci95` is the interval of `test`."""
    protocol, metrics = result["protocol"], result["metrics"]
    search = protocol["search"]
    stages = [value for name, value in result["retrieval"].items() if name != "passages"]
    test = [
        (document["uid"], float(question["answer"] == question["gold"]))
        for document in result["documents"]
        if document["split"] == "test"
        for question in document["questions"]
    ]
    return {
        "chunk_size": search["chunk_size"],
        "top_k": search["top_k"],
        "order": search["order"],
        "asked by": protocol["name"] if protocol["name"] != "cot" else f"t={protocol['temperature']}",
        "recall@8": stages[-1]["recall@8"],
        "mrr": stages[-1]["mrr"],
        "val": metrics["val"],
        "test": metrics["test"],
        "ci95": accuracy_interval(np.array([right for _, right in test]), [uid for uid, _ in test]),
    }


if __name__ == "__main__":
    run(main)
