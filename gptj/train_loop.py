"""Training: data, model and checkpoint of a run on the shared trainer (training/trainer.py)."""

import argparse
import math
import os
import shutil
import time
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from gptj.checkpoint import MdlCheckpoints, list_checkpoints, save_weights, unpack
from gptj.eval_loop import Evaluation
from gptj.input_data import InputData, without_worker_traceback
from gptj.model import Start
from gptj.sections import Params, make_schedule
from training import trainer
from training.hardware import choose_sharding
from training.memory import fit_memory
from training.optim import AdamW
from training.settings import TrainingSettings
from utils.cli import print_main
from utils.device import is_main_process
from utils.errors import UserError, name_damage
from utils.io import read_json, write_json

TARGET = ".num_steps.json"  # in --model_dir while a run with --num_steps is unfinished


def train(
    args: argparse.Namespace, params: Params, model, start: Start, datasets: tuple[InputData, InputData | None]
) -> dict:
    """Train up to the target step, evaluating on `datasets[1]` unless it is None.

    Writes checkpoint_<step>.mdl and metrics.jsonl into --model_dir. Returns the last step and, after an evaluation,
    its metrics. Raises UserError where there is nothing to train or a later checkpoint would be mixed in.
    """
    (data, validation), folder = datasets, args.model_dir
    check_later_checkpoints(folder, start)
    last = target_step(params, start.step, data, folder)
    settings, memory_needed = fit_memory(model, make_settings(params, data, last), "auto", suggest=False)
    print_main(f"training {memory_needed}")
    rows = data.training_rows(last)
    work = folder / ".trainer"  # the Trainer's checkpoint folders, until MdlCheckpoints packs them
    section = params.model.model_dump()
    prepare_folder(folder, work, section, start)
    if start.weights:
        start.weights.clear()  # copied into the model
    if params.runconfig.save_initial_checkpoint and start.step == 0 and is_main_process():
        save_weights(model, section, folder / "checkpoint_0.mdl")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "train")
    identity = data.identity() | params.optimizer.identity()
    callbacks = [
        MdlCheckpoints(folder, section, identity, params.runconfig.keep_checkpoint_max),
        Console(args.device, params.runconfig.log_steps, settings.bs),
    ]
    evaluation = Evaluation(params, validation, folder) if validation else None
    callbacks += [evaluation] if evaluation else []
    schedule = make_schedule(params.optimizer.learning_rate)
    divisor = settings.bs / params.model.loss_weight if params.model.scales_loss_by_rows else None
    overrides = trainer.Overrides(schedule, make_optimizer(params), callbacks, folder / "metrics.jsonl", divisor)
    with without_worker_traceback():
        trainer.train(model, None, (rows, None), settings, work, overrides)
    if is_main_process():  # other ranks get here while rank 0 writes the last .mdl
        shutil.rmtree(work, ignore_errors=True)
        (folder / TARGET).unlink(missing_ok=True)
    return {"step": last} | (evaluation.metrics if evaluation else {})


def check_device(device: str) -> None:
    if device == "GPU" and not torch.cuda.is_available():
        raise UserError("GPU: torch finds no GPU; give CPU")
    if device == "CPU" and torch.cuda.is_available():
        raise UserError("CPU: this machine has GPUs; set CUDA_VISIBLE_DEVICES= to use the CPU")


def check_later_checkpoints(folder: Path, start: Start) -> None:
    """A run may not write among the later checkpoints of another run."""
    later = [path for step, path in list_checkpoints(folder).items() if step > start.step]
    if later:
        raise UserError(
            f"{later[-1]}: later than step {start.step}, where this run starts; leave out --checkpoint_path to resume "
            "from it, or give another --model_dir"
        )


