"""The 2 x 2 table of base model and EntiGraph checkpoint, closed book and open book.

    python scripts/two_by_two.py --base meta-llama/Meta-Llama-3-8B --entigraph ckpts/quality-lr5e-06-…
    python scripts/two_by_two.py --base ckpts/SmolLM2-135M-Instruct --entigraph ckpts/example-… \\
        --task example --protocol loglik --top_k 4

All other options are passed to evaluation.py, those of the search to its open-book half. Finished evaluations
are reused. Writes out/two_by_two.png and out/two_by_two.json.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from reports.figures import draw_accuracies
from reports.tables import format_accuracy, print_table
from tasks.comparison import compare
from tasks.rag import SearchSettings
from utils import paths
from utils.cli import make_parser, print_result
from utils.errors import UserError, run
from utils.io import read_json, write_json

LABELS = {"base": "base model", "entigraph": "EntiGraph CPT"}
BOOKS = ("closed", "open")


def parse_arguments() -> tuple[argparse.Namespace, list[str], list[str]]:
    """The checkpoints, the options of the search, and all other options of evaluation.py."""
    parser = make_parser(__doc__)
    parser.add_argument("--base", required=True, help="checkpoint before continued pretraining")
    parser.add_argument("--entigraph", required=True, help="checkpoint after continued pretraining")
    group = parser.add_argument_group("search, as in evaluation.py")
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    for name in names:
        group.add_argument(f"--{name}", help="see evaluation.py --help")
    args, others = parser.parse_known_args()
    if refused := [option for option in others if option.startswith(("--kind", "--retrieval_only", "--compare"))]:
        raise UserError(f"{refused[0]}: the table is of accuracies of multiple choice; leave it out")
    if paths.evaluation_file(args.base) == paths.evaluation_file(args.entigraph):
        name = paths.short_name(args.base)
        raise UserError(f"--base, --entigraph: both are named {name}, and so are their files in out/; rename one")
    return args, [f"--{name}={getattr(args, name)}" for name in names if getattr(args, name)], others


def main() -> None:
    args, search, others = parse_arguments()
    files = {}
    for name in LABELS:
        options = [f"--model_path={getattr(args, name)}", *others]
        files[name, "closed"] = evaluate(options)
        files[name, "open"] = evaluate([*options, "--rag", *search])
    metrics = {name: [read_json(files[name, book], "run it again")["metrics"] for book in BOOKS] for name in LABELS}
    gains = {book: compare(files["base", book], files["entigraph", book]) for book in BOOKS}
    groups = [f"{book} book" for book in BOOKS]
    cells = {name: [format_accuracy(one["accuracy"], one["ci95"]) for one in metrics[name]] for name in LABELS}
    print_table([("", *groups), *((LABELS[name], *cells[name]) for name in LABELS)])
    for book, gain in gains.items():
        difference = format_accuracy(gain["difference"], gain["ci95"], "+")
        print(f"{book} book, EntiGraph minus base: {difference}, p = {gain['p']:.4f}")
    draw_accuracies(paths.out_dir() / "two_by_two.png", groups, metrics, LABELS)
    result = {
        f"{name}_{book}": {key: one[key] for key in ("accuracy", "ci95", "n")}
        for name in LABELS
        for book, one in zip(BOOKS, metrics[name], strict=True)
    }
    result |= {f"gain_{book}": {key: gain[key] for key in ("difference", "ci95", "p")} for book, gain in gains.items()}
    write_json(paths.out_dir() / "two_by_two.json", result)
    gained = ", ".join(f"{book} book {gain['difference']:+.1%}" for book, gain in gains.items())
    print_result(result, f"EntiGraph minus base: {gained} -> {paths.out_dir()}/two_by_two.png, two_by_two.json")


def evaluate(options: list[str]) -> Path:
    """Run evaluation.py, show its output, and return the path of the file it wrote."""
    print(f"== evaluation.py {' '.join(options)}", flush=True)
    command = [sys.executable, str(paths.ROOT / "evaluation.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        sys.exit(process.returncode)  # evaluation.py has printed its error
    return Path(json.loads(line)["file"])


if __name__ == "__main__":
    run(main)
