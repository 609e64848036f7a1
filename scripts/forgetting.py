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

from utils import paths
from utils.io import UserError, read_json, run, write_json

ACCURACY = {"hellaswag": "acc_norm,none"}  # what its authors report; of others the plain one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--before", required=True, help="the checkpoint that training began from")
    parser.add_argument("--after", required=True)
    parser.add_argument("--replay", default=paths.DEFAULT_REPLAY, help="step 3's name (default the RedPajama sample)")  # fmt: skip
    parser.add_argument("--block_size", type=int, default=2048, help="tokens a block (default 2048)")  # fmt: skip
    parser.add_argument("--blocks", type=int, default=256, help="held-out blocks (default 256)")
    parser.add_argument(
        "--harness", help="tasks of lm-evaluation-harness, with commas between them"
    )
    parser.add_argument("--harness_tasks", metavar="DIR", help="a folder with tasks of your own")
    parser.add_argument("--limit", type=int, help="questions of each task (default all)")
    args = parser.parse_args()
    if args.block_size < 2 or args.blocks < 1:
        raise UserError("--block_size, --blocks: at least 2 and 1")
    if args.harness and not importlib.util.find_spec("lm_eval"):
        raise UserError('--harness: lm-evaluation-harness is not installed: .venv/bin/pip install "lm-eval[hf]==0.4.13"')  # fmt: skip
    rows = {when: measures(getattr(args, when), args) for when in ("before", "after")}
    check_same_questions(rows)
    print_table(rows)
    target = paths.out_dir() / f"forgetting-{paths.short_name(args.after)}.json"
    write_json(target, rows)
    print(f"{target}\n{json.dumps(rows)}")


def measures(checkpoint: str, args: argparse.Namespace) -> dict:
    found = {"checkpoint": checkpoint, "perplexity": perplexity(checkpoint, args)}
    evaluated = paths.evaluation_file(checkpoint)
    if evaluated.is_file():
        result = read_json(evaluated, "run evaluation.py")
        found["asked"] = [result["protocol"][key] for key in ("name", "task", "prompts")]
        found["accuracy"] = result["metrics"]["accuracy"]
    if args.harness:
        found |= harness(checkpoint, args)
    return found


def perplexity(checkpoint: str, args: argparse.Namespace) -> float:
    """exp of the mean negative log-likelihood a token, each block on its own, its first token given."""
    import numpy as np
    import torch

    from utils.bins import TokenFile
    from utils.generate import LocalModel
    from utils.tokens import fingerprint

    file = TokenFile(paths.replay_bin(args.replay, "test"), "run: python data/tokenize_redpj.py")
    model = LocalModel(checkpoint)
    vocabulary = model.model.config.vocab_size
    file.check_vocabulary(fingerprint(model.tokenizer), vocabulary, checkpoint)
    number = min(args.blocks, len(file.ids) // args.block_size)
    if not number:
        raise UserError(f"{file.path}: {len(file.ids)} tokens are less than a block; give a smaller --block_size")  # fmt: skip
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
        model_args={"pretrained": paths.find_checkpoint(checkpoint)},
        tasks=args.harness.split(","),
        task_manager=TaskManager(include_path=args.harness_tasks),
        limit=args.limit,
        device="cuda" if torch.cuda.is_available() else "cpu",
        log_samples=False,
    )["results"]
    return {name: round(float(value[ACCURACY.get(name, "acc,none")]), 4) for name, value in results.items()}  # fmt: skip


def check_same_questions(rows: dict[str, dict]) -> None:
    """Accuracies of two protocols are no gain: neither is shown then."""
    asked = [row.pop("asked", None) for row in rows.values()]
    if asked[0] != asked[1]:
        print("accuracy: not shown, for the two were not both evaluated in the same way (evaluation.py)")  # fmt: skip
        for row in rows.values():
            row.pop("accuracy", None)


def print_table(rows: dict[str, dict]) -> None:
    before, after = rows["before"], rows["after"]
    print(f"{'':24}{'before':>10}{'after':>10}{'change':>10}")
    for name in [key for key in after if key != "checkpoint"]:
        change = after[name] - before[name]
        print(f"{name:24}{before[name]:10.3f}{after[name]:10.3f}{change:+10.3f}")


if __name__ == "__main__":
    run(main)
