"""Options of train.py, and the settings of a training run."""

import argparse
from dataclasses import dataclass

from utils import cli, paths
from utils.cli import as_typed, fraction, int_between, non_negative_int, number_type, positive_float, positive_int


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that decide the result of a run, besides data and model, and the use of the machine."""

    lr: float  # peak
    bs: int  # blocks per optimizer step, over all GPUs
    wd: float
    warmup: float  # fraction of the steps
    seed: int
    block_size: int  # tokens
    save_steps: int
    keep_checkpoints: int
    precision: str  # bf16 or fp32
    optim_state_dtype: str = "fp32"  # a key of optim.STATE_BYTES
    micro_batch: int | None = None  # blocks per forward pass and GPU
    recomputed_layers: int = 0  # layers with gradient checkpointing
    compiled: bool = False
    lora_rank: int = 0  # 0: all weights are trained
    sharding: str = "none"  # none (DDP), full (FSDP2) or hybrid (FSDP2 within a node, DDP between nodes)
    run_eval: bool = False
    report_to: str = "none"
    max_grad_norm: float | None = 1.0
    num_workers: int = 0  # processes that prefetch blocks
    prefetch: int = 2  # batches that each of them prefetches
    keep_workers: bool = True  # between epochs


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """The seven values in a run's name; each is kept as typed."""
    group = parser.add_argument_group("recipe")
    add = group.add_argument
    add("--lr", type=as_typed(positive_float), default="5e-06", help="peak learning rate")
    add("--rr", type=as_typed(fraction), default="0.1", help="fraction of blocks that are replay")
    add("--epochs", type=as_typed(positive_float), default="2", help="passes over the synthetic text, such as 0.5")
    add("--bs", type=as_typed(int_between(1, 100_000)), default="16", help="blocks per optimizer step, over all GPUs")
    add("--wd", type=as_typed(fraction), default="0.01", help="weight decay")
    add("--warmup", type=as_typed(fraction), default="0.05", help="fraction of the steps")
    add("--model_name", default=paths.DEFAULT_TOKENIZER, help="hub name or checkpoint folder to start from")
    add("--lora_rank", type=non_negative_int, default=0, help="train low-rank adapters only; 0 trains all weights")
    cli.add_seed_flag(group, "of the data order and of the adapters")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that leave the result alone, or change it by rounding only."""
    add = parser.add_argument_group("machine").add_argument
    add("--save_steps", type=positive_int, default=500, help="steps between checkpoints: the most a crash can cost")
    add("--keep_checkpoints", type=positive_int, default=2, help="newest checkpoints kept while the run is unfinished")
    add("--eval_blocks", type=positive_int, default=256, help="held-out blocks")
    add("--run_eval", action="store_true", help="also measure the held-out loss at every checkpoint")
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of the arithmetic; weights are fp32")
    add("--micro_batch", type=positive_int, help="blocks per forward pass and GPU (default: what 4,096 tokens allow)")
    checkpointing = {"nargs": "?", "const": "all", "default": "auto", "metavar": "LAYERS", "type": checkpointed_layers}
    checkpointing_help = "recompute the first LAYERS layers, or all: less memory, up to a third more compute"
    add("--gradient_checkpointing", **checkpointing, help=f"{checkpointing_help} (default: on a GPU as few as fit)")
    dtypes, shardings = ["fp32", "bf16", "int8"], ["auto", "none", "full", "hybrid"]
    add("--optim_state_dtype", choices=dtypes, default="fp32", help="of AdamW's moments: 8, 4 or 2 bytes per parameter")
    add("--compile", choices=["auto", "on", "off"], default="auto", help="torch.compile; auto: where the run gains")
    sharding_help = "FSDP2 over all GPUs (full) or those of a node (hybrid); auto is full on several GPUs"
    add("--sharding", choices=shardings, default="auto", help=sharding_help)
    add("--report_to", choices=["none", "wandb"], default="none", help="where metrics go besides metrics.jsonl")


layer_count = as_typed(number_type(int, "a number of layers, or all", lambda n: n >= 0))


def checkpointed_layers(text: str) -> str:
    return text if text in ("auto", "all") else layer_count(text)
