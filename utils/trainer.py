"""How a model learns: Hugging Face's Trainer, fed in a fixed order, restartable at any moment.

Knows blocks of tokens and a folder to write to, nothing of tasks.
"""

import math
import os
import shutil
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from utils import arithmetic
from utils.checkpoints import load_checkpoint
from utils.io import UserError, replacing
from utils.machine import Settings, choose_micro_batch, is_main_process, world_size
from utils.metrics import Metrics

COMPLETE = "COMPLETE"  # an empty file, written last: a checkpoint without it was cut by a kill


def load_model(name: str):
    """A causal language model with fp32 weights: at a rate of 5e-6 a bf16 weight near 0.02 would
    move by less than half of its last bit, that is not at all."""
    model = load_checkpoint(name, torch.float32, "--model_name")
    model.config.use_cache = False
    check_masters(model)
    return model


def check_masters(model) -> None:
    """Raises UserError where a weight that is trained is not fp32."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                f"{name}: loaded as {parameter.dtype}, and the weights that are trained must be fp32"
            )


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
        save_total_limit=settings.keep_checkpoints,
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


def flops_per_token(model, settings: Settings) -> float:
    return arithmetic.flops_per_token(arithmetic.shape_of(model), settings.block_size)


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
    metrics = Metrics(
        folder / "metrics.jsonl",
        settings.bs * settings.block_size,
        flops_per_token(model, settings),
        lambda step: [blocks.name(i) for i in range((step - 1) * settings.bs, step * settings.bs)],
    )
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
