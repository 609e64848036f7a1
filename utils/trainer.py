"""How a model learns: Hugging Face's Trainer, fed in a fixed order, restartable at any moment.

Knows blocks of tokens and a folder to write to, nothing of tasks.
"""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from utils import paths
from utils.io import UserError, first_line, replacing
from utils.metrics import Metrics

COMPLETE = "COMPLETE"  # an empty file, written last: a checkpoint without it was cut by a kill
MICRO_BATCH_TOKENS = 4096  # of one forward pass: Llama 3 8B's fp32 logits for it are 2.1 GB


@dataclass(frozen=True)
class Settings:
    """What decides the result of a run, besides data and model, and how it is run."""

    lr: float
    bs: int  # blocks per optimizer step, over all GPUs
    wd: float
    warmup: float  # share of the steps
    seed: int
    block_size: int
    save_steps: int
    precision: str  # bf16 or fp32
    micro_batch: int | None = None  # blocks per forward pass and GPU
    gradient_checkpointing: bool = False
    run_eval: bool = False
    report_to: str = "none"


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def choose_precision(asked: str) -> str:
    """bf16 autocast over fp32 weights where the chip multiplies bf16 fast, fp32 elsewhere.

    On a CPU without AMX bf16 is the slower one: 140 against 210 tokens/s (SmolLM2-135M, 2 x 256,
    Xeon with AVX512-BF16, two cores; LOG.md, 2026-11-22).
    """
    if asked != "auto":
        return asked
    fast = torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if fast else "fp32"


def choose_micro_batch(settings: Settings) -> int:
    """Blocks per forward pass: the largest divisor of the rank's share that MICRO_BATCH_TOKENS allow."""
    if world_size() == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"one process sees {torch.cuda.device_count()} GPUs; start it by scripts/train.sh, "
            "or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if settings.bs % world_size():
        raise UserError(f"--bs {settings.bs} does not divide by {world_size()} processes")
    share = settings.bs // world_size()
    if settings.micro_batch and share % settings.micro_batch:
        raise UserError(
            f"--bs {settings.bs} does not divide by {world_size()} processes of --micro_batch {settings.micro_batch}"
        )
    most = max(1, MICRO_BATCH_TOKENS // settings.block_size)
    return settings.micro_batch or max(
        n for n in range(1, share + 1) if share % n == 0 and n <= most
    )


def load_model(name: str):
    """A causal language model with fp32 weights: at a rate of 5e-6 a bf16 weight near 0.02 would
    move by less than half of its last bit, that is not at all."""
    found = paths.find_checkpoint(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(found, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model_name {name}: not a checkpoint folder, and not to be had from the hub "
            f"({first_line(error)})"
        ) from error
    model.config.use_cache = False
    return model


def training_arguments(
    folder: Path, settings: Settings, steps: int, evaluated: bool
) -> TrainingArguments:
    micro_batch = choose_micro_batch(settings)
    on_gpu = torch.cuda.is_available()
    sharded = on_gpu and world_size() > 1
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=settings.bs // world_size() // micro_batch,
        num_train_epochs=1,  # the plan holds all epochs, one block after the other
        train_sampling_strategy="sequential",
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.wd,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bf16",
        use_cpu=not on_gpu,
        fsdp=True if sharded else None,
        fsdp_config={"version": 2, "state_dict_type": "FULL_STATE_DICT"} if sharded else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        eval_strategy="steps" if evaluated else "no",
        eval_steps=settings.save_steps,
        prediction_loss_only=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to=settings.report_to,
        run_name=folder.name,
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
    )


class CompleteCheckpoints(Trainer):
    """A Trainer whose checkpoints are complete or not there, whatever moment it is killed at."""

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            for path in folder.rglob("*"):
                if path.is_file():
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
            with replacing(folder / COMPLETE):
                pass


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; what a kill left half written is removed."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete.append(path)
        elif is_main_process():
            shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.partition("-")[2]), default=None)


def train(
    model, tokenizer, blocks: Dataset, held_out: Dataset | None, settings: Settings, folder: Path
) -> dict:
    """Train `model` on `blocks` in their order, one optimizer step every `settings.bs` of them.

    Goes on from the newest checkpoint in `folder`; at the end weights (safetensors, fp32) and
    tokenizer are in `folder` itself. Returns steps, tokens seen, tokens/s, the last losses, and the
    loss on `held_out` before and after.
    """
    steps = len(blocks) // settings.bs
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    metrics = Metrics(folder / "metrics.jsonl", settings.bs * settings.block_size)
    trainer = CompleteCheckpoints(
        model=model,
        args=training_arguments(
            folder, settings, steps, evaluated=settings.run_eval and held_out is not None
        ),
        train_dataset=blocks,
        eval_dataset=held_out,
        processing_class=tokenizer,  # saved beside the weights
        data_collator=default_data_collator,  # blocks are of one length: nothing to pad
        callbacks=[metrics],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    resumed = last_checkpoint(folder)
    if resumed and is_main_process():
        print(f"going on from {resumed}")
    if not resumed:
        if is_main_process():
            metrics.path.unlink(missing_ok=True)
        # Not trainer.evaluate(): before train() it leaves the model prepared without DDP or FSDP,
        # and the ranks would each learn alone (transformers 5.23, accelerate 1.15).
        trainer.args.eval_on_start = held_out is not None
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    tokens_per_s = metrics.tokens_per_s(trainer.state)
    if held_out is not None:
        trainer.evaluate()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    held_out_losses = metrics.held_out_losses()
    return {
        "steps": steps,
        "tokens": len(blocks) * settings.block_size,
        "tokens_per_s": round(tokens_per_s, 1),
        "last_losses": losses[-10:],
        "held_out_loss_before": held_out_losses[0] if held_out_losses else None,
        "held_out_loss_after": held_out_losses[-1] if held_out_losses else None,
    }


def tidy(folder: Path) -> None:
    """Remove what only a resume needs from a finished run: a checkpoint is three times the fp32
    weights. To be called once nothing can make a resume necessary any more."""
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
