"""Evaluation: loss, perplexity and accuracy on the rows of `eval_input`."""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear
from transformers import TrainerCallback

from gptj import formats
from gptj.checkpoint import list_checkpoints
from gptj.input_data import InputData, without_worker_traceback
from gptj.model import Start, build_model
from gptj.sections import Model, Params
from gptj.weight_files import load_mdl
from utils.cli import print_main
from utils.device import device_type, is_main_process
from utils.errors import UserError
from utils.token_file import IGNORE_INDEX

MAX_LOSS = 709.0  # exp of more is no number


def evaluate(params: Params, model, data: InputData, step: int, folder: Path) -> dict:
    """Evaluate, print the metrics and write them as TensorBoard events.

    loss: mean over batches of Σ(cross-entropy · mask) / Σmask, in nats; with loss_scaling batch_size of
        Σ(cross-entropy · mask) / rows · loss_weight
    eval/lm_perplexity: exp of the mean cross-entropy over all counted tokens
    eval/accuracy: share of counted labels that are the most likely token

    Raises UserError where there is no full batch or no counted label.
    """
    batches = data.evaluation_batches()
    was_training = model.training
    model.to(device_type()).eval()
    with without_worker_traceback():
        metrics = measure(model, batches, params.model, params.runconfig.eval_steps)
    model.train(was_training)
    report(metrics, step, folder)
    return metrics


@torch.no_grad()
def measure(model, batches: Iterable[dict], settings: Model, limit: int | None) -> dict:
    """Metrics over the first `limit` batches (None: all)."""
    device, head = device_type(), model.get_output_embeddings()
    losses = []
    total_nll = torch.zeros((), device=device)  # fp32, as in the published release
    correct = counted = torch.zeros((), dtype=torch.int64, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=settings.mixed_precision):
        for number, batch in enumerate(batches):
            if number == limit:
                break
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device).flatten()
            hidden = model.base_model(input_ids=ids).last_hidden_state.flatten(0, 1)
            # Not head(...): during training the head passes hidden states through (training/loss.py).
            logits = linear(hidden, head.weight, head.bias).float()
            tokens = (labels != IGNORE_INDEX).sum()
            if not tokens:
                continue
            nll = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none").sum()
            loss = nll / len(ids) * settings.loss_weight if settings.scales_loss_by_rows else nll / tokens
            losses.append(loss.item())
            total_nll, counted = total_nll + nll, counted + tokens
            correct += (logits.argmax(-1) == labels).sum()
    if not losses:
        raise UserError("eval_input: the loss mask counts no label")
    return {
        "loss": float(np.mean(losses)),
        "eval/lm_perplexity": perplexity((total_nll / counted).item()),
        "eval/accuracy": (correct / counted).item(),
    }


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < MAX_LOSS or math.isnan(loss) else math.inf


def report(metrics: dict, step: int, folder: Path) -> None:
    if not is_main_process():
        return
    from tensorboardX import SummaryWriter

    print_main(f"| Eval Step={step}, Avg Eval Loss={metrics['loss']}")
    print_main(f"Metric: eval/lm_perplexity = {metrics['eval/lm_perplexity']}")
    print_main(f"Metric: eval/accuracy = {metrics['eval/accuracy']}")
    with SummaryWriter(str(folder / "eval")) as writer:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)


def evaluate_all(args: argparse.Namespace, params: Params, data: InputData) -> dict:
    """Evaluate every checkpoint in --model_dir, in the order of steps; returns step and metrics of the last one."""
    result = {}
    for step, path in list_checkpoints(args.model_dir).items():
        strict = not args.disable_strict_checkpoint_loading
        weights = formats.to_hf(load_mdl(path)["model"], params.model.model_dump(), str(path), strict)
        model = build_model(params, Start(step, weights, path=path), strict)
        result = {"step": step} | evaluate(params, model, data, step, args.model_dir)
    if not result:
        raise UserError(f"--model_dir {args.model_dir}: holds no checkpoint; run --mode train first")
    return result


class Evaluation(TrainerCallback):
    """Evaluates every runconfig.eval_frequency steps and at the end of training; `metrics` are the last ones."""

    def __init__(self, params: Params, data: InputData, folder: Path):
        self.params, self.data, self.folder = params, data, folder
        self.metrics: dict = {}

    def on_step_end(self, args, state, control, model=None, **unused) -> None:
        frequency = self.params.runconfig.eval_frequency
        if frequency and state.global_step % frequency == 0 and state.global_step < state.max_steps:
            evaluate(self.params, model, self.data, state.global_step, self.folder)

    def on_train_end(self, args, state, control, model=None, **unused) -> None:
        self.metrics = evaluate(self.params, model, self.data, state.global_step, self.folder)
