"""The points of a scaling curve, out of checkpoints and their evaluations: out/scaling.json. Called by scaling.sh.

python scripts/scaling_points.py --base meta-llama/Meta-Llama-3-8B ckpts/scaling-subsample_ratio0.1-… ckpts/…
"""

import argparse
import json
from pathlib import Path

from tasks.results import check_same_protocol
from utils import paths
from utils.errors import run
from utils.io import read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the model that all began from")
    parser.add_argument("checkpoints", nargs="+", help="trained on subsets, and evaluated")
    args = parser.parse_args()
    points = [point(args.base, 0)] + [point(name, tokens_of(name)) for name in args.checkpoints]
    points.sort(key=lambda one: one["tokens"])
    files = [paths.evaluation_file(one["checkpoint"]) for one in points]
    protocols = [read_json(file, "run evaluation.py")["protocol"] for file in files]
    for file, protocol in zip(files, protocols, strict=True):
        check_same_protocol(files[0], file, protocols[0], protocol)
    print(f"{'synthetic tokens':>18}{'accuracy':>10}{'95% interval':>18}")
    for one in points:
        low, high = one["ci95"]
        print(f"{one['tokens']:18,}{one['accuracy']:10.1%}{f'{low:.1%} - {high:.1%}':>18}")
    write_json(paths.out_dir() / "scaling.json", points)
    print(f"{paths.out_dir() / 'scaling.json'}; notebooks/nb_scaling.ipynb fits the curves")
    print(json.dumps(points))


def point(checkpoint: str, tokens: int) -> dict:
    result = read_json(paths.evaluation_file(checkpoint), f"run: python evaluation.py --model_path {checkpoint}")
    of_metrics = {key: result["metrics"][key] for key in ("accuracy", "ci95", "n")}
    return {"checkpoint": checkpoint, "tokens": tokens} | of_metrics


def tokens_of(checkpoint: str) -> int:
    """Different synthetic tokens: those of the run, without replay, of one epoch."""
    run = read_json(Path(paths.resolve_checkpoint(checkpoint)) / "run.json", "train it first")
    arguments = run["arguments"]
    return round(run["tokens"] * (1 - float(arguments["rr"])) / max(1, float(arguments["epochs"])))


if __name__ == "__main__":
    run(main)
