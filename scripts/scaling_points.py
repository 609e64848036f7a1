"""Points of a scaling curve, from evaluated checkpoints, as out/scaling.json. Called by scaling.sh.

python scripts/scaling_points.py --base meta-llama/Meta-Llama-3-8B ckpts/scaling-subsample_ratio0.1-… ckpts/…
"""

import argparse
from pathlib import Path

from data.packing import subsample
from reports.tables import format_accuracy, print_table
from tasks.comparison import check_same_protocol
from utils import paths
from utils.cli import make_parser, print_result
from utils.errors import UserError, name_damage, run
from utils.io import read_json, write_json
from utils.token_file import TokenFile


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base", required=True, help="the checkpoint that all others were trained from")
    parser.add_argument("checkpoints", nargs="+", help="evaluated checkpoints, trained on subsets")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    points = [make_point(args.base, 0)] + [
        make_point(name, synthetic_tokens(name, args.base)) for name in args.checkpoints
    ]
    points.sort(key=lambda point: point["tokens"])
    files = [paths.evaluation_file(point["checkpoint"]) for point in points]
    protocols = [read_json(file, "run evaluation.py")["protocol"] for file in files]
    for file, protocol in zip(files, protocols, strict=True):
        check_same_protocol(files[0], file, protocols[0], protocol)
    rows = [(f"{point['tokens']:,}", format_accuracy(point["accuracy"], point["ci95"])) for point in points]
    print_table([("synthetic tokens", "accuracy (95% interval)"), *rows])
    write_json(paths.out_dir() / "scaling.json", points)
    print_result(points, f"{paths.out_dir() / 'scaling.json'}; notebooks/nb_scaling.ipynb fits the curves")


def make_point(checkpoint: str, tokens: int) -> dict:
    file, made_by = paths.evaluation_file(checkpoint), f"run: python evaluation.py --model_path {checkpoint}"
    with name_damage(file, made_by):
        result = read_json(file, made_by)
        metrics = {key: result["metrics"][key] for key in ("accuracy", "ci95", "n")}
        if result["protocol"]["weights"] != paths.weights_state(checkpoint):
            raise UserError(f"{checkpoint}: trained again after its evaluation; {made_by}")
    return {"checkpoint": paths.short_name(checkpoint), "tokens": tokens} | metrics


def synthetic_tokens(checkpoint: str, base: str) -> int:
    """The unique synthetic tokens of a run: those of its subset, or the part of them that less than an epoch reads."""
    file = Path(paths.resolve_checkpoint(checkpoint)) / "run.json"
    with name_damage(file, "train it to its end"):
        record = read_json(file, "train it first")
        arguments, trained_on = record["arguments"], record["data"]["train"]
        ratio, seed, epochs = float(arguments["subsample_ratio"]), arguments["seed"], float(arguments["epochs"])
    if paths.short_name(arguments["model_name"]) != paths.short_name(base):
        raise UserError(f"--base {base}: {checkpoint} was trained from {arguments['model_name']}")
    tokens = TokenFile(Path(trained_on["file"]), "run steps 2 and 4 again")
    if not record.get("finished") or tokens.meta["sha256"] != trained_on["sha256"]:
        raise UserError(f"{file}: not finished, or {tokens.path} was made again since; train it again")
    return round(len(subsample(tokens, ratio, seed)[0]) * min(1, epochs))


if __name__ == "__main__":
    run(main)
