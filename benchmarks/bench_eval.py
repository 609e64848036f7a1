"""Evaluation by log-likelihood with shared prefixes against one forward pass per option: questions/s.

    python scripts/example_model.py
    python benchmarks/bench_eval.py                     # the 84 questions of the example corpus
    python benchmarks/bench_eval.py --task NAME         # data/dataset/raw/NAME.jsonl, in QuALITY's schema

Both sides alternate batch by batch in one process, on the same questions; times are summed over the batches.
Prints the largest difference between their log-likelihoods.
"""

import argparse
import time

from reports.tables import print_table
from tasks import multiple_choice
from tasks.documents import load_task
from utils import paths
from utils.cli import add_task_flag, make_parser, positive_int, print_result, silence_transformers
from utils.errors import run


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model_path", default=str(paths.example_model()), help="checkpoint folder or hub name")
    add_task_flag(parser)
    parser.add_argument("--batch_size", type=positive_int, default=8, help="questions per batch, as in evaluation.py")
    parser.set_defaults(task="example")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()

    # Heavy imports, after parsing.
    from inference.local_model import LocalModel

    silence_transformers()
    model = LocalModel(args.model_path)
    items = [(document, question) for document in load_task(args.task) for question in document.questions]
    prompts = [(multiple_choice.build_prompt(d, q, "loglik"), [f" {o}" for o in q.options]) for d, q in items]
    model.continuation_logprobs(*zip(*prompts[:2], strict=True))  # warm-up of both sides
    plain_logprobs(model, *prompts[0])
    ours_s, plain_s, differences = 0.0, 0.0, []
    for first in range(0, len(prompts), args.batch_size):
        batch = prompts[first : first + args.batch_size]
        start = time.perf_counter()
        ours = model.continuation_logprobs(*zip(*batch, strict=True))
        middle = time.perf_counter()
        plain = [plain_logprobs(model, *prompt) for prompt in batch]
        ours_s += middle - start
        plain_s += time.perf_counter() - middle
        differences += [abs(a - b) for a, b in zip(sum(ours, []), sum(plain, []), strict=True)]
    n = len(prompts)
    sides = {"shared prefixes": ours_s, "one forward pass per option": plain_s}
    rows = [(name, f"{seconds:.1f}", f"{n / seconds:.2f}") for name, seconds in sides.items()]
    print_table([("", "s", "questions/s"), *rows])
    sentence = f"{n} questions of {args.task}, {args.model_path}: {plain_s / ours_s:.2f} times the speed, "
    result = {"ours_q_s": n / ours_s, "plain_q_s": n / plain_s, "ratio": plain_s / ours_s}
    print_result(result, sentence + f"largest difference {max(differences):.1e}")


def plain_logprobs(model, prompt: str, options: list[str]) -> list[float]:
    """Log-likelihood of every option, by one forward pass over prompt and option at a time."""
    import torch

    sums = []
    start = len(model.tokenizer(prompt)["input_ids"])
    for option in options:
        ids = model.tokenizer(prompt + option, return_tensors="pt")["input_ids"].to(model.device)
        with torch.inference_mode():
            logprobs = model.model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        sums.append(float(logprobs.gather(1, ids[0, start:, None]).sum()))
    return sums


if __name__ == "__main__":
    run(main)
