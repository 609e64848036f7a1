"""How a training run fits the machine it is on: ranks, arithmetic, micro-batches, memory."""

import argparse
import math
from dataclasses import dataclass

from utils import paths
from utils.cli import Typed
from utils.errors import UserError


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the result of a run, besides data and model, and how it is run."""

    lr: float
    bs: int  # blocks per optimizer step, over all GPUs
    wd: float
    warmup: float  # share of the steps
    seed: int
    block_size: int
    save_steps: int
    keep_checkpoints: int
    precision: str  # bf16 or fp32
    optim_state_dtype: str = "fp32"  # a key of optim.STATE_BYTES
    micro_batch: int | None = None  # blocks per forward pass and GPU
    recomputed_layers: int = 0  # whose activations the backward pass computes again
    compiled: bool = False
    lora_rank: int = 0  # 0: all weights learn
    sharding: str = "none"  # none (DDP), full (FSDP2) or hybrid (FSDP2 in a node, DDP between them)
    run_eval: bool = False
    report_to: str = "none"
    max_grad_norm: float | None = 1.0
    num_workers: int = 0  # processes that read blocks ahead
    prefetch: int = 2  # batches a process reads ahead
    keep_workers: bool = True  # from one epoch to the next


def recipe_arguments(group: argparse.ArgumentParser) -> None:
    add = group.add_argument
    add("--lr", type=Typed, default="5e-06", help="peak learning rate (default 5e-06)")
    add("--rr", type=Typed, default="0.1", help="share of the blocks that are replay (default 0.1)")
    add("--epochs", type=Typed, default="2", help="over the synthetic text; 0.5 is half of it (default 2)")
    add("--bs", type=Typed, default="16", help="blocks per optimizer step, over all GPUs (default 16)")
    add("--wd", type=Typed, default="0.01", help="weight decay (default 0.01)")
    add("--warmup", type=Typed, default="0.05", help="share of the steps (default 0.05)")
    add(
        "--task_name",
        default="quality",
        help="quality, example or your own; -raw, -rephrase, -qa, -strategies behind it for other text; instruct for conversations (default quality)",
    )
    add("--model_name", default=paths.DEFAULT_TOKENIZER, help="hub name or checkpoint folder (default %(default)s)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="the generator of the passages (default %(default)s)")
    add(
        "--conversations",
        default=paths.DEFAULT_CONVERSATIONS,
        help="name of their files, for --task_name instruct (default %(default)s)",
    )
    add("--replay", default=paths.DEFAULT_REPLAY, help="name of the replay files (default %(default)s)")
    add("--block_size", type=int, default=2048, help="tokens per block (default 2048)")
    add("--subsample_ratio", type=Typed, default="1", help="share of the documents; smaller lie in larger (default 1)")
    add(
        "--mask_documents",
        action="store_true",
        help="keep attention inside a document (default: packed, as in the paper)",
    )
    add("--lora_rank", type=int, default=0, help="train low-rank adapters alone (default 0: all weights)")
    add("--seed", type=int, default=0, help="of the data's order (default 0)")


def machine_arguments(group: argparse.ArgumentParser) -> None:
    add = group.add_argument
    add("--save_steps", type=int, default=500, help="steps between checkpoints (default 500)")
    add("--keep_checkpoints", type=int, default=2, help="the newest so many, until the run is finished (default 2)")
    add("--run_eval", action="store_true", help="held-out replay loss at every checkpoint, not only before and after")
    add("--eval_blocks", type=int, default=256, help="held-out replay blocks (default 256)")
    add(
        "--precision",
        choices=["auto", "bf16", "fp32"],
        default="auto",
        help="of the arithmetic; weights are fp32 (default auto)",
    )
    add("--micro_batch", type=int, help="blocks per forward pass and GPU (default: what 4,096 tokens allow)")
    add(
        "--gradient_checkpointing",
        nargs="?",
        const="all",
        default="auto",
        metavar="LAYERS",
        help="layers computed twice, a number or all: less memory, up to a third more arithmetic (default: on a GPU as few as fit)",
    )
    add(
        "--optim_state_dtype",
        choices=["fp32", "bf16", "int8"],
        default="fp32",
        help="of AdamW's moments: 8, 4 or 2 bytes a parameter (default fp32)",
    )
    add(
        "--compile",
        choices=["auto", "on", "off"],
        default="auto",
        help="torch.compile (default: where the run is long enough to gain)",
    )
    add(
        "--sharding",
        choices=["auto", "none", "full", "hybrid"],
        default="auto",
        help="of the model: over all GPUs, or (hybrid) those of a node (default: over all)",
    )
    add("--report_to", choices=["none", "wandb"], default="none")


def check(args: argparse.Namespace) -> None:
    for name in ("lr", "epochs", "bs", "block_size", "save_steps", "keep_checkpoints", "eval_blocks"):
        if not 0 < getattr(args, name) < math.inf:
            raise UserError(f"--{name} {getattr(args, name)}: must be a number above 0")
    if args.bs != int(args.bs):
        raise UserError(f"--bs {args.bs}: a whole number of blocks")
    if args.micro_batch is not None and args.micro_batch < 1:
        raise UserError(f"--micro_batch {args.micro_batch}: must be above 0")
    layers = args.gradient_checkpointing
    if layers not in ("auto", "all") and not layers.isdecimal():
        raise UserError(f"--gradient_checkpointing {layers}: a number of layers, or all")
    for name in ("seed", "lora_rank"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} {getattr(args, name)}: must not be below 0")
    for name in ("wd", "warmup", "rr"):
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: from 0 to below 1")
