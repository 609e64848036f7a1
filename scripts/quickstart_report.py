"""The quickstart's table, figure and JSON, out of the three evaluations. Called by quickstart.sh."""

import argparse
import json
import time
from pathlib import Path

from data.generation.passages import FINISHED
from utils import paths
from utils.errors import run
from utils.io import atomic_write, read_json, read_jsonl, write_json

AGAIN = "run: bash scripts/quickstart.sh"
LABELS = {"base": "base model", "raw": "raw CPT (articles)", "entigraph": "EntiGraph CPT (passages)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in LABELS:
        parser.add_argument(f"--{name}", required=True, help="the checkpoint that was evaluated")
    parser.add_argument("--generator", required=True, help="whose passages are the live ones")
    parser.add_argument("--begun", type=int, required=True, help="when it began, Unix time in s")
    parser.add_argument("--chat", action="store_true", help="quickstart_chat.py has been run, too")
    args = parser.parse_args()
    metrics = {name: read_json(paths.evaluation_file(getattr(args, name)), AGAIN)["metrics"] for name in LABELS}
    tokens = {name: training_tokens(getattr(args, name)) for name in ("raw", "entigraph")}
    written = count_passages(paths.example_dir() / "passages")
    live = count_passages(paths.passages_dir("example", args.generator))
    print_table(metrics, {"base": 0} | tokens)
    print(
        f"EntiGraph passages: {written['passages']} written for this repository (data/example/README.md), "
        f"{live['passages']} from the live model ({args.generator}, {live['calls']} calls)."
    )
    draw(metrics, paths.out_dir() / "quickstart.png")
    result = {name: {key: values[key] for key in ("accuracy", "ci95", "n")} for name, values in metrics.items()}
    result |= {"seconds": round(time.time() - args.begun), "live_calls": live["calls"]}
    if args.chat:
        result["chat"] = read_json(paths.out_dir() / "quickstart_chat.json", f"{AGAIN} --chat")
    write_json(paths.out_dir() / "quickstart.json", result)
    print(f"{paths.out_dir()}/quickstart.png, quickstart.json")
    print(json.dumps(result))


def training_tokens(checkpoint: str) -> int:
    return read_json(Path(paths.resolve_checkpoint(checkpoint)) / "run.json", AGAIN)["tokens"]


def count_passages(folder: Path) -> dict[str, int]:
    """Calls that were answered, and passages (summaries included) that ended well."""
    records = [record for path in sorted(folder.glob("*.jsonl")) for record in read_jsonl(path, AGAIN)]
    return {
        "calls": sum(record["finish_reason"] != "error" for record in records),
        "passages": sum(record["finish_reason"] == FINISHED for record in records),
    }


def print_table(metrics: dict[str, dict], tokens: dict[str, int]) -> None:
    print(f"{'':26}{'training tokens':>16}{'accuracy':>10}{'95% interval':>16}{'questions':>11}")
    for name, values in metrics.items():
        low, high = values["ci95"]
        print(
            f"{LABELS[name]:26}{tokens[name]:>16,}{values['accuracy']:>10.1%}"
            f"{f'{low:.1%} - {high:.1%}':>16}{values['n']:>11}"
        )


def draw(metrics: dict[str, dict], path: Path) -> None:
    """Three bars with their intervals, and the line of chance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    heights = [100 * values["accuracy"] for values in metrics.values()]
    edges = [[100 * edge for edge in values["ci95"]] for values in metrics.values()]
    errors = [
        [height - low for height, (low, _) in zip(heights, edges, strict=True)],
        [high - height for height, (_, high) in zip(heights, edges, strict=True)],
    ]
    bars = axes.bar(
        [LABELS[name] for name in metrics], heights, yerr=errors, capsize=6, color=["#9aa5b1", "#d9a441", "#2f6f9f"]
    )
    axes.bar_label(bars, fmt="%.0f%%", label_type="center", color="white", fontsize=12)
    axes.axhline(25, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(ylabel="closed-book accuracy, %", ylim=(0, 100), title="The example corpus, SmolLM2-135M")
    axes.legend(frameon=False, loc="upper left")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


if __name__ == "__main__":
    run(main)
