"""What gptj/run.py does: data, model and checkpoint named in a YAML file, put on the shared trainer."""

import math
import os
import shutil
import time
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from gptj.checkpoint import SingleFiles, checkpoints, save_weights, unpack
from gptj.eval_loop import Evaluation
from gptj.hdf5 import Data, Hdf5Rows, order_of_rows
from gptj.model import Start
from gptj.params import learning_rate, recipe
from training import trainer
from training.hardware import choose_sharding
from training.memory import fit_memory
from training.optim import AdamW
from training.settings import TrainingSettings
from utils.cli import print_main
from utils.device import is_main_process
from utils.errors import UserError


def check_device(device: str) -> None:
    if device == "GPU" and not torch.cuda.is_available():
        raise UserError("GPU: torch sees none here; give CPU")
    if device == "CPU" and torch.cuda.is_available():
        raise UserError("CPU: this machine has GPUs; hide them with CUDA_VISIBLE_DEVICES= to use the CPU")


def target_step(params: dict, start: int, data: Data) -> int:
    """The step to train up to. Raises UserError where the run is there already."""
    config = params["runconfig"]
    if config["num_steps"]:
        return start + config["num_steps"]
    epochs, per_epoch = config["num_epochs"], config["steps_per_epoch"]
    if per_epoch and not epochs:
        raise UserError("runconfig.steps_per_epoch: has a meaning with num_epochs alone")
    last = config["max_steps"] or (epochs and min(epochs * (per_epoch or math.inf), data.steps(epochs)))
    if not last:
        raise UserError("runconfig.max_steps: missing; or give --max_steps, --num_steps or --num_epochs")
    if start >= last:
        raise UserError(
            f"the checkpoint is at step {start}, and max_steps is {last}: nothing to train; give a larger --max_steps, or --num_steps"
        )
    return last


def refuse_later_checkpoints(folder: Path, start: Start) -> None:
    """A run may not write among the later checkpoints of another."""
    later = [path for step, path in checkpoints(folder).items() if step > start.step]
    if later:
        raise UserError(
            f"{later[-1]}: later than step {start.step}, where this run begins; leave out --checkpoint_path to go on from it, or give another --model_dir"
        )


def settings_of(params: dict, data: Data, last: int) -> TrainingSettings:
    config, optimizer = params["runconfig"], params["optimizer"]
    return TrainingSettings(
        lr=1.0,  # times the schedule
        bs=data.section["batch_size"],
        wd=optimizer["weight_decay"],
        warmup=0.0,
        seed=config["seed"],
        block_size=data.length,
        save_steps=config["checkpoint_steps"] or last,
        keep_checkpoints=1,
        precision="bf16" if params["model"]["mixed_precision"] else "fp32",
        sharding=choose_sharding("none", 0),
        report_to="tensorboard",
        max_grad_norm=optimizer["max_gradient_norm"] or 0.0,  # 0: no clipping
        num_workers=data.section["num_workers"],
        prefetch=data.section["prefetch_factor"],
        keep_workers=data.section["persistent_workers"],
    )


def train(args, params: dict, model, start: Start, data: Data, validation: Data | None) -> None:
    """Train up to the target step."""
    optimizer, folder = params["optimizer"], args.model_dir
    work = folder / ".trainer"  # where the Trainer writes what becomes .mdl files
    refuse_later_checkpoints(folder, start)
    last = target_step(params, start.step, data)
    settings, memory = fit_memory(model, settings_of(params, data, last), "auto", suggest=False)
    print_main(f"training {memory}")
    order = order_of_rows(data.rows, settings.bs, last, data.section["drop_last"], data.seed())
    rows = Hdf5Rows(data.files, data.counts, order)
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        if is_main_process():
            shutil.rmtree(work, ignore_errors=True)  # of a run that was killed while it wrote one
            if start.resumed:
                unpack(start.resumed, work / f"checkpoint-{start.step}")
            elif (folder / "metrics.jsonl").is_file():
                (folder / "metrics.jsonl").unlink()
    if start.weights:
        start.weights.clear()  # the model has them
    initial = params["runconfig"]["save_initial_checkpoint"] and start.step == 0
    if initial and is_main_process():
        save_weights(model, folder / "checkpoint_0.mdl")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "train")
    callbacks = [
        SingleFiles(folder, data.identity() | recipe(params), params["runconfig"]["keep_checkpoint_max"]),
        Console(args.device, params["runconfig"]["log_steps"], settings.bs),
    ]
    if validation:
        callbacks.append(Evaluation(params, validation, folder))
    adamw = {
        "lr": settings.lr,
        "betas": (optimizer["beta1"], optimizer["beta2"]),
        "eps": optimizer["eps"],
        "early_eps": True,
        "correct_bias": optimizer["correct_bias"],
    }
    rate = learning_rate(optimizer["learning_rate"])
    overrides = trainer.Overrides(rate, (AdamW, adamw), callbacks, folder / "metrics.jsonl")
    trainer.train(model, None, (rows, None), settings, work, overrides)
    if is_main_process():  # another rank may be here while this one writes the last .mdl
        shutil.rmtree(work, ignore_errors=True)


class Console(TrainerCallback):
    """`| Train Device=CPU, Step=50, Loss=3.14159, Rate=…`"""

    def __init__(self, device: str, every: int, bs: int):
        self.device, self.every, self.bs = device, every, bs

    def on_train_begin(self, args, state, control, **unused) -> None:
        self.first, self.begun = state.global_step, time.monotonic()
        self.told, self.told_at = self.first, self.begun

    def on_log(self, args, state, control, logs=None, **unused) -> None:
        step = state.global_step
        if "loss" not in logs or (step % self.every and step != state.max_steps):
            return
        now = time.monotonic()
        recent = (step - self.told) * self.bs / (now - self.told_at)
        overall = (step - self.first) * self.bs / (now - self.begun)
        self.told, self.told_at = step, now
        print_main(
            f"| Train Device={self.device}, Step={step}, Loss={logs['loss']:.5f}, Rate={recent:.2f} samples/sec, GlobalRate={overall:.2f} samples/sec"
        )