def target_step(params: Params, start: int, data: InputData, folder: Path) -> int:
    """The step to train up to. Raises UserError where the run has reached it."""
    config = params.runconfig
    if config.num_steps:
        return steps_after(start, config.num_steps, folder / TARGET)
    epochs, per_epoch = config.num_epochs, config.steps_per_epoch
    if per_epoch and not epochs:
        raise UserError("runconfig.steps_per_epoch: needs num_epochs")
    last = config.max_steps or (epochs and min(epochs * (per_epoch or math.inf), data.steps(epochs)))
    if not last:
        raise UserError("runconfig.max_steps: missing; set it, or give --max_steps, --num_steps or --num_epochs")
    if start >= last:
        reached = f"the checkpoint is at step {start}, and max_steps is {last}: nothing to train"
        raise UserError(f"{reached}; give a larger --max_steps, or --num_steps")
    return last


def steps_after(start: int, number: int, record: Path) -> int:
    """The last of `number` further steps. They count from where a run that was interrupted began, which `record` keeps
    until it ends."""
    begun = read_json(record, "delete it") if record.is_file() else {}
    with name_damage(record, "delete it"):
        if begun and begun["num_steps"] == number and begun["start"] <= start <= begun["start"] + number:
            if start == begun["start"] + number:
                record.unlink(missing_ok=True)
                done = f"the {number} further steps of the interrupted run are done, up to step {start}"
                raise UserError(f"--num_steps {number}: {done}; the same command trains {number} more")
            start = begun["start"]
    if is_main_process():
        write_json(record, {"num_steps": number, "start": start})
    return start + number


def make_settings(params: Params, data: InputData, last: int) -> TrainingSettings:
    section, optimizer = data.section, params.optimizer
    return TrainingSettings(
        lr=1.0,  # the schedule gives the rates
        bs=section.batch_size,
        wd=optimizer.weight_decay,
        warmup=0.0,
        seed=params.runconfig.seed,
        block_size=data.length,
        save_steps=params.runconfig.checkpoint_steps or last,
        keep_checkpoints=1,
        precision="bf16" if params.model.mixed_precision else "fp32",
        sharding=choose_sharding("none", 0),
        report_to="tensorboard",
        max_grad_norm=optimizer.max_gradient_norm or 0.0,  # 0: no clipping
        num_workers=data.num_workers,
        prefetch=section.prefetch_factor,
        keep_workers=section.persistent_workers,
    )


def make_optimizer(params: Params) -> tuple[type, dict]:
    """Class and keyword arguments, with a learning rate of 1 for the schedule to multiply."""
    values = params.optimizer
    betas = (values.beta1, values.beta2)
    return AdamW, {"lr": 1.0, "betas": betas, "eps": values.eps, "early_eps": True, "correct_bias": values.correct_bias}


def prepare_folder(folder: Path, work: Path, section: dict, start: Start) -> None:
    """On rank 0, first: unpack the checkpoint to resume from, or remove the metrics of an earlier run."""
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        if is_main_process():
            shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed while saving
            if start.checkpoint:
                unpack(start.checkpoint, section, work / f"checkpoint-{start.step}")
            else:
                (folder / "metrics.jsonl").unlink(missing_ok=True)


class Console(TrainerCallback):
    """Prints `| Train Device=CPU, Step=50, Loss=3.14159, Rate=…` every `frequency` steps, as the published release."""

    def __init__(self, device: str, frequency: int, bs: int):
        self.device, self.frequency, self.bs = device, frequency, bs

    def on_train_begin(self, args, state, control, **unused) -> None:
        self.first_step, self.start_time = state.global_step, time.monotonic()
        self.printed_step, self.printed_time = self.first_step, self.start_time

    def on_log(self, args, state, control, logs=None, **unused) -> None:
        step = state.global_step
        if "loss" not in logs or (step % self.frequency and step != state.max_steps):
            return
        now = time.monotonic()
        rate = (step - self.printed_step) * self.bs / (now - self.printed_time)
        global_rate = (step - self.first_step) * self.bs / (now - self.start_time)
        self.printed_step, self.printed_time = step, now
        print_main(
            f"| Train Device={self.device}, Step={step}, Loss={logs['loss']:.5f}, Rate={rate:.2f} samples/sec, "
            f"GlobalRate={global_rate:.2f} samples/sec"
        )
