"""Evaluation by log-likelihood against one forward pass per option: questions/s, and the same figures.

    python scripts/example_model.py
    python benchmarks/bench_eval.py                     # the example corpus' 84 questions
    python benchmarks/bench_eval.py --task NAME         # data/dataset/raw/NAME.jsonl, in QuALITY's schema

Both take turns in one process, on the same questions, in batches of evaluation.py's default size;
times are summed over the batches. The last line is one JSON object.
"""

import argparse
import json
import time

from tasks import multiple_choice
from tasks.documents import load_task
from utils import paths
from utils.errors import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default=str(paths.example_model()))
    parser.add_argument("--task", default="example")
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()
    from transformers.utils import logging

    from inference.local_model import LocalModel

    logging.disable_progress_bar()
    model = LocalModel(args.model_path)
    items = [(d, q) for d in load_task(args.task) for q in d.questions]
    texts = [(multiple_choice.build_prompt(d, q, "loglik"), [f" {o}" for o in q.options]) for d, q in items]
    model.continuation_logprobs(*zip(*texts[:2], strict=True))
    plain(model, *texts[0])
    ours_s, plain_s, differences = 0.0, 0.0, []
    for first in range(0, len(texts), args.batch_size):
        batch = texts[first : first + args.batch_size]
        begun = time.perf_counter()
        ours = model.continuation_logprobs(*zip(*batch, strict=True))
        between = time.perf_counter()
        theirs = [plain(model, *text) for text in batch]
        ours_s += between - begun
        plain_s += time.perf_counter() - between
        pairs = zip(sum(ours, []), sum(theirs, []), strict=True)
        differences += [abs(one - other) for one, other in pairs]
    n = len(texts)
    print(f"{n} questions of {args.task}, {args.model_path}, largest difference {max(differences):.1e}")
    print(f"{'':24}{'s':>8}{'questions/s':>14}")
    print(f"{'prefixes shared':24}{ours_s:8.1f}{n / ours_s:14.2f}")
    print(f"{'a forward per option':24}{plain_s:8.1f}{n / plain_s:14.2f}")
    print(json.dumps({"ours_q_s": n / ours_s, "plain_q_s": n / plain_s, "ratio": plain_s / ours_s}))


def plain(model, prompt: str, options: list[str]) -> list[float]:
    """A text at a time, as one would write it: tokens, logits, log-softmax, the option's part summed."""
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
