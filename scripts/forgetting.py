"""What was gained and what it cost: two checkpoints, before and after training, side by side.

    python scripts/forgetting.py --before meta-llama/Meta-Llama-3-8B --after ckpts/quality-lr5e-06-…
    python scripts/forgetting.py --before ckpts/SmolLM2-135M-Instruct --after ckpts/example-… --replay example_replay
    python scripts/forgetting.py … --harness arc_easy,hellaswag    # after: pip install "lm-eval[hf]==0.4.13"

Perplexity on held-out replay text (step 3's test file), accuracy where evaluation.py has been run, and
tasks of lm-evaluation-harness. Writes out/forgetting-<after>.json, which is the last line too.
"""

import argparse
import importlib.util
import json
import math

from tasks.results import check_same_protocol
from utils import paths
from utils.errors import UserError, run
from utils.io import read_json, write_json

# Of a task's measures the one that is shown: what hellaswag's authors report, then what there is.
MEASURES = ("acc,none", "exact_match,strict-match", "exact_match,none", "word_perplexity,none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the checkpoint that training began from")
    parser.add_argument("--after", required=True)
    parser.add_argument("--replay", default=paths.DEFAULT_REPLAY, help="step 3's name (default the RedPajama sample)")
    parser.add_argument("--block_size", type=int, default=2048, help="tokens a block (default 2048)")
    parser.add_argument("--blocks", type=int, default=256, help="held-out blocks (default 256)")
    parser.add_argument("--harness", help="tasks of lm-evaluation-harness, with commas between them")
    parser.add_argument("--harness_tasks", metavar="DIR", help="a folder with tasks of your own")
    parser.add_argument("--limit", type=int, help="questions of each task (default all)")
    args = parser.parse_args()
    if args.block_size < 2 or args.blocks < 1:
        raise UserError("--block_size, --blocks: at least 2 and 1")
    if not args.harness and (args.harness_tasks or args.limit):
        raise UserError("--harness_tasks and --limit: for --harness")
    if paths.evaluation_file(args.before) == paths.evaluation_file(args.after):
        raise UserError(
            f"--before and --after: both are called {paths.short_name(args.after)}, and so are their files in out/; rename one"
        )
    if args.harness and not importlib.util.find_spec("lm_eval"):
        raise UserError(
            '--harness: lm-evaluation-harness is not installed: .venv/bin/pip install "lm-eval[hf]==0.4.13"'
        )
    rows = {when: measures(getattr(args, when), args) for when in ("before", "after")}
    compare_accuracies(args, rows)
    print_table(rows)
    target = paths.out_dir() / f"forgetting-{paths.short_name(args.after)}.json"
    write_json(target, rows)
    print(f"{target}\n{json.dumps(rows)}")


def measures(checkpoint: str, args: argparse.Namespace) -> dict:
    found = {"checkpoint": checkpoint, "perplexity": perplexity(checkpoint, args)}
    if args.harness:
        found |= harness(checkpoint, args)
    return found


def perplexity(checkpoint: str, args: argparse.Namespace) -> float:
    """exp of the mean negative log-likelihood a token, each block on its own, its first token given."""
    import numpy as np
    import torch

    from inference.local_model import LocalModel
    from utils.token_file import TokenFile
    from utils.tokenizer import vocabulary_sha256

    file = TokenFile(paths.replay_bin(args.replay, "test"), "run: python data/tokenize_redpj.py")
    model = LocalModel(checkpoint)
    vocabulary = model.model.config.vocab_size
    file.check_vocabulary(vocabulary_sha256(model.tokenizer), vocabulary, checkpoint)
    number = min(args.blocks, len(file.ids) // args.block_size)
    if not number:
        raise UserError(f"{file.path}: {len(file.ids)} tokens are less than a block; give a smaller --block_size")
    total = 0.0
    for block in np.array(file.ids[: number * args.block_size]).reshape(number, -1):
        ids = torch.tensor(block[None], dtype=torch.long, device=model.device)
        with torch.inference_mode():
            total += float(model.model(ids, labels=ids).loss) * (args.block_size - 1)
    return round(math.exp(total / (number * (args.block_size - 1))), 4)


def harness(checkpoint: str, args: argparse.Namespace) -> dict[str, float]:
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": paths.resolve_checkpoint(checkpoint)},
        tasks=args.harness.split(","),
        task_manager=TaskManager(include_path=args.harness_tasks),
        limit=args.limit,
        device="cuda" if torch.cuda.is_available() else "cpu",
        log_samples=False,
    )["results"]
    return {f"{name} {measure}": value for name, of_task in results.items() for measure, value in shown(name, of_task)}


def shown(name: str, of_task: dict) -> list[tuple[str, float]]:
    """The measure of a task that the table has."""
    wanted = ("acc_norm,none", *MEASURES) if name == "hellaswag" else MEASURES
    for measure in (*wanted, *(key for key in of_task if "stderr" not in key)):
        if isinstance(of_task.get(measure), float | int):
            return [(measure.split(",")[0], round(float(of_task[measure]), 4))]
    return []


def compare_accuracies(args: argparse.Namespace, rows: dict[str, dict]) -> None:
    """Add both, where evaluation.py has asked these weights, and in the same way."""
    files = [paths.evaluation_file(name) for name in (args.before, args.after)]
    if not all(file.is_file() for file in files):
        print("accuracy: not known, for evaluation.py has not been run on both")
        return
    results = [read_json(file, "run evaluation.py") for file in files]
    check_same_protocol(*files, *(result["protocol"] for result in results))
    for row, result in zip(rows.values(), results, strict=True):
        if result["protocol"]["weights"] != paths.weights_state(row["checkpoint"]):
            raise UserError(f"{row['checkpoint']}: was trained again since it was evaluated; run evaluation.py")
        row["accuracy"] = result["metrics"]["accuracy"]


def print_table(rows: dict[str, dict]) -> None:
    before, after = rows["before"], rows["after"]
    print(f"{'':24}{'before':>10}{'after':>10}{'change':>10}")
    for name in [key for key in after if key != "checkpoint"]:
        change = after[name] - before[name]
        print(f"{name:24}{before[name]:10.3f}{after[name]:10.3f}{change:+10.3f}")


if __name__ == "__main__":
    run(main)
