"""Table, figure and JSON of the quickstart, from its three evaluations. Called by quickstart.sh."""

import argparse
import time
from pathlib import Path

from data.generation.passages import training_text
from reports.figures import draw_accuracies
from reports.tables import format_accuracy, print_table
from utils import paths
from utils.cli import make_parser, non_negative_int, print_result
from utils.errors import run
from utils.io import read_json, read_jsonl, write_json
from utils.progress import short_count

MADE_BY = "run: bash scripts/quickstart.sh"
SHORT = {"base": "base", "raw": "raw", "entigraph": "EntiGraph"}
LABELS = {"base": "base model", "raw": "raw CPT (articles)", "entigraph": "EntiGraph CPT (passages)"}


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    for name in LABELS:
        parser.add_argument(f"--{name}", required=True, help="an evaluated checkpoint")
    parser.add_argument("--generator", required=True, help="the generator of the live passages")
    parser.add_argument("--begun", type=non_negative_int, required=True, help="start of the quickstart, Unix time in s")
    parser.add_argument("--chat", action="store_true", help="include the result of quickstart_chat.py")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    metrics = {name: read_json(paths.evaluation_file(getattr(args, name)), MADE_BY)["metrics"] for name in LABELS}
    folders = {name: Path(paths.resolve_checkpoint(getattr(args, name))) for name in ("raw", "entigraph")}
    tokens = {"base": 0} | {name: read_json(path / "run.json", MADE_BY)["tokens"] for name, path in folders.items()}
    written = count_passages(paths.example_dir() / "passages")
    live = count_passages(paths.passages_dir("example", args.generator))
    header = ("", "training tokens", "accuracy (95% interval)", "questions")
    rows = [
        (LABELS[name], f"{tokens[name]:,}", format_accuracy(values["accuracy"], values["ci95"]), values["n"])
        for name, values in metrics.items()
    ]
    print_table([header, *rows])
    print(
        f"EntiGraph passages, with summaries: {written['passages']} written for this repository (data/example/README.md), "
        f"{live['passages']} from the live model ({args.generator}, {live['calls']} calls)."
    )
    result = {name: {key: values[key] for key in ("accuracy", "ci95", "n")} for name, values in metrics.items()}
    result = {name: values | {"tokens": tokens[name]} for name, values in result.items()}
    draw_result(paths.out_dir() / "quickstart.png", result)
    result |= {"seconds": round(time.time() - args.begun), "live_calls": live["calls"]}
    if args.chat:
        result["chat"] = read_json(paths.out_dir() / "quickstart_chat.json", f"{MADE_BY} --chat")
    write_json(paths.out_dir() / "quickstart.json", result)
    figures = ", ".join(f"{SHORT[name]} {result[name]['accuracy']:.1%}" for name in LABELS)
    print_result(result, f"accuracy: {figures} -> {paths.out_dir()}/quickstart.png, quickstart.json")


def draw_result(path: Path, result: dict) -> None:
    labels = {"base": "base", "raw": "raw: articles", "entigraph": "EntiGraph: passages"}
    for name in ("raw", "entigraph"):
        labels[name] += f"\n{short_count(result[name]['tokens'])} tokens"
    bars = {name: [result[name]] for name in labels}
    title = f"SmolLM2-135M on {result['base']['n']} questions about the example corpus, closed book"
    draw_accuracies(path, ["closed book"], bars, labels, title)


def count_passages(folder: Path) -> dict[str, int]:
    """The numbers of answered `calls` and of `passages` (summaries included) in a folder of journals."""
    records = [record for path in sorted(folder.glob("*.jsonl")) for record in read_jsonl(path, MADE_BY)]
    return {
        "calls": sum(record["finish_reason"] != "error" for record in records),
        "passages": sum(bool(training_text(record)) for record in records),
    }


if __name__ == "__main__":
    run(main)
