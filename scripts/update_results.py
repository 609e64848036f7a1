"""The results of one run of the quickstart in the README, docs/results/ and the notebooks, so that they agree.

    python scripts/update_results.py --home DIR    # copy the outputs of a run ($SCP_HOME, or this folder) and show them
    python scripts/update_results.py               # show docs/results/ again
    python scripts/update_results.py --check       # do they agree? exit code 2 if not

docs/results/out/ holds the run's outputs. From them come docs/results/quickstart.png, the table between two comments of
the README, and the outputs of the notebooks, which run with docs/results as $SCP_HOME.
"""

import argparse
import os
import re
import shutil
from pathlib import Path

from reports.tables import format_accuracy
from scripts.quickstart_report import draw_result
from utils import cli, paths
from utils.errors import UserError, run
from utils.io import atomic_write, read_json, read_text
from utils.progress import progress_bar

RESULTS = paths.ROOT / "docs" / "results"
OUTPUTS = ("quickstart.json", "qualityqa-*.json", "inspection-passages.json", "scaling.json")
TABLE = re.compile(r"(<!-- results of one run: scripts/update_results.py -->\n).*?(<!-- end of the results -->)", re.S)
ROWS = {"base": "base model", "raw": "raw CPT, on the articles", "entigraph": "EntiGraph CPT, on the passages"}


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--home", type=Path, metavar="DIR", help="copy the outputs of the run in DIR/out first")
    parser.add_argument("--check", action="store_true", help="write nothing; compare the README and the notebooks")
    args = parser.parse_args()
    if args.home and args.check:
        raise UserError("--check: writes nothing; omit --home")
    return args


def main() -> None:
    args = parse_arguments()
    if args.home:
        copy_outputs(args.home / "out")
    result = read_json(RESULTS / "out" / "quickstart.json", "run: python scripts/update_results.py --home DIR")
    readme = paths.ROOT / "README.md"
    text = read_text(readme, "it ships with the repository")
    wanted = TABLE.sub(lambda match: match[1] + results_table(result) + match[2], text)
    if args.check:
        if text != wanted:
            raise UserError(f"{readme}: not the results of {RESULTS}/out; run: python scripts/update_results.py")
        cli.print_result({"agrees": True}, f"README.md agrees with {RESULTS}/out")
        return
    write_text(readme, wanted)
    draw_result(RESULTS / "quickstart.png", result)
    notebooks = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
    for path in progress_bar(iterable=notebooks, desc="running", unit="notebook"):
        write_text(path, run_notebook(path))
    cli.print_result({"notebooks": len(notebooks)}, f"README.md, {RESULTS}/quickstart.png, {len(notebooks)} notebooks")


def copy_outputs(source: Path) -> None:
    files = [file for pattern in OUTPUTS for file in sorted(source.glob(pattern))]
    if source / "quickstart.json" not in files:
        raise UserError(f"--home: {source} has no quickstart.json; run: bash scripts/quickstart.sh")
    shutil.rmtree(RESULTS / "out", ignore_errors=True)
    (RESULTS / "out").mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, RESULTS / "out" / file.name)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def results_table(result: dict) -> str:
    """The README's table, with the number of questions in its header."""
    lines = [
        f"| {result['base']['n']} questions, closed book | training tokens | accuracy (95% interval, by article) |",
        "|---|---|---|",
    ]
    for name, label in ROWS.items():
        accuracy = format_accuracy(result[name]["accuracy"], result[name]["ci95"])
        lines.append(f"| {label} | {result[name]['tokens']:,} | {accuracy} |")
    return "\n".join(lines) + "\n"


def run_notebook(path: Path) -> str:
    """A notebook with the outputs that docs/results gives, and without what differs between two runs."""
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
