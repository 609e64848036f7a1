"""Hugging Face's Trainer on blocks in a fixed order, resumable at any moment.

Knows blocks of tokens and the folder of a run, nothing of tasks.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from training.loss import has_linear_head, restore_head, shifted_cross_entropy
from training.metrics import Metrics
from training.model import prepare_model, unwrap_peft
from training.settings import TrainingSettings
from utils import paths
from utils.checkpoint import last_checkpoint, remove_older_checkpoints
from utils.cli import print_main
from utils.device import is_main_process, world_size
from utils.io import atomic_write
from utils.progress import progress_bar, working
from utils.token_file import IGNORE_INDEX


@dataclass(frozen=True)
class Overrides:
    """Parts that gptj/run.py replaces: the learning-rate schedule (step -> multiple of `settings.lr`), the optimizer
    (class and keyword arguments), the place of metrics.jsonl; its callbacks, in place of the progress bar; and what the
    summed loss of a step is divided by (None: its tokens)."""

    schedule: Callable[[int], float] | None = None
    optimizer: tuple[type, dict] | None = None
    callbacks: Sequence[TrainerCallback] = ()
    metrics_path: Path | None = None
    loss_divisor: float | None = None


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints are complete or absent, whenever it is killed."""

    metrics: Metrics
    schedule: Callable[[int], float] | None = None
    loss_divisor: float | None = None
    keep_checkpoints: int

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):  # transformers 5.23
        """The divisor of the summed loss of a step, over all ranks and accumulated micro-batches."""
        if self.loss_divisor is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        return torch.tensor(self.loss_divisor, device=device)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule)
        self._created_lr_scheduler = True  # transformers 5.23
        return self.lr_scheduler

    def log(self, logs: dict, start_time: float | None = None) -> None:
        """Add throughput, so that wandb receives it too."""
        speed = self.metrics.speed(self.state) if "loss" in logs else {}
        super().log(logs | speed, start_time)

    def evaluate(self, *arguments, **options) -> dict:
        """Held-out loss, without a DataLoader, which would draw from the global random generator."""
        with torch.compiler.set_stance("force_eager"):  # compiling a second graph without gradients would not pay
            metrics = {"eval_loss": held_out_loss(self)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, trial) -> None:  # transformers 5.23
        with working(f"saving checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            for path in folder.rglob("*"):
                if path.is_file():
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
            with atomic_write(folder / paths.COMPLETE):
                pass
            remove_older_checkpoints(folder.parent, self.keep_checkpoints)


def train(
    model,
    tokenizer,
    datasets: tuple[Dataset, Dataset | None],
    settings: TrainingSettings,
    folder: Path,
    overrides: Overrides = Overrides(),
) -> dict:
    """Train `model` on the blocks of `datasets[0]` in their order, `settings.bs` of them per optimizer step.

    Resumes from the newest checkpoint in `folder`. At the end `folder` holds the weights (safetensors, fp32)
    and, unless it is None, the tokenizer. Returns steps, tokens, tokens/s, the last losses, and the loss on the
    held-out blocks `datasets[1]` before and after training (None without held-out blocks).
    """
    blocks, held_out = datasets
    prepare_model(model, settings)
    trainer = make_trainer(model, tokenizer, datasets, settings, folder, overrides)
    metrics = trainer.metrics
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        print_main(f"resuming from {checkpoint}")
    else:
        if is_main_process():
            metrics.path.unlink(missing_ok=True)
        # Not trainer.evaluate(): before train() it leaves the model prepared without DDP or FSDP, and each rank
        # would train alone (transformers 5.23, accelerate 1.15).
        trainer.args.eval_on_start = held_out is not None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    tokens_per_s = metrics.tokens_per_s(trainer.state)
    if held_out is not None:
        trainer.evaluate()
    if tokenizer is not None:
        with working("saving the weights"):
            save(trainer, folder)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    held_out_losses = metrics.held_out_losses() or [None]
    result = {"steps": len(blocks) // settings.bs, "tokens": len(blocks) * settings.block_size}
    result |= {"tokens_per_s": round(tokens_per_s, 1), "last_losses": losses[-10:]}
    return result | {"held_out_loss_before": held_out_losses[0], "held_out_loss_after": held_out_losses[-1]}


def make_trainer(
    model, tokenizer, datasets: tuple, settings: TrainingSettings, folder: Path, overrides: Overrides
) -> ResumableTrainer:
    blocks, held_out = datasets
    steps = len(blocks) // settings.bs
    if settings.report_to == "wandb":
        paths.out_dir().mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DIR", str(paths.out_dir()))
    metrics = Metrics(
        overrides.metrics_path or folder / "metrics.jsonl",
        settings.bs * settings.block_size,
        flops_per_token(model_shape(model), settings.block_size),
        lambda step: [blocks.name(i) for i in range((step - 1) * settings.bs, step * settings.bs)],
        show_bar=not overrides.callbacks,
    )
    optimizer = overrides.optimizer or optim.optimizer_class(settings.optim_state_dtype, settings.lr, settings.seed)
    trainer = ResumableTrainer(
        model=model,
        args=training_arguments(folder, settings, steps, evaluate=settings.run_eval and held_out is not None),
        train_dataset=blocks,
        eval_dataset=held_out,
        processing_class=tokenizer,  # saved beside the weights
        data_collator=default_data_collator,  # blocks have equal length: no padding
        callbacks=[metrics, *overrides.callbacks],
        optimizer_cls_and_kwargs=optimizer,
        compute_loss_func=None if has_linear_head(unwrap_peft(model)) else shifted_cross_entropy,
    )
    trainer.metrics, trainer.keep_checkpoints = metrics, settings.keep_checkpoints
    trainer.schedule, trainer.loss_divisor = overrides.schedule, overrides.loss_divisor
    trainer._loss_shifts_labels = True  # transformers 5.23: the first label of a block does not count
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


@torch.no_grad()
def held_out_loss(trainer: Trainer) -> float:
    """Mean cross-entropy over the unmasked tokens of the held-out blocks, for any micro-batch and number of ranks.

    Every rank makes the same number of forward passes, as sharded weights are gathered in each; where no blocks are
    left for a rank, it computes the first ones again, and they do not count.
    """
    model, blocks, size = trainer.model, trainer.eval_dataset, trainer.args.per_device_eval_batch_size
    ranks, rank = trainer.args.world_size, trainer.args.process_index
    total = torch.zeros(2, dtype=torch.float64)  # of the loss, and of the tokens
    was_training = model.training
    model.eval()
    starts = range(0, len(blocks), ranks * size)
    for first in progress_bar(iterable=starts, desc="held-out loss", unit="batch"):
        mine = range(min(first + rank * size, len(blocks)), min(first + (rank + 1) * size, len(blocks)))
        rows = [blocks[index] for index in mine] or [blocks[0]]
        batch = {name: values.to(trainer.args.device) for name, values in default_data_collator(rows).items()}
        learnt = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        if trainer.compute_loss_func:
            loss = trainer.compute_loss_func(model(**batch | {"labels": None}), batch["labels"])
        else:
            loss = model(**batch).loss
        if mine and learnt:
            total += torch.tensor([float(loss) * learnt, learnt], dtype=torch.float64)
    model.train(was_training)
    loss, tokens = trainer.accelerator.reduce(total.to(trainer.args.device), "sum").tolist()
    return loss / tokens if tokens else float("nan")


def training_arguments(folder: Path, settings: TrainingSettings, steps: int, evaluate: bool) -> TrainingArguments:
    micro_batch = choose_micro_batch(settings)
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=settings.bs // world_size() // micro_batch,
        num_train_epochs=1,  # the dataset lists the blocks of all epochs
        train_sampling_strategy="sequential",
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.wd,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",  # its betas and epsilon; the class comes from optim.optimizer_class
        bf16=settings.precision == "bf16",
        use_cpu=not on_gpu,
        **sharding_arguments(settings),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        eval_strategy="steps" if evaluate else "no",
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
    """FSDP2 by decoder layer; each rank writes its shard of a checkpoint. Hybrid shards the model over the GPUs
    of a node, and every node holds a copy."""
    if settings.sharding == "none":
        return {}
    # Gradient checkpointing is model.checkpoint_layers', not FSDP's; all ranks load, since all read one disk.
    sharded = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
    if settings.sharding == "full":
        return sharded
    local = shard_ranks(settings)
    mesh = ParallelismConfig(dp_replicate_size=world_size() // local, dp_shard_size=local)
    return sharded | {"parallelism_config": mesh}


def save(trainer: Trainer, folder: Path) -> None:
    """Save the weights, gathered from all ranks, as one safetensors checkpoint, and the tokenizer.

    LoRA adapters are merged into the weights, so that the folder loads like any other, and saved separately in
    adapter/.
    """
    state = trainer.accelerator.get_state_dict(trainer.model)
    if is_main_process():
        model = trainer.accelerator.unwrap_model(trainer.model)
        restore_head(unwrap_peft(model))
        for name in getattr(model, "all_tied_weights_keys", {}):  # transformers 5.23; gathered from shards, it is twice
            state.pop(name, None)
        if unwrap_peft(model) is not model:
            model.save_pretrained(folder / "adapter")
            model, state = model.float().merge_and_unload(), None
        model.save_pretrained(folder, state_dict=state)
        trainer.processing_class.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
