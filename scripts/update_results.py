"""The figures of one run of the quickstart in the README, in docs/ and in the notebooks.

    python scripts/update_results.py --home DIR    # copy the outputs of the run in DIR, and show them everywhere
    python scripts/update_results.py               # show docs/results/out everywhere again
    python scripts/update_results.py --check       # write nothing; exit code 2 where a document shows other figures

A document shows a table between the comments <!-- results: NAME --> and <!-- end of results -->, where NAME is a key of
TABLES. The notebooks run with docs/results in the place of $SCP_HOME.
"""

import argparse
import os
import re
import shutil
from pathlib import Path

from reports.tables import format_accuracy
from utils import cli, paths
from utils.errors import UserError, name_damage, run
from utils.io import atomic_write, read_json, read_text
from utils.progress import progress_bar

RESULTS = paths.ROOT / "docs" / "results"
FIGURE = paths.ROOT / "docs" / "images" / "quickstart.png"
OUTPUTS = {
    "quickstart.json": "bash scripts/quickstart.sh --chat",
    "quickstart.png": "bash scripts/quickstart.sh --chat",
    "quickstart_chat.json": "bash scripts/quickstart.sh --chat",
    "inspection-passages.json": "python data/inspect_entigraph.py --task example --input data/example/passages",
    "two_by_two.json": "python scripts/two_by_two.py",
    "forgetting-example-*.json": "python scripts/forgetting.py",
    "scaling.json": "scripts/scaling.sh",
    "qualityqa-SmolLM2-*.json": "bash scripts/quickstart.sh --chat",
    "qualityqa-example-raw-*.json": "bash scripts/quickstart.sh --chat",
    "qualityqa-example-lr*.json": "bash scripts/quickstart.sh --chat",
    "qualityqa-instruct-*.json": "bash scripts/quickstart.sh --chat",
}
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
LABELS = {"base": "base model", "raw": "raw CPT, on the articles", "entigraph": "EntiGraph CPT, on the passages"}


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--home", type=Path, metavar="DIR", help="the home folder of the run (what $SCP_HOME was)")
    parser.add_argument("--check", action="store_true", help="write nothing; compare the documents with docs/results")
    args = parser.parse_args()
    if args.home and args.check:
        raise UserError("--check: writes nothing; omit --home")
    return args


def main() -> None:
    args = parse_arguments()
    if args.home and (args.home / "out").resolve() != (RESULTS / "out").resolve():
        copy_outputs(args.home / "out")
    documents = {path: read_text(path, "it ships with the repository") for path in documents_with_results()}
    updated = {path: show_results(text, path) for path, text in documents.items()}
    if args.check:
        if stale := [str(path) for path in documents if documents[path] != updated[path]]:
            raise UserError(
                f"{', '.join(stale)}: other figures than docs/results; run: python scripts/update_results.py"
            )
        cli.print_result({"documents": len(documents)}, f"{len(documents)} documents show the figures of docs/results")
        return
    notebooks = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
    for path in progress_bar(iterable=notebooks, desc="running", unit="notebook"):
        updated[path] = run_notebook(path)
    for path, text in updated.items():
        with atomic_write(path) as file:
            file.write(text.encode())
    cli.print_result({"files": len(updated)}, f"docs/results -> {', '.join(path.name for path in updated)}")


def documents_with_results() -> list[Path]:
    return [paths.ROOT / "README.md", *sorted((paths.ROOT / "docs").glob("*.md"))]


def copy_outputs(source: Path) -> None:
    """Copy the outputs of one run, all of them or none."""
    files = []
    for pattern, command in OUTPUTS.items():
        found = sorted(source.glob(pattern))
        if len(found) != 1:
            names = ", ".join(file.name for file in found)
            problem = f"of several runs ({names}); delete all but one" if found else f"missing; run: {command}"
            raise UserError(f"--home: {source}/{pattern}: {problem}")
        files += found
    copied = RESULTS.with_name(f".{RESULTS.name}.tmp")
    shutil.rmtree(copied, ignore_errors=True)
    (copied / "out").mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, FIGURE if file.suffix == ".png" else copied / "out" / file.name)
    shutil.rmtree(RESULTS, ignore_errors=True)
    copied.rename(RESULTS)


def show_results(text: str, path: Path) -> str:
    def show(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise UserError(f"{path}: results {match[2]} are not among {', '.join(TABLES)}")
        with name_damage(RESULTS / "out", "run: python scripts/update_results.py --home DIR"):
            return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"

    return BLOCK.sub(show, text)


def output(name: str) -> dict | list:
    return read_json(RESULTS / "out" / name, "run: python scripts/update_results.py --home DIR")


def accuracy_of(metrics: dict) -> str:
    return format_accuracy(metrics["accuracy"], metrics["ci95"])


def quickstart_table() -> str:
    result = output("quickstart.json")
    rows = [(LABELS[name], f"{result[name]['tokens']:,}", accuracy_of(result[name])) for name in LABELS]
    return markdown_table([(f"{result['base']['n']} questions, closed book", "training tokens", "accuracy"), *rows])


def chat_table() -> str:
    chat, closed = output("quickstart_chat.json"), output("quickstart.json")
    ended = [str(chat["ended"][name]) for name in ("base", "entigraph", "tuned")]
    losses, shares, untold = (chat[key] for key in ("held_out_loss", "accuracy", "accuracy_untold"))
    return markdown_table(
        [
            ("measure", "base", "EntiGraph", "tuned"),
            (f"replies to {chat['prompts']} held-out questions that end within 200 tokens", *ended),
            ("loss on held-out conversations, per learnt token", "", *(f"{loss:.2f}" for loss in losses)),
            ("closed-book accuracy", *(f"{share:.1%}" for share in (closed["base"]["accuracy"], *shares))),
            ("of these, articles outside the tuning", "", *(f"{share:.1%}" for share in untold)),
        ]
    )


def two_by_two_table() -> str:
    result = output("two_by_two.json")
    rows = [
        (label, accuracy_of(result[f"{name}_closed"]), accuracy_of(result[f"{name}_open"]))
        for name, label in (("base", "base model"), ("entigraph", "EntiGraph CPT"))
    ]
    gains = [result["gain_closed"], result["gain_open"]]
    difference = ["difference", *(format_accuracy(gain["difference"], gain["ci95"], "+") for gain in gains)]
    return markdown_table([("model", "closed book", "open book"), *rows, difference])


def forgetting_table() -> str:
    (file,) = (RESULTS / "out").glob("forgetting-example-*.json")
    result = output(file.name)
    rows = [(time, f"{result[time]['perplexity']:.1f}", f"{result[time]['accuracy']:.1%}") for time in result]
    return markdown_table([("training", "perplexity on the replay's held-out text", "closed-book accuracy"), *rows])


def scaling_table() -> str:
    rows = [(f"{point['tokens']:,}", accuracy_of(point)) for point in output("scaling.json")]
    return markdown_table([("synthetic tokens", "accuracy"), *rows])


TABLES = {
    "quickstart": quickstart_table,
    "chat": chat_table,
    "two_by_two": two_by_two_table,
    "forgetting": forgetting_table,
    "scaling": scaling_table,
}


def markdown_table(rows: list) -> str:
    header, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|---" * len(rows[0]) + "|", *others])


def run_notebook(path: Path) -> str:
    """A notebook with the outputs that docs/results gives, without the metadata that differ between runs."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["SCP_HOME"] = str(RESULTS)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300).execute(cwd=str(path.parent))
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    run(main)
