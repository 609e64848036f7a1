"""The table of a sweep (scripts/rag_sweep.sh): the settings that are best on the validation articles, and
what they reach on the others.

    python scripts/rag_table.py --model_path ckpts/NAME
"""

import argparse
import json

import numpy as np

from tasks.intervals import accuracy_interval
from utils import paths
from utils.errors import UserError, run
from utils.io import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="the checkpoint that was swept")
    args = parser.parse_args()
    pattern = paths.evaluation_file(args.model_path, "chunk*")
    rows = [row_of(read_json(file, "run scripts/rag_sweep.sh")) for file in sorted(pattern.parent.glob(pattern.name))]
    if not rows:
        raise UserError(f"{pattern}: no such files; run scripts/rag_sweep.sh first")
    if rows[0]["val"] is None:
        raise UserError("fewer than five articles, so none are for validation and no settings can be chosen")
    rows.sort(key=lambda row: (-row["val"], row["top_k"], row["chunk_size"]))
    columns = [name for name in rows[0] if name != "ci95"]
    print("".join(f"{name:>12}" for name in columns))
    for row in rows:
        print("".join(f"{row[name]:>12}" for name in columns))
    best = rows[0]
    low, high = best["ci95"]
    print(f"\nbest on validation: {best['val']:.1%}; on test {best['test']:.1%} ({low:.1%} to {high:.1%})")
    print(json.dumps({"points": len(rows), "best": best}))


def row_of(result: dict) -> dict:
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
