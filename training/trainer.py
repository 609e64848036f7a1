"""How a model learns: Hugging Face's Trainer, fed in a fixed order, restartable at any moment.

Knows blocks of tokens and a folder to write to, nothing of tasks.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import ParallelismConfig
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from training import optim
from training.flops import flops_per_token, model_shape
from training.hardware import choose_micro_batch, shard_ranks
from training.loss import restore_head
from training.metrics import Metrics
from training.model import prepare_model, unwrap_peft
from training.settings import TrainingSettings
from utils.checkpoint import COMPLETE, last_checkpoint
from utils.device import is_main_process, world_size
from utils.io import atomic_write


def training_arguments(folder: Path, settings: TrainingSettings, steps: int, evaluated: bool) -> TrainingArguments:
    micro_batch = choose_micro_batch(settings)
    on_gpu = torch.cuda.is_available()
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
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",  # its betas and epsilon; the class is `optim.choose`'s
        bf16=settings.precision == "bf16",
        use_cpu=not on_gpu,
        **sharding_arguments(settings),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        eval_strategy="steps" if evaluated else "no",
        eval_steps=settings.save_steps,
        prediction_loss_only=True,
        dataloader_num_workers=settings.num_workers,
        dataloader_prefetch_factor=settings.prefetch if settings.num_workers else None,
        dataloader_persistent_workers=settings.keep_workers and settings.num_workers > 0,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to=settings.report_to,
        run_name=folder.name,
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
    )


def sharding_arguments(settings: TrainingSettings) -> dict:
    """FSDP2 by transformers' layers; each rank writes its part of a checkpoint. Hybrid: the model is
    spread over the GPUs of a node, and the nodes hold a copy each."""
    if settings.sharding == "none":
        return {}
    # Recomputation is ours (`recompute`), not FSDP's; all ranks load, since all read one disk.
    sharded = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
    if settings.sharding == "full":
        return sharded
    local = shard_ranks(settings)
    mesh = ParallelismConfig(dp_replicate_size=world_size() // local, dp_shard_size=local)
    return sharded | {"parallelism_config": mesh}


class CompleteCheckpoints(Trainer):
    """A Trainer whose checkpoints are complete or not there, whatever moment it is killed at."""

    metrics: Metrics
    rate: Callable[[int], float] | None = None  # step -> learning rate, in place of the cosine

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.rate is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict, start_time: float | None = None) -> None:
        """wandb is told the speed, too."""
        speed = self.metrics.speed(self.state) if "loss" in logs else {}
        super().log(logs | speed, start_time)

    def evaluate(self, *arguments, **options) -> dict:
        with torch.compiler.set_stance("force_eager"):  # not worth compiling without gradients
            return super().evaluate(*arguments, **options)

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            for path in folder.rglob("*"):
                if path.is_file():
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
            with atomic_write(folder / COMPLETE):
                pass


def make_trainer(
    model, tokenizer, blocks, held_out, settings: TrainingSettings, folder: Path, optimizer, callbacks
) -> CompleteCheckpoints:
    steps = len(blocks) // settings.bs
    metrics = Metrics(
        folder / "metrics.jsonl",
        settings.bs * settings.block_size,
        flops_per_token(model_shape(model), settings.block_size),
        lambda step: [blocks.name(i) for i in range((step - 1) * settings.bs, step * settings.bs)],
        show=not callbacks,
    )
    trainer = CompleteCheckpoints(
        model=model,
        args=training_arguments(folder, settings, steps, evaluated=settings.run_eval and held_out is not None),
        train_dataset=blocks,
        eval_dataset=held_out,
        processing_class=tokenizer,  # saved beside the weights
        data_collator=default_data_collator,  # blocks are of one length: nothing to pad
        callbacks=[metrics, *callbacks],
        optimizer_cls_and_kwargs=optimizer
        or optim.optimizer_class(settings.optim_state_dtype, settings.lr, settings.seed),
    )
    trainer.metrics = metrics
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def train(
    model,
    tokenizer,
    blocks: Dataset,
    held_out: Dataset | None,
    settings: TrainingSettings,
    folder: Path,
    rate: Callable[[int], float] | None = None,
    optimizer: tuple[type, dict] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    metrics_path: Path | None = None,
) -> dict:
    """Train `model` on `blocks` in their order, one optimizer step every `settings.bs` of them.

    Goes on from the newest checkpoint in `folder`; at the end weights (safetensors, fp32) and
    tokenizer are in `folder` itself, where a tokenizer is given. `rate` gives the learning rate of a
    step as a multiple of `settings.lr`, in place of warm-up and cosine; `optimizer` a class and its
    settings; `metrics_path` another place of metrics.jsonl. Returns steps, tokens seen, tokens/s, the last losses, and the loss on `held_out`
    before and after.
    """
    prepare_model(model, settings)
    trainer = make_trainer(model, tokenizer, blocks, held_out, settings, folder, optimizer, callbacks)
    trainer.rate, metrics = rate, trainer.metrics
    metrics.path = metrics_path or metrics.path
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
    if tokenizer is not None:
        save(trainer, folder)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    held_out_losses = metrics.held_out_losses()
    return {
        "steps": len(blocks) // settings.bs,
        "tokens": len(blocks) * settings.block_size,
        "tokens_per_s": round(tokens_per_s, 1),
        "last_losses": losses[-10:],
        "held_out_loss_before": held_out_losses[0] if held_out_losses else None,
        "held_out_loss_after": held_out_losses[-1] if held_out_losses else None,
    }


def save(trainer: Trainer, folder: Path) -> None:
    """Weights as one safetensors checkpoint, put together from all ranks', and the tokenizer. Adapters
    are merged into the weights, so that whoever loads the folder need not know of them, and lie in
    adapter/ by themselves."""
    state = trainer.accelerator.get_state_dict(trainer.model)
    if is_main_process():
        model = trainer.accelerator.unwrap_model(trainer.model)
        restore_head(unwrap_peft(model))
        if unwrap_peft(model) is not model:
            model.save_pretrained(folder / "adapter")
            model, state = model.float().merge_and_unload(), None
        model.save_pretrained(folder, state_dict=state)
        trainer.processing_class.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
