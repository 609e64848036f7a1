"""The 2 x 2: base and EntiGraph, closed book and open. Does what a model has learnt add to what is looked up?

    python scripts/two_by_two.py --base meta-llama/Meta-Llama-3-8B --entigraph ckpts/quality-lr5e-06-…
    python scripts/two_by_two.py --base ckpts/SmolLM2-135M-Instruct --entigraph ckpts/example-… \\
        --task example --protocol loglik --top_k 4

Further options go to evaluation.py, those of the search to its open half. Writes out/two_by_two.png and
out/two_by_two.json, which is the last line too. What is evaluated already is not evaluated again.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from tasks.rag import SearchSettings
from tasks.results import compare
from utils import paths
from utils.errors import UserError, run
from utils.io import atomic_write, read_json, write_json

NAMES = {"base": "base model", "entigraph": "EntiGraph CPT"}
BOOKS = ("closed", "open")
SEARCH = [field.name for field in dataclasses.fields(SearchSettings)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the checkpoint before")
    parser.add_argument("--entigraph", required=True, help="and after continued pretraining")
    search = parser.add_argument_group("the search, as in evaluation.py")
    for name in SEARCH:
        search.add_argument(f"--{name}")
    args, others = parser.parse_known_args()
    if paths.evaluation_file(args.base) == paths.evaluation_file(args.entigraph):
        raise UserError(
            f"--base and --entigraph: both are called {paths.short_name(args.base)}, and so would their files be; rename one"
        )
    files = {}
    for name in NAMES:
        files[name, "closed"] = evaluate([f"--model_path={getattr(args, name)}", *others])
        of_search = [f"--{key}={getattr(args, key)}" for key in SEARCH if getattr(args, key)]
        files[name, "open"] = evaluate([f"--model_path={getattr(args, name)}", *others, "--rag", *of_search])
    results = {key: read_json(file, "run it again")["metrics"] for key, file in files.items()}
    print_table(results)
    gains = {book: compare(files["base", book], files["entigraph", book]) for book in BOOKS}
    for book, gain in gains.items():
        low, high = gain["ci95"]
        print(
            f"{book} book, EntiGraph over base: {gain['difference']:+.1%} ({low:+.1%} to {high:+.1%}), p = {gain['p']:.4f}"
        )
    draw(results, paths.out_dir() / "two_by_two.png")
    summary = {
        f"{name}_{book}": {key: results[name, book][key] for key in ("accuracy", "ci95", "n")} for name, book in results
    }
    summary |= {f"gain_{book}": {key: gain[key] for key in ("difference", "ci95", "p")} for book, gain in gains.items()}
    write_json(paths.out_dir() / "two_by_two.json", summary)
    print(f"{paths.out_dir()}/two_by_two.png, two_by_two.json")
    print(json.dumps(summary))


def evaluate(options: list[str]) -> Path:
    """Run evaluation.py; the file that it wrote is the line before its last."""
    command = [sys.executable, str(paths.ROOT / "evaluation.py"), *options]
    print(f"== evaluation.py {' '.join(options)}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why; the same command goes on
    return Path(done.stdout.splitlines()[-2])


def print_table(results: dict[tuple[str, str], dict]) -> None:
    print(f"\n{'':18}" + "".join(f"{book + ' book':>24}" for book in BOOKS))
    for name, label in NAMES.items():
        cells = []
        for book in BOOKS:
            low, high = results[name, book]["ci95"]
            cells.append(f"{results[name, book]['accuracy']:.1%} ({low:.1%}-{high:.1%})")
        print(f"{label:18}" + "".join(f"{cell:>24}" for cell in cells))


def draw(results: dict[tuple[str, str], dict], path: Path) -> None:
    """Two pairs of bars with their intervals, and the line of chance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for shift, name, colour in ((-0.2, "base", "#9aa5b1"), (0.2, "entigraph", "#2f6f9f")):
        values = [results[name, book] for book in BOOKS]
        heights = [100 * value["accuracy"] for value in values]
        below = [100 * (value["accuracy"] - value["ci95"][0]) for value in values]
        above = [100 * (value["ci95"][1] - value["accuracy"]) for value in values]
        bars = axes.bar(
            [place + shift for place in range(2)],
            heights,
            0.38,
            yerr=[below, above],
            capsize=5,
            color=colour,
            label=NAMES[name],
        )
        axes.bar_label(bars, fmt="%.0f%%", label_type="center", color="white", fontsize=12)
    axes.axhline(25, color="black", linewidth=0.8, linestyle=":", label="chance")
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    axes.set_xticks(range(2), [f"{book} book" for book in BOOKS])
    axes.legend(frameon=False, loc="upper left", ncols=3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


if __name__ == "__main__":
    run(main)
