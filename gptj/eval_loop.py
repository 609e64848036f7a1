"""TODO gptj.eval_loop."""

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils.data import DataLoader
from transformers import TrainerCallback, default_data_collator

from gptj import formats
from gptj.checkpoint import checkpoints
from gptj.hdf5 import Data, Hdf5Rows, order_of_rows
from gptj.model import Start, build_model
from utils.cli import print_main
from utils.device import is_main_process
from utils.errors import UserError
from utils.token_file import IGNORE_INDEX


class Evaluation(TrainerCallback):
    """Evaluates every runconfig.eval_frequency steps, and at the end."""

    def __init__(self, params: dict, data: Data, folder: Path):
        self.params, self.data, self.folder = params, data, folder

    def on_step_end(self, args, state, control, model=None, **unused) -> None:
        every = self.params["runconfig"]["eval_frequency"]
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            evaluate(self.params, model, self.data, state.global_step, self.folder)

    def on_train_end(self, args, state, control, model=None, **unused) -> None:
        evaluate(self.params, model, self.data, state.global_step, self.folder)


def evaluate(params: dict, model, data: Data, step: int, folder: Path) -> dict:
    """The mean over batches of Σ(ce·mask)/Σmask; the perplexity, exp of the same over all tokens at
    once; and the share of counted labels that are the likeliest. Printed, and written as TensorBoard
    events."""
    bs, most = data.section["batch_size"], params["runconfig"]["eval_steps"]
    order = order_of_rows(data.rows, bs, data.steps(1), data.section["drop_last"], data.seed())
    order = order[: data.rows]
    if not len(order):
        raise UserError(f"eval_input.batch_size: {bs}, and there are {data.rows} rows; give drop_last: false")
    if len(order) < data.rows:
        print_main(f"{data.rows - len(order)} rows, less than a batch, are left out (eval_input.drop_last)")
    rows = Hdf5Rows(data.files, data.counts, order)
    workers = data.section["num_workers"]
    loader = DataLoader(
        rows,
        bs,
        collate_fn=default_data_collator,
        num_workers=workers,
        prefetch_factor=data.section["prefetch_factor"] if workers else None,
        persistent_workers=data.section["persistent_workers"] and workers > 0,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    losses = []
    total = torch.zeros((), device=device)  # in fp32, as the release's
    right = counted = torch.zeros((), dtype=torch.int64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=params["model"]["mixed_precision"]):
        for number, batch in enumerate(loader):
            if number == most:
                break
            ids, labels = batch["input_ids"].to(device), batch["labels"].to(device).flatten()
            hidden = model.transformer(input_ids=ids).last_hidden_state.flatten(0, 1)
            # Not the model's own output layer, which hands hidden states on while it is trained.
            logits = linear(hidden, model.lm_head.weight, model.lm_head.bias).float()
            tokens = (labels != IGNORE_INDEX).sum()
            if not tokens:
                continue
            nll = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none").sum()
            losses.append((nll / tokens).item())
            total, counted = total + nll, counted + tokens
            right += (logits.argmax(-1) == labels).sum()
    model.train(was_training)
    if not losses:
        raise UserError("eval_input: no label is counted by the mask")
    found = {
        "loss": float(np.mean(losses)),
        "eval/lm_perplexity": math.exp((total / counted).item()),
        "eval/accuracy": (right / counted).item(),
    }
    report(found, step, folder)
    return found


def report(found: dict, step: int, folder: Path) -> None:
    if not is_main_process():
        return
    from tensorboardX import SummaryWriter

    print_main(f"| Eval Step={step}, Avg Eval Loss={found['loss']}")
    print_main(f"Metric: eval/lm_perplexity = {found['eval/lm_perplexity']}")
    print_main(f"Metric: eval/accuracy = {found['eval/accuracy']}")
    with SummaryWriter(str(folder / "eval")) as writer:
        for name, value in found.items():
            writer.add_scalar(name, value, step)


def evaluate_all(args, params: dict, data: Data):
    """Every checkpoint of the folder, in order of steps; returns the last one's model."""
    model = None
    for step, path in checkpoints(args.model_dir).items():
        weights = formats.to_hf(formats.load_mdl(path)["model"], str(path))
        start = Start(step, weights, path=path)
        model = build_model(params, start, not args.disable_strict_checkpoint_loading)
        evaluate(params, model, data, step, args.model_dir)
    if model is None:
        raise UserError(f"--model_dir {args.model_dir}: holds no checkpoint; run: --mode train")
    return model
