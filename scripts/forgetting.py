"""Gains and losses of a training run: perplexity, accuracy and benchmarks of two checkpoints, side by side.

    python scripts/forgetting.py --before meta-llama/Meta-Llama-3-8B --after ckpts/quality-lr5e-06-…
    python scripts/forgetting.py --before ckpts/SmolLM2-135M-Instruct --after ckpts/example-… --replay example_replay
    python scripts/forgetting.py … --harness arc_easy,hellaswag    # after: pip install "lm-eval[hf]==0.4.13"

Perplexity on held-out replay text (step 3's test file), closed-book accuracy if evaluation.py has been run on
both, and tasks of lm-evaluation-harness. Writes out/forgetting-<after>.json.
"""

import argparse
import importlib.util
import math

from reports.tables import print_table
from tasks.comparison import check_same_protocol
from utils import paths
from utils.cli import make_parser, positive_int, print_result, silence_transformers
from utils.errors import UserError, name_damage, run
from utils.io import read_json, write_json
from utils.progress import progress_bar, working

MAX_LOSS = 700.0  # exp of more is no number
# Metrics of lm-evaluation-harness, in order of preference; hellaswag's authors report acc_norm.
METRICS = ("acc,none", "exact_match,strict-match", "exact_match,none", "word_perplexity,none")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--before", required=True, help="checkpoint before training")
    add("--after", required=True, help="checkpoint after training")
    add("--replay", default=paths.DEFAULT_REPLAY, help="name of the replay token files")
    add("--block_size", type=positive_int, default=2048, help="tokens per block")
    add("--blocks", type=positive_int, default=256, help="held-out blocks")
    add("--harness", metavar="TASKS", help="comma-separated tasks of lm-evaluation-harness")
    add("--harness_tasks", metavar="DIR", help="folder with further task definitions")
    add("--limit", type=positive_int, help="questions per harness task (default: all)")
    return validate(parser.parse_args())


def validate(args: argparse.Namespace) -> argparse.Namespace:
    if args.block_size < 2:
        raise UserError(f"--block_size {args.block_size}: the first token of a block is not predicted; give 2 or more")
    if not args.harness and (args.harness_tasks or args.limit):
        raise UserError("--harness_tasks, --limit: options for --harness; give it too")
    if paths.evaluation_file(args.before) == paths.evaluation_file(args.after):
        name = paths.short_name(args.after)
        raise UserError(f"--before, --after: both are named {name}, and so are their files in out/; rename one")
    if args.harness and not importlib.util.find_spec("lm_eval"):
        raise UserError('--harness: not installed; run: .venv/bin/pip install "lm-eval[hf]==0.4.13"')
    return args


def main() -> None:
    args = parse_arguments()
    accuracies = read_accuracies(args.before, args.after)
    before, after = (
        measure(name, args) | known for name, known in zip((args.before, args.after), accuracies, strict=True)
    )
    results = {"before": before, "after": after}
    names = [name for name in after if name != "checkpoint"]
    rows = [(n, f"{before[n]:.3f}", f"{after[n]:.3f}", f"{after[n] - before[n]:+.3f}") for n in names]
    print_table([("", "before", "after", "change"), *rows])
    target = paths.out_dir() / f"forgetting-{paths.short_name(args.after)}.json"
    write_json(target, results)
    change = f"{before['perplexity']:.1f} before, {after['perplexity']:.1f} after"
    print_result(results, f"perplexity on general text {change} -> {target}")


def measure(checkpoint: str, args: argparse.Namespace) -> dict:
    result = {"checkpoint": checkpoint, "perplexity": perplexity(checkpoint, args)}
    return result | run_harness(checkpoint, args) if args.harness else result


def perplexity(checkpoint: str, args: argparse.Namespace) -> float:
    """exp of the mean negative log-likelihood per token; blocks are independent, and their first tokens given."""
    with working("starting torch"):  # heavy imports, after parsing
        import numpy as np
        import torch

        from inference.local_model import LocalModel
        from training.loss import shifted_cross_entropy
        from utils.checkpoint import text_config
        from utils.token_file import TokenFile
        from utils.tokenizer import vocabulary_sha256

        silence_transformers()
    file = TokenFile(paths.replay_bin(args.replay, "test"), "run: python data/tokenize_redpj.py")
    model = LocalModel(checkpoint)
    file.check_vocabulary(vocabulary_sha256(model.tokenizer), text_config(model.model).vocab_size, checkpoint)
    if len(file.ids) < args.block_size:
        raise UserError(f"{file.path}: {len(file.ids)} tokens are less than a block; give a smaller --block_size")
    ids = np.array(file.ids[: args.blocks * args.block_size], np.int64)
    total = predicted = 0
    starts = range(0, len(ids) - 1, args.block_size)
    for start in progress_bar(iterable=starts, desc=paths.short_name(checkpoint), unit="block"):
        block = torch.tensor(ids[None, start : start + args.block_size], device=model.device)
        with torch.inference_mode():
            total += float(shifted_cross_entropy(model.model(block), block, 1))
        predicted += block.shape[1] - 1
    if not total / predicted < MAX_LOSS:  # nor a number
        raise UserError(
            f"{checkpoint}: a loss of {total / predicted:.4g} a token has no perplexity; are its weights damaged?"
        )
    return round(math.exp(total / predicted), 4)


def run_harness(checkpoint: str, args: argparse.Namespace) -> dict[str, float]:
    """The preferred metric of every task, by `<task> <metric>`."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from utils.device import device_type

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": paths.resolve_checkpoint(checkpoint)},
        tasks=args.harness.split(","),
        task_manager=TaskManager(include_path=args.harness_tasks),
        limit=args.limit,
        device=device_type(),
        log_samples=False,
    )["results"]
    preferred = [(task, preferred_metric(task, values)) for task, values in results.items()]
    return {f"{task} {key.split(',')[0]}": round(float(results[task][key]), 4) for task, key in preferred if key}


def preferred_metric(task: str, values: dict) -> str | None:
    """The key of the metric to report; None for a task without a number, such as a group's heading."""
    order = ("acc_norm,none", *METRICS) if task == "hellaswag" else METRICS
    keys = [*order, *(key for key in values if "stderr" not in key)]
    return next((key for key in keys if isinstance(values.get(key), float | int)), None)


def read_accuracies(*checkpoints: str) -> list[dict[str, float]]:
    """The closed-book accuracy of each checkpoint as {"accuracy"}, if evaluation.py has been run on all with the same
    protocol, else nothing."""
    files = [paths.evaluation_file(checkpoint) for checkpoint in checkpoints]
    if not all(file.is_file() for file in files):
        print("accuracy: not known; run evaluation.py on both checkpoints")
        return [{} for _ in files]
    evaluations = [read_json(file, "run evaluation.py") for file in files]
    with name_damage(files[0], "or the other evaluation; delete it and run evaluation.py again"):
        check_same_protocol(*files, *(evaluation["protocol"] for evaluation in evaluations))
        for checkpoint, evaluation in zip(checkpoints, evaluations, strict=True):
            if evaluation["protocol"]["weights"] != paths.weights_state(checkpoint):
                raise UserError(f"{checkpoint}: trained again after its evaluation; run evaluation.py")
        return [{"accuracy": float(evaluation["metrics"]["accuracy"])} for evaluation in evaluations]


if __name__ == "__main__":
    run(main)
